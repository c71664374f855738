"""What model a base becomes with an adapter in it, as its config.json would say it."""

import re
from dataclasses import replace

from momacli.adapters.config import AdapterConfig
from momacli.checkpoint.description import Description, with_class_names
from momacli.checkpoint.reader import Checkpoint
from momacli.models.layout import architecture, is_classifier

_CLASS = re.compile(r"(?P<family>\w+?)(?:For[A-Z]\w*|LMHeadModel|Model)")


def adapted_description(
    base: Description | None, config: AdapterConfig, adapter: Checkpoint
) -> Description | None:
    """Return the base's description, as of a classifier where the adapter was trained in one.

    Tokenizer and processor files are the adapter's where it has any.
    """
    if base is None:
        return None
    found = architecture(base.config)
    wanted = config.base_class or ""
    if not wanted.endswith(("ForImageClassification", "ForSequenceClassification")):
        match = _CLASS.fullmatch(found)
        texts = config.task_type == "SEQ_CLS" and match is not None
        wanted = f"{match['family']}ForSequenceClassification" if texts and match else found
    content = dict(base.config)
    if wanted != found:
        content["architectures"] = [wanted]
    own = Description(content, adapter.path)
    described = own if own.companions else replace(base, config=content)
    return replace(described, config=with_class_names(described.config, adapter))


def is_other_class(base: Description | None, adapted: Description | None) -> bool:
    """Whether the adapted model is a classifier of another class than its base."""
    if base is None or adapted is None or not is_classifier(adapted.config):
        return False
    return architecture(base.config) != architecture(adapted.config)
