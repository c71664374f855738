"""A merge made ready: inputs opened, all conflicts found, nothing computed yet."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, get_args

from momacli.checkpoint.escaping import shown
from momacli.checkpoint.naming import Named
from momacli.checkpoint.nonfinite import Tolerated
from momacli.checkpoint.plan import Expert, Vocab
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import UsageError
from momacli.merging.catalog import find_method, sample_method
from momacli.merging.sample_record import SampleRecord
from momacli.methods._catalog import Method, check_count
from momacli.models.inputs import Inputs, open_inputs
from momacli.progress import Listener, ignore
from momacli.recipes.computed import MergedCheckpoint
from momacli.recipes.rules import Rule, settings_by_tensor

if TYPE_CHECKING:
    from momacli.methods._streaming import StreamedMerge

Scope = Literal["global", "tensor"]


@dataclass(frozen=True)
class Merging:
    """A merge whose inputs fit: only the arithmetic is left."""

    work: "StreamedMerge"
    inputs: Inputs
    selection: Mapping[str, Any]  # which tensors, and how written: what recipes record besides
    config: Path | None  # given for all inputs
    as_one_model: bool = False  # the output is of no tasks
    recorded: tuple[Mapping[str, Any], Sequence[Checkpoint]] | None = None  # steps and files
    task: str | None = None  # the only one that the output is of, by the method's nature
    each: Mapping[str, "Merging"] = field(default_factory=dict)  # by task, if it is of every one

    @property
    def tasks(self) -> tuple[Expert, ...]:
        """The experts whose heads the output has."""
        if self.task is None:
            return self.inputs.tasks
        chosen = next(one for one in self.inputs.experts if one.name == self.task)
        checkpoint = chosen.checkpoint
        return checkpoint.tasks if isinstance(checkpoint, MergedCheckpoint) else (chosen,)


def prepare(
    stack: ExitStack,
    base: Named,
    named: Sequence[Named],
    *,
    method: str,
    options: Mapping[str, Any] | None = None,
    weights: Sequence[float] | Mapping[str, float] | None = None,
    scope: str | None = None,
    rules: Sequence[Rule] = (),
    seed: int = 0,
    dtype: str | None = None,
    exclude: Sequence[str] = (),
    heads: Sequence[str] | None = (),
    config: Path | None = None,
    tolerated: Tolerated | None = None,
    vocab: str | None = None,
    device: str = "cpu",
    listener: Listener = ignore,
    learning: bool = False,
) -> Merging:
    """Open the inputs and find all conflicts, as `merge` explains them; writes nothing.

    heads: None where nothing is a head, and the output a single model.
    device: of methods that compute on matrices; others ignore it.
    learning: whether samples will be seen. Of a method that sees some, `options` may hold what
        was recorded when they were; without coefficients nothing else can be computed.
    """
    chosen = find_method(method)
    options = dict(options or {})
    record = SampleRecord.taken_from(options) if sample_method(method) else None
    task = options.pop("task", None) if chosen.takes("task") else None
    from momacli.methods._streaming import StreamedMerge

    checked = chosen.check(options)
    rules = [replace(rule, options=chosen.check(rule.options)) for rule in rules]
    weighted = weights is not None or any(rule.weights for rule in rules)
    _check_engine_options(chosen, weighted, scope)
    check_count(chosen, len(named))
    opened = open_inputs(stack, base, named, heads=heads, config=config, listener=listener)
    names = [item.name for item in named]
    table = _weights(weights, names)
    if not chosen.ordered:  # a result must not depend on the order of a shell glob
        by_name = sorted(opened.experts, key=lambda expert: expert.name)
        opened = replace(opened, experts=tuple(by_name))
    plan = opened.plan(exclude, dtype, tolerated=tolerated, vocab=_known_vocab(vocab))
    merged = [spec.name for spec in plan.merged]
    settings = settings_by_tensor(rules, merged, checked, table, names)
    per: Scope = "tensor" if scope == "tensor" else "global"
    work = StreamedMerge(plan, chosen, checked, table, per, seed, settings, _device(device, chosen))
    if chosen.name == "orthomerge":
        from momacli.adapters.oft_merge import in_lie_algebra

        work = in_lie_algebra(work, listener)
    if record is not None:
        _refuse_exceptions(chosen.name, tolerated=tolerated, vocab=vocab, rules=rules)
        opened = record.with_features(opened)
        work = record.known(work, learning=learning)
    selection = {
        "exclude": list(exclude),
        "heads": list(heads or ()),
        "dtype": dtype,
        "rules": [rule.encode() for rule in rules],
        "allow_nonfinite": tolerated is not None,
        "vocab": vocab,
        **(record.encode() if record else {}),
    }
    merging = Merging(work, opened, selection, config, as_one_model=heads is None)
    return _reconstructing(merging, task) if chosen.takes("task") else merging


def _reconstructing(merging: Merging, task: str | None) -> Merging:
    """The merge for one task, or for each where none is named."""
    from momacli.methods._reconstruction import Reconstruction

    if any("task" in settings.options for settings in merging.work.settings.values()):
        raise UsageError("task is chosen for the whole model, not for single tensors")
    work = Reconstruction.of(merging.work)
    names = [expert.name for expert in work.plan.experts] if task is None else [str(task)]
    each = {name: replace(merging, work=work.of_task(name), task=name) for name in names}
    return each[names[0]] if task is not None else replace(merging, work=work, each=each)


def _device(device: str, method: Method) -> str:
    """The device for a method; torch is not even asked where it has nothing to do."""
    if device == "cpu" or not method.computes_on_matrices:
        return "cpu"
    from momacli.models.device import choose_device

    return str(choose_device(device))


def _refuse_exceptions(
    name: str, *, tolerated: Tolerated | None, vocab: str | None, rules: Sequence[Rule]
) -> None:
    """Refuse what only holds tensor by tensor, where the whole network has to run."""
    given = {
        "--allow-nonfinite": tolerated is not None,
        "--vocab": vocab is not None,
        "rules for single tensors": bool(rules),
    }
    wrong = [what for what, there in given.items() if there]
    if wrong:
        raise UsageError(f"method {name} takes no {', no '.join(wrong)}: it runs the whole network")


def _known_vocab(vocab: str | None) -> Vocab | None:
    if vocab == "base":
        return "base"
    if vocab == "min":
        return "min"
    if vocab is None:
        return None
    raise UsageError(f"--vocab: expected base or min, found {vocab}")


def _check_engine_options(method: Method, weighted: bool, scope: str | None) -> None:
    """Refuse what the method would silently ignore."""
    if weighted and not method.takes("weights"):
        raise UsageError(f"method {method.name} takes no --weights")
    if scope is not None and scope not in get_args(Scope):
        raise UsageError(f"--scope: expected global or tensor, found {scope}")
    if scope is not None and method.first_pass is None:
        raise UsageError(
            f"method {method.name} takes no --scope: it has no statistic of the whole model"
        )


def _weights(
    weights: Sequence[float] | Mapping[str, float] | None, names: Sequence[str]
) -> dict[str, float] | None:
    """One weight per expert, by name."""
    if weights is None:
        return None
    if not isinstance(weights, Mapping):
        if len(weights) != len(names):
            raise UsageError(
                f"--weights: expected {len(names)} numbers, found {len(weights)}",
                hint=f"the experts are {', '.join(map(shown, names))}; the base has no weight",
            )
        return dict(zip(names, map(float, weights), strict=True))
    unknown = sorted(set(weights) - set(names))
    if unknown:
        raise UsageError(
            f"--weights names {', '.join(map(shown, unknown))}, which is no expert",
            hint=f"the experts are {', '.join(map(shown, names))}",
        )
    return {name: float(weights.get(name, 1.0)) for name in names}
