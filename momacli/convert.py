"""Rewrite pickles as safetensors, without running any code that is in them."""

import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from momacli.checkpoint.description import CONFIG, Description
from momacli.checkpoint.escaping import shown, shown_path
from momacli.checkpoint.head_files import NORMALIZE, is_head
from momacli.checkpoint.index import read_json
from momacli.checkpoint.naming import choose_output
from momacli.checkpoint.open_clip_folder import OPEN_CLIP_CONFIG
from momacli.checkpoint.provenance import KEY, UNKNOWN_DIGEST, Input, Recipe, relative_path
from momacli.checkpoint.staging import staged_file, staged_folder
from momacli.checkpoint.weight_files import ADAPTER_CONFIG, INDEX
from momacli.checkpoint.writer import CheckpointWriter
from momacli.errors import CheckpointError, UsageError
from momacli.pickles.layouts import Item, Layout, find_layout, plain_items
from momacli.pickles.model import PickledModel
from momacli.progress import Listener, Notice, ignore

_NAMED = 20
"""Names of one file that are shown, of each kind."""


@dataclass(frozen=True)
class Converted:
    """One file that was written."""

    source: Path
    output: Path
    tensors: int
    nbytes: int
    tied: Mapping[str, str]  # names left out, and the name the same tensor was written under
    kept: Mapping[str, Any]  # short entries that are no tensors, now in the metadata
    left_out: tuple[str, ...]  # other entries
    kind: str | None  # the class of a whole module


@dataclass(frozen=True)
class ConvertReport:
    """What was written."""

    output: Path
    files: tuple[Converted, ...]
    passed_over: tuple[str, ...]  # pickles of a folder that are not converted
    seconds: float


def convert(
    inputs: Sequence[str | Path],
    *,
    output: str | Path,
    entry: str | None = None,
    config: str | Path | None = None,
    force: bool = False,
    listener: Listener = ignore,
) -> ConvertReport:
    """Write the tensors of pickles as safetensors files; nothing in a pickle is executed.

    inputs: files that torch.save or pickle.dump wrote, or one folder in the layout of
        task_vectors, tall_masks or transformers, or of plain files.
    output: a name in .safetensors for a single file, any other is a folder.
    entry: where the model is in a table that holds more than one, such as "ema" or "model.ema".
    config: an open_clip_config.json for image encoders whose folder is not named like a model
        that open_clip knows.

    A tensor with several names is written under the first; the others are in the metadata, as
    safetensors' own save_model has it. Other views of shared elements become tensors of their
    own. Raises MomaErrors; nothing is written then.
    """
    started = time.monotonic()
    places = [Path(item) for item in inputs]
    layout = _layout(places)
    as_file = Path(output).suffix == ".safetensors"
    _check_call(places, layout, as_file=as_file, config=config)
    target = choose_output(output, str(output), inputs=places, force=force, folder=not as_file)
    with ExitStack() as stack:
        jobs = [
            _Job(
                item,
                stack.enter_context(closing(PickledModel(item.source, entry=entry))),
                target,
                as_file,
            )
            for item in layout.items
        ]
        for job in jobs:
            job.check()
        notes = [note for job in jobs for note in job.notes()]
        notes += [f"passed over {name}" for name in layout.passed_over]
        description = _description(layout, jobs, config, notes)
        with _staged(target, as_file=as_file) as staged:
            _describe(staged, layout, description)
            files = [job.write(staged, listener) for job in jobs]
            if layout.shards:
                (staged / INDEX).write_text(_index(jobs), encoding="utf-8")
    for note in notes:
        listener(Notice(note))
    return ConvertReport(target, tuple(files), layout.passed_over, time.monotonic() - started)


def _some(names: Sequence[str]) -> str:
    """As many as anybody reads."""
    more = len(names) - _NAMED
    return ", ".join(names[:_NAMED]) + (f" and {more} more" if more > 0 else "")


def _layout(places: Sequence[Path]) -> Layout:
    if len(places) == 1 and places[0].is_dir():
        return find_layout(places[0])
    folders = [shown_path(place) for place in places if place.is_dir()]
    if folders or not places:
        raise UsageError(
            "expected pickles, or one folder of them", details=folders, hint="name the files"
        )
    for place in places:
        if not place.exists():
            raise CheckpointError(
                f"{shown_path(place)} does not exist", hint="check the path and its spelling"
            )
    return Layout(plain_items(places))


def _check_call(
    places: Sequence[Path], layout: Layout, *, as_file: bool, config: str | Path | None
) -> None:
    """Refuse an output of the wrong form, and a config that describes nothing."""
    if as_file and (len(places) > 1 or places[0].is_dir()):
        raise UsageError(
            "the output is one file, but there may be several",
            hint="name a folder with -o: each pickle becomes a file in it",
        )
    if config is not None and not layout.models:
        raise UsageError(
            "--config is for folders of image encoders in the layout of task_vectors",
            hint="put other configs beside the output",
        )


@contextmanager
def _staged(target: Path, *, as_file: bool) -> Iterator[Path]:
    with staged_file(target) if as_file else staged_folder(target) as staged:
        yield staged


