"""The public layouts of pickled checkpoints become folders that merge takes as they are."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from pickled import as_plain, as_zip, module_for_now, pickled_head
from safetensors.torch import load_file
from torch import nn

from momacli.checkpoint.description import describe
from momacli.checkpoint.reader import Checkpoint, is_adapter
from momacli.cli.main import run
from momacli.convert import convert
from momacli.errors import CheckpointError, ConflictError, UsageError
from momacli.info import info
from momacli.merge import merge

CONFIG = {"model_cfg": {"embed_dim": 4, "vision_cfg": {}, "text_cfg": {}}, "preprocess_cfg": {}}


def encoder(step: float) -> dict[str, torch.Tensor]:
    start = torch.arange(12.0).reshape(3, 4)
    return {"model.visual.proj": start + step, "model.visual.ln_post.weight": torch.ones(3)}


class ImageEncoder(nn.Module):
    """Like that of task_vectors: open_clip's model in an attribute, and what it was run with."""

    def __init__(self, tensors: dict[str, torch.Tensor]):
        super().__init__()
        self.model = nn.Module()
        self.model.visual = nn.Module()
        self.model.visual.proj = nn.Parameter(tensors["model.visual.proj"])
        self.model.visual.ln_post = nn.LayerNorm(3, bias=False)
        self.cache_dir = None


