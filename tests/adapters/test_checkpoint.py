"""Adapters put in a base, against their formulas written out in NumPy."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tiny_adapters import LORA, OFT, lora_tensors, random_tensors, write_adapter
from torch import Tensor

from momacli.adapters.checkpoint import AdaptedCheckpoint, with_adapter
from momacli.checkpoint.reader import Checkpoint
from momacli.errors import CheckpointError, ConflictError

Arrays = dict[str, np.ndarray]


def base_tensors(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    """A network of every kind of layer an adapter knows."""
    tensors = random_tensors(
        0,
        1.0,
        emb__weight=(10, 8),
        lin__weight=(6, 8),
        lin__bias=(6,),
        turned__weight=(8, 6),
        square__weight=(8, 8),
        conv__weight=(6, 2, 2, 2),
        classifier__weight=(3, 6),
    )
    return {key: value.to(dtype) for key, value in tensors.items()}


def adapted(
    folder: Path, base: Mapping[str, Tensor], tensors: Mapping[str, Tensor], config: dict
) -> AdaptedCheckpoint:
    folder.mkdir(exist_ok=True)
    save_file(dict(base), folder / "base.safetensors")
    opened = Checkpoint.open(folder / "base.safetensors")
    return with_adapter(opened, Checkpoint.open(write_adapter(folder / "task", tensors, config)))


def numpy64(tensors: Mapping[str, Tensor]) -> Arrays:
    return {key: value.double().numpy() for key, value in tensors.items()}


def check(found: AdaptedCheckpoint, base: Mapping[str, Tensor], changed: Arrays) -> None:
    """Every tensor is as expected: those that are named changed, the others the base's own."""
    for key, value in base.items():
        if key in changed:
            np.testing.assert_allclose(found.read(key).double(), changed[key], atol=2e-6)
        else:
            assert torch.equal(found.read(key), value)
    assert list(found.entries) == sorted(base, key=list(found.base.entries).index)


def test_lora_adds_its_scaled_product(tmp_path):
    base = base_tensors()
    tensors = lora_tensors(["lin"], 1, 6, 8)

    found = adapted(tmp_path, base, tensors, {**LORA})

    w, t = numpy64(base), numpy64(tensors)
    step = 6 / 2 * t["lin.lora_B.weight"] @ t["lin.lora_A.weight"]
    check(found, base, {"lin.weight": w["lin.weight"] + step})


def test_a_rank_stabilized_adapter_is_scaled_by_the_root_of_its_rank(tmp_path):
    base, tensors = base_tensors(), lora_tensors(["lin"], 1, 6, 8)

    found = adapted(tmp_path, base, tensors, {**LORA, "use_rslora": True})

    w, t = numpy64(base), numpy64(tensors)
    step = 6 / 2**0.5 * t["lin.lora_B.weight"] @ t["lin.lora_A.weight"]
    check(found, base, {"lin.weight": w["lin.weight"] + step})


@pytest.mark.parametrize("pattern", ["lin", "^lin", "l.n", "(lin|other)"])
def test_patterns_give_single_modules_another_rank_and_alpha(tmp_path, pattern):
    base = base_tensors()
    tensors = lora_tensors(["square"], 1, 8, 8) | random_tensors(
        2, lin__lora_A__weight=(3, 8), lin__lora_B__weight=(6, 3)
    )
    config = {**LORA, "rank_pattern": {pattern: 3}, "alpha_pattern": {pattern: 12}}

    found = adapted(tmp_path, base, tensors, config)

    w, t = numpy64(base), numpy64(tensors)
    changed = {
        f"{module}.weight": w[f"{module}.weight"]
        + scale * t[f"{module}.lora_B.weight"] @ t[f"{module}.lora_A.weight"]
        for module, scale in (("lin", 12 / 3), ("square", 6 / 2))
    }
    check(found, base, changed)


def test_a_layer_that_is_stored_the_other_way_round_takes_the_transposed_step(tmp_path):
    base = base_tensors()
    tensors = lora_tensors(["turned"], 1, 6, 8) | lora_tensors(["square"], 2, 8, 8)

    found = adapted(tmp_path, base, tensors, {**LORA, "fan_in_fan_out": True})

    w, t = numpy64(base), numpy64(tensors)
    changed = {
        f"{m}.weight": w[f"{m}.weight"] + 3 * (t[f"{m}.lora_B.weight"] @ t[f"{m}.lora_A.weight"]).T
        for m in ("turned", "square")
    }
    check(found, base, changed)


