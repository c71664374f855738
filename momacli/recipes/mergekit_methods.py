"""mergekit's methods in terms of moma's: their parameters, and what each becomes.

Methods that know no base take the weights themselves for task vectors, from zero. Where moma's
method is not mergekit's to the last digit, the method's own file says in what; random masks
agree in distribution only.
"""

from collections.abc import Mapping

from momacli.errors import UsageError
from momacli.recipes.mergekit_steps import Kind, Options, Prune, Settings, TensorValues
from momacli.recipes.mergekit_values import Parameter

# how each method's parameters become options and weights of moma's


def _weights(values: TensorValues) -> dict[str, float]:
    return {task: own["weight"] for task, own in values.experts.items()}


def _shares(values: TensorValues) -> dict[str, float]:
    weights = _weights(values)
    total = sum(weights.values())
    return {task: weight / total for task, weight in weights.items()} if total else weights


def _linear(values: TensorValues) -> Settings:
    if not values.shared["normalize"]:
        return {"lam": 1.0}, _weights(values)
    if sum(_weights(values).values()) == 0:
        raise UsageError("linear: the weights sum to zero", hint="set normalize: false")
    return {"lam": 1.0}, _shares(values)


def _passthrough(values: TensorValues) -> Settings:
    scales = {task: own["scale"] for task, own in values.experts.items()}
    return {"lam": 1.0}, {task: 1.0 if s is None else s for task, s in scales.items()}


def _sum(values: TensorValues) -> Settings:
    weights = _weights(values)
    if values.shared["normalize"] and abs(sum(weights.values())) >= 1e-8:
        weights = _shares(values)
    return {"lam": values.shared["lambda"]}, weights


def _election(values: TensorValues) -> Settings:
    aggregate = "weighted-mean" if values.shared["normalize"] else "sum"
    options = {"density": 1.0, "lam": values.shared["lambda"], "aggregate": aggregate}
    return options, _weights(values)


def _slerp(values: TensorValues) -> Settings:
    return {"t": values.shared["t"]}, None


def _nuslerp(values: TensorValues) -> Settings:
    per = "column" if values.shared["nuslerp_row_wise"] else "row"
    return {"per": "tensor" if values.shared["nuslerp_flatten"] else per}, _weights(values)


def _multislerp(values: TensorValues) -> Settings:
    weights = _weights(values)
    total = sum(weights.values())
    return {"lam": 1.0 if values.shared["normalize_weights"] else total}, weights


def _karcher(values: TensorValues) -> Settings:
    steps = int(values.shared["max_iter"])
    return {"center": "base", "max_steps": steps, "tol": values.shared["tol"]}, None


def _model_stock(values: TensorValues) -> Settings:
    return {"per": "row" if values.shared["filter_wise"] else "tensor"}, None


def _sce(values: TensorValues) -> Settings:
    density = values.shared["select_topk"]
    if density <= 0:
        raise UsageError(f"sce: select_topk: expected above 0, found {density}")
    return {"density": min(density, 1.0)}, None


def _arcee_fusion(_: TensorValues) -> Settings:
    return {}, None


# how each kind of pruning becomes one of moma's methods for a single expert


def _smallest(own: Options, shared: Options, _: int) -> Options:
    _refuse_rescale("ties", own, shared)
    return {"density": min(1.0, max(0.0, own["density"])), "lam": 1.0, "aggregate": "sum"}


def _outliers(own: Options, shared: Options, elements: int) -> Options:
    """The numbers of entries dropped at either end, as mergekit counts them."""
    _refuse_rescale("breadcrumbs", own, shared)
    if own["density"] >= 1 or elements == 0:
        return {"beta": 0.0, "gamma": 1.0, "lam": 1.0}
    kept = max(1, int(own["density"] * elements))
    low = min(elements - kept, max(0, elements - kept - int(own["gamma"] * elements)))
    return {"beta": low / elements, "gamma": (low + kept) / elements, "lam": 1.0}


def _random(own: Options, shared: Options, _: int) -> Options:
    if own["density"] <= 0:
        raise UsageError(f"dare: density: expected above 0, found {own['density']}")
    drop = 1 - min(1.0, own["density"])
    return {"drop_rate": drop, "rescale": shared["rescale"], "then": "task_arithmetic", "lam": 1.0}


