"""Whether samples that alignments see are among those that are evaluated."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from momacli.checkpoint.escaping import shown
from momacli.data.folders import image_files
from momacli.data.leaving_out import LeftOut
from momacli.data.tables import TEXT_SUFFIXES, Columns, is_table, read_table


@dataclass(frozen=True)
class Overlap:
    """Samples of a task that are on both sides, by content."""

    task: str
    shared: int
    total: int  # samples to adapt to
    example: str  # one of them

    def __str__(self) -> str:
        """For people."""
        return f"{self.task}: {self.shared} of {self.total}, such as {self.example}"


def find_overlaps(
    data: Mapping[str, Path], evaluation: Mapping[str, Path], columns: Columns
) -> list[Overlap]:
    """The tasks whose sources share samples: images of the same bytes, or the same texts."""
    found = []
    for task, source in data.items():
        if is_text(source) and is_text(evaluation[task]):
            overlap = _shared_texts(task, source, evaluation[task], columns)
        else:
            overlap = _shared_files(task, sample_files(source), sample_files(evaluation[task]))
        if overlap.shared:
            found.append(overlap)
    return found


def is_text(source: Path) -> bool:
    """Whether a task's samples are texts: a table, or a folder of them."""
    if source.is_file():
        return is_table(source)
    return any(is_table(path) for path in source.iterdir())


def sample_files(source: Path) -> Sequence[Path]:
    """The files that a task's samples are in: its images, or its tables."""
    if source.is_file():
        return [source]
    if is_text(source):
        return sorted(path for path in source.rglob("*") if path.name.endswith(TEXT_SUFFIXES))
    return image_files(source, leave_out=LeftOut())


def _shared_texts(task: str, source: Path, other: Path, columns: Columns) -> Overlap:
    first, second = (_texts(path, columns) for path in (source, other))
    held_out = set(second)
    shared = [text for text in first if text in held_out]
    example = shown(" / ".join(shared[0]), limit=60) if shared else ""
    return Overlap(task, len(shared), len(first), f'"{example}"')


def _texts(source: Path, columns: Columns) -> list[tuple[str, ...]]:
    table = read_table(source, columns, leave_out=LeftOut())
    return list(zip(*filter(None, (table.texts, table.pairs)), strict=True))


def _shared_files(task: str, files: Sequence[Path], others: Sequence[Path]) -> Overlap:
    """Compare by content; only files that agree in size are read."""
    sizes: dict[int, list[Path]] = defaultdict(list)
    for file in others:
        sizes[file.stat().st_size].append(file)
    digests: dict[int, dict[bytes, Path]] = {}
    pairs = []
    for file in files:
        size = file.stat().st_size
        if size not in sizes:
            continue
        if size not in digests:
            digests[size] = {_digest(other): other for other in sizes[size]}
        same = digests[size].get(_digest(file))
        if same is not None:
            pairs.append((file, same))
    example = f"{shown(str(pairs[0][0]))} and {shown(str(pairs[0][1]))}" if pairs else ""
    return Overlap(task, len(pairs), len(files), example)


def _digest(file: Path) -> bytes:
    digest = hashlib.sha256()
    with file.open("rb") as content:
        while block := content.read(1 << 20):
            digest.update(block)
    return digest.digest()
