"""What an adapter_config.json says, as far as it decides what the adapter makes of its base.

Options that only steer training are passed over. One that changes the merged weights in a way
that is not done here, or that is not known at all, is a problem with a name, never ignored.
"""

import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.index import read_json
from momacli.checkpoint.reader import Checkpoint, is_adapter
from momacli.checkpoint.weight_files import ADAPTER_CONFIG
from momacli.errors import CheckpointError

_SHARED = {
    "peft_type", "task_type", "base_model_name_or_path", "revision", "inference_mode",
    "auto_mapping", "peft_version", "target_modules", "exclude_modules", "layers_to_transform",
    "layers_pattern", "modules_to_save", "bias", "fan_in_fan_out", "r", "runtime_config",
    "ensure_weight_tying",
}  # fmt: skip
_LORA = _SHARED | {
    "lora_alpha", "lora_dropout", "use_rslora", "use_dora", "init_lora_weights", "rank_pattern",
    "alpha_pattern", "lora_bias", "megatron_config", "megatron_core", "qalora_group_size",
    "eva_config", "velora_config",
}  # fmt: skip
_OFT = _SHARED | {
    "oft_block_size", "module_dropout", "init_weights", "coft", "eps", "block_share",
    "use_cayley_neumann", "num_cayley_neumann_terms",
}  # fmt: skip
"""Options that are followed here, or that say nothing of the weights an adapter makes."""

_PLAIN_INITS = (True, False, None, "gaussian", "eva", "orthogonal")
"""Values of init_lora_weights that leave the base as it was."""

_MOST_TERMS = 100
_LONGEST_PATTERN, _MOST_REPEATS, _MOST_PATTERNS = 500, 2, 10_000


@dataclass(frozen=True)
class Lora:
    """How the factors of a LoRA adapter are scaled, and what else it trained."""

    rank: int
    ranks: tuple[int, ...]  # of single modules, by rank_pattern
    alpha: float
    alphas: tuple[tuple[re.Pattern[str], float], ...]  # of module names, the first match counts
    rank_stabilized: bool
    fan_in_fan_out: bool
    dora: bool

    def scaling(self, module: str, rank: int) -> float:
        """The factor on B A of one module: alpha / r, or alpha / sqrt(r)."""
        alpha = next((alpha for name, alpha in self.alphas if name.match(module)), self.alpha)
        return alpha / (math.sqrt(rank) if self.rank_stabilized else rank)


@dataclass(frozen=True)
class Oft:
    """How the entries of an OFT adapter become rotations."""

    use_cayley_neumann: bool
    num_cayley_neumann_terms: int
    last_term_doubled: bool  # as PEFT before 0.18 summed its series
    constraint: float | None  # eps of constrained OFT
    block_share: bool


@dataclass(frozen=True)
class AdapterConfig:
    """An adapter's settings."""

    method: Lora | Oft
    modules_to_save: tuple[str, ...]
    base_name: str | None  # what it says it was trained on; only ever reported
    base_class: str | None  # of `transformers`
    task_type: str | None
    problems: tuple[str, ...]  # options by which it makes something else of its base

    def __str__(self) -> str:
        """What it is, in a few words."""
        if isinstance(self.method, Oft):
            return "OFT adapter"
        return f"{'DoRA' if self.method.dora else 'LoRA'} adapter of rank {self.method.rank}"


def config_file(adapter: Checkpoint) -> Path:
    """The adapter_config.json of an adapter."""
    assert is_adapter(adapter)
    return adapter.path / ADAPTER_CONFIG