def test_embeddings_and_convolutions_are_adapted_too(tmp_path):
    base = base_tensors()
    tensors = random_tensors(
        1,
        emb__lora_embedding_A=(2, 10),
        emb__lora_embedding_B=(8, 2),
        conv__lora_A__weight=(2, 2, 2, 2),
        conv__lora_B__weight=(6, 2, 1, 1),
    )

    found = adapted(tmp_path, base, tensors, {**LORA})

    w, t = numpy64(base), numpy64(tensors)
    step = (t["emb.lora_embedding_B"] @ t["emb.lora_embedding_A"]).T
    a, b = t["conv.lora_A.weight"], t["conv.lora_B.weight"][:, :, 0, 0]
    changed = {
        "emb.weight": w["emb.weight"] + 3 * step,
        "conv.weight": w["conv.weight"] + 3 * np.einsum("or,rihw->oihw", b, a),
    }
    check(found, base, changed)


def test_dora_gives_every_output_the_length_that_it_learned(tmp_path):
    base = base_tensors()
    tensors = lora_tensors(["lin"], 1, 6, 8) | lora_tensors(["turned"], 2, 6, 8)
    tensors |= random_tensors(
        3,
        1.0,
        lin__lora_magnitude_vector=(6,),
        turned__lora_magnitude_vector__weight=(6,),
        emb__lora_embedding_A=(2, 10),
        emb__lora_embedding_B=(8, 2),
        emb__lora_magnitude_vector=(8,),
    )

    found = adapted(tmp_path, base, tensors, {**LORA, "use_dora": True})

    w, t = numpy64(base), numpy64(tensors)
    moved = w["lin.weight"] + 3 * t["lin.lora_B.weight"] @ t["lin.lora_A.weight"]
    length = np.linalg.norm(moved, axis=1, keepdims=True)
    by_column = {
        "turned": 3 * (t["turned.lora_B.weight"] @ t["turned.lora_A.weight"]).T,
        "emb": 3 * (t["emb.lora_embedding_B"] @ t["emb.lora_embedding_A"]).T,
    }
    changed = {"lin.weight": t["lin.lora_magnitude_vector"][:, None] / length * moved}
    for module, step in by_column.items():
        rows = w[f"{module}.weight"] + step
        m = t.get(f"{module}.lora_magnitude_vector")
        m = t[f"{module}.lora_magnitude_vector.weight"] if m is None else m
        changed[f"{module}.weight"] = m / np.linalg.norm(rows, axis=0) * rows
    check(found, base, changed)


def test_biases_of_all_kinds_are_those_that_were_trained(tmp_path):
    base = base_tensors()
    tensors = lora_tensors(["lin"], 1, 6, 8) | random_tensors(2, lin__lora_B__bias=(6,))
    other = random_tensors(3, lin__base_layer__bias=(6,), classifier__original_module__bias=(3,))

    step = adapted(tmp_path, base, tensors, {**LORA, "lora_bias": True})
    replaced = adapted(tmp_path / "other", base, other, {**LORA, "bias": "all"})

    expected = base["lin.bias"] + 3 * tensors["lin.lora_B.bias"]
    torch.testing.assert_close(step.read("lin.bias"), expected)
    assert torch.equal(replaced.read("lin.bias"), other["lin.base_layer.bias"])


def test_saved_modules_replace_the_base_s_or_come_along(tmp_path):
    base = base_tensors()
    tensors = random_tensors(1, classifier__weight=(5, 6), score__dense__weight=(2, 2))

    found = adapted(tmp_path, base, tensors, {**LORA, "modules_to_save": ["classifier", "score"]})

    assert torch.equal(found.read("classifier.weight"), tensors["classifier.weight"])
    assert torch.equal(found.read("score.dense.weight"), tensors["score.dense.weight"])
    assert found.entries["classifier.weight"].shape == (5, 6)


def test_names_may_differ_by_a_prefix_on_either_side(tmp_path):
    base, tensors = base_tensors(), lora_tensors(["lin"], 1, 6, 8)
    plain = adapted(tmp_path / "plain", base, tensors, {**LORA}).read("lin.weight")

    longer = {f"bert.{key}": value for key, value in base.items()}
    added = adapted(tmp_path / "added", longer, tensors, {**LORA})
    longer = {f"bert.{key}": value for key, value in tensors.items()}
    taken = adapted(tmp_path / "taken", base, longer, {**LORA})
    wrapped = {f"module._orig_mod.{key}": value for key, value in tensors.items()}
    stripped = adapted(tmp_path / "wrapped", base, wrapped, {**LORA})

    assert torch.equal(added.read("bert.lin.weight"), plain)
    assert torch.equal(taken.read("bert.lin.weight"), plain)
    assert "bert.emb.weight" in taken.entries
    assert torch.equal(stripped.read("lin.weight"), plain)


