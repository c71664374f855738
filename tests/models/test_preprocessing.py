import json
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from tiny_text import save_tokenizer, text_config

from momacli.checkpoint.feature_rule import PAPER, FeatureRule, with_rule
from momacli.errors import ModelError
from momacli.models.preprocessing import image_preprocessor
from momacli.models.text import TextPreprocessor


def test_what_a_processor_does_is_said_in_its_order_and_where_that_stands(tmp_path):
    transformers.CLIPImageProcessor(
        size={"shortest_edge": 12}, crop_size={"height": 8, "width": 10}
    ).save_pretrained(tmp_path)

    prepare = image_preprocessor(tmp_path)

    assert prepare.steps == (
        "RGB, resized to shortest edge 12 (bicubic), center crop 8 x 10, times 0.003922, "
        "mean 0.4815 0.4578 0.4082, std 0.2686 0.2613 0.2758"
    )
    assert prepare.origin == str(tmp_path / "preprocessor_config.json")
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    assert prepare([image, image]).shape == (2, 3, 8, 10)


def test_steps_that_are_switched_off_are_not_said(tmp_path):
    transformers.ViTImageProcessor(
        do_resize=False, do_normalize=False, rescale_factor=1.0
    ).save_pretrained(tmp_path)

    assert image_preprocessor(tmp_path).steps == "RGB, times 1"


def test_what_open_clip_does_is_said_by_its_settings(tmp_path):
    config = {
        "model_cfg": {"embed_dim": 8, "vision_cfg": {"image_size": 16}, "text_cfg": {}},
        "preprocess_cfg": {"mean": [0.5, 0.5, 0.5], "std": [0.25, 0.25, 0.25]},
    }

    prepare = image_preprocessor(tmp_path, config)

    assert prepare.steps == (
        "RGB, resized to 16 x 16 (shortest, bicubic), center crop 16 x 16, "
        "mean 0.5 0.5 0.5, std 0.25 0.25 0.25"
    )
    assert prepare.origin == str(tmp_path / "open_clip_config.json")
    image = Image.fromarray(np.zeros((20, 30, 3), np.uint8))
    assert torch.equal(prepare([image])[0], torch.full((3, 16, 16), -2.0))


def test_a_folder_without_a_processor_says_what_to_do(tmp_path):
    with pytest.raises(ModelError, match=r"has no preprocessor_config\.json") as caught:
        image_preprocessor(tmp_path)
    assert "--config" in str(caught.value.hint)


@pytest.mark.parametrize(
    ("rule", "said", "origin"),
    [
        (None, "cut to 32 tokens, padded to the longest of a batch", "."),
        (
            FeatureRule("masked-mean", normalize=True, max_length=9, origin="1_Pooling/config"),
            "cut to 9 tokens, padded to the longest of a batch, features are the encoder's "
            "output (the mean of all positions but padding), normalised",
            "., features by 1_Pooling/config",
        ),
        (
            PAPER,
            "cut to 32 tokens, [CLS] first half [SEP] second half [SEP], padded to that, features "
            "are the encoder's output (the mean of all positions, padding included, without an "
            "attention mask)",
            "., features by the layout of the paper's BERT models",
        ),
    ],
)  # fmt: skip
def test_what_is_done_to_texts_is_said_with_the_features(tmp_path, monkeypatch, rule, said, origin):
    monkeypatch.chdir(tmp_path)
    save_tokenizer(Path())
    config = text_config("Bert").to_dict() | {"architectures": ["BertModel"]}

    prepare = TextPreprocessor(with_rule(json.loads(json.dumps(config)), rule), Path())

    assert prepare.steps.partition(", ")[2] == said
    assert prepare.origin == origin