def read_adapter_config(file: Path) -> AdapterConfig:
    """Read an adapter_config.json. Raises CheckpointError if a value is not of its kind."""
    content = read_json(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{shown_path(file)} is not a JSON object")
    try:
        return _config(content)
    except (TypeError, ValueError, OverflowError) as error:
        raise CheckpointError(
            f"{shown_path(file)} is not a sound adapter_config.json: {shown(str(error))}"
        ) from error


def _config(content: Mapping[str, Any]) -> AdapterConfig:
    kind = str(content.get("peft_type")).upper()
    problems: list[str] = []
    method: Lora | Oft
    if kind == "OFT":
        method = _oft(content)
        problems += _unknown(content, _OFT)
        if content.get("fan_in_fan_out"):
            problems.append("fan_in_fan_out of OFT")
    elif kind != "LORA":
        method = _lora({})
        problems.append(f"peft_type {shown(kind)}: only LORA and OFT are known")
    else:
        method = _lora(content)
        problems += _unknown(content, _LORA)
        init = content.get("init_lora_weights")
        if init not in _PLAIN_INITS:
            problems.append(
                f"init_lora_weights {shown(str(init))}: it changes the base before training; let "
                "PEFT save it with path_initial_model_for_weight_conversion"
            )
        if method.dora and content.get("lora_bias"):
            problems.append("use_dora together with lora_bias")
    mapping = content.get("auto_mapping")
    base_class = mapping.get("base_model_class") if isinstance(mapping, dict) else None
    saved = content.get("modules_to_save") or []
    if not isinstance(saved, list):
        raise TypeError("modules_to_save is no list")
    return AdapterConfig(
        method,
        tuple(map(str, saved)),
        _text(content.get("base_model_name_or_path")),
        _text(base_class),
        _text(content.get("task_type")),
        tuple(problems),
    )


def _lora(content: Mapping[str, Any]) -> Lora:
    patterns = _table(content, "alpha_pattern")
    if len(patterns) > _MOST_PATTERNS:
        raise ValueError(f"alpha_pattern has {len(patterns)} entries")
    return Lora(
        rank=_count(content, "r", 8),
        ranks=tuple(int(_number(rank)) for rank in _table(content, "rank_pattern").values()),
        alpha=_number(content.get("lora_alpha", 8)),
        alphas=tuple((_pattern(text), _number(alpha)) for text, alpha in patterns.items()),
        rank_stabilized=_flag(content, "use_rslora"),
        fan_in_fan_out=_flag(content, "fan_in_fan_out"),
        dora=_flag(content, "use_dora"),
    )


def _oft(content: Mapping[str, Any]) -> Oft:
    terms = _count(content, "num_cayley_neumann_terms", 5)
    if terms > _MOST_TERMS:
        raise ValueError(f"num_cayley_neumann_terms is {terms}")
    return Oft(
        use_cayley_neumann=_flag(content, "use_cayley_neumann"),
        num_cayley_neumann_terms=terms,
        last_term_doubled=_version(content.get("peft_version")) < (0, 18),
        constraint=_number(content.get("eps", 6e-5)) if _flag(content, "coft") else None,
        block_share=_flag(content, "block_share"),
    )


def _unknown(content: Mapping[str, Any], known: Iterable[str]) -> list[str]:
    """Options that are set and not known, so that nobody can tell what they change."""
    return [
        f"{shown(key)} = {shown(str(value)[:60])}"
        for key, value in content.items()
        if key not in known and value not in (None, False, "", [], {})
    ]


def _pattern(text: str) -> re.Pattern[str]:
    """Refuse patterns that could take forever: a regular expression is a program."""
    repeats = len(re.findall(r"[*+{?]", text))
    nested = re.search(r"\)[*+{?]|\\\d|\(\?", text)
    if len(text) > _LONGEST_PATTERN or repeats > _MOST_REPEATS or nested:
        raise ValueError(f"alpha_pattern {text!r} is too complicated")
    try:
        re.compile(text)  # by itself, lest it ends the group around it
        return re.compile(rf"(.*\.)?({text})$")
    except (re.error, RecursionError) as error:
        raise ValueError(f"alpha_pattern {text!r}: {error}") from error


def _version(value: object) -> tuple[int, ...]:
    """The first two numbers of a version; PEFT names its own from 0.18 on."""
    numbers = re.match(r"(\d{1,6})\.(\d{1,6})", value) if isinstance(value, str) else None
    return (int(numbers[1]), int(numbers[2])) if numbers else (0, 0)


def _table(content: Mapping[str, Any], key: str) -> dict[str, Any]:
    table = content.get(key) or {}
    if not isinstance(table, dict):
        raise TypeError(f"{key} is no table")
    return table


def _flag(content: Mapping[str, Any], key: str) -> bool:
    value = content.get(key) or False
    if not isinstance(value, bool):
        raise TypeError(f"{key} is neither true nor false")
    return value


def _count(content: Mapping[str, Any], key: str, default: int) -> int:
    value = content.get(key, default)
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise TypeError(f"{key} is no count")
    return value


def _number(value: object) -> float:
    if not isinstance(value, int | float) or isinstance(value, bool) or not math.isfinite(value):
        raise TypeError(f"expected a number, found {value!r}")
    return float(value)


def _text(value: object) -> str | None:
    return value if isinstance(value, str) and value else None
