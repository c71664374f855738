"""Make a zero-shot classifier of a CLIP or SigLIP from the names of its classes."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from momacli.checkpoint.description import describe
from momacli.checkpoint.escaping import shown_path
from momacli.checkpoint.head_files import CLASSES
from momacli.checkpoint.naming import choose_output
from momacli.checkpoint.reader import Checkpoint
from momacli.checkpoint.source import unreadable
from momacli.errors import DataError, ModelError, UsageError
from momacli.models.templates import DEFAULT, TEMPLATES
from momacli.progress import Listener, ignore


@dataclass(frozen=True)
class HeadReport:
    """What was written."""

    output: Path
    classes: tuple[str, ...]
    templates: tuple[str, ...]
    width: int  # of the features it takes


def head(
    model: str | Path,
    *,
    classes: str | Path | Sequence[str],
    output: str | Path,
    templates: str | Path | Sequence[str] | None = None,
    device: str = "cpu",
    force: bool = False,
    listener: Listener = ignore,
) -> HeadReport:
    """Encode the classes with the text encoder and write `weight`, with its logit scale.

    classes: names in order, or a file with a name a line.
    templates: sentences with {} for the name; a file of them; or a data set's set, such as
        "eurosat". Default "a photo of a {}."

    Raises ModelError if the model has no text encoder, UsageError for templates without {}.
    """
    names = _lines(Path(classes)) if isinstance(classes, (str, Path)) else list(classes)
    if len(set(names)) < len(names) or not names:
        raise DataError("the classes are not all different" if names else "there are no classes")
    sentences = _templates(templates)
    target = choose_output(output, str(output), inputs=[Path(model)], force=force, folder=False)
    with Checkpoint.open(Path(model)) as checkpoint:
        description = describe(checkpoint)
        if description is None:
            raise ModelError(
                f"{model} has no config.json and no open_clip_config.json, so it is unknown what "
                "model it is"
            )
        from momacli.checkpoint.staging import staged_file
        from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
        from momacli.models.zero_shot import zero_shot_head

        tensors = zero_shot_head(
            checkpoint, description, names, sentences, device=device, listener=listener
        )
    specs = [TensorSpec(key, "F32", tuple(value.shape)) for key, value in tensors.items()]
    metadata = {"format": "pt", CLASSES: json.dumps(names), "templates": json.dumps(sentences)}
    with staged_file(target) as staged, CheckpointWriter(staged, specs, metadata) as writer:
        for key, value in tensors.items():
            writer.append(key, value)
    return HeadReport(target, tuple(names), tuple(sentences), tensors["weight"].shape[1])


def _templates(given: str | Path | Sequence[str] | None) -> list[str]:
    if given is None:
        return list(DEFAULT)
    if isinstance(given, str) and given.lower() in TEMPLATES:
        return list(TEMPLATES[given.lower()])
    known = f"give a file, or one of the ready templates: {', '.join(TEMPLATES)}"
    found = _lines(Path(given), hint=known) if isinstance(given, str | Path) else list(given)
    wrong = [template for template in found if "{}" not in template]
    if wrong or not found:
        raise UsageError(
            "every template needs {} where the name of a class goes", details=wrong[:5]
        )
    return found


def _lines(file: Path, *, hint: str | None = None) -> list[str]:
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{shown_path(file)} is no text in UTF-8", hint=hint) from error
    except (OSError, ValueError) as error:
        plain = unreadable(file, error)
        raise DataError(plain.message, hint=hint or plain.hint) from error
    return [line.strip() for line in text.splitlines() if line.strip()]
