"""The few functions and classes that a pickle may name with effect: they describe tensors.

Of all others an inert stand-in is made. None of them is imported or called; what is here does
the same with values of `momacli.pickles.values`.
"""

from collections.abc import Callable
from math import prod

from momacli.checkpoint.header import DTYPE_BITS, MAX_DIMENSIONS
from momacli.pickles.values import Global, Instance, Storage, TensorView, Unsupported
from momacli.pickles.window import MalformedError, Window, window_of

DTYPES = {
    "float64": "F64", "double": "F64", "float32": "F32", "float": "F32", "float16": "F16",
    "half": "F16", "bfloat16": "BF16", "complex64": "C64", "int64": "I64", "long": "I64",
    "int32": "I32", "int": "I32", "int16": "I16", "short": "I16", "int8": "I8", "uint64": "U64",
    "uint32": "U32", "uint16": "U16", "uint8": "U8", "bool": "BOOL", "float8_e4m3fn": "F8_E4M3",
    "float8_e5m2": "F8_E5M2", "float8_e8m0fnu": "F8_E8M0", "float8_e4m3fnuz": "F8_E4M3FNUZ",
    "float8_e5m2fnuz": "F8_E5M2FNUZ",
}  # fmt: skip
"""torch's names of types, and the format's."""

STORAGES = {
    "DoubleStorage": "F64", "FloatStorage": "F32", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "ComplexFloatStorage": "C64", "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16",
    "CharStorage": "I8", "ByteStorage": "U8", "BoolStorage": "BOOL", "UntypedStorage": "U8",
}  # fmt: skip
"""torch's names of typed storages, in `torch` and `torch.cuda`."""

_OTHER_SIZES = {
    "ComplexDoubleStorage": 16, "QUInt8Storage": 1, "QInt8Storage": 1, "QInt32Storage": 4,
    "QUInt4x2Storage": 1, "QUInt2x4Storage": 1,
}  # fmt: skip
"""Bytes of an element of storages whose type the format does not have."""

_NOT_HELD = {
    "_rebuild_sparse_tensor": "sparse",
    "_rebuild_sparse_csr_tensor": "sparse",
    "_rebuild_nested_tensor": "nested",
    "_rebuild_qtensor": "quantised",
    "_rebuild_wrapper_subclass": "of a class of its own",
    "_rebuild_meta_tensor_no_storage": "on the meta device, without values",
    "_rebuild_device_tensor_from_numpy": "of another device, stored in NumPy's way",
    "_rebuild_device_tensor_from_cpu_tensor": "of another device",
    "_rebuild_xla_tensor": "of another device, stored in NumPy's way",
}
"""Functions of torch._utils whose results have no form in a safetensors file."""

_LARGEST = 1 << 62

_TABLES = ("OrderedDict", "defaultdict", "dict", "Counter")
_BUILTINS = ("builtins", "__builtin__")

Nested = Callable[[Window], object]
"""Reads a storage that is a pickle within a pickle."""


class Rebuild:
    """Makes something of a call that a pickle asks for, without making the call."""

    def __init__(self, nested: Nested | None):
        """nested: None within what is nested itself."""
        self._nested = nested

    def __call__(self, kind: Global, arguments: tuple[object, ...]) -> object:
        """Return a tensor, a plain container, or an Instance that stands for the result."""
        module, name = kind.module, kind.name
        if module == "torch._utils":
            return _tensor(name, arguments) or Instance(kind, arguments)
        if (module, name) == ("torch._tensor", "_rebuild_from_type_v2"):
            return self._of_type(kind, arguments)
        if (module, name) == ("torch.storage", "_load_from_bytes") and self._nested is not None:
            return self._nested(_bytes(arguments))
        if (module, name) == ("_codecs", "encode"):
            found = _encoded(arguments)
            return Instance(kind, arguments) if found is None else found
        if (module, name) == ("torch", "Size"):
            return tuple(_items(arguments))
        if module in ("collections", *_BUILTINS) and name in _TABLES:
            return _table(arguments)
        if module in _BUILTINS and name == "bytes" and not arguments:
            return b""  # as protocol 2 writes it
        if module in _BUILTINS and name in ("list", "set", "frozenset", "tuple"):
            return _items(arguments)
        return Instance(kind, arguments)

    def _of_type(self, kind: Global, arguments: tuple[object, ...]) -> object:
        """A tensor of a class of its own is a tensor, if the function that makes it is known."""
        if len(arguments) == 4 and isinstance(arguments[0], Global):
            inner = arguments[2]
            if isinstance(inner, tuple):
                return self(arguments[0], inner)
        return Instance(kind, arguments)


