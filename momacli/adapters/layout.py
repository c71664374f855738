"""What every tensor of an adapter does to which tensor of the base, told from headers alone.

PEFT names an adapter's tensors by the module they belong to:
    base_model.model.<module>.lora_A.weight [r, in]     lora_B.weight [out, r]    lora_B.bias
    base_model.model.<module>.lora_embedding_A [r, rows]    lora_embedding_B [columns, r]
    base_model.model.<module>.lora_magnitude_vector [out]
    base_model.model.<module>.oft_R.weight, oft_embedding_R.weight [blocks, b (b - 1) / 2]
and everything else by its own name: trained biases, and the modules that it saves in full.
"""

import re
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from math import isqrt, prod

from momacli.adapters.config import AdapterConfig, Lora, Oft
from momacli.checkpoint.escaping import shown
from momacli.checkpoint.head_files import HEAD
from momacli.checkpoint.header import MERGEABLE_DTYPES, TensorEntry

_PART = re.compile(
    r"(?P<module>.+)\.(?P<part>lora_A|lora_B|lora_embedding_A|lora_embedding_B"
    r"|lora_magnitude_vector|oft_R|oft_embedding_R)(?:\.default)?(?:\.(?P<leaf>weight|bias))?",
    re.DOTALL,
)
_WRAPPERS = ("_orig_mod.", "module.")
_INNER = ("base_layer", "modules_to_save")


@dataclass(frozen=True)
class LowRank:
    """W + s B A, or its transpose; with magnitudes, each of its outputs at that length (DoRA)."""

    a: str  # names in the adapter
    b: str
    scaling: float
    turned: bool  # W is stored [in, out]; so are embeddings
    magnitude: str | None = None


@dataclass(frozen=True)
class BiasStep:
    """A bias plus s times that of B."""

    bias: str
    scaling: float


@dataclass(frozen=True)
class Rotation:
    """W R^T, or W R for an embedding, with R block-diagonal."""

    entries: str
    settings: Oft
    embedding: bool


@dataclass(frozen=True)
class Replacement:
    """Another tensor in place of the base's."""

    values: str


Change = LowRank | BiasStep | Rotation | Replacement


@dataclass(frozen=True)
class Layout:
    """All that an adapter changes and brings along, and what of it fits nowhere."""

    changes: Mapping[str, Change] = field(default_factory=dict)  # by the base's tensor
    own: Mapping[str, str] = field(default_factory=dict)  # tensors the base lacks -> in the adapter
    problems: tuple[str, ...] = ()


@dataclass(frozen=True)
class Named:
    """An adapter's tensors by what they belong to."""

    parts: Mapping[str, Mapping[str, str]]  # module -> part, such as "lora_A" -> name
    saved: Mapping[str, str]  # the model's own name of a tensor -> name
    twice: tuple[str, ...] = ()  # names that mean what another has meant already

    @property
    def tensors(self) -> list[str]:
        """The names that tensors of the base may have."""
        return [*(f"{module}.weight" for module in self.parts), *self.saved]

    def renamed(self, names: Mapping[str, str]) -> "Named":
        """The same tensors, where the base calls what they belong to otherwise."""
        modules = {key.removesuffix(".weight"): new for key, new in names.items()}
        return Named(
            {
                modules.get(key, f"{key}.weight").removesuffix(".weight"): value
                for key, value in self.parts.items()
            },
            {names.get(key, key): value for key, value in self.saved.items()},
            self.twice,
        )


def named_parts(keys: Iterable[str]) -> Named:
    """Sort an adapter's tensors by the modules they belong to."""
    parts: dict[str, dict[str, str]] = defaultdict(dict)
    saved: dict[str, str] = {}
    twice = []
    for key in keys:
        name = key.removeprefix("base_model.model.")
        while name.startswith(_WRAPPERS):
            name = name.split(".", 1)[1]
        components = name.replace(".modules_to_save.default.", ".").split(".")
        if "original_module" in components:
            continue  # what was there before the module was trained
        name = ".".join(item for item in components if item not in _INNER)
        match = _PART.fullmatch(name)
        known = saved
        if match is not None:
            known, name = parts[match["module"]], match["part"]
            name += ".bias" if match["leaf"] == "bias" else ""
        if name in known:
            twice.append(key)
        known[name] = key
    return Named(parts, saved, tuple(twice))


