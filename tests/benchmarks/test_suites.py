"""The benchmark suites on tiny encoders, made-up texts and images of noise."""

import gzip
import importlib
import json
import shutil
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from tiny_text import random_texts, save_tokenizer, text_config

from momacli.comparing.rows import Row
from momacli.comparing.specs import read_specs
from momacli.demonstration.training import Schedule
from momacli.errors import ConflictError, MomaError
from momacli.models.factory import quiet
from momacli.progress import Notice, Progress, ignore
from momacli.statistics.score import Score

CLASSES = {"ag_news": 4, "yelp5": 5, "amazon5": 5, "yahoo10_small": 10, "dbpedia14": 14}
SIZES = {
    "train-texts": 8,
    "unlabeled": 12,
    "test": 10,
    "validation": 4,
    "steps": 3,
    "batch-size": 4,
    "max-length": 8,
    "align-steps": 2,
    "align-batch-size": 2,
}


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmark, as they are run from the repository's root."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    names = (
        "__main__",
        "cells",
        "comparison",
        "earlier",
        "images",
        "readme",
        "results",
        "text",
        "clip",
        "vit",
        "summary",
        "warm",
    )
    modules = {
        n.rpartition(".")[2]: importlib.import_module(f"tests.benchmarks.{n}") for n in names
    }
    return SimpleNamespace(main=modules["__main__"].main, **modules)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder with text packs and an encoder, stored in float16 as small ones often are."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    model = transformers.BertModel(text_config("Bert")).half()
    with quiet():
        model.save_pretrained("model")
    save_tokenizer(Path("model"))
    Path("data/text").mkdir(parents=True)
    for seed, (name, classes) in enumerate(CLASSES.items()):
        texts = list(dict.fromkeys(random_texts(60, seed)))
        sides = {"train": texts[:20], "test": texts[20:]}
        for side, rows in sides.items():
            with gzip.open(f"data/text/{name}.{side}.jsonl.gz", "wt", encoding="utf-8") as file:
                for number, text in enumerate(rows):
                    file.write(json.dumps({"text": text, "label": number % classes}) + "\n")
        names = [f"class {number}" for number in range(classes)]
        Path(f"data/text/{name}.classes.json").write_text(json.dumps(names))


def run(bench, monkeypatch, *more: str) -> dict:
    """What a run writes."""
    options = [word for name, value in SIZES.items() for word in (f"--{name}", str(value))]
    fixed = ["text5", "--data-root", "data", "--model", "model", "--out", "out"]
    monkeypatch.setattr(sys, "argv", ["benchmarks", *fixed, *options, *more])
    bench.main()
    return json.loads(Path("out/text5.json").read_text())


@pytest.mark.long
def test_a_run_compares_methods_and_later_ones_make_none_again(bench, place, monkeypatch, capsys):
    methods = ("--methods", "task-arithmetic", "task-arithmetic+moma:steps=2:batch-size=2")
    more = ("--together", "--data-ratios", "0.5")
    first = run(bench, monkeypatch, *methods, *more)
    told = capsys.readouterr()
    again = run(bench, monkeypatch, *methods, *more)

    ((rows, _, ratios),) = ([run["rows"], run["masking"], run["ratios"]] for run in first["runs"])
    names = [row["name"] for row in rows]
    assert names == ["pre-trained", "fine-tuned", "together", *methods[1:]]
    assert [row["data_ratio"] for row in ratios] == [None, 0.5]
    assert set(first["tasks"]) == {"ag_news", "amazon", "dbpedia", "yahoo", "yelp"}
    assert all(score["total"] == 10 for row in rows for score in row["scores"].values())
    assert "w/ MOMA" in told.out
    assert told.err.count("making expert") == 5
    assert "making" not in capsys.readouterr().err
    assert again["runs"] == first["runs"]
    shutil.copytree("out", "elsewhere", ignore=shutil.ignore_patterns("cells", "comparison"))
    shutil.rmtree("out")
    two = run(bench, monkeypatch, *methods, *more, "--seeds", "0", "3", "--earlier", "elsewhere")
    assert capsys.readouterr().err.count("making expert") == 5  # of the other seed alone
    assert two["runs"][0] == first["runs"][0]
    assert two["seeds"] == [0, 3]
    assert two["runs"][1]["rows"] != first["runs"][0]["rows"]
    assert "--earlier" not in two["command"]
    more_rows = [*methods, "average"]
    wider = run(bench, monkeypatch, *more_rows, *more, "--earlier", "elsewhere")
    assert wider["runs"][0]["rows"][:-1] == first["runs"][0]["rows"]
    assert wider["runs"][0]["rows"][-1]["name"] == "average"
    with pytest.raises(ConflictError, match="of something else") as error:
        run(bench, monkeypatch, *methods, *more, "--earlier", "elsewhere", "--train-texts", "7")
    assert [detail.partition(" is ")[0] for detail in error.value.details] == [
        "elsewhere/text5.json: training"
    ]
    assert "--data-root ROOT --model MODEL" in first["command"]


