"""Small configurations of image classifiers, one of each family."""

import transformers

_SMALL = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "num_labels": 3}

IMAGE_CONFIGS = {
    "ViT": transformers.ViTConfig(image_size=8, patch_size=4, intermediate_size=32, **_SMALL),
    "DeiT": transformers.DeiTConfig(image_size=8, patch_size=4, intermediate_size=32, **_SMALL),
    "Dinov2": transformers.Dinov2Config(image_size=8, patch_size=4, **_SMALL),
    "Swin": transformers.SwinConfig(
        image_size=8, patch_size=2, embed_dim=8, depths=[1], num_heads=[1], window_size=2,
        num_labels=3,
    ),
    "ConvNext": transformers.ConvNextConfig(
        hidden_sizes=[8], depths=[1], num_stages=1, num_labels=3
    ),
    "ResNet": transformers.ResNetConfig(
        embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic", num_labels=3
    ),
}  # fmt: skip
"""By the name of the family's classes in transformers."""