def save(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


@pytest.fixture
def place(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("open_clip_config.json").write_text(json.dumps(CONFIG))
    return tmp_path


def test_task_vectors_becomes_a_base_and_a_folder_a_task(place):
    with module_for_now("src.modeling", ImageEncoder=ImageEncoder):
        save(place / "in/tiny/zeroshot.pt", as_plain(ImageEncoder(encoder(0))))
        for number, task in enumerate(("MNIST", "DTD"), start=1):
            save(place / f"in/tiny/{task}/finetuned.pt", as_zip(ImageEncoder(encoder(number))))
            save(place / f"in/tiny/{task}/zeroshot.pt", b"\x80\x04N.")
            save(place / f"in/tiny/head_{task}.pt", pickled_head(torch.ones(number, 4)))
        save(place / "in/tiny/head_Cars.pt", pickled_head(torch.ones(2, 4)))

    report = convert(["in"], output="out", config="open_clip_config.json")
    merged = merge(sorted(Path("out").iterdir()), method="average", output="merged.safetensors")

    assert report.passed_over == ("head_Cars.pt: a head without an expert of its task",)
    assert sorted(str(path.relative_to("out")) for path in Path("out").rglob("*.*")) == [
        "DTD/head_DTD.safetensors",
        "DTD/model.safetensors",
        "DTD/open_clip_config.json",
        "MNIST/head_MNIST.safetensors",
        "MNIST/model.safetensors",
        "MNIST/open_clip_config.json",
        "zeroshot/model.safetensors",
        "zeroshot/open_clip_config.json",
    ]
    assert json.loads(Path("out/DTD/open_clip_config.json").read_text()) == CONFIG
    assert merged.tasks == ("DTD", "MNIST")
    (pickled,) = info("out/DTD").origin.inputs
    assert pickled.found
    assert pickled.path.samefile("in/tiny/DTD/finetuned.pt")
    tensors = load_file("merged.safetensors")
    assert torch.equal(tensors["model.visual.proj"], encoder(1.5)["model.visual.proj"])
    assert tensors["heads.DTD.zeroshot_head.weight"].shape == (2, 4)


def test_tall_masks_has_its_base_under_any_task_and_loses_the_ending_of_its_names(place):
    for number, task in enumerate(("MNISTVal", "DTDVal"), start=1):
        value = encoder(number) | {"model_name": "tiny"}
        save(place / f"tiny/{task}/nonlinear_finetuned.pt", as_zip(value))
        save(place / f"tiny/head_{task}.pt", pickled_head(torch.ones(3, 4)))
    save(place / "tiny/MNISTVal/nonlinear_zeroshot.pt", as_zip(encoder(0)))
    save(place / "tiny/MNISTVal/linear_finetuned.pt", as_zip(encoder(9)))

    report = convert(["tiny"], output="out", config="open_clip_config.json")
    merged = merge(sorted(Path("out").iterdir()), method="average", output="merged.safetensors")

    assert report.passed_over == ("MNISTVal/linear_finetuned.pt",)
    assert merged.tasks == ("DTD", "MNIST")
    assert Path("out/MNIST/head_MNIST.safetensors").is_file()
    assert convert(["tiny"], output="out", config="open_clip_config.json").files  # what it wrote


def test_a_folder_named_like_a_model_of_open_clip_needs_no_config(place):
    save(place / "ViT-B-32/zeroshot.pt", as_zip(encoder(0)))
    save(place / "ViT-B-32__pretrained__laion2b_s34b_b79k/zeroshot.pt", as_zip(encoder(0)))

    found = {}
    for name in ("ViT-B-32", "ViT-B-32__pretrained__laion2b_s34b_b79k"):
        convert([name], output="out")
        found[name] = json.loads(Path("out/zeroshot/open_clip_config.json").read_text())

    openai, laion = found.values()
    assert openai["model_cfg"]["vision_cfg"]["patch_size"] == 32
    assert openai["model_cfg"]["quick_gelu"] is True
    assert "quick_gelu" not in laion["model_cfg"]
    assert openai["preprocess_cfg"]["size"] == 224


def test_what_does_not_fit_is_refused_and_nothing_is_written(place):
    save(place / "a/one/zeroshot.pt", as_zip(encoder(0)))
    save(place / "a/two/zeroshot.pt", as_zip(encoder(0)))
    save(place / "b/DTD/finetuned.pt", as_zip(encoder(0)))
    save(place / "b/DTDVal/nonlinear_finetuned.pt", as_zip(encoder(0)))
    save(place / "c/DTD/finetuned.pt", as_zip(encoder(0)))
    save(place / "c/head_DTD.pt", as_zip(encoder(0)))
    save(place / "d/x.pt", as_zip(encoder(0)))
    save(place / "d/x.pth", as_zip(encoder(0)))
    (place / "e").mkdir()
    before = sorted(place.rglob("*"))

    for inputs, error, words in (
        (["a"], ConflictError, "2 architectures"),
        (["b"], ConflictError, "two experts of task DTD"),
        (["c"], CheckpointError, "is not a head"),
        (["d"], ConflictError, "both become"),
        (["e"], CheckpointError, "no pickles"),
        (["d", "d/x.pt"], UsageError, "one folder"),
        (["missing.pt"], CheckpointError, "does not exist"),
        (["open_clip_config.json"], CheckpointError, "no pickle"),
    ):
        with pytest.raises(error, match=words):
            convert(inputs, output="out")
    with pytest.raises(CheckpointError, match="does not exist"):
        convert(["missing"], output="out", config="open_clip_config.json")
    with pytest.raises(UsageError, match="one file"):
        convert(["a/one"], output="out.safetensors")

    assert sorted(place.rglob("*")) == before


def test_a_head_that_does_not_normalise_is_not_taken_for_one_that_does(place):
    save(place / "tiny/zeroshot.pt", as_zip(encoder(0)))
    save(place / "tiny/DTD/finetuned.pt", as_zip(encoder(1)))
    save(place / "tiny/head_DTD.pt", pickled_head(torch.ones(3, 4), normalize=False))
    convert(["tiny"], output="out")

    with pytest.raises(CheckpointError, match="not normalised"):
        merge(["out/zeroshot", "out/DTD"])


def test_a_folder_of_transformers_stays_one(place, vit_folders):
    import transformers

    shutil.copytree(vit_folders / "cats", "cats")
    tensors = load_file("cats/model.safetensors")
    Path("cats/model.safetensors").unlink()
    save(place / "cats/pytorch_model.bin", as_zip(tensors))
    save(place / "cats/optimizer.pt", as_zip({"state": {}}))

    report = convert(["cats"], output="whole")
    kind = transformers.ViTForImageClassification
    assert report.passed_over == ("optimizer.pt",)
    assert not any(kind.from_pretrained("whole", output_loading_info=True)[1].values())

    Path("cats/pytorch_model.bin").unlink()
    names = sorted(tensors)
    for number, part in enumerate((names[:9], names[9:]), start=1):
        content = as_zip({name: tensors[name] for name in part})
        save(place / f"cats/pytorch_model-0000{number}-of-00002.bin", content)
    convert(["cats"], output="sharded")

    assert not any(kind.from_pretrained("sharded", output_loading_info=True)[1].values())
    assert Path("sharded/preprocessor_config.json").is_file()


def test_a_folder_of_open_clip_stays_one(place):
    save(place / "clip/open_clip_pytorch_model.bin", as_zip(encoder(1)))
    shutil.copy("open_clip_config.json", "clip")
    convert(["clip"], output="out")

    with Checkpoint.open(Path("out")) as checkpoint:
        found = describe(checkpoint)
        assert [file.path.name for file in checkpoint.files] == ["open_clip_model.safetensors"]
    assert found is not None
    assert found.config == CONFIG


def test_an_adapter_stays_one(place):
    save(place / "lora/adapter_model.bin", as_zip({"a.lora_A.weight": torch.ones(2, 3)}))
    (place / "lora/adapter_config.json").write_text("{}")
    for _ in range(2):  # the second time over what it wrote
        convert(["lora"], output="out")

    with Checkpoint.open(Path("out")) as checkpoint:
        assert is_adapter(checkpoint)


def test_files_that_lie_together_keep_their_names(place):
    save(place / "ckpts/ag.pth", as_zip(encoder(1)))
    save(place / "ckpts/yelp.pth", as_plain(encoder(2)))
    (place / "ckpts/config.json").write_text("{}")
    convert(["ckpts"], output="folder")
    convert(["ckpts/ag.pth", "ckpts/yelp.pth"], output="files")

    assert {path.name for path in Path("folder").iterdir()} == {
        "ag.safetensors", "yelp.safetensors", "config.json",
    }  # fmt: skip
    assert torch.equal(
        load_file("files/yelp.safetensors")["model.visual.ln_post.weight"], torch.ones(3)
    )


def test_the_command_prints_the_output_and_says_the_rest_on_stderr(place, capsys):
    save(place / "x.pt", as_zip(encoder(1) | {"model_name": "tiny"}))
    status = run(["convert", "x.pt", "-o", "x.safetensors"])

    shown = capsys.readouterr()
    assert status == 0
    assert shown.out == "x.safetensors\n"
    assert "x.pt -> x.safetensors: 2 tensors" in shown.err
    assert "model_name: no tensors, kept in the metadata" in shown.err
    assert run(["convert", "x.pt", "-o", "x.safetensors", "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["files"][0]["tensors"] == 2
    Path("y.safetensors").write_text("mine")
    assert run(["convert", "x.pt", "-o", "y.safetensors"]) == 1
    assert "--force" in capsys.readouterr().err
    assert run(["merge", "x.pt", "--base", "x.safetensors"]) == 1
    assert "moma convert" in capsys.readouterr().err