def rotation(entries: np.ndarray, terms: list[int] | None) -> np.ndarray:
    """R of the stored rows of Q: a series with these coefficients, or the exact Cayley map."""
    b = round((1 + (1 + 8 * entries.shape[1]) ** 0.5) / 2)
    blocks = []
    for row in entries:
        q = np.zeros((b, b))
        q[np.triu_indices(b, 1)] = row
        q -= q.T
        if terms is None:
            blocks.append((np.eye(b) - q) @ np.linalg.inv(np.eye(b) + q))
        else:
            blocks.append(sum(c * np.linalg.matrix_power(q, n) for n, c in enumerate(terms)))
    r = np.zeros((b * len(blocks),) * 2)
    for number, block in enumerate(blocks):
        place = slice(b * number, b * (number + 1))
        r[place, place] = block
    return r


@pytest.mark.parametrize(
    ("options", "terms"),
    [
        ({}, [1, 2, 2, 2, 1]),
        ({"use_cayley_neumann": False}, None),
        ({"num_cayley_neumann_terms": 3}, [1, 2, 2, 1]),
        ({"peft_version": "0.17.1"}, [1, 2, 2, 2, 2]),
        ({"peft_version": None, "num_cayley_neumann_terms": 3}, [1, 2, 2]),
    ],
)
def test_oft_turns_the_inputs_of_a_layer(tmp_path, options, terms):
    base = base_tensors()
    tensors = random_tensors(
        1,
        0.3,
        lin__oft_R__weight=(2, 6),
        conv__oft_R__weight=(4, 1),
        emb__oft_embedding_R__weight=(1, 28),
    )

    found = adapted(tmp_path, base, tensors, {**OFT, **options})

    w, t = numpy64(base), numpy64(tensors)
    lin, conv, emb = (
        rotation(t[key], terms)
        for key in ("lin.oft_R.weight", "conv.oft_R.weight", "emb.oft_embedding_R.weight")
    )
    changed = {
        "lin.weight": w["lin.weight"] @ lin.T,
        "conv.weight": (w["conv.weight"].reshape(6, 8) @ conv.T).reshape(6, 2, 2, 2),
        "emb.weight": w["emb.weight"] @ emb,
    }
    check(found, base, changed)


def test_shared_and_constrained_blocks_are_those_that_oft_used(tmp_path):
    base, tensors = base_tensors(), random_tensors(1, lin__oft_R__weight=(1, 6))
    shared = {**OFT, "block_share": True, "use_cayley_neumann": False}

    found = adapted(tmp_path, base, tensors, shared)
    bounded = adapted(tmp_path / "bounded", base, tensors, {**shared, "coft": True, "eps": 0.01})

    w, entries = numpy64(base)["lin.weight"], numpy64(tensors)["lin.oft_R.weight"]
    check(found, base, {"lin.weight": w @ rotation(np.tile(entries, (2, 1)), None).T})
    entries = 0.01 * entries / (2**0.5 * np.linalg.norm(entries))
    check(bounded, base, {"lin.weight": w @ rotation(np.tile(entries, (2, 1)), None).T})


@pytest.mark.parametrize("kind", ["turned and dora", "oft"])
def test_ranges_are_the_same_values_wherever_they_begin(tmp_path, monkeypatch, kind):
    monkeypatch.setattr("momacli.adapters.checkpoint._CHUNK", 16)
    base = random_tensors(0, 1.0, m__weight=(40, 12))
    if kind == "oft":
        found = adapted(tmp_path, base, random_tensors(1, m__oft_R__weight=(3, 6)), {**OFT})
    else:
        tensors = lora_tensors(["m"], 1, 12, 40) | random_tensors(2, m__lora_magnitude_vector=(12,))
        found = adapted(tmp_path, base, tensors, {**LORA, "use_dora": True})
    whole = found.read("m.weight").reshape(-1)

    parts = [found.read_range("m.weight", at, min(480, at + 37)) for at in range(0, 480, 37)]

    assert torch.equal(torch.cat(parts), whole)
    assert torch.equal(found.read_range("m.weight", 100, 101), whole[100:101])
    assert not torch.equal(whole, base["m.weight"].reshape(-1))


def test_ranges_are_not_rounded_and_whole_tensors_have_the_base_s_type(tmp_path):
    base, tensors = base_tensors(torch.bfloat16), lora_tensors(["lin"], 1, 6, 8)

    found = adapted(tmp_path, base, tensors, {**LORA})

    exact = found.read_range("lin.weight", 0, 48)
    assert exact.dtype == torch.float32
    assert not torch.equal(exact, exact.bfloat16().float())
    assert torch.equal(found.read("lin.weight").reshape(-1), exact.bfloat16())


