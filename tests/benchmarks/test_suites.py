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
    "processes": 1,
}


@pytest.fixture
def bench(monkeypatch):
    """The modules of the benchmark, as they are run from the repository's root."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[2]))
    names = ("__main__", "cells", "comparison", "suites.text5")
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
def test_a_run_compares_every_merge_plain_and_aligned_and_a_second_makes_nothing_again(
    bench, place, monkeypatch, capsys
):
    monkeypatch.setattr(bench.text5, "MERGES", {"task-arithmetic": {}})  # one, for the time
    first = run(bench, monkeypatch)
    told = capsys.readouterr()
    again = run(bench, monkeypatch)

    names = [row["name"] for row in first["rows"]]
    kinds = ["task-arithmetic", "task-arithmetic + moma", "task-arithmetic + paper"]
    assert names == ["fine-tuned", *kinds]
    assert all(row["total"] == dict.fromkeys(row["total"], 10) for row in first["rows"])
    assert {tuple(sorted(row["total"])) for row in first["rows"]} == {
        ("ag_news", "amazon", "dbpedia", "yahoo", "yelp")
    }
    assert "won back" in told.out
    assert told.err.count("making expert") == 5
    assert capsys.readouterr().err == ""
    assert again == first
    run(bench, monkeypatch, "--lambda", "0.5")
    assert [line.split("-")[0] for line in capsys.readouterr().err.splitlines()] == [
        "making merged", "making scores", *["making aligned", "making scores"] * 2
    ]  # fmt: skip


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


def test_won_back_is_of_what_that_merge_had_lost(bench):
    rows = [
        bench.comparison.Row(name, {"t": correct}, {"t": 100}, 7.0)
        for name, correct in (("fine-tuned", 90), ("ties", 50), ("ties + moma", 80))
    ]

    lines = bench.comparison.table(rows).splitlines()

    assert lines[-1].split() == ["ties", "+", "moma", "80.0", "80.0", "75%", "7"]
