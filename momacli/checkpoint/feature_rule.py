"""How features are taken from a network, where its architecture does not say.

The rule stands in config.json under `moma_features`, which transformers keeps and does not
heed, so that it travels from a model to what is merged and aligned from it.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from typing import Any

from momacli.errors import CheckpointError, ConflictError, UsageError

KEY = "moma_features"

POOLINGS = {
    "cls": "the first position",
    "pooler": "the encoder's own pooler",
    "mean": "the mean of all positions, padding included, without an attention mask",
    "masked-mean": "the mean of all positions but padding",
}
"""What makes one vector of an output that has one a position."""


@dataclass(frozen=True)
class FeatureRule:
    """What the features of a sample are.

    pooling: a key of POOLINGS; "mean" pads every text to max_length, for else features would
        depend on the other texts of a batch.
    module: dotted path of the module whose output is meant, by default the encoder.
    normalize: whether the head is given z/|z|.
    halves: texts are [CLS] first half [SEP] second half [SEP].
    lower_case: texts are put in lower case before the tokenizer.
    max_length: tokens a text is cut to, unless the user says otherwise.
    origin: where this was read, for people.
    """

    pooling: str | None = None
    module: str | None = None
    normalize: bool = False
    halves: bool = False
    lower_case: bool = False
    max_length: int | None = None
    origin: str = "the command line"

    def __post_init__(self) -> None:
        """Refuse a pooling that there is not. Raises UsageError."""
        if self.pooling is not None and self.pooling not in POOLINGS:
            raise UsageError(
                f"pooling: expected {', '.join(POOLINGS)}, found {self.pooling}",
                hint=None if self.origin == FeatureRule.origin else f"it is from {self.origin}",
            )


_TYPES = {
    "pooling": str,
    "module": str,
    "normalize": bool,
    "halves": bool,
    "lower_case": bool,
    "max_length": int,
    "origin": str,
}

PAPER = FeatureRule(
    pooling="mean", halves=True, max_length=256, origin="the layout of the paper's BERT models"
)
"""Of the text models of the paper: `bert.*` and `classifier.0.*` in one file."""


def rule_of(config: Mapping[str, Any]) -> FeatureRule | None:
    """The rule that a config states; None where the architecture says it all."""
    content = config.get(KEY)
    if content is None:
        return None
    if not isinstance(content, dict) or any(
        type(value) is not _TYPES.get(key) for key, value in content.items()
    ):
        raise CheckpointError(
            f"the config's {KEY} cannot be understood",
            hint="it was written by another version of moma, or changed by hand",
        )
    return FeatureRule(**content)


def with_rule(config: Mapping[str, Any], rule: FeatureRule | None) -> Mapping[str, Any]:
    """The config that states a rule, in place of the one it has."""
    if rule is None:
        return config
    plain = {key: value for key, value in asdict(rule).items() if value not in (None, False)}
    return {**config, KEY: plain}


def chosen_rule(
    config: Mapping[str, Any], pooling: str | None, module: str | None, whose: str
) -> FeatureRule | None:
    """The config's own rule with what the user said. Raises ConflictError if they contradict.

    What a checkpoint brings along gives way to the user; what an alignment was made with
    does not.
    """
    own = rule_of(config)
    if pooling is None and module is None:
        return own
    given = FeatureRule(pooling, module)
    if own is None:
        return given
    changed = replace(own, pooling=pooling or own.pooling, module=module or own.module)
    if own.origin == given.origin and changed != own:
        raise ConflictError(
            f"{whose} was made with {spoken(own)}, which is not {spoken(changed)}",
            hint="leave --pooling and --features out, or align again",
        )
    if changed.pooling != own.pooling:
        changed = replace(changed, halves=False, origin=given.origin)
    return changed


def spoken(rule: FeatureRule) -> str:
    """What the features are, for people."""
    words = "the encoder's output" if rule.module is None else f"the output of {rule.module}"
    pooling = f" ({POOLINGS[rule.pooling]})" if rule.pooling else ""
    return words + pooling + (", normalised" if rule.normalize else "")
