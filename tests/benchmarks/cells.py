"""Results that are kept under a hash of all that they depend on, and made once.

A cell is a folder CELLS/<kind>-<hash>. It appears, whole, when what makes it has ended, so that
a benchmark that was stopped goes on from the cells that are there.
"""

import hashlib
import inspect
import json
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Cells:
    """The folder of all cells of a benchmark."""

    folder: Path

    def get(self, kind: str, depends_on: object, make: Callable[[Path], None]) -> Path:
        """The cell of these dependencies; `make` fills an empty folder if it is not there yet.

        depends_on: anything that JSON can hold, and from which `make` alone works.
        """
        text = json.dumps([kind, depends_on], sort_keys=True)
        target = self.folder / f"{kind}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"
        if target.is_dir():
            return target
        self.folder.mkdir(parents=True, exist_ok=True)
        print(f"making {target.name}", file=sys.stderr, flush=True)
        staged = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=self.folder))
        try:
            make(staged)
            (staged / "made-from.json").write_text(text, encoding="utf-8")
            staged.rename(target)
        except BaseException:
            shutil.rmtree(staged, ignore_errors=True)
            raise
        return target


@dataclass(frozen=True)
class Lazily(Mapping[str, Path]):
    """Folders by name, each made when it is asked for: names alone make none."""

    names: Sequence[str]
    make: Callable[[str], Path]

    def __getitem__(self, name: str) -> Path:
        """The folder, which is there now."""
        if name not in self.names:
            raise KeyError(name)
        return self.make(name)

    def __iter__(self) -> Iterator[str]:
        """The names, in their order."""
        return iter(self.names)

    def __len__(self) -> int:
        """How many there are."""
        return len(self.names)


def digest_of_files(*files: Path) -> str:
    """SHA-256 over the content of files, in this order."""
    digest = hashlib.sha256()
    for file in files:
        digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def code_of(*parts: Callable[..., object]) -> str:
    """The source of functions and classes, of which a cell may depend."""
    return "\n".join(inspect.getsource(part) for part in parts)
