"""What a pickle is read as: plain values, tensors yet to be read, and inert stand-ins for the rest.

Nothing here has behavior that a pickle could reach.
"""

from dataclasses import dataclass

from momacli.pickles.window import Window


@dataclass(frozen=True)
class Global:
    """The name of a class or function; it is never looked up."""

    module: str
    name: str

    def __str__(self) -> str:
        return f"{self.module}.{self.name}"


@dataclass(eq=False, slots=True)
class Instance:
    """Stands for an object of a class, or for the result of a call that was not made."""

    kind: Global | None
    arguments: tuple[object, ...]
    state: object = None  # its attributes, where it is a dict
    items: list[object] | None = None  # of a kind of list
    entries: dict[object, object] | None = None  # of a kind of dict
    view: object = None  # the tensor that it is after all, once that was looked at

    @property
    def attributes(self) -> dict[object, object]:
        """Its attributes by name; empty where it has none."""
        return self.state if isinstance(self.state, dict) else {}


@dataclass(eq=False)
class Storage:
    """The bytes that tensors are views of; where they lie is known when the file is read."""

    nbytes: int
    itemsize: int
    dtype: str  # a code of the safetensors format, or a name of torch's that has none
    window: Window | None = None
    crc: int | None = None  # of a zip archive, where one was computed


@dataclass(frozen=True, eq=False)
class TensorView:
    """A tensor: elements of a storage. Offset and stride count elements."""

    storage: Storage
    dtype: str
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def place(self) -> tuple[int, str, int, tuple[int, ...], tuple[int, ...]]:
        """Equal for two names of the same elements."""
        return (id(self.storage), self.dtype, self.offset, self.shape, self.stride)


@dataclass(frozen=True, eq=False)
class Unsupported:
    """A tensor that a safetensors file cannot hold, and why."""

    what: str  # "sparse", "quantised", ...
