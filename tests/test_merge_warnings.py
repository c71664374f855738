"""What a merge says of inputs that look like a mistake, and of values that are not finite."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from momacli.errors import ConflictError
from momacli.merge import merge
from momacli.merge_recipe import merge_like, merge_recipe
from momacli.progress import Notice, Progress

Model = dict[str, Tensor]


@pytest.fixture
def model(tmp_path: Path) -> Callable[[str, Model], Path]:
    def write(name: str, tensors: Model) -> Path:
        path = tmp_path / f"{name}.safetensors"
        save_file(tensors, path)
        return path

    return write


def random(seed: int, scale: float = 1.0) -> Model:
    generator = torch.Generator().manual_seed(seed)
    shapes = {"a.weight": (40, 30), "a.bias": (40,), "empty": (0,)}
    return {k: scale * torch.randn(shape, generator=generator) for k, shape in shapes.items()}


def near(base: Model, seed: int) -> Model:
    return {key: base[key] + step for key, step in random(seed, 0.05).items()}


class Notices(list[str]):
    """A listener that keeps what the user would be told."""

    def __call__(self, event: Progress | Notice) -> None:
        if isinstance(event, Notice):
            self.append(event.text)


def test_experts_of_one_base_give_no_cause_for_a_remark(model, tmp_path):
    base, told = random(0), Notices()
    inputs = [model("x", near(base, 1)), model("y", near(base, 2))]

    merge(inputs, base=model("base", base), output=tmp_path / "out.safetensors", listener=told)

    assert told == []


@pytest.mark.parametrize("method", ["average", "ties", "iso-c"])
def test_an_expert_that_is_the_base_is_named(model, tmp_path, method):
    base, told = random(0), Notices()
    inputs = [model("x", near(base, 1)), model("same", base)]

    merge(
        inputs,
        base=model("base", base),
        method=method,
        output=tmp_path / "out.safetensors",
        listener=told,
    )

    assert len(told) == 1
    assert told[0].startswith("same equals the base: its task vector is zero.")


def test_a_base_among_the_experts_is_the_base_alone_and_that_is_said(model, tmp_path):
    base, told = random(0), Notices()
    place = model("base", base)

    merge(
        [place, model("x", near(base, 1))],
        base=place,
        output=tmp_path / "out.safetensors",
        listener=told,
    )

    assert told == [f"{place} is the base, and so is not taken for an expert, too"]


def test_an_expert_that_differs_in_its_last_value_only_is_not_taken_for_the_base(model, tmp_path):
    base, told = random(0), Notices()
    other = {key: value.clone() for key, value in base.items()}
    other["a.weight"][-1, -1] += 0.1
    inputs = [model("x", near(base, 1)), model("other", other)]

    merge(inputs, base=model("base", base), output=tmp_path / "out.safetensors", listener=told)

    assert told == []


def test_identical_experts_are_named_in_pairs(model, tmp_path):
    base, told = random(0), Notices()
    twin = near(base, 1)
    inputs = [model("x", twin), model("y", near(base, 2)), model("z", twin)]

    merge(inputs, base=model("base", base), output=tmp_path / "out.safetensors", listener=told)

    assert len(told) == 1
    assert told[0].startswith("x and z are the same model")


def test_an_expert_of_another_base_is_named(model, tmp_path):
    base, told = random(0), Notices()
    inputs = [model("x", near(base, 1)), model("stranger", random(7))]

    merge(inputs, base=model("base", base), output=tmp_path / "out.safetensors", listener=told)

    assert told == [
        "the task vector of stranger is larger than the base itself: "
        "was it fine-tuned from another base?"
    ]


# what is not finite


def broken(base: Model) -> Model:
    expert = near(base, 1)
    expert["a.weight"][0, :3] = torch.tensor([torch.nan, torch.inf, -torch.inf])
    return expert


def test_infinity_is_refused_with_the_way_out(model, tmp_path):
    base = random(0)
    inputs = [model("x", broken(base)), model("y", near(base, 2))]

    with pytest.raises(ConflictError, match=r"a\.weight holds NaN or infinity") as caught:
        merge(inputs, base=model("base", base), output=tmp_path / "out.safetensors")

    assert "--allow-nonfinite" in str(caught.value)
    assert str(inputs[0]) in str(caught.value)
    assert not (tmp_path / "out.safetensors").exists()


@pytest.mark.parametrize("method", ["average", "ties", "iso-c", "wudi", "slerp"])
def test_allowed_it_is_named_and_such_entries_come_from_the_base(model, tmp_path, method):
    base, output, told = random(0), tmp_path / "out.safetensors", Notices()
    base["a.bias"][5] = -torch.inf
    inputs = [model("x", broken(base)), model("y", near(base, 2))]

    merge(
        inputs,
        base=model("base", base),
        method=method,
        output=output,
        allow_nonfinite=True,
        listener=told,
    )

    merged = load_file(output)
    assert torch.equal(merged["a.weight"][0, :3], base["a.weight"][0, :3])
    assert merged["a.bias"][5] == -torch.inf
    merged["a.bias"][5] = 0
    assert all(value.isfinite().all() for value in merged.values())
    assert not torch.equal(merged["a.weight"][1:], base["a.weight"][1:])
    assert sorted(told) == [
        f"{tmp_path / 'base.safetensors'} (the base): 1 values are NaN or infinity, in a.bias",
        f"{inputs[0]}: 3 values are NaN or infinity, in a.weight",
    ]


def test_a_single_expert_comes_back_but_for_what_is_not_finite(model, tmp_path):
    base, output = random(0), tmp_path / "out.safetensors"
    expert = broken(base)

    merge(
        [model("x", expert)],
        base=model("base", base),
        method="average",
        output=output,
        allow_nonfinite=True,
    )

    expert["a.weight"][0, :3] = base["a.weight"][0, :3]
    assert all(torch.equal(value, expert[key]) for key, value in load_file(output).items())


def test_finite_inputs_merge_the_same_but_the_record_says_what_was_allowed(model, tmp_path):
    base, told = random(0), Notices()
    inputs = [model("x", near(base, 1)), model("y", near(base, 2))]
    start = model("base", base)

    merge(inputs, base=start, output=tmp_path / "strict.safetensors")
    output = tmp_path / "out.safetensors"
    merge(inputs, base=start, output=output, allow_nonfinite=True, listener=told)

    expected = load_file(tmp_path / "strict.safetensors")
    assert all(torch.equal(value, expected[key]) for key, value in load_file(output).items())
    with safe_open(output, "pt") as opened:
        assert json.loads(opened.metadata()["moma"])["parameters"]["allow_nonfinite"] is True
    assert told == []


def test_what_was_allowed_is_allowed_when_the_merge_is_repeated(model, tmp_path):
    base, told = random(0), Notices()
    inputs = [model("x", broken(base)), model("y", near(base, 2))]
    output = tmp_path / "out.safetensors"
    merge(inputs, base=model("base", base), output=output, allow_nonfinite=True)
    before = output.read_bytes()

    merge_like(output, listener=told)

    assert output.read_bytes() == before
    assert len(told) == 1


def test_in_the_steps_of_a_recipe_too_it_is_refused_or_named(model, tmp_path):
    base, told = random(0), Notices()
    model("x", broken(base))
    model("y", near(base, 2))
    model("z", near(base, 3))
    model("base", base)
    recipe = tmp_path / "recipe.toml"
    recipe.write_text(
        'base = "base.safetensors"\n'
        '[[steps]]\nname = "first"\nmethod = "average"\n'
        'inputs = ["x.safetensors", "y.safetensors"]\n'
        '[[steps]]\nmethod = "average"\ninputs = ["first", "z.safetensors"]\n'
    )
    output = tmp_path / "out.safetensors"

    with pytest.raises(ConflictError, match="holds NaN or infinity"):
        merge_recipe(recipe, output=output)
    merge_recipe(recipe, output=output, allow_nonfinite=True, listener=told)

    assert all(value.isfinite().all() for value in load_file(output).values())
    assert told == [
        f"{tmp_path / 'x.safetensors'}: 3 values are NaN or infinity, in a.weight",
    ]


def test_a_head_that_is_not_finite_is_carried_along_and_named(model, tmp_path):
    base, told = random(0), Notices()
    expert = near(base, 1) | {"head.weight": torch.tensor([1.0, torch.nan])}
    inputs = [model("x", expert), model("y", near(base, 2))]
    output = tmp_path / "out.safetensors"

    merge(
        inputs,
        base=model("base", base),
        heads=["head.*"],
        output=output,
        allow_nonfinite=True,
        listener=told,
    )

    assert load_file(output)["heads.x.head.weight"].isnan().tolist() == [False, True]
    assert told == [f"{inputs[0]} (kept as it is): 1 values are NaN or infinity, in head.weight"]