def test_every_row_of_a_suite_is_one_that_compare_knows(bench):
    plan = bench.comparison.Plan(steps=50, batch_size=8)

    specs, _ = read_specs(plan.methods)

    assert len(specs) == len(plan.methods) == len(set(plan.methods))
    assert {"average", "task-arithmetic+probsurgery", "regmean"} <= set(map(str, specs))


@pytest.mark.parametrize(
    ("there", "test", "validation"), [(1000, 300, 60), (320, 260, 60), (90, 45, 45), (3, 2, 1)]
)
def test_a_small_test_side_has_a_validation_split_too(bench, there, test, validation):
    cut = bench.comparison.evaluated(there, {"test": 300, "validation": 60})

    assert (cut, min(60, there - cut)) == (test, validation)


def test_texts_to_align_on_are_never_those_that_are_evaluated(bench, place):
    pack = bench.text.read_pack(Path("data"), "yelp5", seed=3)

    assert not set(pack.unlabeled(8, 20)) & {text for text, _ in pack.test}
    assert not set(pack.unlabeled(8, 12)) & {text for text, _ in pack.train[:8]}
    assert pack == bench.text.read_pack(Path("data"), "yelp5", seed=3)
    assert pack != bench.text.read_pack(Path("data"), "yelp5", seed=4)


def test_the_same_seed_trains_the_same_bits(bench, place):
    training = bench.text.TextTraining(Schedule(3, 4, 1e-3), texts=8, max_length=8, seed=1)
    packs = {"ag_news": bench.text.read_pack(Path("data"), "ag_news", seed=1)}
    for name in ("one", "two"):
        bench.text.train_together(Path("model"), packs, training, Path(name))

    for name in ("model.safetensors", "head_ag_news.safetensors", "modules.json"):
        assert Path("one/ag_news", name).read_bytes() == Path("two/ag_news", name).read_bytes()


@pytest.fixture
def noise(bench, tmp_path):
    """A data root with two packs of images of noise, no image twice."""
    (tmp_path / "vision").mkdir()
    numbers = np.random.default_rng(0)
    for name, classes in {"mnist": 3, "aid": 2}.items():
        sides = {}
        for side, count in {"train": 20, "test": 8}.items():
            sides[f"x_{side}"] = numbers.integers(0, 256, (count, 32, 32, 3), np.uint8)
            sides[f"y_{side}"] = np.arange(count) % classes
        names = [f"{name}/{number}" for number in range(classes)]
        np.savez(bench.images.source_of(tmp_path, name), classes=np.array(names), **sides)
    return tmp_path


def test_images_to_align_on_are_never_trained_on_or_evaluated(bench, noise):
    pack = bench.images.read_images(noise, "mnist", 0, (0.4, 0.8))

    parts = (pack.pre_training, pack.training, pack.unlabeled, pack.test)
    assert [len(part) for part in parts] == [8, 16, 4, 8]
    before, tuned, unlabeled, test = ({image.tobytes() for image in part.pixels} for part in parts)
    assert before < tuned
    assert not unlabeled & (tuned | test)


def test_a_moved_image_keeps_its_class_and_is_mirrored_only_where_that_is_allowed(bench, noise):
    rising = np.tile(np.arange(32, dtype=np.uint8)[:, None], (40, 32, 1, 3))
    images = bench.images.Images(rising, np.arange(40))
    allowed = np.arange(40) < 20
    pixels, labels = next(bench.images.Varied(images, allowed).batches(40, seed=0))

    rises = (pixels[:, 0, 0, -1] > pixels[:, 0, 0, 0]).numpy()
    assert sorted(labels.tolist()) == list(range(40))
    assert set(labels.numpy()[~rises]) < set(range(20))
    assert not rises.all()


def test_a_vision_transformer_is_trained_for_each_task_or_for_all_to_the_same_bits(bench, noise):
    packs = [bench.images.read_images(noise, name, 0, (0.4, 0.8)) for name in ("mnist", "aid")]
    sizes = bench.vit.Sizes(width=16, layers=1, heads=1, patch_size=16)
    for place in ("one", "two"):
        base = noise / place / "base"
        bench.vit.pre_train(packs, sizes, Schedule(2, 4, 1e-3), base)
        every = {pack.name: pack for pack in packs}
        bench.vit.train_together(base, every, Schedule(2, 4, 1e-3), 0, noise / place)

    for model in ("base", "mnist", "aid"):
        first, second = (noise / place / model / "model.safetensors" for place in ("one", "two"))
        assert first.read_bytes() == second.read_bytes()
    mnist, aid = (load_file(noise / "one" / name / "model.safetensors") for name in every)
    base = load_file(noise / "one/base/model.safetensors")
    assert mnist["classifier.weight"].shape == (3, 16)
    assert aid["classifier.weight"].shape == (2, 16)
    for name in mnist.keys() - {"classifier.weight", "classifier.bias"}:
        assert torch.equal(mnist[name], aid[name])
    assert any(not torch.equal(mnist[name], base[name]) for name in mnist.keys() & base.keys())