def test_everything_that_does_not_fit_is_named_at_once(tmp_path):
    base = base_tensors() | {"codes.weight": torch.zeros(6, 8, dtype=torch.int8)}
    tensors = {
        **lora_tensors(["nowhere", "codes"], 1, 6, 8),
        **lora_tensors(["lin"], 2, 5, 8),
        **random_tensors(3, square__lora_A__weight=(4, 8), square__lora_B__weight=(8, 4)),
        **random_tensors(4, emb__lora_embedding_A=(2, 10), strange__lora_E=(2,)),
    }
    config = {**LORA, "use_bdlora": {"x": 1}, "init_lora_weights": "pissa", "new": 3}

    with pytest.raises(ConflictError) as error:
        adapted(tmp_path, base, tensors, config)

    text = "\n".join(error.value.details)
    for word in ("nowhere", "codes", "lin", "square", "emb", "strange", "use_bdlora", "pissa"):
        assert word in text
    assert "new = 3" in text
    assert len(error.value.details) == 9
    assert "hub/of-the-base" in (error.value.hint or "")


def _twice() -> dict[str, Tensor]:
    """An adapter's tensors, one of them under two names."""
    tensors = lora_tensors(["lin"], 1, 6, 8)
    return tensors | {"lin.lora_A.default.weight": tensors["lin.lora_A.weight"] + 1}


@pytest.mark.parametrize(
    ("tensors", "config"),
    [
        (random_tensors(1, lin__oft_R__weight=(2, 5)), {**OFT}),
        (random_tensors(1, lin__oft_R__weight=(1, 6)), {**OFT}),
        (random_tensors(1, lin__oft_r=(2, 4, 4)), {**OFT}),
        (random_tensors(1, lin__oft_R__weight=(2, 6)), {**LORA}),
        (random_tensors(1, lin__oft_R__weight=(2, 6)), {**OFT, "fan_in_fan_out": True}),
        (lora_tensors(["lin"], 1, 6, 8), {**OFT}),
        (lora_tensors(["lin"], 1, 6, 8), {**LORA, "use_dora": True}),
        (lora_tensors(["lin"], 1, 6, 8), {**LORA, "r": 4}),
        (lora_tensors(["lin"], 1, 6, 8), {**LORA, "peft_type": "VERA"}),
        (lora_tensors(["lin"], 1, 6, 8), {**LORA, "target_parameters": ["w"]}),
        (lora_tensors(["conv"], 1, 6, 8), {**LORA}),
        (_twice(), {**LORA}),
        ({"classifier.weight": torch.zeros(3, 6, dtype=torch.int8)}, {**LORA}),
    ],
)
def test_what_an_adapter_is_not_is_a_conflict(tmp_path, tensors, config):
    with pytest.raises(ConflictError):
        adapted(tmp_path, base_tensors(), tensors, config)


@pytest.mark.parametrize(
    "changed",
    [
        {"r": "many"},
        {"r": -1},
        {"lora_alpha": None},
        {"lora_alpha": float("inf")},
        {"use_dora": "yes"},
        {"rank_pattern": 3},
        {"modules_to_save": "classifier"},
        {"alpha_pattern": {"(": 3}},
        {"alpha_pattern": {"(a+)+b": 3}},
        {"alpha_pattern": {"a*a*a*b": 3}},
        {"alpha_pattern": {"lin": True}},
        {"alpha_pattern": {"(" * 5000 + ")" * 5000: 3}},
        {"alpha_pattern": {"a{99999999999999999999}": 3}},
        {"alpha_pattern": {f".*lin{number}": 3 for number in range(20_000)}},
        {"lora_alpha": 10**400},
    ],
)
def test_a_config_of_other_kinds_of_values_is_damaged(tmp_path, changed):
    with pytest.raises(CheckpointError, match=r"adapter_config\.json"):
        adapted(tmp_path, base_tensors(), lora_tensors(["lin"], 1, 6, 8), {**LORA, **changed})


def test_an_adapter_of_one_tower_is_put_in_that_tower(tmp_path):
    base = {
        f"{tower}.{key}": value
        for tower in ("text_model", "vision_model")
        for key, value in base_tensors().items()
    }
    tensors = lora_tensors(["lin"], 1, 6, 8)
    config = {**LORA, "auto_mapping": {"base_model_class": "CLIPVisionModel"}}

    found = adapted(tmp_path, base, tensors, config)

    assert torch.equal(found.read("text_model.lin.weight"), base["text_model.lin.weight"])
    assert not torch.equal(found.read("vision_model.lin.weight"), base["vision_model.lin.weight"])
    with pytest.raises(ConflictError, match="fit"):
        adapted(tmp_path / "either", base, tensors, {**LORA})
