"""Merges that see unlabeled samples, from folders to folders."""

import json
import re
import shutil
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_models import CLASSES
from tiny_text import random_texts, save_tokenizer, text_model

from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.checkpoint.multitask import MultiTask
from momacli.cli.main import run
from momacli.data.reading import Reading
from momacli.data.sampling import Sampling
from momacli.data.tables import Columns
from momacli.errors import ConflictError, DataError, DivergenceError, OutputError, UsageError
from momacli.merge import merge
from momacli.merge_recipe import merge_like, merge_recipe
from momacli.merging.catalog import FILES
from momacli.models.factory import quiet
from momacli.progress import Progress
from momacli.task_vector import task_vector
from momacli.verify import verify

EXPERTS = [f"experts/{task}" for task in CLASSES]
QUICK = {
    "adamerging": {"steps": 3, "batch_size": 4},
    "adamerging++": {"steps": 3, "batch_size": 4},
    "concrete-adamerging": {"mask_steps": 2, "steps": 2, "batch_size": 4},
    "concrete-task-arithmetic": {"steps": 3, "batch_size": 4},
}
FEW = Reading(Sampling(count=6))
RECORDED = ("adamerging", "adamerging++")
"""Methods whose outputs can be made again without samples."""


@pytest.fixture(scope="module")
def root(tmp_path_factory, vit_folders, vit_images):
    """A folder with base/, experts/ and unlabeled/. Shared: not to be written to."""
    root = tmp_path_factory.mktemp("samples")
    shutil.copytree(vit_folders, root / "experts")
    shutil.move(root / "experts" / "base", root / "base")
    (root / "unlabeled").symlink_to(vit_images / "unlabeled")
    return root