def _tensor(name: str, arguments: tuple[object, ...]) -> object:
    if name in _NOT_HELD:
        return Unsupported(_NOT_HELD[name])
    if name in ("_rebuild_parameter", "_rebuild_parameter_with_state"):
        if arguments and isinstance(arguments[0], TensorView | Unsupported):
            return arguments[0]
        raise MalformedError("a parameter in it is no tensor")
    if name in ("_rebuild_tensor", "_rebuild_tensor_v2"):
        return _lazily(arguments[6:]) or _view(arguments, None)
    if name == "_rebuild_tensor_v3":
        if len(arguments) < 7:
            raise MalformedError("a tensor in it is not described in full")
        return _lazily(arguments[7:]) or _view(arguments, arguments[6])
    return None


def _lazily(metadata: tuple[object, ...]) -> Unsupported | None:
    """What torch notes of tensors whose elements are to be negated or conjugated when used."""
    for table in metadata:
        if isinstance(table, dict) and any(table.values()):
            return Unsupported("stored before it was negated or conjugated")
    return None


def _view(arguments: tuple[object, ...], dtype: object) -> TensorView | Unsupported:
    """A tensor of a storage: storage, offset, shape, stride, and then what is of no importance."""
    if len(arguments) < 4:
        raise MalformedError("a tensor in it is not described in full")
    storage, offset, shape, stride = arguments[:4]
    if isinstance(storage, Unsupported):
        return storage
    if not isinstance(storage, Storage):
        raise MalformedError("a tensor in it has no storage")
    code = storage.dtype
    if dtype is not None:
        if not isinstance(dtype, Global) or dtype.module != "torch":
            raise MalformedError("the type of a tensor in it is none")
        if dtype.name not in DTYPES:
            return Unsupported(f"of type {dtype.name}")
        code = DTYPES[dtype.name]
    if code not in DTYPE_BITS:
        return Unsupported(f"of type {code}")
    sizes, strides = naturals(shape), naturals(stride)
    if len(sizes) != len(strides) or len(sizes) > MAX_DIMENSIONS:
        raise MalformedError("the shape of a tensor in it does not fit its stride")
    (start,) = naturals((offset,))
    last = start + sum((n - 1) * step for n, step in zip(sizes, strides, strict=True))
    width = DTYPE_BITS[code] // 8
    if prod(sizes) and (last + 1) * width > storage.nbytes:
        raise MalformedError(
            f"a tensor {list(sizes)} in it reaches beyond its storage of {storage.nbytes} bytes"
        )
    return TensorView(storage, code, start, sizes, strides)


def naturals(values: object) -> tuple[int, ...]:
    """The numbers of a shape or stride. Raises MalformedError."""
    if not isinstance(values, tuple | list):
        raise MalformedError("the shape of a tensor in it is none")
    numbers = tuple(value for value in values if type(value) is int and 0 <= value < _LARGEST)
    if len(numbers) < len(values):
        raise MalformedError("the shape of a tensor in it is none")
    return numbers


def storage_of(kind: object, count: object) -> Storage:
    """A storage of so many elements, by the name of its class. Raises MalformedError."""
    name = kind.name if isinstance(kind, Global) and kind.module.startswith("torch") else ""
    (number,) = naturals((count,))
    if name in STORAGES:
        code = STORAGES[name]
        width = DTYPE_BITS[code] // 8
        return Storage(number * width, width, code)
    if name in _OTHER_SIZES:
        width = _OTHER_SIZES[name]
        return Storage(number * width, width, name.removesuffix("Storage"))
    raise MalformedError("the type of a storage in it is not known")


def _bytes(arguments: tuple[object, ...]) -> Window:
    (content,) = arguments if len(arguments) == 1 else (None,)
    if isinstance(content, bytes):
        return window_of(content)
    if isinstance(content, Window):
        return content
    raise MalformedError("a storage in it is no bytes")


def _encoded(arguments: tuple[object, ...]) -> bytes | None:
    """Bytes as protocol 2 writes them: the text whose latin-1 encoding they are."""
    text, encoding = arguments if len(arguments) == 2 else (None, None)
    if isinstance(text, str) and encoding in ("latin1", "latin-1"):
        return text.encode("latin-1")
    return None


def _items(arguments: tuple[object, ...]) -> list[object]:
    if not arguments:
        return []
    first = arguments[0]
    if len(arguments) == 1 and isinstance(first, list | tuple | dict | frozenset):
        return list(first)
    raise MalformedError("a list in it is made of something else")


def _table(arguments: tuple[object, ...]) -> dict[object, object]:
    """A kind of dict: of nothing, of a default's class, or of pairs."""
    table: dict[object, object] = {}
    for item in arguments:
        if isinstance(item, dict):
            table |= item
        elif isinstance(item, list | tuple):
            for pair in item:
                if not isinstance(pair, list | tuple) or len(pair) != 2:
                    raise MalformedError("a table in it is made of something else")
                if not isinstance(pair[0], str | int):
                    raise MalformedError("a key in it cannot be one")
                table[pair[0]] = pair[1]
    return table
