"""Files that PyTorch 1.5.1 wrote of modules of open_clip 2.0.2, with Python 3.8.

`old/finetuned.pt` is the ImageEncoder of task_vectors around a tiny CLIP, by `pickle.dump`,
`old/head_MNIST.pt` a ClassificationHead by `pickle.dump` in protocol 2, and `old/head_row.pt`
the same by `torch.save`. `old/reference.json` has an image and its features, computed there.
No later open_clip has the classes in them.
"""

import json
import shutil
from pathlib import Path

import open_clip
import pytest
import torch
from safetensors.torch import load_file

from momacli.convert import convert

OLD = Path(__file__).parent / "old"
REFERENCE = json.loads((OLD / "reference.json").read_text())
MODEL = {
    "embed_dim": 4,
    "quick_gelu": True,
    "vision_cfg": {"image_size": 4, "layers": 1, "width": 8, "head_width": 4, "patch_size": 2},
    "text_cfg": {"context_length": 4, "vocab_size": 10, "width": 8, "heads": 2, "layers": 1},
}


def test_an_image_encoder_has_the_features_it_had_then(tmp_path):
    report = convert([OLD / "finetuned.pt"], output=tmp_path / "out.safetensors")
    tensors = load_file(tmp_path / "out.safetensors")
    model = open_clip.CLIP(**MODEL).eval()
    del model.transformer  # as task_vectors does
    outer = torch.nn.Module()
    outer.model = model
    outer.load_state_dict(tensors, strict=True)

    assert sorted(tensors) == sorted(REFERENCE["names"])
    assert report.files[0].kind == "src.modeling.ImageEncoder"
    with torch.no_grad():
        found = model.encode_image(torch.tensor(REFERENCE["pixels"]))
    torch.testing.assert_close(found, torch.tensor(REFERENCE["features"]))


@pytest.mark.parametrize("name", ["head_MNIST.pt", "head_row.pt"])
def test_heads_are_the_same_in_both_forms(name, tmp_path):
    report = convert([OLD / name], output=tmp_path / "out.safetensors")
    tensors = load_file(tmp_path / "out.safetensors")

    assert report.files[0].kept == {"normalize": True}
    assert tensors["weight"].shape == (2, 4)
    assert torch.equal(tensors["bias"], torch.zeros(2))
    other = {"head_MNIST.pt": "head_row.pt", "head_row.pt": "head_MNIST.pt"}[name]
    convert([OLD / other], output=tmp_path / "other.safetensors")
    assert torch.equal(load_file(tmp_path / "other.safetensors")["weight"], tensors["weight"])


def test_the_activation_is_told_by_the_classes_that_are_named(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("ViT-B-32__pretrained__laion2b_s34b_b79k/MNIST").mkdir(parents=True)
    folder = Path("ViT-B-32__pretrained__laion2b_s34b_b79k")
    shutil.copy(OLD / "finetuned.pt", folder / "MNIST/finetuned.pt")
    shutil.copy(OLD / "head_MNIST.pt", folder)
    convert([folder], output="out")

    config = json.loads(Path("out/MNIST/open_clip_config.json").read_text())
    assert config["model_cfg"]["quick_gelu"] is True  # by its name it would not be
    assert Path("out/MNIST/head_MNIST.safetensors").is_file()
