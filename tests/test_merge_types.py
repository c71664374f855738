"""Tensors that are no plain float32: eight bits, integers, those stored twice."""

from collections.abc import Mapping
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_adapters import LORA, lora_tensors, write_adapter
from torch import Tensor

from momacli.errors import ConflictError
from momacli.merge import merge
from momacli.task_vector import task_vector
from momacli.verify import verify

EIGHT_BITS = [
    torch.float8_e4m3fn,
    torch.float8_e5m2,
    torch.float8_e4m3fnuz,
    torch.float8_e5m2fnuz,
]


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(**models: Mapping[str, Tensor]) -> list[Path]:
    for name, tensors in models.items():
        save_file(dict(tensors), f"{name}.safetensors")
    return [Path(f"{name}.safetensors") for name in models]


def random_models(dtype: torch.dtype, *names: str) -> dict[str, dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(0)
    base = torch.randn(64, 48, generator=generator)
    models = {"base": base} | {
        name: base + 0.3 * torch.randn(base.shape, generator=generator) for name in names
    }
    return {name: {"w": value.to(dtype)} for name, value in models.items()}


def same_bits(one: Tensor, other: Tensor) -> bool:
    return one.dtype == other.dtype and torch.equal(one.view(torch.uint8), other.view(torch.uint8))


@pytest.mark.parametrize("dtype", EIGHT_BITS, ids=str)
def test_eight_bits_are_merged_in_float32_and_rounded_once_as_torch_rounds(dtype):
    models = random_models(dtype, "a", "b")

    merge(write(**models), method="average", output="out.safetensors")

    base, a, b = (model["w"].float() for model in models.values())
    expected = (base + ((a - base) + (b - base)) / 2).to(dtype)
    found = load_file("out.safetensors")["w"]
    assert same_bits(found, expected)
    assert not torch.equal(found.float(), base)
    assert verify("out.safetensors").equal


@pytest.mark.parametrize("dtype", EIGHT_BITS[:2], ids=str)
@pytest.mark.parametrize("method", ["average", "ties", "iso-c"])
def test_one_expert_in_eight_bits_comes_back_or_keeps_its_type(dtype, method):
    models = random_models(dtype, "a")

    options = {"density": 1.0} if method == "ties" else {}
    merge(write(**models), method=method, options=options, output="out.safetensors")

    found = load_file("out.safetensors")["w"]
    assert found.dtype == dtype
    if method == "average":
        assert same_bits(found, models["a"]["w"])


def test_a_result_beyond_eight_bits_is_an_error_not_infinity_or_a_clipped_number():
    models = {
        "base": {"w": torch.full((4,), 300.0).to(torch.float8_e4m3fn)},
        "a": {"w": torch.full((4,), 448.0).to(torch.float8_e4m3fn)},
    }

    with pytest.raises(ConflictError, match="values beyond F8_E4M3"):
        merge(write(**models), options={"lam": 3.0}, output="out.safetensors")

    assert not Path("out.safetensors").exists()


def test_experts_in_eight_bits_are_added_to_a_base_in_sixteen_where_a_type_is_given():
    models = random_models(torch.float32, "a", "b")
    models["base"]["w"] = models["base"]["w"].bfloat16()
    for name in "ab":
        models[name]["w"] = models[name]["w"].to(torch.float8_e5m2)
    inputs = write(**models)

    with pytest.raises(ConflictError, match="--dtype"):
        merge(inputs, method="average", output="out.safetensors")
    merge(inputs, method="average", dtype="bfloat16", output="out.safetensors")
    merge(inputs, method="average", dtype="float8_e5m2", output="small.safetensors")

    base, a, b = (model["w"].float() for model in models.values())
    exact = base + ((a - base) + (b - base)) / 2
    assert same_bits(load_file("out.safetensors")["w"], exact.bfloat16())
    assert same_bits(load_file("small.safetensors")["w"], exact.to(torch.float8_e5m2))


def test_a_task_vector_and_an_adapter_in_eight_bits_stand_for_their_models(tmp_path):
    models = random_models(torch.float8_e4m3fn, "a")
    models = {name: {"m.weight": model["w"]} for name, model in models.items()}
    base, _ = write(**models)
    tensors = lora_tensors(["m"], 1, 64, 48)
    adapter = write_adapter(tmp_path / "adapter", tensors, LORA)

    task_vector(base, ["a.safetensors"], output="taus")
    merge(["taus/a.safetensors"], base=base, method="average", output="again.safetensors")
    merge([adapter], base=base, method="average", output="adapted.safetensors")

    again = load_file("again.safetensors")["m.weight"]
    assert torch.equal(again.float(), models["a"]["m.weight"].float())
    step = 3 * tensors["m.lora_B.weight"] @ tensors["m.lora_A.weight"]
    expected = (models["base"]["m.weight"].float() + step).to(torch.float8_e4m3fn)
    assert same_bits(load_file("adapted.safetensors")["m.weight"], expected)


@pytest.mark.parametrize(
    "scale", ["m.weight_scale_inv", "m.weight_scale", "m.scale_weight", "m.weight_scale_2"]
)
def test_weights_with_scales_beside_them_are_refused_with_what_to_do(scale):
    models = random_models(torch.float8_e4m3fn, "a", "b")
    scaled = {
        name: {"m.weight": model["w"], scale: torch.ones(1), "m.bias": torch.ones(3)}
        for name, model in models.items()
    }
    inputs = write(**scaled)

    with pytest.raises(ConflictError) as error:
        merge(inputs, method="average", output="out.safetensors")

    assert error.value.details[0] == f"base: m.weight   scaled by {scale}"
    assert len(error.value.details) == 3
    assert "bfloat16" in (error.value.hint or "")
    merge(inputs, method="average", exclude=["m.weight*", scale], output="out.safetensors")
    assert same_bits(load_file("out.safetensors")["m.weight"], scaled["base"]["m.weight"])


def test_buffers_that_are_no_floating_numbers_are_the_base_s_and_named():
    models = random_models(torch.float32, "a", "b")
    for count, model in enumerate(models.values()):
        model["steps"] = torch.tensor(count)
        model["mask"] = torch.tensor([bool(count), True])
        model["codes"] = torch.full((3,), count, dtype=torch.int8)

    report = merge(write(**models), method="average", output="out.safetensors")

    found = load_file("out.safetensors")
    assert set(report.copied) == {"steps", "mask", "codes"}
    for name in report.copied:
        assert same_bits(found[name].reshape(-1), models["base"][name].reshape(-1))


def test_a_tensor_stored_under_two_names_stays_the_same_under_both():
    models = random_models(torch.float32, "a", "b")
    twice = {
        name: {"embed.weight": model["w"], "lm_head.weight": model["w"].clone()}
        for name, model in models.items()
    }

    merge(write(**twice), method="ties", output="out.safetensors")

    found = load_file("out.safetensors")
    assert torch.equal(found["embed.weight"], found["lm_head.weight"])


def test_a_tensor_stored_once_here_and_twice_there_is_a_conflict_that_names_it():
    models = random_models(torch.float32, "a")
    base = {"embed.weight": models["base"]["w"], "lm_head.weight": models["base"]["w"].clone()}

    with pytest.raises(ConflictError, match=r"lm_head\.weight   missing"):
        merge(write(base=base, a={"embed.weight": models["a"]["w"]}), output="out.safetensors")