@pytest.fixture
def place(root, tmp_path, monkeypatch):
    """A working folder in which base/, experts/ and unlabeled/ are."""
    for name in ("base", "experts", "unlabeled"):
        (tmp_path / name).symlink_to(root / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


@pytest.fixture(scope="module")
def made(root):
    """What every method makes of the same inputs: reports, by method."""
    return {
        method: merge(
            [root / expert for expert in EXPERTS],
            method=method,
            base=root / "base",
            data=root / "unlabeled",
            output=root / "made" / method,
            reading=FEW,
            options=QUICK.get(method),
            device="cpu",
        )
        for method in FILES
    }


def learn(method, output="merged", **given):
    settings = {"data": "unlabeled", "reading": FEW, "options": QUICK.get(method)}
    settings |= {"base": "base", "output": output, "device": "cpu"}
    return merge(EXPERTS, method=method, **settings | given)


def encoder(folder):
    return load_file(Path(folder, "cats", "model-00001-of-00002.safetensors"))


@pytest.mark.parametrize("method", FILES)
def test_the_output_is_that_of_any_merge(made, root, method):
    assert made[method].samples == dict.fromkeys(CLASSES, 6)
    assert not list(root.glob("made/*.state.safetensors"))
    for task, classes in CLASSES.items():
        model, problems = transformers.AutoModelForImageClassification.from_pretrained(
            made[method].output / task, output_loading_info=True
        )
        expert = load_file(root / "experts" / task / "model.safetensors")
        assert not any(problems.values()), problems
        assert model.num_parameters() == sum(x.numel() for x in expert.values())
        assert tuple(model.config.id2label.values()) == classes
        assert torch.equal(model.classifier.weight, expert["classifier.weight"])


def test_the_same_seed_gives_the_same_bytes_and_another_seed_others(made, place):
    method = "concrete-adamerging"
    learn(method, output="again")
    learn(method, output="other", seed=1)

    before, again, other = (encoder(x) for x in (made[method].output, "again", "other"))
    assert all(torch.equal(value, again[name]) for name, value in before.items())
    assert not all(torch.equal(value, other[name]) for name, value in before.items())


@pytest.mark.parametrize("method", FILES)
def test_what_was_recorded_makes_it_again_or_it_is_said_that_samples_are_missing(made, method):
    if method in RECORDED:
        assert verify(made[method].output).equal
    else:
        with pytest.raises(UsageError, match="unlabeled samples, which are not known here"):
            verify(made[method].output)


def test_a_merge_by_coefficients_is_repeated_from_its_record(made, tmp_path):
    output = made["adamerging"].output
    merge_like(output, output=tmp_path / "again")

    again = encoder(tmp_path / "again")
    assert all(torch.equal(value, again[name]) for name, value in encoder(output).items())


def test_coefficients_that_never_move_give_the_bytes_of_a_weighted_sum(place):
    learn("adamerging", options={"steps": 0})
    merge(EXPERTS, base="base", method="task-arithmetic", output="plain")

    for name, value in encoder("plain").items():
        torch.testing.assert_close(encoder("merged")[name], value, atol=1e-7, rtol=1e-6)


def test_the_coefficients_of_every_task_and_tensor_are_recorded(place):
    report = learn("adamerging", options={"steps": 5, "rate": 0.02, "batch_size": 4})
    with MultiTask.open(Path("merged")) as made:
        recorded = made.recipe.parameters["coefficients"]

    merged, base = encoder("merged"), load_file("base/model.safetensors")
    experts = {task: load_file(f"experts/{task}/model.safetensors") for task in CLASSES}
    for name, theta_0 in base.items():
        tau = sum(recorded[task][name] * (experts[task][name] - theta_0) for task in CLASSES)
        torch.testing.assert_close(merged[name], theta_0 + tau, atol=1e-6, rtol=1e-5)
    means = {task: sum(table.values()) / len(table) for task, table in recorded.items()}
    assert report.coefficients == pytest.approx(means)


def test_align_goes_on_from_it(made, place):
    merged = made["regmean"].output
    settings = Settings(mask="none")
    report = align(merged, data="unlabeled", settings=settings, output=place / "aligned")

    assert set(report.tasks) == set(CLASSES)


def test_a_file_of_all_tasks_comes_out_where_a_file_is_asked_for(made, place):
    learn("fisher", output="merged.safetensors")

    found, folder = load_file("merged.safetensors"), encoder(made["fisher"].output)
    assert all(torch.equal(found[name], value) for name, value in folder.items())
    assert "heads.dogs.classifier.weight" in found


def test_task_vectors_stand_for_experts(made, place):
    task_vector("base", EXPERTS, output="vectors")
    vectors = sorted(map(str, Path("vectors").iterdir()))
    merge(
        vectors, method="regmean", base="base", data="unlabeled", reading=FEW,
        output="again.safetensors", device="cpu",
    )  # fmt: skip

    again = load_file("again.safetensors")
    for name, value in encoder(made["regmean"].output).items():
        torch.testing.assert_close(again[name], value, atol=1e-5, rtol=1e-4)


def test_excluded_tensors_are_the_bases_and_the_network_runs_with_them(place):
    learn("adamerging", exclude=["*.layernorm_*"])

    base = load_file("base/model.safetensors")
    names = [name for name in base if ".layernorm_" in name]
    assert names
    assert all(torch.equal(encoder("merged")[name], base[name]) for name in names)


def test_without_a_choice_as_many_samples_are_seen_as_the_method_says(place, monkeypatch):
    assert learn("regmean", reading=None).samples == dict.fromkeys(CLASSES, 40)  # all there are
    monkeypatch.setattr("momacli.statistics.regmean.SAMPLES", 9)
    assert learn("regmean", reading=None).samples == dict.fromkeys(CLASSES, 9)


def test_a_stopped_run_goes_on_to_the_same_bytes_and_leaves_nothing_half_written(place):
    options = {"mask_steps": 3, "steps": 4, "batch_size": 4}
    learn("concrete-adamerging", output="straight", options=options)

    def stop_at(step):
        def listen(event):
            if isinstance(event, Progress) and event.unit == "steps" and event.done == step:
                raise KeyboardInterrupt

        return listen

    for step in (2, 5, 8):  # between the two passes of a mask, after them, and in the last part
        with pytest.raises(KeyboardInterrupt):
            learn("concrete-adamerging", options=options, listener=stop_at(step))
        assert not Path("merged").exists()
        assert Path("merged.state.safetensors").is_file()
    done = []
    learn("concrete-adamerging", options=options, listener=done.append)

    steps = [e.done for e in done if isinstance(e, Progress) and e.unit == "steps"]
    assert steps == [9, 10]
    assert not Path("merged.state.safetensors").exists()
    assert all(torch.equal(x, encoder("merged")[key]) for key, x in encoder("straight").items())


def test_a_dry_run_checks_all_and_writes_nothing(place):
    report = learn("concrete-task-arithmetic", dry_run=True)

    assert report.dry_run
    assert report.memory > 10**9
    assert not Path("merged").exists()
    with pytest.raises(DataError):
        learn("fisher", data="experts/cats", dry_run=True)


@pytest.mark.parametrize(
    ("error", "match", "given"),
    [
        (UsageError, "needs unlabeled samples of every task", {"data": None, "reading": None}),
        (UsageError, "takes no --weights", {"method": "regmean", "weights": [1, 2, 3]}),
        (UsageError, "takes no --scope", {"scope": "tensor"}),
        (UsageError, "no --allow-nonfinite, no --vocab", {"allow_nonfinite": True, "vocab": "min"}),
        (UsageError, "no option --set stepz", {"method": "adamerging", "options": {"stepz": 1}}),
        (UsageError, "floor: expected more than 0, found 0", {"options": {"floor": 0}}),
        (UsageError, "alpha: expected 0 to 1", {"method": "regmean", "options": {"alpha": 2}}),
        (UsageError, "batch-size: expected at least 1", {"options": {"batch_size": 0}}),
        (UsageError, "no use for --data$", {"method": "average"}),
        (UsageError, "no use for --pooling", {"method": "ties", "data": None, "reading": None,
                                              "pooling": "cls"}),
        (DataError, "no samples for 2 of 3 tasks", {"data": "only-cats"}),
        (OutputError, "moma did not write it", {"output": "mine"}),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_refused_before_anything_is_learned(place, error, match, given):
    shutil.copytree("unlabeled/cats", "only-cats/cats")
    Path("mine").mkdir()
    Path("mine", "thesis.txt").write_text("…")
    events = []

    with pytest.raises(error) as caught:
        learn(**{"method": "fisher", "listener": events.append, **given})
    assert re.search(match, str(caught.value), re.MULTILINE)

    assert not [event for event in events if isinstance(event, Progress)]
    assert not Path("merged").exists()


def test_experts_without_heads_are_refused_by_name(place):
    for task in CLASSES:
        file = Path("experts", task, "model.safetensors")
        kept = {key: x for key, x in load_file(file).items() if not key.startswith("classifier")}
        save_file(kept, f"{task}.safetensors")

    with pytest.raises(ConflictError) as caught:
        merge(
            [f"{task}.safetensors" for task in CLASSES],
            base="base", method="fisher", data="unlabeled", output="merged.safetensors",
        )  # fmt: skip

    assert caught.value.details == tuple(f"{task}: no head was recognised" for task in CLASSES)


def test_a_loss_that_is_not_finite_ends_the_run_and_nothing_is_written(place):
    shutil.copytree("experts/dogs", "broken")
    broken = load_file("broken/model.safetensors")
    broken["classifier.bias"][0] = torch.inf
    save_file(broken, "broken/model.safetensors", metadata={"format": "pt"})

    with pytest.raises(DivergenceError, match="step 1: the entropy of dogs is not finite"):
        merge(["experts/cats", "dogs=broken"], base="base", method="adamerging", data="unlabeled")

    assert not Path("merged").exists()


def test_a_recipe_cannot_have_it_as_a_step(place):
    Path("recipe.toml").write_text(
        'base = "base"\noutput = "out"\nmethod = "fisher"\ninputs = ["experts/cats"]\n'
    )
    with pytest.raises(UsageError, match="method fisher learns from unlabeled samples"):
        merge_recipe("recipe.toml")


def test_the_card_has_the_command_and_does_not_promise_what_verify_cannot_do(made):
    card, other = (
        (made[method].output / "cats" / "README.md").read_text()
        for method in ("fisher", "adamerging")
    )

    assert "--data UNLABELED --max-samples 6" in card
    assert "but for the samples that were seen" in card
    assert "`moma verify` makes the model again" not in " ".join(card.split())
    assert "| samples of cats | `6` |" in card
    assert "coefficients" not in other
    assert "`moma verify` makes the model again" in " ".join(other.split())


def test_the_command_says_what_was_seen_and_learned(place, capsys):
    line = ["merge", *EXPERTS, "--base", "base", "--method", "adamerging", "--data", "unlabeled"]
    line += ["--max-samples", "6", "--set", "steps=2", "--device", "cpu", "-o", "merged"]

    assert run(line) == 0
    shown = capsys.readouterr()

    assert shown.out == "merged\n"
    assert "  samples  birds 6, cats 6, dogs 6" in shown.err
    assert re.search(r"  lambda   birds 0\.3\d*, cats 0\.3\d*, dogs 0\.3", shown.err)


@pytest.fixture
def texts(tmp_path, monkeypatch):
    """A working folder with a tiny BERT, two experts of it and their texts."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    base = text_model("Bert")
    for seed, (task, classes) in enumerate({"moods": 3, "topics": 5}.items()):
        expert = text_model("Bert", classes)
        draw = torch.Generator().manual_seed(seed)
        with torch.no_grad():
            for name, parameter in expert.base_model.named_parameters():
                start = base.base_model.get_parameter(name)
                parameter.copy_(start + 0.02 * torch.randn(parameter.shape, generator=draw))
        with quiet():
            expert.save_pretrained(Path("experts", task))
        save_tokenizer(Path("experts", task))
        lines = [json.dumps({"review": text}) for text in random_texts(12, seed)]
        Path("unlabeled").mkdir(exist_ok=True)
        Path("unlabeled", f"{task}.jsonl").write_text("\n".join(lines))
    with quiet():
        base.save_pretrained("base")
    save_tokenizer(Path("base"))


@pytest.mark.parametrize(
    "method", ["adamerging", pytest.param("regmean++", marks=pytest.mark.long)]
)
def test_text_classifiers_are_merged_from_texts(texts, method):
    report = merge(
        ["experts/moods", "experts/topics"], base="base", method=method, data="unlabeled",
        options=QUICK.get(method), reading=Reading(Sampling(count=8), Columns("review")),
        pooling="masked-mean", device="cpu",
    )  # fmt: skip

    assert report.samples == {"moods": 8, "topics": 8}
    model, problems = transformers.AutoModelForSequenceClassification.from_pretrained(
        "merged/topics", output_loading_info=True
    )
    assert not any(problems.values())
    assert model.num_labels == 5
    assert model.config.moma_features["pooling"] == "masked-mean"  # so that align takes it, too
    if method in RECORDED:
        assert verify("merged").equal
