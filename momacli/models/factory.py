"""Build a `transformers` network from a config.json, without weights and without remote code."""

import contextlib
import inspect
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import nn

from momacli.errors import ModelError
from momacli.models.layout import architecture, is_classifier, is_vision_tower


def build(config: Mapping[str, Any]) -> nn.Module:
    """Build the classification model a config describes, with random weights.

    Only classes that ship with transformers are used; `auto_map` is never followed. Raises
    ModelError for anything else.
    """
    name = architecture(config)
    if not is_classifier(config):
        raise ModelError(
            f"the config names {name or 'no architecture'}, which has no classifier",
            hint="a *ForImageClassification or *ForSequenceClassification model is needed",
        )
    return _built(name, config)


def build_tower(config: Mapping[str, Any]) -> nn.Module:
    """Build the image encoder, or the whole CLIP or SigLIP, that a config names.

    Raises ModelError for anything else.
    """
    name = architecture(config)
    if not is_vision_tower(config) or name not in _TOWERS:
        raise ModelError(
            f"the config names {name or 'no architecture'}, which is no image encoder",
            hint=f"one of {', '.join(_TOWERS)} is needed",
        )
    return _built(name, config)


def build_network(config: Mapping[str, Any], *, pooler: bool = True) -> nn.Module:
    """Build whatever network of transformers a config names, or its plain encoder.

    pooler: whether the encoder has one, where its class leaves the choice.

    Raises ModelError for classes that do not ship with transformers.
    """
    name = architecture(config)
    return _built(name or _plain_encoder(config), config, pooler=pooler)


_TOWERS = (
    "CLIPVisionModel",
    "CLIPVisionModelWithProjection",
    "CLIPModel",
    "SiglipVisionModel",
    "SiglipModel",
)


def _plain_encoder(config: Mapping[str, Any]) -> str:
    """The class that transformers' own AutoModel takes for a model_type; may be empty."""
    with quiet():
        from transformers.models.auto.modeling_auto import MODEL_MAPPING_NAMES

    found = MODEL_MAPPING_NAMES.get(str(config.get("model_type")), "")
    return str(found if isinstance(found, str) else found[0])


def _built(name: str, config: Mapping[str, Any], *, pooler: bool = True) -> nn.Module:
    with quiet():
        import transformers

        if not name:
            raise ModelError("the config names neither an architecture nor a known model_type")
        kind: Any = getattr(transformers, name, None)
        known = isinstance(kind, type) and issubclass(kind, transformers.PreTrainedModel)
        if not known:
            raise ModelError(
                f"this version of transformers has no {name}",
                hint="moma runs no code from a checkpoint; install a version that has it",
            )
        plain = {key: value for key, value in config.items() if key != "auto_map"}
        optional = "add_pooling_layer" in inspect.signature(kind).parameters
        options = {"add_pooling_layer": pooler} if optional else {}
        try:
            model: nn.Module = kind(kind.config_class.from_dict(plain), **options)
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise ModelError(f"{name} cannot be built from its config.json: {error}") from error
    return model


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep transformers from writing progress bars and advice to the terminal."""
    from transformers.utils import logging

    bars, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        finally:
            logging.set_verbosity(level)
            if bars:
                logging.enable_progress_bar()