def _magnitude_ranks(own: Options, shared: Options, _: int) -> Options:
    if not shared["rescale"]:
        raise UsageError("della: rescale: false is not supported")
    density = min(1.0, own["density"])
    epsilon = 0.0 if density == 1 else own["epsilon"]
    rescale = "probability" if density == 1 else "l1"
    return {"density": density, "epsilon": epsilon, "rescale": rescale, "lam": 1.0}


def _refuse_rescale(name: str, own: Options, shared: Options) -> None:
    if shared["rescale"] and own["density"] < 1:
        raise UsageError(f"{name}: rescale: true is not supported")


def _number(default: float) -> Parameter:
    return Parameter("number", default)


def _switch(default: bool) -> Parameter:
    return Parameter("switch", default)


_NEEDED = Parameter("number")


def _task_arithmetic(
    name: str,
    *,
    elect: bool,
    prune: Prune | None,
    in_one: bool = False,
    normalize: bool = False,
    rescale: bool = False,
) -> Kind:
    """One of the methods that mergekit calls generalized task arithmetic."""
    own = {"weight": _NEEDED, "density": _number(1.0)}
    if name.startswith("breadcrumbs"):
        own["gamma"] = _number(0.01)
    if name.startswith("della"):
        own["epsilon"] = _number(0.15)
    shared = {
        "int8_mask": _switch(False),  # saves mergekit memory; the result is the same
        "normalize": _switch(normalize),
        "rescale": _switch(rescale),
        "lambda": _number(1.0),
    }
    return Kind(
        name,
        "required",
        "ties" if elect else "task-arithmetic",
        _election if elect else _sum,
        shared,
        own,
        prune=prune,
        in_one=in_one,
    )


_TIES, _CRUMBS = Prune("ties", _smallest), Prune("breadcrumbs", _outliers)
_DARE, _DELLA = Prune("dare", _random), Prune("della", _magnitude_ranks)
_KINDS = (
    Kind("linear", "none", "task-arithmetic", _linear,
         {"normalize": _switch(True)}, {"weight": _NEEDED}),
    Kind("slerp", "required", "slerp", _slerp, {"t": _NEEDED}, most=1),
    _task_arithmetic("task_arithmetic", elect=False, prune=None),
    _task_arithmetic("ties", elect=True, prune=_TIES, in_one=True, normalize=True),
    _task_arithmetic("dare_ties", elect=True, prune=_DARE, rescale=True),
    _task_arithmetic("dare_linear", elect=False, prune=_DARE, in_one=True, rescale=True),
    _task_arithmetic("della", elect=True, prune=_DELLA, normalize=True, rescale=True),
    _task_arithmetic("della_linear", elect=False, prune=_DELLA, rescale=True),
    _task_arithmetic("breadcrumbs", elect=False, prune=_CRUMBS, in_one=True),
    _task_arithmetic("breadcrumbs_ties", elect=True, prune=_CRUMBS),
    Kind("model_stock", "required", "model-stock", _model_stock,
         {"filter_wise": _switch(False)}, least=2,
         note="model_stock: where task vectors oppose each other (a mean cosine below 0) moma "
         "takes the base, mergekit steps away from the experts"),
    Kind("nuslerp", "optional", "nuslerp", _nuslerp,
         {"nuslerp_row_wise": _switch(False), "nuslerp_flatten": _switch(True)},
         {"weight": _NEEDED}, least=2, most=2),
    Kind("multislerp", "optional", "multislerp", _multislerp,
         {"normalize_weights": _switch(True), "eps": _number(1e-8)}, {"weight": _NEEDED}),
    Kind("karcher", "none", "karcher", _karcher,
         {"max_iter": Parameter("integer", 10), "tol": _number(1e-5)}),
    Kind("sce", "required", "sce", _sce,
         {"int8_mask": _switch(False), "select_topk": _number(1.0)},
         note="sce: moma weighs experts by their squares also where mergekit, because these "
         "are small, weighs them all the same"),
    Kind("arcee_fusion", "required", "arcee-fusion", _arcee_fusion, most=1),
    Kind("passthrough", "none", "task-arithmetic", _passthrough,
         per_expert={"scale": Parameter("number", None)}, most=1),
)  # fmt: skip

METHODS: Mapping[str, Kind] = {kind.name: kind for kind in _KINDS}
"""The methods of mergekit that moma does, by mergekit's names."""

PARAMETERS = tuple(sorted({name for kind in _KINDS for name in kind.known}))
"""Every parameter that one of them has."""
