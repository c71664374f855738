"""Files that torch.save and pickle.dump wrote: what is pickled in them, and its storages.

Three forms: a zip archive (torch 1.6 and later); a row of pickles with the storages behind
them (before, and `_use_new_zipfile_serialization=False`); and one plain pickle, in which every
storage is a byte string of the second form.
"""

from collections.abc import Set
from dataclasses import dataclass
from functools import partial

from momacli.checkpoint.hashed_file import HashedFile
from momacli.pickles.archive import Member, members
from momacli.pickles.machine import Budget, Machine
from momacli.pickles.rebuild import Rebuild, storage_of
from momacli.pickles.values import Global, Storage
from momacli.pickles.window import MalformedError, Window

_MAGIC = 0x1950A86A20F9469CFC6C
_PROTOCOL = 1001
_LARGEST_PICKLE = 1 << 30
_LARGEST_NOTE = 1 << 10


@dataclass(frozen=True)
class Pickled:
    """What a file holds, and all classes and functions it names."""

    value: object
    globals: Set[Global]


def read_pickle(file: HashedFile) -> Pickled:
    """Read a file of any of the three forms; tensors' data stays where it is.

    Raises MalformedError for anything else, and for what is damaged.
    """
    window = Window(file, 0, file.size)
    if window.read(4, 0) == b"PK\3\4":
        return _read_archive(window)
    return _read_row(window, Budget(), nested=False)


def _read_archive(window: Window) -> Pickled:
    found = members(window)
    roots = [name.removesuffix("data.pkl") for name in found if name.endswith("/data.pkl")]
    if len(roots) != 1:
        raise MalformedError("it is a zip archive that torch.save did not write: no data.pkl")
    root = roots[0]
    if f"{root}constants.pkl" in found:
        raise MalformedError(
            "it is a TorchScript archive: load it with torch.jit.load and save its state_dict()"
        )
    order = found.get(f"{root}byteorder")
    if order is not None and order.content.read(_LARGEST_NOTE, 0) != b"little":
        raise MalformedError("it was written on a big-endian machine")
    storages: dict[object, Storage] = {}

    def persistent(key: object) -> object:
        kind, name, count = _storage_key(key)
        if name not in storages:
            storages[name] = storage_of(kind, count)
            _place_member(storages[name], name, found.get(f"{root}data/{name}"))
        return storages[name]

    program = found[f"{root}data.pkl"]
    if program.content.size > _LARGEST_PICKLE:
        raise MalformedError(f"its data.pkl has {program.content.size} bytes")
    budget = Budget()
    rebuild = Rebuild(partial(_nested, budget))
    machine = Machine(program.content, budget, rebuild=rebuild, persistent=persistent)
    value = machine.load()
    return Pickled(value, machine.globals)


def _place_member(storage: Storage, name: object, member: Member | None) -> None:
    if member is None:
        raise MalformedError(f"storage {name} is missing from the archive")
    if member.content.size != storage.nbytes:
        raise MalformedError(
            f"storage {name}: expected {storage.nbytes} bytes, found {member.content.size}"
        )
    storage.window, storage.crc = member.content, member.crc or None


def _storage_key(key: object) -> tuple[object, str, object]:
    """Class, name and elements of a storage, out of its persistent id."""
    if isinstance(key, tuple) and len(key) >= 5 and key[0] == "storage":
        name = str(key[2]) if isinstance(key[2], int) else key[2]
        if isinstance(name, str):
            return key[1], name, key[4]
    raise MalformedError("it refers to something outside that is no storage")


class _Storages:
    """The storages of a row of pickles, whose data come after them."""

    def __init__(self) -> None:
        self.roots: dict[str, Storage] = {}
        self._views: list[tuple[str, int, Storage]] = []
        self._by_name: dict[str, Storage] = {}

    def __call__(self, key: object) -> object:
        if isinstance(key, tuple) and len(key) >= 2 and key[0] == "module":
            return key[1]  # a class with its source code
        kind, name, count = _storage_key(key)
        if name not in self.roots:
            self.roots[name] = storage_of(kind, count)
        view = key[5] if isinstance(key, tuple) and len(key) > 5 else None
        return self.roots[name] if view is None else self._view(kind, name, view)

    def _view(self, kind: object, root: str, view: object) -> Storage:
        """A storage that is part of another, as torch 0.x had it."""
        name, offset, count = view if isinstance(view, tuple) and len(view) == 3 else (None,) * 3
        if not isinstance(name, str) or type(offset) is not int:
            raise MalformedError("a view of a storage in it is none")
        if name not in self._by_name:
            self._by_name[name] = storage_of(kind, count)
            self._views.append((root, offset, self._by_name[name]))
        return self._by_name[name]

    def place(self, window: Window, position: int, keys: object) -> None:
        """Find the data behind the pickles: for each key the count of elements, and they."""
        if not isinstance(keys, list):
            raise MalformedError("its list of storages is none")
        for key in keys:
            storage = self.roots.get(key) if isinstance(key, str) else None
            if storage is None:
                raise MalformedError("its list of storages names one that is not there")
            count = int.from_bytes(window.part(position, 8).read(8, 0), "little")
            if count * storage.itemsize != storage.nbytes:
                expected = storage.nbytes // storage.itemsize
                raise MalformedError(f"a storage: expected {expected} elements, found {count}")
            storage.window = window.part(position + 8, storage.nbytes)
            position += 8 + storage.nbytes
        if any(storage.window is None for storage in self.roots.values()):
            raise MalformedError("a storage is missing from its list")
        for name, offset, view in self._views:
            whole = self.roots[name].window
            assert whole is not None
            view.window = whole.part(offset * view.itemsize, view.nbytes)


def _read_row(window: Window, budget: Budget, *, nested: bool) -> Pickled:
    storages = _Storages()
    rebuild = Rebuild(None if nested else partial(_nested, budget))
    machine = Machine(window, budget, rebuild=rebuild, persistent=storages)
    value = machine.load()
    if not isinstance(value, int) or value != _MAGIC:
        if storages.roots:
            raise MalformedError("it refers to storages outside the file")
        return Pickled(value, machine.globals)
    if machine.load() != _PROTOCOL:
        raise MalformedError("it is of an unknown version of PyTorch's format")
    system = machine.load()
    if not isinstance(system, dict) or system.get("little_endian") is not True:
        raise MalformedError("it was written on a big-endian machine")
    value = machine.load()
    keys = machine.load()
    storages.place(window, machine.position, keys)
    return Pickled(value, machine.globals)


def _nested(budget: Budget, window: Window) -> object:
    """A storage, saved by itself as bytes within a pickle."""
    value = _read_row(window, budget, nested=True).value
    if not isinstance(value, Storage):
        raise MalformedError("a storage in it is something else")
    return value
