import pytest

from momacli.recipes.layers import is_before_layers, joined, layer_lists, split_layer


@pytest.mark.parametrize(
    ("name", "parts"),
    [
        (
            "model.layers.10.mlp.experts.3.w1.weight",
            ("model.layers", 10, "mlp.experts.3.w1.weight"),
        ),
        ("h.0.attn.bias", ("h", 0, "attn.bias")),
        ("0.weight", ("", 0, "weight")),
        ("blocks.7", ("blocks", 7, "")),
    ],
)
def test_the_first_number_in_a_name_is_the_layer(name, parts):
    assert split_layer(name) == parts
    assert joined(*parts) == name


def test_lists_of_layers_are_counted_the_largest_first():
    names = ["text.0.w", "vision.layers.0.w", "vision.layers.3.w", "vision.layers.3.b", "norm"]

    assert list(layer_lists(names).items()) == [("vision.layers", 4), ("text", 1)]


@pytest.mark.parametrize(
    ("name", "before"),
    [
        ("model.embed_tokens.weight", True),
        ("transformer.wte.weight", True),
        ("bert.embeddings.LayerNorm.weight", True),
        ("vision_model.patch_embed.proj.weight", True),
        ("model.norm.weight", False),
        ("lm_head.weight", False),
    ],
)
def test_embeddings_are_below_the_layers_and_all_else_above(name, before):
    assert is_before_layers(name) is before
