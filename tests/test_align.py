import hashlib
import json
import shutil
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file
from tiny_models import CLASSES

from momacli.absorb import absorb
from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.errors import CheckpointError, ConflictError, DataError, MomaError, UsageError
from momacli.evaluate import evaluate
from momacli.features.procrustes import orthogonality_error
from momacli.merge import merge
from momacli.prepare import prepare
from momacli.progress import Notice, Progress

QUICK = Settings(steps=12, batch_size=8)


@pytest.fixture
def place(tmp_path, monkeypatch, vit_folders, vit_files, vit_images):
    """An empty working folder with the inputs beside it, as a user has them."""
    shutil.copytree(vit_folders, tmp_path / "experts")
    shutil.move(tmp_path / "experts" / "base", tmp_path / "base")
    shutil.copytree(vit_files, tmp_path / "ckpts")
    processor = tmp_path / "base" / "preprocessor_config.json"
    shutil.copy(processor, tmp_path / "ckpts")
    for folder in ("unlabeled", "labeled"):
        (tmp_path / folder).symlink_to(vit_images / folder)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture
def merged(place):
    """The same, with the experts merged into the folder merged/."""
    merge([f"experts/{task}" for task in CLASSES], base="base")
    return place


def digests(folder: Path) -> dict[str, str]:
    files = [folder] if folder.is_file() else sorted(folder.rglob("*"))
    return {
        str(file): hashlib.sha256(file.read_bytes()).hexdigest() for file in files if file.is_file()
    }


def pixels(place: Path, task: str) -> torch.Tensor:
    processor = transformers.AutoImageProcessor.from_pretrained(place / "base")
    files = sorted((place / "unlabeled" / task).iterdir())
    images = [Image.open(file).convert("RGB") for file in files]
    return processor(images=images, return_tensors="pt")["pixel_values"]


def strictly_loaded(folder: Path) -> transformers.PreTrainedModel:
    model, info = transformers.AutoModelForImageClassification.from_pretrained(
        folder, output_loading_info=True
    )
    assert not any(info.values()), info
    return model.eval()


def test_every_task_loads_strictly_with_as_many_parameters_as_its_expert(merged):
    align(data="unlabeled", settings=QUICK)

    for task, classes in CLASSES.items():
        model = strictly_loaded(Path("aligned") / task)
        expert = strictly_loaded(Path("experts") / task)
        assert model.num_parameters() == expert.num_parameters()
        assert tuple(model.config.id2label.values()) == classes


def test_logits_are_the_rotated_head_on_the_masked_encoders_features(merged):
    report = align(data="unlabeled", settings=QUICK)
    alignment = load_file("aligned/alignment.safetensors")

    for task in CLASSES:
        model = strictly_loaded(Path("aligned") / task)
        expert = load_file(f"experts/{task}/model.safetensors")
        A = alignment[f"transform.{task}"]
        with torch.no_grad():
            z = model.vit(pixels(merged, task)).last_hidden_state[:, 0]
            expected = z @ A.mT @ expert["classifier.weight"].mT + expert["classifier.bias"]
            found = model(pixels(merged, task)).logits
        torch.testing.assert_close(found, expected, atol=1e-5, rtol=0)
        assert report.tasks[task].logit_difference < 1e-5


def test_encoder_weights_are_base_plus_headroom_times_mask_times_multi_task_vector(merged):
    report = align(data="unlabeled", settings=QUICK)
    alignment = load_file("aligned/alignment.safetensors")
    base = load_file("base/model.safetensors")
    before = load_file("merged/cats/model-00001-of-00002.safetensors")
    after = load_file("aligned/cats/model-00001-of-00002.safetensors")

    assert set(after) == set(before) == set(base)
    for name, theta_0 in base.items():
        mask = alignment[f"mask.{name}"]
        assert 0 <= mask.min() <= mask.max() <= 1
        expected = theta_0 + report.headroom * mask * (before[name] - theta_0)
        torch.testing.assert_close(after[name], expected, atol=1e-7, rtol=1e-6)


def test_the_shared_encoder_is_one_file_on_disk(merged):
    align(data="unlabeled", settings=QUICK)

    shards = {Path(f"aligned/{task}/model-00001-of-00002.safetensors").stat() for task in CLASSES}
    assert len({status.st_ino for status in shards}) == 1
    assert {status.st_nlink for status in shards} == {len(CLASSES)}


