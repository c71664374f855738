"""The small ViT of the demo, as an ordinary transformers model."""

from pathlib import Path

import pytest
import torch

from momacli.models.small_vit import (
    save_image_processor,
    save_small_vit,
    small_vit,
    with_new_head,
)

COLORS = ("red", "green", "blue")


@pytest.fixture(scope="module")
def model() -> torch.nn.Module:
    return small_vit(COLORS, image_size=8, patch_size=4, seed=0)


def test_the_same_seed_gives_the_same_weights_and_leaves_the_global_one_alone(model):
    state = torch.get_rng_state()

    again = small_vit(COLORS, image_size=8, patch_size=4, seed=0)

    torch.testing.assert_close(again.state_dict(), model.state_dict(), rtol=0, atol=0)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_new_head_sits_on_the_same_encoder(model):
    copy = with_new_head(model, ("yes", "no"), seed=1)

    old, new = model.state_dict(), copy.state_dict()
    assert new["classifier.weight"].shape == (2, 64)
    assert copy.config.id2label == {0: "yes", 1: "no"}
    encoder = [key for key in old if not key.startswith("classifier.")]
    for key in encoder:
        assert torch.equal(old[key], new[key])
        assert old[key].data_ptr() != new[key].data_ptr()


def test_a_saved_model_loads_with_transformers_and_gives_the_same_logits(model, tmp_path: Path):
    from transformers import AutoImageProcessor, AutoModelForImageClassification

    model.eval()
    pixels = torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))

    save_small_vit(model, tmp_path)
    save_image_processor(tmp_path, image_size=8)

    loaded = AutoModelForImageClassification.from_pretrained(tmp_path)
    assert loaded.config.id2label == dict(enumerate(COLORS))
    torch.testing.assert_close(loaded(pixels).logits, model(pixels).logits, rtol=0, atol=0)
    assert AutoImageProcessor.from_pretrained(tmp_path).size == {"height": 8, "width": 8}
