import pytest
import torch

from momacli.statistics.geometry import Geometry, layer_of, total


@pytest.mark.parametrize(
    ("name", "layer"),
    [
        ("vit.encoder.layer.11.attention.attention.query.weight", "vit.encoder.layer.11"),
        ("vit.embeddings.patch_embeddings.projection.weight", "vit.embeddings"),
        ("vit.layernorm.bias", "vit.layernorm"),
        ("visual.proj", "visual"),
        ("layer1.0.conv1.weight", "layer1.0"),
        ("conv1.weight", "conv1"),
        ("logit_scale", "logit_scale"),
    ],
)
def test_a_tensor_belongs_to_the_layer_that_its_name_counts(name, layer):
    assert layer_of(name) == layer


def test_sums_over_blocks_are_the_sums_over_the_whole():
    taus = torch.tensor([[3.0, 0.0, 4.0], [0.0, 2.0, 0.0]])
    theta_0 = torch.tensor([1.0, 2.0, 2.0])
    whole, first, second = (Geometry(2) for _ in range(3))

    whole.add(taus, theta_0)
    first.add(taus[:, :1], theta_0[:1])
    second.add(taus[:, 1:], theta_0[1:])

    for found in (whole, total(2, [first, second])):
        assert found.norms == (5.0, 2.0)
        assert found.base_norm == 3.0
        assert found.sparsities == pytest.approx((1 / 3, 2 / 3))
        assert found.cosines == ((1.0, 0.0), (0.0, 1.0))


def test_a_zero_vector_has_no_direction():
    geometry = Geometry(2)

    geometry.add(torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.ones(2))

    assert geometry.cosines[0] == (None, None)
    assert geometry.cosines[1] == (None, pytest.approx(1.0))


def test_nothing_at_all_is_no_division_by_zero():
    assert Geometry(1).sparsities == (0.0,)
    assert Geometry(1).cosines == ((None,),)