def test_transforms_are_exactly_orthogonal_and_the_objective_falls(merged):
    report = align(data="unlabeled", settings=QUICK)
    alignment = load_file("aligned/alignment.safetensors")

    for task, one in report.tasks.items():
        assert orthogonality_error(alignment[f"transform.{task}"]) < 1e-5
        assert one.orthogonality_error < 1e-5
        assert one.cosine_after > one.cosine_before
    total = [(one.objective_before, one.objective_after) for one in report.tasks.values()]
    assert sum(after for _, after in total) < sum(before for before, _ in total)


def test_without_a_mask_the_encoder_keeps_its_bytes(merged):
    align(data="unlabeled", settings=Settings(mask="none"))

    before = load_file("merged/cats/model-00001-of-00002.safetensors")
    after = load_file("aligned/cats/model-00001-of-00002.safetensors")
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_the_same_command_gives_the_same_bytes_and_absorb_gives_them_again(merged):
    align(data="unlabeled", settings=QUICK)
    first = digests(Path("aligned"))
    align(data="unlabeled", settings=QUICK)
    absorb("merged", "aligned/alignment.safetensors", output="absorbed")

    assert digests(Path("aligned")) == first
    again = {
        name.replace("absorbed", "aligned"): d for name, d in digests(Path("absorbed")).items()
    }
    assert {name for name in first if first[name] != again.get(name)} == {
        "aligned/alignment.safetensors",
        *(f"aligned/{task}/README.md" for task in ("birds", "cats", "dogs")),  # with measures
    }


def test_a_plain_file_in_gives_a_plain_file_out_with_a_head_per_task(place):
    merge(sorted(Path("ckpts").glob("*.safetensors")))
    report = align(data="unlabeled", settings=QUICK)

    tensors = load_file("aligned.safetensors")
    base = load_file("ckpts/base.safetensors")
    heads = {f"heads.{task}.classifier.{part}" for task in CLASSES for part in ("weight", "bias")}
    assert report.output == Path("aligned.safetensors")
    assert report.alignment == Path("aligned.alignment.safetensors")
    assert report.alignment.is_file()
    assert set(tensors) == set(base) | heads
    for task, classes in CLASSES.items():
        assert tensors[f"heads.{task}.classifier.weight"].shape == (len(classes), 16)


