"""Model folders of sentence-transformers: a `transformers` model and what is done to its output.

`modules.json` lists the steps; of each, only its JSON is read.
"""

from pathlib import Path, PurePosixPath

from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.feature_rule import FeatureRule
from momacli.checkpoint.index import read_json
from momacli.errors import CheckpointError

MODULES = "modules.json"
_SETTINGS = "sentence_bert_config.json"
FILES = (MODULES, _SETTINGS, "config_sentence_transformers.json")
_POOLINGS = {"cls": "cls", "cls_token": "cls", "mean": "masked-mean", "mean_tokens": "masked-mean"}


def rule_in(folder: Path) -> FeatureRule | None:
    """The rule that a folder states, None if it is no such folder. Raises CheckpointError."""
    modules = _modules(folder)
    if not modules or modules[0][0] != "Transformer":
        return None
    kinds = [kind for kind, _ in modules]
    file = folder / MODULES
    if kinds[1:2] != ["Pooling"] or kinds[2:] not in ([], ["Normalize"]):
        raise CheckpointError(
            f"{shown_path(file)}: the steps are {', '.join(kinds)}; expected Transformer, "
            "Pooling, and perhaps Normalize",
            hint="leave the model's own last layers to the head, or remove modules.json and say "
            "--pooling",
        )
    origin = folder / modules[1][1] / "config.json"
    settings = read_json(folder / _SETTINGS) if (folder / _SETTINGS).is_file() else {}
    longest = settings.get("max_seq_length") if isinstance(settings, dict) else None
    return FeatureRule(
        _pooling(origin),
        normalize="Normalize" in kinds,
        lower_case=isinstance(settings, dict) and settings.get("do_lower_case") is True,
        max_length=longest if isinstance(longest, int) else None,
        origin=f"{modules[1][1]}/config.json",
    )


def companions(folder: Path) -> list[Path]:
    """The JSON files that make a folder one of sentence-transformers; none if it is no such."""
    names = [f"{path}/config.json" for _, path in _modules(folder) if path]
    files = [folder / name for name in (*FILES, *names)]
    return [file for file in files if file.is_file()] if (folder / MODULES).is_file() else []


def _modules(folder: Path) -> list[tuple[str, str]]:
    """Kind and folder of each step. Raises CheckpointError for folders that lie elsewhere."""
    file = folder / MODULES
    if not file.is_file():
        return []
    content = read_json(file)
    if not isinstance(content, list):
        raise CheckpointError(f"{shown_path(file)} is not a JSON list")
    found = []
    for item in content:
        kind = item.get("type") if isinstance(item, dict) else None
        path = item.get("path") if isinstance(item, dict) else None
        if not isinstance(kind, str) or not isinstance(path, str):
            raise CheckpointError(f"{shown_path(file)}: a step without type or path")
        place = PurePosixPath(path)
        if place.is_absolute() or ".." in place.parts or len(place.parts) > 1 or "\\" in path:
            raise CheckpointError(f"{shown_path(file)}: the path {path!r} is not beside it")
        found.append((kind.rpartition(".")[2], path))
    return found


def _pooling(file: Path) -> str:
    content = read_json(file)
    if not isinstance(content, dict):
        raise CheckpointError(f"{shown_path(file)} is not a JSON object")
    mode = content.get("pooling_mode")
    prefix = "pooling_mode_"
    modes = (
        [mode]
        if isinstance(mode, str)
        else [key.removeprefix(prefix) for key, on in content.items() if on is True]
    )
    modes = [mode for mode in modes if mode != "include_prompt"]
    if len(modes) != 1 or modes[0] not in _POOLINGS:
        raise CheckpointError(
            f"{shown_path(file)}: the pooling is {' and '.join(modes) or 'none'}, expected "
            "cls_token or mean_tokens",
        )
    return _POOLINGS[modes[0]]
