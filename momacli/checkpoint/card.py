"""The README.md of a model folder that moma writes: what it is, of what, how, under which licence.

It says what the record in the weights says, and what the cards of the inputs say of licences;
nothing of the machine or the time. Its last line is a digest of the lines before, so that a
card that someone changed is told from one that can be written anew.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.provenance import Input, Recipe, input_path
from momacli.checkpoint.source import Source
from momacli.errors import CheckpointError

CARD = "README.md"

_MAX_BYTES = 1 << 20
_LICENSE = re.compile(r"[A-Za-z0-9][A-Za-z0-9.+_-]{0,59}")
_SIGNED = re.compile(r"<!-- moma wrote the above, SHA-256 ([0-9a-f]{64}) -->\n")
_PLAIN = re.compile(r"[A-Za-z0-9_./=,:+-]+")
_ENGINE = ("weights", "scope", "seed", "dtype")
_REPEATED = ("exclude", "heads")


def card(
    title: str,
    recipe: Recipe,
    place: Path,
    *,
    library: str = "transformers",
    metrics: Mapping[str, float] | None = None,
) -> str:
    """Return the text of a card.

    title: of the model: its task's name, or the output's.
    place: the output, from which the paths in the recipe are seen.
    library: the one that loads the model.
    metrics: what is known of how well it does, by name.
    """
    inputs = [*([recipe.base] if recipe.base else []), *recipe.inputs]
    licenses = {item.name: license_of(input_path(item, place)) for item in inputs}
    sections = [
        _front(library, inputs, licenses),
        [f"# {_plain(title)}", "", *_what(recipe)],
        _inputs(recipe, inputs),
        _settings(recipe),
        _measured(metrics or {}),
        _licenses(licenses),
        _again(recipe),
    ]
    text = "\n\n".join("\n".join(lines) for lines in sections if lines) + "\n\n"
    digest = hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
    return f"{text}<!-- moma wrote the above, SHA-256 {digest} -->\n"


def is_card(file: Path) -> bool:
    """Whether this is a card as moma wrote it, not changed since."""
    try:
        with Source(file) as source:
            raw = source.read(min(source.size, _MAX_BYTES), 0)
    except CheckpointError:
        return False
    found = list(_SIGNED.finditer(raw.decode("utf-8", "replace")))
    if not found or not raw.endswith(found[-1][0].encode()):
        return False
    return hashlib.sha256(raw[: -len(found[-1][0])]).hexdigest() == found[-1][1]


def license_of(folder: Path) -> str | None:
    """The licence that a model folder's card states; None if none, or none that is one word."""
    import yaml

    file = folder / CARD
    try:
        with Source(file) as source:
            text = source.read(min(source.size, _MAX_BYTES), 0).decode("utf-8", "replace")
    except CheckpointError:
        return None
    match = re.match(r"---\r?\n(.*?)\r?\n---\s*(?:\n|$)", text, re.DOTALL)
    if match is None or "&" in match[1]:  # no bombs of references to references
        return None
    try:
        content = yaml.safe_load(match[1])
    except (yaml.YAMLError, ValueError, RecursionError):
        return None
    found = content.get("license") if isinstance(content, dict) else None
    return found if isinstance(found, str) and _LICENSE.fullmatch(found) else None


def _front(library: str, inputs: Sequence[Input], licenses: Mapping[str, str | None]) -> list[str]:
    """The YAML that hubs read; strings are written as JSON, which is YAML too."""
    stated = set(licenses.values())
    lines = ["---", f"library_name: {library}"]
    if stated != {None} and stated:
        (one, *others) = sorted(stated, key=str)
        lines.append(f"license: {'other' if others or one is None else one}")
    names = [json.dumps(_plain(item.name)) for item in inputs]
    if names:
        lines += ["base_model:", *(f"- {name}" for name in dict.fromkeys(names))]
        lines.append("base_model_relation: merge")
    return [*lines, "tags:", "- merge", "- moma", "---"]


def _what(recipe: Recipe) -> list[str]:
    merge = recipe.parameters.get("merge", recipe.parameters)
    method = merge.get("method") if isinstance(merge, Mapping) else None
    count = len(recipe.inputs)
    how = f" by {_code(method)}" if isinstance(method, str) else " by a recipe of several steps"
    of = f" of {count} {'expert' if count == 1 else 'experts'}" if count else ""
    kind = "the aligned merge" if recipe.command == "align" else "a merge"
    only = recipe.parameters.get("task")
    if isinstance(only, str):
        kind = f"{_code(only)}, reconstructed from a merge"
    made = f"This is {kind}{of}{how}, made by {_plain(recipe.tool)}."
    return [made, "", _aligned(recipe.parameters)] if recipe.command == "align" else [made]


def _aligned(parameters: Mapping[str, Any]) -> str:
    """What was learned from unlabeled data, and what it adds to the model."""
    method, added = parameters.get("method"), parameters.get("added_parameters")
    if added is not None:
        return (
            f"The weights are those of the merge. An adapter learned by {_code(method)} from "
            f"unlabeled data adds {_code(added)} parameters for each task; they lie in a file "
            "beside, `surgery.safetensors`. `moma evaluate` uses them; programs that load these "
            "weights alone do not."
        )
    if method is not None:
        return (
            f"The head was trained by {_code(method)} to answer as the fine-tuned model does on "
            "unlabeled data. Nothing was added to the model."
        )
    return (
        "A mask on the multi-task vector and one orthogonal matrix for each task were learned from "
        "unlabeled data and folded into the weights. Nothing was added to the model."
    )