@pytest.mark.long
def test_the_models_load_where_moma_is_not_installed(merged):
    align(data="unlabeled", settings=QUICK)
    code = (
        "import sys; sys.modules['momacli'] = None\n"
        "from transformers import AutoModelForImageClassification as Auto\n"
        "print(Auto.from_pretrained('aligned/dogs').config.id2label[0])"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == CLASSES["dogs"][0]


def test_fine_tuned_features_are_computed_once(merged):
    def stages(settings):
        events = []
        align(data="unlabeled", settings=settings, listener=events.append)
        return {event.stage for event in events if isinstance(event, Progress)}

    fine_tuned = {f"fine-tuned features of {task}" for task in CLASSES}
    assert fine_tuned <= stages(QUICK)
    assert not fine_tuned & stages(Settings(steps=3))


def test_the_report_tells_what_was_in_the_cache(merged):
    first = align(data="unlabeled", settings=QUICK).cache
    second = align(data="unlabeled", settings=QUICK).cache

    assert (first.found, set(first.computed)) == ((), set(CLASSES))
    assert (set(second.found), second.computed) == (set(CLASSES), ())
    assert (
        first.nbytes
        == second.nbytes
        == sum(path.stat().st_size for path in (merged / "cache/moma").glob("*.safetensors"))
    )


def test_features_of_samples_that_changed_are_computed_again_with_one_line_saying_so(merged):
    shutil.copytree("unlabeled", "samples")
    align(data="samples", settings=Settings(mask="none"))
    min(Path("samples/cats").iterdir()).unlink()
    events = []

    report = align(data="samples", settings=Settings(mask="none"), listener=events.append)

    said = [e.text for e in events if isinstance(e, Notice) and "computed again" in e.text]
    assert len(said) == 1
    assert "features of cats" in said[0]
    assert report.cache.computed == ("cats",)


def test_tasks_prepared_one_by_one_without_the_others_give_the_bytes_of_a_run_alone(merged):
    align(data="unlabeled", settings=QUICK, cache="alone", output="whole")
    shutil.move("experts", "away")
    Path("experts").mkdir()
    for task in CLASSES:
        shutil.move(f"away/{task}", f"experts/{task}")
        report = prepare(data=f"{task}=unlabeled/{task}", tasks=[task], cache="shared")
        assert report.samples == {task: 40}
        assert report.cache.computed == (task,)
        shutil.move(f"experts/{task}", f"away/{task}")
    shutil.rmtree("experts")
    shutil.move("away", "experts")

    found = align(data="unlabeled", settings=QUICK, cache="shared", output="later")

    assert set(found.cache.found) == set(CLASSES)
    assert list(digests(Path("later")).values()) == list(digests(Path("whole")).values())


def test_a_task_that_is_not_there_cannot_be_prepared(merged):
    with pytest.raises(UsageError, match="has no task mice"):
        prepare(data="unlabeled", tasks=["mice"])


@pytest.mark.long
def test_two_processes_prepare_a_task_each_into_one_cache(merged):
    cats, rest = ["--prepare", "cats"], ["--prepare", "birds", "--prepare", "dogs"]
    command = [sys.executable, "-m", "momacli", "align", "--data", "unlabeled", "--cache", "shared"]
    both = [
        subprocess.Popen([*command, *tasks], stdout=subprocess.PIPE, stderr=subprocess.PIPE)
        for tasks in (cats, rest)
    ]

    for process in both:
        out, err = process.communicate()
        assert (process.returncode, out) == (0, b"shared\n"), err.decode()
    report = align(data="unlabeled", settings=QUICK, cache="shared")
    assert set(report.cache.found) == set(CLASSES)


def test_how_samples_are_prepared_is_said_once_a_run_and_from_where(merged):
    told = []
    align(data="unlabeled", settings=Settings(mask="none"), listener=told.append)
    evaluate(["aligned", "experts"], data=merged / "labeled", listener=told.append)

    said = [event.text for event in told if isinstance(event, Notice)]
    steps = "images: RGB, resized to 8 x 8 (bilinear), times 0.003922, mean 0.5 0.5 0.5"
    assert [text for text in said if text.startswith("images: ")] == [
        f"{steps}, std 0.5 0.5 0.5 (from {folder}/birds/preprocessor_config.json)"
        for folder in ("merged", "aligned")
    ]


def test_task_vectors_stand_for_their_experts(merged):
    from momacli.task_vector import task_vector

    align(data="unlabeled", settings=QUICK, output="from-experts")
    task_vector("base", [f"experts/{task}" for task in CLASSES], output="taus")
    merge(sorted(Path("taus").glob("*.safetensors")), base="base", output="m.safetensors")
    align("m.safetensors", data="unlabeled", settings=QUICK, output="from-taus.safetensors")

    expected = load_file("from-experts/cats/model-00001-of-00002.safetensors")
    found = load_file("from-taus.safetensors")
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-4, rtol=1e-3)


def test_an_alignment_records_every_input_with_its_digest_and_what_it_achieved(merged):
    report = align(data="unlabeled", settings=QUICK)
    from safetensors import safe_open

    with safe_open("aligned/cats/model-00001-of-00002.safetensors", "pt") as file:
        recipe = json.loads(file.metadata()["moma"])
    expected = hashlib.sha256(Path("experts/cats/model.safetensors").read_bytes()).hexdigest()

    assert recipe["command"] == "align"
    assert recipe["parameters"]["steps"] == QUICK.steps
    assert recipe["parameters"]["precision"] == report.settings["precision"] != "auto"
    assert recipe["parameters"]["merge"]["method"] == "task-arithmetic"
    with safe_open("aligned/alignment.safetensors", "pt") as file:
        measures = json.loads(file.metadata()["alignment"])["measures"]
    assert measures["steps"] == report.steps
    assert measures["masked_share"] == report.masked_share
    for task, one in report.tasks.items():
        reached = {key: v for key, v in asdict(one).items() if key != "logit_difference"}
        assert measures["tasks"][task] == reached
    cats = next(item for item in recipe["inputs"] if item["name"] == "cats")
    assert cats["path"] == "experts/cats"
    assert cats["files"] == {"model.safetensors": expected}
    assert set(recipe["merged"]["files"]) >= {"cats/model-00001-of-00002.safetensors"}


def nothing_was_written(place: Path) -> bool:
    return not [path.name for path in place.iterdir() if "aligned" in path.name]


def test_a_changed_expert_is_refused_by_name(merged):
    shutil.copy("experts/dogs/model.safetensors", "experts/cats/model.safetensors")

    with pytest.raises(ConflictError, match="experts/cats"):
        align(data="unlabeled", settings=QUICK)
    assert nothing_was_written(merged)


def test_a_missing_expert_says_how_to_go_on(merged):
    shutil.rmtree("experts/cats")

    with pytest.raises(MomaError, match="cats"):
        align(data="unlabeled", settings=QUICK)
    assert nothing_was_written(merged)


