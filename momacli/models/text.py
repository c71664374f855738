"""Text to what a model takes, by the checkpoint's own tokenizer."""

import inspect
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from momacli.checkpoint.feature_rule import FeatureRule, rule_of, spoken
from momacli.errors import ModelError
from momacli.models.factory import build_network, quiet
from momacli.models.interface import Padding

_UNKNOWN = 1 << 20
"""A length from here on is a tokenizer's way to say that it knows none."""

_DEFAULT_LENGTH = 512

_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "spiece.model",
    "spm.model",
)


class TextPreprocessor:
    """A tokenizer together with what its model can take."""

    def __init__(
        self, config: Mapping[str, Any], folder: Path | None, *, max_length: int | None = None
    ):
        """Load the tokenizer of a model folder. Raises ModelError if there is none.

        max_length: tokens a text is cut to, by default as many as model and tokenizer allow.
        """
        self._tokenizer = load_tokenizer(folder)
        self._rule = rule_of(config) or FeatureRule()
        with torch.device("meta"):
            module = build_network(config)
        self._accepted = set(inspect.signature(module.forward).parameters)
        self._whole = self._rule.pooling == "mean"
        if self._whole:
            self._accepted.discard("attention_mask")
        wanted = max_length or self._rule.max_length
        limits = [wanted, self._tokenizer.model_max_length, positions(module, config)]
        known = [limit for limit in limits if limit is not None and limit < _UNKNOWN]
        self.max_length: int = min(known, default=_DEFAULT_LENGTH)
        values = {
            "input_ids": self._tokenizer.pad_token_id or 0,
            "token_type_ids": self._tokenizer.pad_token_type_id,
        }
        self.steps = self._steps()
        said = "" if self._rule == FeatureRule() else f", features by {self._rule.origin}"
        self.origin = f"{folder}{said}"
        self.padding = Padding(values, left=self._tokenizer.padding_side == "left")

    def __call__(
        self, texts: Sequence[str], pairs: Sequence[str] | None = None
    ) -> list[dict[str, Tensor]]:
        """Return the tokens of each text, or pair of texts: input name -> ids [length].

        Raises ModelError for pairs where every text is cut in halves itself.
        """
        if self._rule.lower_case:
            texts = [text.lower() for text in texts]
            pairs = None if pairs is None else [text.lower() for text in pairs]
        if self._rule.halves:
            if pairs is not None:
                raise ModelError("pairs of texts cannot be given to a model that halves each text")
            return self._halved(texts)
        with quiet():
            encoded = self._tokenizer(
                list(texts),
                None if pairs is None else list(pairs),
                truncation=True,
                max_length=self.max_length,
                padding="max_length" if self._whole else False,
            )
        kept = {key: rows for key, rows in encoded.items() if key in self._accepted}
        return [
            {key: torch.tensor(row, dtype=torch.int32) for key, row in zip(kept, rows, strict=True)}
            for rows in zip(*kept.values(), strict=True)
        ]

    def _steps(self) -> str:
        """What is done to a text, for people."""
        parts = [type(self._tokenizer).__name__, f"cut to {self.max_length} tokens"]
        if self._rule.lower_case:
            parts.insert(0, "lower case")
        if self._rule.halves:
            parts.append("[CLS] first half [SEP] second half [SEP]")
        parts.append("padded to that" if self._whole else "padded to the longest of a batch")
        if self._rule != FeatureRule():
            parts.append(f"features are {spoken(self._rule)}")
        return ", ".join(parts)

    def _halved(self, texts: Sequence[str]) -> list[dict[str, Tensor]]:
        """[CLS] first half [SEP] second half [SEP], filled up with padding."""
        tokenizer = self._tokenizer
        with quiet():
            encoded = tokenizer(list(texts), add_special_tokens=False, truncation=False)
        rows = []
        for ids in encoded["input_ids"]:
            ids = ids[: self.max_length - 3]
            half = len(ids) // 2
            first, second = ids[:half], ids[half:]
            row = [tokenizer.cls_token_id, *first, tokenizer.sep_token_id, *second]
            row.append(tokenizer.sep_token_id)
            row += [tokenizer.pad_token_id or 0] * (self.max_length - len(row))
            rows.append({"input_ids": torch.tensor(row, dtype=torch.int32)})
        return rows


def load_tokenizer(folder: Path | None) -> Any:
    """The tokenizer of a model folder. Raises ModelError if there is none."""
    if folder is None or not any((folder / name).is_file() for name in _FILES):
        where = folder or "the model's folder"
        raise ModelError(
            f"{where} has no tokenizer, so it is unknown how text was prepared for training",
            hint="copy its files from the base model, or name its folder with --config",
        )
    from transformers import AutoTokenizer

    try:
        with quiet():
            return AutoTokenizer.from_pretrained(folder, local_files_only=True)
    except (OSError, ValueError, KeyError, ImportError) as error:
        raise ModelError(f"the tokenizer in {folder} cannot be loaded: {error}") from error


def positions(module: nn.Module, config: Mapping[str, Any]) -> int | None:
    """How many tokens a model's table of positions has room for; None where it has no table.

    Where the table has a row for padding, as in RoBERTa, counting begins after it.
    """
    for name, part in module.named_modules():
        if name.endswith("position_embeddings") and isinstance(part, nn.Embedding):
            skipped = 0 if part.padding_idx is None else part.padding_idx + 1
            return part.num_embeddings - skipped
    found = config.get("max_position_embeddings")
    return found if isinstance(found, int) else None