def _inputs(recipe: Recipe, inputs: Sequence[Input]) -> list[str]:
    if not inputs:
        return []
    lines = ["## Made of", "", "| | model | file | SHA-256 |", "| --- | --- | --- | --- |"]
    for item in inputs:
        role = "base" if item is recipe.base else "task vector" if item.task_vector else "expert"
        for number, (name, digest) in enumerate(sorted(item.files.items())):
            first = ("", "") if number else (role, _code(item.name))
            lines.append(f"| {first[0]} | {first[1]} | {_code(name)} | `{digest}` |")
    return lines


def _settings(recipe: Recipe) -> list[str]:
    """Every parameter that is a plain value."""
    given = {key: value for key, value in recipe.parameters.items() if key != "merge"}
    merge = recipe.parameters.get("merge")
    if isinstance(merge, Mapping):
        given = {**merge, **{f"align {key}": value for key, value in given.items()}}
    known = {key: value for key, value in given.items() if isinstance(value, str | int | float)}
    known |= {f"samples of {task}": count for task, count in _samples(given).items()}
    if not known:
        return []
    rows = [f"| {_plain(key)} | {_code(_value(value))} |" for key, value in sorted(known.items())]
    return ["## Settings", "", "| setting | value |", "| --- | --- |", *rows]


def _measured(metrics: Mapping[str, float]) -> list[str]:
    if not metrics:
        return []
    rows = [f"| {_plain(key)} | {value:.6g} |" for key, value in metrics.items()]
    return ["## On the unlabeled samples", "", "| measure | value |", "| --- | --- |", *rows]


def _licenses(licenses: Mapping[str, str | None]) -> list[str]:
    """What each input states, where they do not state the same."""
    if len(set(licenses.values())) < 2:
        return []
    rows = [f"| {_code(name)} | {found or 'not stated'} |" for name, found in licenses.items()]
    return ["## Licences of what it is made of", "", "| model | licence |", "| --- | --- |", *rows]


def _again(recipe: Recipe) -> list[str]:
    command = " ".join(_words(recipe))
    lines = ["## Again", ""]
    if command:
        lines += ["Beside the output, with the inputs where they were:", ""]
        lines += ["```console", f"$ {command}", "```", ""]
    if _samples(recipe.parameters) and not recipe.parameters.get("coefficients"):
        return [
            *lines,
            "The weights hold the record of this, but for the samples that were seen; `moma info` "
            "shows it. The same command with the same samples makes the same model.",
        ]
    return [
        *lines,
        "The weights hold the whole record: `moma info` shows it, `moma verify` makes the model "
        "again from the inputs above and compares every bit.",
    ]


def _words(recipe: Recipe) -> Iterator[str]:
    """The command that says the same as the recipe; none where it says more than a command can."""
    given = recipe.parameters
    if recipe.command == "align" and recipe.merged is not None:
        yield from ("moma", "align", _word(recipe.merged.path), "--data", "UNLABELED")
        if "method" in given:
            yield from ("--method", _word(str(given["method"])))
    if recipe.command != "merge" or recipe.base is None or {"recipe", "rules"} & set(given):
        return
    yield from ("moma", "merge")
    for item in recipe.inputs:
        yield _word(f"{item.name}={item.path}")
    yield from ("--base", _word(recipe.base.path), "--method", str(given.get("method")))
    for key, value in sorted(given.items()):
        if key in ("method", "rotations"):
            continue
        if value is True and key == "allow_nonfinite":
            yield "--allow-nonfinite"
        elif key in _REPEATED and isinstance(value, Sequence):
            for item in value:
                yield from (f"--{key}", _word(str(item)))
        elif key == "weights" and isinstance(value, Mapping):
            yield from ("--weights", _word(",".join(f"{k}={v}" for k, v in value.items())))
        elif key == "samples" and (counts := _samples(given).values()):
            yield from ("--data", "UNLABELED", "--max-samples", str(max(counts)))
        elif isinstance(value, Mapping):
            continue  # such as coefficients that were learned
        else:
            yield from _option(key, value)


def _samples(given: Mapping[str, Any]) -> dict[str, int]:
    """How many samples of each task a merge has seen, as far as that is recorded soundly."""
    table = given.get("samples")
    counts = table if isinstance(table, Mapping) else {}
    return {str(task): count for task, count in counts.items() if type(count) is int}


def _option(key: str, value: Any) -> tuple[str, ...]:
    known = ("density", "aggregate", "task", "config", "vocab", "pooling", "features", *_ENGINE)
    if key == "lam":
        return "--lambda", _word(_value(value))
    if key in known:
        return f"--{key}", _word(_value(value))
    return "--set", _word(f"{key.replace('_', '-')}={_value(value)}")


def _value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else str(value)


def _word(text: str) -> str:
    """A word as a shell reads it back."""
    text = shown(text, 1000)
    return text if _PLAIN.fullmatch(text) else "'" + text.replace("'", "'\\''") + "'"


def _plain(text: str) -> str:
    """A stranger's text, of which Markdown and HTML make nothing."""
    return re.sub(r"[`*_<>|\[\]()\\#!&~]", " ", shown(text)).strip()


def _code(text: object) -> str:
    return "`" + shown(str(text)).translate(str.maketrans("`|<>", "'¦‹›")) + "`"