def test_seeds_of_earlier_results_are_taken_from_the_first_that_has_them(bench, tmp_path):
    plan = asdict(bench.comparison.Plan(5, 8, bench.comparison.Chosen("task-arithmetic:lambda=1")))

    def result(folder: str, seeds: list[int], correct: int, texts: int = 9) -> Path:
        runs = [bench.results.as_json(bench.results.Rows([row("average", correct)]))] * len(seeds)
        about = {"training": {"texts": texts, "seed": seeds[-1]}, "packs": {"t": "pack"}}
        content = {"about": about, "plan": plan, "seeds": seeds, "runs": runs}
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "s.json").write_text(json.dumps(content))
        return tmp_path / folder / "s.json"

    files = [result("one", [0, 1], 1), result("two", [1, 2], 2), tmp_path / "none/s.json"]
    earlier = bench.earlier.Earlier.of(files)

    found = {
        seed: [one.scores["t"].correct for one in earlier.rows(seed).rows] for seed in range(4)
    }
    assert found == {0: [1], 1: [1], 2: [2], 3: []}
    assert earlier.chosen.task_arithmetic == "task-arithmetic:lambda=1"
    about = {"training": {"texts": 9, "seed": 7}, "packs": {"t": "pack"}}
    earlier.check(about, plan)
    other = bench.earlier.Earlier.of([*files, result("three", [3], 3, texts=8)])
    with pytest.raises(ConflictError, match="of something else") as error:
        other.check(about, {**plan, "steps": 6})
    told = [detail.partition(" is ")[0].partition("json: ")[2] for detail in error.value.details]
    assert told == ["steps", "steps", "steps", "training"]


@pytest.mark.long
def test_a_clip_is_fine_tuned_under_heads_that_stay_embeddings_of_text(bench, noise):
    packs = [bench.images.read_images(noise, name, 0, (0.4, 0.8)) for name in ("mnist", "aid")]
    sizes = bench.vit.Sizes(width=16, layers=1, heads=1, patch_size=16)
    base = noise / "base"
    bench.clip.pre_train(packs, sizes, Schedule(2, 4, 1e-3), base)
    every = {pack.name: pack for pack in packs}
    bench.clip.train_together(base, every, Schedule(2, 4, 1e-3), 0, noise / "tuned")

    whole = load_file(base / "open_clip_model.safetensors")
    mnist, aid = (load_file(noise / "tuned" / name / "model.safetensors") for name in every)
    weight = load_file(noise / "tuned/mnist/head_mnist.safetensors")["weight"]
    scale = whole["logit_scale"].exp()
    torch.testing.assert_close(weight.norm(dim=1), scale.expand(3))
    assert all(torch.equal(mnist[name], aid[name]) for name in mnist)
    assert any(not torch.equal(mnist[name], whole[f"visual.{name}"]) for name in mnist)


def row(name: str, correct: int):
    """A row of one task with ten samples."""
    return Row(name, name, "+" in name, {"t": Score(correct, 10)}, added=0)


def test_several_seeds_are_a_mean_and_a_standard_deviation(bench):
    names = ("fine-tuned", "together", "ties", "average")
    runs = [
        bench.results.Rows([row(name, right) for name, right in zip(names, rights, strict=True)])
        for rights in ((10, 9, 5, 4), (10, 9, 7, 4))
    ]
    kept = [bench.results.rows_of(bench.results.as_json(run)) for run in runs]
    table = bench.results.results_table(kept, ["t"])

    shown = [[cell.text for cell in line.cells] for line in table.lines]
    assert [cells[:2] for cells in shown[1:]] == [
        ["90.0", "90.0 ± 0.0"],
        ["60.0", "60.0 ± 14.1"],
        ["40.0", "40.0 ± 0.0"],
    ]
    assert [line.label for line in table.lines if line.cells[1].best] == ["ties"]