@dataclass(frozen=True)
class _Job:
    """A pickle and where it goes."""

    item: Item
    model: PickledModel
    target: Path
    as_file: bool

    @property
    def output(self) -> Path:
        """The file that is written, once all is done."""
        return self.target if self.as_file else self.target / self.item.place

    def check(self) -> None:
        """Raise CheckpointError if what should be a head is none."""
        if self.item.is_head and not is_head(self.model.found.tensors):
            raise CheckpointError(
                f"{shown_path(self.item.source)} is not a head: expected weight and perhaps bias",
                details=[shown(name) for name in self.model.found.tensors],
            )

    def notes(self) -> Iterator[str]:
        """What the user should know of what is not in the output as it was."""
        name, found = shown_path(self.item.source), self.model.found
        if found.entry:
            yield f"{name}: the model is its entry {shown(found.entry)}"
        for tied, first in islice(found.tied.items(), _NAMED):
            yield f"{name}: {shown(tied)} is the same tensor as {shown(first)}, written once"
        if (more := len(found.tied) - _NAMED) > 0:
            yield f"{name}: and {more} more tensors that go by another name"
        if found.kept:
            kept = _some([shown(key) for key in found.kept])
            yield f"{name}: {kept}: no tensors, kept in the metadata"
        if found.left_out:
            yield f"{name}: left out {_some(found.left_out)}"

    def write(self, staged: Path, listener: Listener) -> Converted:
        """Write the file into what is staged."""
        found, specs = self.model.found, self.model.specs
        if not self.as_file:
            staged = staged / self.item.place
            staged.parent.mkdir(parents=True, exist_ok=True)
        with CheckpointWriter(staged, specs, self._metadata(digests=False)) as writer:
            self.model.copy(writer, listener)
            writer.replace_metadata(self._metadata(digests=True))
        return Converted(
            self.item.source,
            self.output,
            len(specs),
            sum(spec.nbytes for spec in specs),
            found.tied,
            found.kept,
            found.left_out,
            None if found.kind is None else str(found.kind),
        )

    def _metadata(self, *, digests: bool) -> dict[str, str]:
        """The tied names as safetensors records them, and the recipe."""
        found, path = self.model.found, self.item.source
        parameters = {
            "entry": found.entry,
            "class": None if found.kind is None else str(found.kind),
            "kept": dict(found.kept),
            "left_out": list(found.left_out),
        }
        files = self.model.sha256() if digests else {path.name: UNKNOWN_DIGEST}
        model = self.output.parent if self.item.of_folder else self.output
        recipe = Recipe(
            command="convert",
            parameters={key: value for key, value in parameters.items() if value},
            inputs=[Input(path.stem, relative_path(path, model), files)],
        )
        own = {"format": "pt", KEY: recipe.encode()}
        if self.item.is_head and isinstance(found.kept.get(NORMALIZE), bool):
            own[NORMALIZE] = json.dumps(found.kept[NORMALIZE])
        return dict(found.tied) | own


def _description(
    layout: Layout, jobs: Sequence[_Job], config: str | Path | None, notes: list[str]
) -> Mapping[str, Any] | None:
    """The open_clip config of a folder of image encoders: as given, or by the folder's name."""
    if not layout.models:
        return None
    if config is not None:
        content = read_json(Path(config))
        if not isinstance(content, dict) or "model_cfg" not in content:
            raise CheckpointError(f"{shown_path(Path(config))} is no {OPEN_CLIP_CONFIG}")
        return content
    from momacli.models.open_clip import named_config

    names = {name.name for job in jobs for name in job.model.globals}
    quick = "QuickGELU" in names if names & {"QuickGELU", "GELU"} else None
    found = named_config(layout.architecture, quick_gelu=quick)
    if found is None:
        notes.append(
            f"open_clip knows no model {shown(layout.architecture)}: these can be merged; to be "
            f"aligned they need an {OPEN_CLIP_CONFIG}, given with --config"
        )
    return found


def _describe(staged: Path, layout: Layout, description: Mapping[str, Any] | None) -> None:
    """Write the config of each model, or copy what lies beside plain pickles."""
    if description is not None:
        text = json.dumps(description, indent=2, sort_keys=True) + "\n"
        for name in layout.models:
            (staged / name).mkdir(exist_ok=True)
            (staged / name / OPEN_CLIP_CONFIG).write_text(text, encoding="utf-8")
    if layout.described_by is not None:
        folder = layout.described_by
        configs = [folder / name for name in (CONFIG, OPEN_CLIP_CONFIG, ADAPTER_CONFIG)]
        beside = Description({}, folder).companions
        for file in [*filter(Path.is_file, configs), *beside]:
            copy = staged / file.relative_to(folder)
            copy.parent.mkdir(exist_ok=True)
            shutil.copyfile(file, copy)


def _index(jobs: Sequence[_Job]) -> str:
    table = {name: job.item.place.name for job in jobs for name in job.model.found.tensors}
    size = sum(spec.nbytes for job in jobs for spec in job.model.specs)
    content = {"metadata": {"total_size": size}, "weight_map": dict(sorted(table.items()))}
    return json.dumps(content, indent=2) + "\n"
