import pytest
import torch
import transformers
from tiny_images import IMAGE_CONFIGS
from tiny_text import text_config

from momacli.errors import ModelError
from momacli.models.blocks import changing, find_blocks, token_mean

PIXELS = {"pixel_values": torch.randn(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))}
TOKENS = {
    "input_ids": torch.tensor([[5, 6, 7, 1], [8, 1, 0, 0]]),
    "attention_mask": torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]]),
}


def image_model(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}ForImageClassification")
    return kind(IMAGE_CONFIGS[family]).eval()


def text_model(family: str) -> torch.nn.Module:
    torch.manual_seed(0)
    kind = getattr(transformers, f"{family}ForSequenceClassification")
    return kind(text_config(family)).eval()


def blocks_of(model: torch.nn.Module, batch) -> list[torch.nn.Module]:
    return find_blocks(model, lambda given: model(**given).logits, batch)


def test_the_blocks_of_an_encoder_are_its_layers():
    vit, bert = image_model("ViT"), text_model("Bert")

    (layers,) = (
        one for one in vit.modules()
        if isinstance(one, torch.nn.ModuleList) and type(one[0]).__name__ == "ViTLayer"
    )  # fmt: skip
    assert blocks_of(vit, PIXELS) == list(layers)
    assert blocks_of(bert, TOKENS) == list(bert.bert.encoder.layer)


def test_what_is_within_a_block_is_no_block_however_much_it_is():
    model = torch.nn.Module()
    inner = [torch.nn.Sequential(*(torch.nn.Linear(3, 3) for _ in range(5))) for _ in range(2)]
    model.stages = torch.nn.ModuleList(inner)

    def features(batch):
        return model.stages[1](model.stages[0](batch["x"]))[:, 0]

    assert find_blocks(model, features, {"x": torch.ones(2, 4, 3)}) == inner


@pytest.mark.parametrize(
    ("model", "batch", "words"),
    [
        (lambda: image_model("ResNet"), PIXELS, "its blocks make no tokens"),
        (lambda: text_model("T5"), TOKENS, "there are several lists of blocks"),
    ],
)
def test_an_encoder_without_one_list_of_blocks_is_refused(model, batch, words):
    with pytest.raises(ModelError, match=words):
        blocks_of(model(), batch)


def test_what_a_block_makes_is_changed_for_the_next_and_no_longer_than_asked():
    vit = image_model("ViT")
    blocks = blocks_of(vit, PIXELS)
    with torch.no_grad():
        before = vit(**PIXELS).logits
        with changing(blocks, lambda number, tokens: tokens):
            same = vit(**PIXELS).logits
        with changing(blocks, lambda number, tokens: torch.zeros_like(tokens)):
            nothing = vit(**PIXELS).logits
        after = vit(**PIXELS).logits

    assert torch.equal(same, before)
    assert torch.equal(after, before)
    torch.testing.assert_close(nothing[0], nothing[1])  # every sample is alike then


def test_padding_is_no_token():
    tokens = torch.arange(16.0).view(2, 4, 2)

    torch.testing.assert_close(token_mean(tokens, TOKENS), torch.tensor([[3.0, 4.0], [9.0, 10.0]]))
    torch.testing.assert_close(token_mean(tokens, PIXELS), tokens.mean(dim=1))