def lay_out(
    named: Named,
    config: AdapterConfig,
    adapter: Mapping[str, TensorEntry],
    base: Mapping[str, TensorEntry],
) -> Layout:
    """Find what becomes of every tensor of the base, and everything that does not fit."""
    changes: dict[str, Change] = {}
    own: dict[str, str] = {}
    problems = [f"option {problem}" for problem in config.problems]
    problems += [f"{shown(key)}   there is another for the same" for key in named.twice]
    for name, key in named.saved.items():
        if name in base:
            types = {base[name].dtype, adapter[key].dtype}
            if len(types) == 1 or types <= MERGEABLE_DTYPES:
                changes[name] = Replacement(key)
            else:
                problems.append(f"{shown(key)}   expected {base[name].dtype}, found {adapter[key]}")
        elif name.startswith(HEAD) or _is_within(name, config.modules_to_save):
            own[name] = key
        else:
            problems.append(f"{shown(key)}   belongs to nothing in the base")
    for module, parts in named.parts.items():
        for name, change in _changes(module, parts, config, adapter, base, problems):
            if name in changes:
                problems.append(f"{shown(name)}   both replaced and adapted")
            changes[name] = change
    return Layout(changes, own, tuple(problems))


def _is_within(name: str, modules: tuple[str, ...]) -> bool:
    """Whether a tensor belongs to one of these modules, named in full or by their ends."""
    return any(f".{module}." in f".{name}" for module in modules)


def _changes(
    module: str,
    parts: Mapping[str, str],
    config: AdapterConfig,
    adapter: Mapping[str, TensorEntry],
    base: Mapping[str, TensorEntry],
    problems: list[str],
) -> Iterator[tuple[str, Change]]:
    """Yield what one module's parts do to its tensors."""
    name, found = f"{module}.weight", {part: adapter[key] for part, key in parts.items()}
    what = f"{shown(module)}   {', '.join(f'{p} {e}' for p, e in sorted(found.items()))}"
    if name not in base:
        problems.append(f"{what}: the base has no {shown(name)}")
        return
    wrong = {base[name].dtype, *(e.dtype for e in found.values())} - MERGEABLE_DTYPES
    if wrong:
        problems.append(f"{what}: {', '.join(sorted(wrong))} cannot be computed with")
        return
    kinds = set(parts) - {"lora_magnitude_vector", "lora_B.bias"}
    method = config.method
    change: LowRank | Rotation | None = None
    if isinstance(method, Lora) and kinds in ({"lora_A", "lora_B"}, _EMBEDDING):
        change = _low_rank(module, parts, found, method, base[name])
    elif isinstance(method, Oft) and kinds == set(parts) and len(kinds) == 1:
        part = next(iter(kinds))
        if part.startswith("oft_") and _turns(found[part].shape, base[name].shape, method):
            change = Rotation(parts[part], method, part == "oft_embedding_R")
    if change is None:
        problems.append(f"{what} do not fit {shown(name)} {base[name]}")
        return
    yield name, change
    if isinstance(change, LowRank) and "lora_B.bias" in parts:
        bias = base.get(f"{module}.bias")
        if bias is None or bias.shape != found["lora_B.bias"].shape:
            problems.append(f"{what}: the base has no {shown(module)}.bias of that shape")
        else:
            yield f"{module}.bias", BiasStep(parts["lora_B.bias"], change.scaling)


_EMBEDDING = {"lora_embedding_A", "lora_embedding_B"}


def _low_rank(
    module: str,
    parts: Mapping[str, str],
    found: Mapping[str, TensorEntry],
    lora: Lora,
    weight: TensorEntry,
) -> LowRank | None:
    """The change that two factors make, or None where their shapes do not fit."""
    first, second = ("lora_A", "lora_B") if "lora_A" in parts else sorted(_EMBEDDING)
    a, b = found[first].shape, found[second].shape
    if not a or len(b) < 2 or prod(b[2:]) != 1 or a[0] != b[1] or not a[0]:
        return None
    if a[0] not in (lora.rank, *lora.ranks):
        return None
    plain, turned = (b[0], *a[1:]) == weight.shape, (*a[1:], b[0]) == weight.shape
    if first != "lora_A":
        plain = False
    elif plain and turned:  # square: only the config knows
        plain = not lora.fan_in_fan_out
    magnitude = parts.get("lora_magnitude_vector")
    if (magnitude is not None) != lora.dora:
        return None
    if magnitude is not None and prod(found["lora_magnitude_vector"].shape) != b[0]:
        return None
    if not plain and not (turned and len(weight.shape) == 2):
        return None
    scaling = lora.scaling(module, a[0])
    return LowRank(parts[first], parts[second], scaling, not plain, magnitude)


def _turns(stored: tuple[int, ...], weight: tuple[int, ...], oft: Oft) -> bool:
    """Whether blocks of this many entries cover the inputs of a weight."""
    if len(stored) != 2 or len(weight) < 2 or not all(stored):
        return False
    b = block_length(stored[1])
    inputs = prod(weight[1:])
    if b * (b - 1) // 2 != stored[1] or not inputs or inputs % b:
        return False
    return stored[0] == (1 if oft.block_share else inputs // b)


def block_length(entries: int) -> int:
    """The b of a block with b (b - 1) / 2 entries above its diagonal."""
    return (1 + isqrt(1 + 8 * entries)) // 2
