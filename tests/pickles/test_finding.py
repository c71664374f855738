"""The model within a pickle, and what else there is."""

import argparse
from collections import OrderedDict, defaultdict
from pathlib import Path

import numpy
import pytest
import torch
from pickled import FORMS, as_zip, module_for_now
from safetensors.torch import load_file
from torch import nn

from momacli.checkpoint.header import read_header
from momacli.convert import ConvertReport, convert
from momacli.errors import CheckpointError, ConflictError
from momacli.progress import Notice

W = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}


@pytest.fixture
def run(tmp_path):
    """Convert a value that was saved; what came out, the report, and what was said."""

    def execute(
        value: object, form: str = "zip", **options: object
    ) -> tuple[dict[str, torch.Tensor], ConvertReport, list[str]]:
        (tmp_path / "in.pt").write_bytes(FORMS[form](value))
        said: list[str] = []

        def listener(event: object) -> None:
            if isinstance(event, Notice):
                said.append(event.text)

        output = tmp_path / "out.safetensors"
        report = convert([tmp_path / "in.pt"], output=output, listener=listener, **options)
        return load_file(output), report, said

    return execute


@pytest.mark.parametrize(
    "value",
    [
        W,
        OrderedDict(W),
        {"state_dict": W, "epoch": 3},
        {"model": OrderedDict(W), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}},
        {"epoch": 3, "anything": W},
        {"model": {"state_dict": W}},
        [3, W],
        (W, "text"),
        defaultdict(list, W),
    ],
)
def test_the_model_is_found_in_tables_that_hold_more(value, run):
    tensors, _, _ = run(value)

    assert sorted(tensors) == ["bias", "weight"]
    assert torch.equal(tensors["weight"], W["weight"])


def test_of_several_models_one_has_to_be_named(run):
    value = {"teacher": W, "student": {"deep": {"weight": torch.ones(1)}}}

    with pytest.raises(ConflictError) as caught:
        run(value)
    assert list(caught.value.details) == ["student", "teacher"]
    assert "--entry" in str(caught.value.hint)
    with pytest.raises(ConflictError, match="no entry pupil"):
        run(value, entry="pupil")
    assert list(run(value, entry="student.deep")[0]) == ["weight"]


class Sharded:
    """Something that holds a tensor and is none."""

    def __init__(self) -> None:
        self.local = {"part": torch.ones(3)}


def test_what_is_no_tensor_is_named_and_short_entries_are_kept_in_the_metadata(run, tmp_path):
    value = {
        **W,
        "model_name": "ViT-B-32",
        "epoch": 3,
        "args": argparse.Namespace(lr=1e-5),
        "history": [{"weight": torch.ones(2)}],
        "sharded": Sharded(),
        "notes": "x" * 1000,
    }
    with module_for_now("gone", Sharded=Sharded):
        _, report, said = run(value)

    assert report.files[0].kept == {"model_name": "ViT-B-32", "epoch": 3}
    assert report.files[0].left_out == (
        "args: argparse.Namespace",
        "history: a list with tensors",
        "sharded: gone.Sharded with tensors",
        "notes: a text",
    )
    assert any("model_name" in line for line in said)
    assert any("history: a list with tensors" in line for line in said)
    assert '"model_name":"ViT-B-32"' in read_header(tmp_path / "out.safetensors").metadata["moma"]


@pytest.mark.parametrize("form", FORMS)
def test_a_tied_tensor_is_written_once_and_its_other_names_are_recorded(form, run, tmp_path):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embed = nn.Embedding(5, 3)
            self.decode = nn.Linear(3, 5, bias=False)
            self.decode.weight = self.embed.weight

    with module_for_now("gone", Tied=Tied):
        model = Tied()
        tensors, report, said = run(model, form)

    assert list(tensors) == ["embed.weight"]
    assert report.files[0].tied == {"decode.weight": "embed.weight"}
    assert any("decode.weight is the same tensor as embed.weight" in line for line in said)
    header = read_header(tmp_path / "out.safetensors")
    assert header.metadata["decode.weight"] == "embed.weight"


def test_a_module_within_a_module_that_is_none_is_refused(run):
    class Odd(nn.Module):
        pass

    with module_for_now("gone", Odd=Odd):
        model = Odd()
        model._modules["inner"] = "a text"
        with pytest.raises(CheckpointError, match="a module in it is none"):
            run(model)


@pytest.mark.parametrize("value", [{}, [], {"a": 3}, "text", 7, None, {"a": {"b": []}}])
def test_a_file_without_tensors_says_so(value, tmp_path):
    (tmp_path / "in.pt").write_bytes(as_zip(value))

    with pytest.raises((CheckpointError, ConflictError), match="holds no tensors"):
        convert([tmp_path / "in.pt"], output=tmp_path / "out.safetensors")


def test_names_that_no_file_can_hold_are_refused(run, tmp_path):
    for name in ("__metadata__", "\ud800"):
        with pytest.raises(CheckpointError, match="names that no tensor can have"):
            run({name: torch.ones(1)})
    with pytest.raises(CheckpointError, match="a name that is no text"):
        run({(1, 2): torch.ones(1)})
    assert not Path(tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("form", FORMS)
def test_arrays_of_numpy_are_tensors_too(form, run):
    arrays = {
        "plain": numpy.arange(6, dtype=numpy.float32).reshape(2, 3),
        "turned": numpy.asfortranarray(numpy.arange(6.0).reshape(2, 3)),
        "long": numpy.random.default_rng(0).random((90, 90)),
        "whole": numpy.array([True, False]),
        "empty": numpy.zeros((0, 2), dtype=numpy.int16),
    }
    tensors, _, _ = run({"model": arrays, "accuracy": numpy.float64(0.5)}, form)

    assert tensors.keys() == arrays.keys()
    for name, array in arrays.items():
        assert torch.equal(tensors[name], torch.from_numpy(numpy.ascontiguousarray(array)))
    for odd in (numpy.array(["text"]), numpy.array([1.0], dtype=">f4"), numpy.array([{}])):
        with pytest.raises(CheckpointError, match="cannot hold"):
            run({"w": odd}, form)


def test_tensors_that_torch_negates_or_conjugates_when_used_are_not_taken_as_they_lie(run):
    complex_numbers = torch.tensor([1 + 2j])
    for value in (complex_numbers.conj(), complex_numbers.conj().imag):
        assert value.is_conj() or value.is_neg()
        with pytest.raises(CheckpointError, match="cannot hold"):
            run({"w": value})


def test_modules_that_are_there_many_times_do_not_multiply_without_end(run, monkeypatch):
    monkeypatch.setattr("momacli.pickles.finding.MAX_HEADER_BYTES", 1 << 20)
    module: nn.Module = nn.Linear(1, 1)
    for _ in range(40):
        module = nn.Sequential(module, module)

    with pytest.raises(CheckpointError, match="names of its"):
        run(module)


def test_values_that_are_there_many_times_are_looked_through_once(run):
    many = [None] * 100_000
    value = {f"e{number}": [many, number] for number in range(1000)} | {"model": W}
    tensors, _, _ = run(value, "plain")

    assert sorted(tensors) == ["bias", "weight"]