def test_a_task_without_samples_is_listed_before_any_work(merged):
    shutil.copytree("unlabeled", "partial")
    shutil.rmtree("partial/dogs")

    with pytest.raises(DataError) as caught:
        align(data="partial", settings=QUICK)
    assert caught.value.details == ("dogs: no folder or file",)
    assert nothing_was_written(merged)


def test_a_folder_given_for_an_alignment_is_refused_with_the_file_that_is_meant(merged):
    align(data="unlabeled", settings=Settings(mask="none"))

    for folder, meant in (("aligned", "aligned/alignment.safetensors"), ("merged", "moma align")):
        with pytest.raises(CheckpointError, match=f"{folder} is a folder") as caught:
            absorb("merged", folder, output="absorbed")

        assert meant in str(caught.value.hint)


def test_an_alignment_is_only_absorbed_by_the_model_it_was_made_for(merged):
    align(data="unlabeled", settings=QUICK)
    merge([f"experts/{task}" for task in CLASSES], base="base", options={"lam": 0.5})

    with pytest.raises(ConflictError, match="was not made for"):
        absorb("merged", "aligned/alignment.safetensors", output="absorbed")
    assert not Path("absorbed").exists()


def test_a_model_merged_without_heads_cannot_be_aligned_and_says_why(place):
    for config in Path("ckpts").glob("*.json"):
        config.unlink()
    tasks = [f"ckpts/{task}.safetensors" for task in CLASSES]
    merge(tasks, base="ckpts/base.safetensors", exclude=["classifier.*"])

    with pytest.raises(ConflictError, match="heads"):
        align(data="unlabeled", settings=QUICK)


def test_without_a_merged_model_here_the_error_says_what_to_do(place):
    with pytest.raises(UsageError, match="no merged/"):
        align(data="unlabeled")


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_without_a_gpu_is_an_error_that_says_so(merged):
    with pytest.raises(MomaError, match="CUDA"):
        align(data="unlabeled", device="cuda")


def test_a_dry_run_checks_everything_and_writes_nothing(merged):
    before = digests(merged)
    report = align(data="unlabeled", settings=QUICK, dry_run=True)

    assert report.dry_run
    assert set(report.parameters) == set(CLASSES)
    assert digests(merged) == before
    with pytest.raises(DataError):
        align(data="nowhere", settings=QUICK, dry_run=True)


def test_a_failing_alignment_leaves_the_previous_output_untouched(merged):
    align(data="unlabeled", settings=QUICK)
    before = digests(Path("aligned"))

    def stop(event):
        if isinstance(event, Progress) and event.stage == "absorbing" and event.done:
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        align(data="unlabeled", settings=Settings(steps=5), listener=stop)

    assert digests(Path("aligned")) == before
    assert not [path for path in merged.iterdir() if path.name.endswith(".tmp")]


def test_a_stopped_alignment_goes_on_and_ends_with_the_same_bytes(merged):
    align(data="unlabeled", settings=QUICK, output="whole")

    def interrupt(event):
        if isinstance(event, Progress) and event.stage == "aligning" and event.done == 7:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        align(data="unlabeled", settings=QUICK, listener=interrupt)
    assert Path("aligned.state.safetensors").is_file()
    assert not Path("aligned").exists()
    seen = []
    align(data="unlabeled", settings=QUICK, listener=seen.append)

    steps = [e.done for e in seen if isinstance(e, Progress) and e.stage == "aligning"]
    assert steps == list(range(8, QUICK.steps + 1))
    assert not Path("aligned.state.safetensors").exists()
    again = {name.replace("whole", "aligned"): d for name, d in digests(Path("whole")).items()}
    assert digests(Path("aligned")) == again


@pytest.mark.gpu
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_gpu_fits_what_the_processor_fits(merged, precision):
    settings = replace(QUICK, precision=precision)

    here = align(data="unlabeled", settings=QUICK, device="cpu", output="here")
    there = align(data="unlabeled", settings=settings, device="cuda", output="there")

    assert there.settings["precision"] == precision
    for task, one in here.tasks.items():
        assert there.tasks[task].cosine_after == pytest.approx(one.cosine_after, abs=0.02)
        assert there.tasks[task].logit_difference < 1e-2


@pytest.mark.gpu
def test_on_a_gpu_half_precision_and_the_papers_batch_are_what_auto_means(merged):
    report = align(data="unlabeled", settings=replace(QUICK, batch_size="auto"), device="cuda")

    assert report.settings["batch_size"] == 16
    assert report.settings["precision"] == "bfloat16"
