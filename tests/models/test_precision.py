import pytest
import torch
from torch import nn
from torch.nn import functional

from momacli.models import precision
from momacli.models.precision import LEAST_PARAMETERS, choose_precision, computing_in

PROCESSOR = torch.device("cpu")


@pytest.mark.parametrize("tiles", [True, False])
def test_auto_is_bfloat16_on_a_processor_with_tiles_for_it(tiles, monkeypatch):
    capabilities = {"amx_bf16": tiles}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities, raising=False)

    assert choose_precision("auto", PROCESSOR, LEAST_PARAMETERS) == (
        "bfloat16" if tiles else "float32"
    )


def test_auto_is_float32_for_a_small_encoder_and_where_torch_does_not_tell(monkeypatch):
    monkeypatch.setattr(precision, "_has_tiles", lambda: True)
    assert choose_precision("auto", PROCESSOR, LEAST_PARAMETERS - 1) == "float32"

    monkeypatch.undo()
    monkeypatch.delattr(torch.cpu, "get_capabilities", raising=False)
    assert choose_precision("auto", PROCESSOR, LEAST_PARAMETERS) == "float32"


@pytest.mark.parametrize("asked", ["float32", "bfloat16"])
def test_what_was_asked_for_is_taken(asked):
    assert choose_precision(asked, PROCESSOR, 10) == asked


def dtypes_of_products(precision: str) -> set[torch.dtype]:
    module = nn.Linear(4, 4)
    with computing_in(precision, PROCESSOR):
        output = module(torch.ones(2, 4))
    output.float().sum().backward()
    assert module.weight.grad is not None
    assert module.weight.grad.dtype == torch.float32
    return {output.dtype}


def test_products_are_in_the_precision_chosen_and_gradients_are_not():
    assert dtypes_of_products("float32") == {torch.float32}
    assert dtypes_of_products("bfloat16") == {torch.bfloat16}


def test_attention_stays_in_float32_on_a_processor():
    with computing_in("bfloat16", PROCESSOR):
        heads = nn.Linear(4, 4)(torch.ones(2, 3, 5, 4))
        attended = functional.scaled_dot_product_attention(heads, heads, value=heads)

    assert heads.dtype == torch.bfloat16
    assert attended.dtype == torch.float32


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    "options",
    [{"stride": (4, 2)}, {"stride": 1}, {"stride": (4, 2), "padding": 1}],
)
def test_a_convolution_is_the_same_whether_or_not_it_cuts_patches(options, bias):
    torch.manual_seed(0)
    images = torch.randn(2, 3, 10, 9)
    convolution = nn.Conv2d(3, 5, kernel_size=(4, 2), bias=bias, **options)
    with computing_in("bfloat16", PROCESSOR):
        found = convolution(images)
    found.float().square().sum().backward()
    gradient, convolution.weight.grad = convolution.weight.grad, None
    wanted = convolution(images)
    wanted.square().sum().backward()

    assert found.dtype == torch.bfloat16
    torch.testing.assert_close(found.float(), wanted, rtol=0.02, atol=0.02)
    difference = gradient - convolution.weight.grad
    assert difference.norm() < 0.02 * convolution.weight.grad.norm()


def test_patches_are_one_product(monkeypatch):
    calls = []
    linear = functional.linear
    monkeypatch.setattr(functional, "linear", lambda *args: calls.append(1) or linear(*args))
    for stride in (4, 2):
        with computing_in("bfloat16", PROCESSOR):
            nn.Conv2d(3, 5, kernel_size=4, stride=stride)(torch.randn(1, 3, 8, 8))

    assert len(calls) == 1


def test_nothing_is_computed_otherwise_afterwards():
    with computing_in("bfloat16", PROCESSOR):
        pass

    assert dtypes_of_products("float32") == {torch.float32}