def test_lambda_and_density_are_chosen_on_the_validation_split_alone(bench, monkeypatch, tmp_path):
    seen = []

    def compare(experts, *, evaluation, methods, **_):
        seen.append(evaluation)
        best = ("task-arithmetic:lambda=0.4", "ties:lambda=1:density=0.2")
        return SimpleNamespace(rows=[row(name, 9 if name in best else 3) for name in methods])

    monkeypatch.setattr(bench.comparison, "compare", compare)
    suite = bench.comparison.Suite("s", tmp_path, {}, tmp_path / "samples", {}, lambda: tmp_path)
    setting = bench.comparison.Setting(tmp_path, 0, False, lambda event: None)
    chosen = bench.comparison.choose(suite, setting)

    assert seen == [tmp_path / "samples/validation"]
    assert chosen.bases == ("average", "task-arithmetic:lambda=0.4", "ties:lambda=1:density=0.2")


def test_a_command_in_a_warm_process_reports_as_any_or_says_what_was_wrong(bench, tmp_path):
    for name, count in {"base": 3, "x": 3, "short": 2}.items():
        save_file({"w": torch.ones(count)}, tmp_path / f"{name}.safetensors")
    base, x, short = (str(tmp_path / f"{name}.safetensors") for name in ("base", "x", "short"))

    said = list[Progress | Notice]()
    done = bench.warm.run_warm(
        ["merge", base, x, "-o", str(tmp_path / "merged.safetensors")], said.append
    )

    assert done.report["merged"] == 1
    assert [event.text[:18] for event in said] == ["x equals the base:"]
    with pytest.raises(MomaError, match="moma merge failed") as caught:
        bench.warm.run_warm(["merge", base, short, "-o", str(tmp_path / "other")], ignore)
    assert "does not fit the base" in caught.value.details[0]


def test_a_cell_that_failed_leaves_nothing_behind(bench, tmp_path):
    cells = bench.cells.Cells(tmp_path / "cells")

    def fail(folder: Path) -> None:
        (folder / "half").write_text("")
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError):
        cells.get("kind", {"a": 1}, fail)
    assert list((tmp_path / "cells").iterdir()) == []
    made = cells.get("kind", {"a": 1}, lambda folder: (folder / "whole").write_text("x"))
    assert (made / "whole").is_file()
    assert cells.get("kind", {"a": 1}, fail) == made
    assert cells.get("kind", {"a": 2}, lambda folder: None) != made


def test_all_suites_are_one_table_of_what_each_has_measured(bench):
    chosen = bench.comparison.Chosen("task-arithmetic:lambda=0.2", "ties:lambda=1")
    plan = bench.comparison.Plan(5, 8, chosen)
    moma, paper = (
        f"{chosen.task_arithmetic}{plan.ends['w/ MOMA']}",
        plan.ends["w/ MOMA as in the paper"],
    )

    def content(name: str, *seeds: dict[str, int]):
        runs = [bench.results.Rows([row(*one) for one in seed.items()]) for seed in seeds]
        kept = [bench.results.as_json(run) for run in runs]
        return {"suite": name, "plan": asdict(plan), "tasks": ["t"], "runs": kept}

    merges = {chosen.task_arithmetic: 4, "dare": 6, "iso-c": 5, f"ties:lambda=1{paper}": 7}
    one = content("one", {"fine-tuned": 10, **merges, moma: 7})
    two = content("two", *({"fine-tuned": 9, "together": 8, "average": n} for n in (3, 5)))
    two["about"] = {"unlabeled": 30}
    table = bench.summary.summary([one, two])

    shown = {
        (line.label, line.indented): [cell.text for cell in line.cells] for line in table.lines
    }
    sizes = ["1 tasks, 1 seed", "1 tasks, ≤ 30 unlabeled, 2 seeds"]
    assert table.header == ["Method", f"one ({sizes[0]})", f"two ({sizes[1]})"]
    assert shown["Fine-tuned", False] == ["100.0", "90.0 ± 0.0"]
    assert shown["Traditional MTL", False] == ["-", "80.0 ± 0.0"]
    assert shown["best other merge", False] == ["60.0 (dare)", "-"]
    assert shown["average", False] == ["-", "40.0 ± 14.1"]
    assert shown["won back by task-arithmetic w/ MOMA", False] == ["50 %", "-"]
    aligned = [
        line.cells[0].text for line in table.lines if line.label == "w/ MOMA as in the paper"
    ]
    assert aligned == ["70.0"]  # of TIES; what neither has is left out
    assert ("w/ Surgery", True) not in shown


def test_the_pages_show_the_results_that_are_kept(bench):
    pages = [page.read_text(encoding="utf-8") for page in bench.readme.PAGES]

    assert [bench.readme.with_results(text) for text in pages] == pages
    for file in bench.readme.RESULTS.glob("*.json"):
        assert f"<!-- results: {file.stem} -->" in "".join(pages)
    for figure in bench.readme.RESULTS.glob("*.svg"):
        content = figure.with_name(f"{figure.stem.rpartition('-')[0]}.json")
        assert bench.cells.digest_of_files(content) in figure.read_text(encoding="utf-8")
        assert f"]({figure.name})" in pages[1]
