"""The benchmark of the five text tasks on a tiny encoder and made-up texts."""

import gzip
import importlib
import json
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import transformers
from tiny_text import random_texts, save_tokenizer, text_config

from momacli.comparing.specs import read_specs
from momacli.models.factory import quiet

CLASSES = {"ag_news": 4, "yelp5": 5, "amazon5": 5, "yahoo10_small": 10, "dbpedia14": 14}
SIZES = {
    "train-texts": 8,
    "unlabeled-texts": 12,
    "test-texts": 10,
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
    names = ("__main__", "cells", "comparison", "readme", "suites.text5")
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
def test_a_run_compares_methods_and_a_second_makes_nothing_again(bench, place, monkeypatch, capsys):
    methods = ("--methods", "task-arithmetic", "task-arithmetic+moma:steps=2:batch-size=2")
    first = run(bench, monkeypatch, *methods)
    told = capsys.readouterr()
    again = run(bench, monkeypatch, *methods)

    names = [row["name"] for row in first["rows"]]
    assert names == ["pre-trained", "fine-tuned", *methods[1:]]
    assert set(first["tasks"]) == {"ag_news", "amazon", "dbpedia", "yahoo", "yelp"}
    assert all(score["total"] == 10 for row in first["rows"] for score in row["scores"].values())
    assert "w/ MOMA" in told.out
    assert told.err.count("making expert") == 5
    assert "making" not in capsys.readouterr().err
    assert again["rows"] == first["rows"]
    assert "--data-root ROOT --model MODEL" in first["command"]


def test_every_row_of_a_suite_is_one_that_compare_knows(bench):
    plan = bench.comparison.Plan(steps=50, batch_size=8)

    specs, _ = read_specs(plan.methods)

    assert len(specs) == len(plan.methods) == len(set(plan.methods))
    assert {"average", "task-arithmetic+probsurgery", "regmean"} <= set(map(str, specs))


def test_texts_to_align_on_are_never_those_that_are_evaluated(bench, place):
    pack = bench.text5.read_pack(Path("data"), "yelp5", seed=3)

    assert not set(pack.unlabeled(8, 20)) & {text for text, _ in pack.test}
    assert not set(pack.unlabeled(8, 12)) & {text for text, _ in pack.train[:8]}
    assert pack == bench.text5.read_pack(Path("data"), "yelp5", seed=3)
    assert pack != bench.text5.read_pack(Path("data"), "yelp5", seed=4)


def test_the_same_seed_trains_the_same_bits(bench, place):
    training = bench.text5.Training(8, 3, 4, 1e-3, 8, seed=1)
    pack = bench.text5.read_pack(Path("data"), "ag_news", seed=1)
    for name in ("one/ag_news", "two/ag_news"):
        bench.text5.fine_tune(Path("model"), pack, training, Path(name))

    for name in ("model.safetensors", "head_ag_news.safetensors", "modules.json"):
        assert Path("one/ag_news", name).read_bytes() == Path("two/ag_news", name).read_bytes()


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


def test_the_readme_shows_the_results_that_are_kept(bench):
    text = bench.readme.README.read_text(encoding="utf-8")

    assert bench.readme.with_results(text) == text
    for file in bench.readme.RESULTS.glob("*.json"):
        assert f"<!-- results: {file.stem} -->" in text
    for figure in bench.readme.RESULTS.glob("*.svg"):
        content = figure.with_name(f"{figure.stem.rpartition('-')[0]}.json")
        assert bench.cells.digest_of_files(content) in figure.read_text(encoding="utf-8")
