"""Entries that cancel out take the majority's sign, which the last block of a merge settles."""

from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from momacli.checkpoint import spans as spans_module
from momacli.checkpoint.naming import named_inputs
from momacli.checkpoint.source import Source
from momacli.checkpoint.writer import CheckpointWriter, TensorSpec
from momacli.errors import ConflictError, OutputError
from momacli.merge import merge
from momacli.merge_recipe import merge_recipe
from momacli.merging.prepare import prepare
from momacli.merging.ranks import Ranks
from momacli.progress import Notice, Progress, ignore
from momacli.verify import verify

Models = Mapping[str, Mapping[str, np.ndarray]]

ALL = {"density": 1.0, "aggregate": "sum"}
"""Of TIES: nothing is trimmed, and sums of integers are exact."""


def write(folder: Path, models: Models) -> list[Path]:
    """Write each model as a file named after its task; returns their paths."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, model in models.items():
        tensors = {key: torch.from_numpy(value) for key, value in model.items()}
        save_file(tensors, folder / f"{name}.safetensors")
    return [folder / f"{name}.safetensors" for name in models]


def leaning(*signs: int, size: int = 400, seed: int = 0) -> dict[str, dict[str, np.ndarray]]:
    """A base of zeros and two experts of integers, a tensor for each sign.

    In a fifth of a tensor's entries the experts cancel, the others have that sign. Two tensors
    of opposite signs are exactly the opposite of each other.
    """
    rng = np.random.default_rng(seed)
    one = rng.integers(1, 5, size).astype(np.float32)
    other = np.where(np.arange(size) % 5, rng.integers(1, 5, size), -one).astype(np.float32)
    names = [f"layers.{number}.w" for number in range(len(signs))]
    return {
        "base": {name: np.zeros(size, np.float32) for name in names},
        "one": {name: sign * one for name, sign in zip(names, signs, strict=True)},
        "two": {name: sign * other for name, sign in zip(names, signs, strict=True)},
    }


def by_definition(models: Models, names: Sequence[str] | None = None) -> dict[str, np.ndarray]:
    """The sum of the task vectors that have the elected sign, over whole vectors, in float64."""
    base, *experts = models.values()
    keys = list(base) if names is None else list(names)
    whole = {
        key: np.stack([e[key].astype(np.float64) - base[key] for e in experts]) for key in keys
    }
    gammas = {key: np.sign(taus.sum(axis=0)) for key, taus in whole.items()}
    majority = 1 if sum(gamma.sum() for gamma in gammas.values()) >= 0 else -1
    merged = {}
    for key, taus in whole.items():
        gamma = np.where(gammas[key] == 0, majority, gammas[key])
        merged[key] = base[key] + np.where(taus * gamma > 0, taus, 0).sum(axis=0)
    return merged


def assert_merged(output: Path, expected: Mapping[str, np.ndarray]) -> None:
    merged = load_file(output)
    assert merged.keys() == expected.keys()
    for key, value in merged.items():
        np.testing.assert_array_equal(value.double().numpy(), expected[key])


def stages(events: Sequence[Progress | Notice]) -> list[str]:
    return list(dict.fromkeys(e.stage for e in events if isinstance(e, Progress)))


# the bytes

LEANINGS = [
    (-1, -1),  # and the guess is right from the start
    (1, 1),
    (1, -1, -1),  # the guess is wrong at first
    (-1, 1, 1),
    (1, -1),  # as many of each, which counts as positive
    (-1, 1),
    (1, -1, -1, 1, 1, 1, -1, -1, -1),  # it changes twice
]


@pytest.mark.parametrize("signs", LEANINGS, ids=str)
def test_what_cancels_is_settled_by_the_whole_vector_however_the_blocks_before_lean(
    tmp_path: Path, signs: tuple[int, ...]
):
    models = leaning(*signs)
    paths = write(tmp_path, models)

    report = merge(paths, method="ties", options=ALL, output=tmp_path / "out.safetensors")

    expected = by_definition(models)
    assert_merged(report.output, expected)
    changed = [value != models["base"][key] for key, value in expected.items()]
    assert report.changed_share == np.mean(changed)


@pytest.mark.parametrize("signs", LEANINGS, ids=str)
def test_what_is_written_by_guesses_is_what_is_verified_without(
    tmp_path: Path, signs: tuple[int, ...]
):
    output = tmp_path / "out.safetensors"
    merge(write(tmp_path, leaning(*signs)), method="ties", options=ALL, output=output)

    report = verify(output)

    assert report.first_difference is None
    assert report.equal


def test_what_changed_is_counted_by_what_is_written_in_the_end(tmp_path: Path):
    models = leaning(1, -1, -1)
    for model in models.values():
        for value in model.values():
            value *= 0.15  # around 256, bfloat16 has steps of 2 above and of 1 below
            value += 256
    output = tmp_path / "out.safetensors"

    report = merge(write(tmp_path, models), method="ties", options=ALL, dtype="bf16", output=output)

    changed = [(value.float() != 256).numpy() for value in load_file(output).values()]
    assert report.changed_share == np.mean(changed)


def test_large_tensors_are_mended_in_the_blocks_that_need_it(tmp_path: Path):
    rng = np.random.default_rng(0)
    size = 600_000
    one = rng.integers(1, 5, size).astype(np.float32)
    other = -one
    other[:200_000] = one[:200_000]  # in some blocks nothing cancels
    last = -np.ones(300_000, np.float32)
    models = {
        "base": {"a": np.zeros(size, np.float32), "b": np.zeros_like(last)},
        "one": {"a": one, "b": last},
        "two": {"a": other, "b": last},
    }
    broken = 350_000  # a value that is not finite is counted once
    models["one"]["a"][broken] = np.nan
    told: list[Progress | Notice] = []

    report = merge(
        write(tmp_path, models),
        method="ties",
        options=ALL,
        allow_nonfinite=True,
        output=tmp_path / "out.safetensors",
        listener=told.append,
    )

    models["one"]["a"][broken] = models["two"]["a"][broken] = 0
    assert_merged(report.output, by_definition(models))
    assert stages(told)[-1] == "merging, pass 2"
    notices = [event.text for event in told if isinstance(event, Notice)]
    assert notices == [f"{tmp_path / 'one.safetensors'}: 1 values are NaN or infinity, in a"]


def test_a_value_beyond_the_type_by_a_wrong_guess_alone_is_no_error(tmp_path: Path):
    models = leaning(1, -1, -1)
    for model in models.values():
        model["layers.0.w"] = model["layers.0.w"] + np.float32(65_000)
    models["one"]["layers.0.w"][0], models["two"]["layers.0.w"][0] = 66_000, 64_000
    paths, output = write(tmp_path, models), tmp_path / "out.safetensors"

    merge(paths, method="ties", options=ALL, dtype="float16", output=output)

    expected = by_definition(models)["layers.0.w"].astype(np.float16)
    np.testing.assert_array_equal(load_file(output)["layers.0.w"].numpy(), expected)


def test_a_value_beyond_the_type_in_the_end_is_one_though_the_guess_was_not(tmp_path: Path):
    models = leaning(1, -1, -1)
    for model in models.values():
        model["layers.0.w"] = model["layers.0.w"] - np.float32(65_000)
    models["one"]["layers.0.w"][0], models["two"]["layers.0.w"][0] = -64_000, -66_000
    paths, output = write(tmp_path, models), tmp_path / "out.safetensors"
    output.write_bytes(b"what was there")

    with pytest.raises(ConflictError, match=r"layers\.0\.w of the result has values beyond F16"):
        merge(paths, method="ties", options=ALL, dtype="float16", output=output, force=True)

    assert output.read_bytes() == b"what was there"


def test_tensors_with_settings_of_their_own_have_a_majority_of_their_own(tmp_path: Path):
    models = leaning(1, -1, 1, -1, -1, 1)  # both begin with a wrong guess
    write(tmp_path, models)
    own = ["layers.1.w", "layers.5.w", "layers.2.w"]
    (tmp_path / "recipe.toml").write_text(f"""
        method = "ties"
        base = "base.safetensors"
        inputs = ["one.safetensors", "two.safetensors"]
        density = 1.0
        aggregate = "sum"
        [[rules]]
        tensors = {own}
        density = 0.999999
    """)

    report = merge_recipe(tmp_path / "recipe.toml", output=tmp_path / "out.safetensors")

    rest = [key for key in models["base"] if key not in own]
    groups = by_definition(models, own) | by_definition(models, rest)
    assert groups.keys() == by_definition(models).keys()
    assert_merged(report.output, groups)


@pytest.mark.parametrize("method", ["consensus", "tall-mask"])
def test_what_builds_on_ties_is_settled_like_it(tmp_path: Path, method: str):
    options = {"of": "ties", "density": 1.0}
    paths = write(tmp_path, leaning(1, -1, -1))
    output = tmp_path / ("out" if method == "tall-mask" else "out.safetensors")

    told: list[Progress | Notice] = []

    merge(paths, method=method, options=options, output=output, listener=told.append)

    assert verify(output).equal
    assert stages(told)[-2:] == ["merging", "merging, pass 2"]


# how often inputs are read


class Reads:
    """Counts the bytes that are read of all inputs."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch):
        self.total = 0
        read_into = Source.read_into

        def counted(source: Source, buffer: memoryview, offset: int) -> None:
            self.total += len(buffer)
            read_into(source, buffer, offset)

        monkeypatch.setattr(Source, "read_into", counted)

    def of(self, paths: Sequence[Path], method: str, **given: object) -> int:
        """Bytes read by a merge."""
        before = self.total
        output = paths[0].with_name(f"{method}.safetensors")
        merge(paths, method=method, output=output, force=True, **given)
        return self.total - before


@pytest.mark.parametrize("signs", [(1, 1, 1), (1, -1, -1), (-1, -1, 1, 1)])
def test_inputs_are_read_twice_and_again_only_where_a_guess_was_wrong(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, signs: tuple[int, ...]
):
    monkeypatch.setattr(spans_module, "_RUNS", 8)  # else too little to take a sample of
    monkeypatch.setattr(spans_module, "_RUN", 64)
    models = leaning(*signs, size=5000)
    reads = Reads(monkeypatch)
    paths = write(tmp_path, models)
    specs = [TensorSpec(key, "F32", value.shape) for key, value in models["base"].items()]

    once = reads.of(paths, "average")
    found = reads.of(paths, "ties", options={"density": 0.95, "aggregate": "sum"})

    sample = 4 * sum(span.length for span in spans_module.evenly_spread(specs))
    guesses = np.cumsum(signs) >= 0
    again = sum(
        spec.nbytes for spec, guess in zip(specs, guesses, strict=True) if guess != guesses[-1]
    )
    assert 0 < sample < specs[0].nbytes
    assert found - once == len(paths) * (sample + sum(spec.nbytes for spec in specs) + again)


def test_entries_that_cancel_cost_no_reading_where_the_guess_was_right(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    cancelling, other = leaning(-1, -1, -1), leaning(-1, -1, -1)
    for value in other["two"].values():
        value[::5] *= 0.5
    reads = Reads(monkeypatch)

    found = [
        reads.of(write(tmp_path / str(number), models), "ties", options=ALL)
        for number, models in enumerate((cancelling, other))
    ]

    assert found[0] == found[1]


# what is left


@pytest.mark.parametrize(
    ("error", "seen"),
    [
        (OSError(28, "No space left on device"), OutputError),
        (KeyboardInterrupt(), KeyboardInterrupt),
    ],
)
def test_an_output_that_is_not_mended_to_the_end_is_not_put_in_place(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    error: BaseException,
    seen: type[BaseException],
):
    paths, output = write(tmp_path, leaning(1, -1, -1)), tmp_path / "out.safetensors"
    output.write_bytes(b"what was there")
    files = sorted(tmp_path.iterdir())

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(CheckpointWriter, "replace", fail)
    with pytest.raises(seen):
        merge(paths, method="ties", options=ALL, output=output, force=True)

    assert output.read_bytes() == b"what was there"
    assert sorted(tmp_path.iterdir()) == files


# elsewhere than in one pass of one process


@pytest.mark.parametrize("signs", LEANINGS, ids=str)
def test_shares_of_several_processes_have_the_values_of_the_whole(
    tmp_path: Path, signs: tuple[int, ...]
):
    models = leaning(*signs)
    base, *experts = named_inputs(write(tmp_path, models))
    merged = {}

    for number in range(2):
        with ExitStack() as stack:
            merging = prepare(stack, base, experts, method="ties", options=ALL)
            own = Ranks(number, 2).share(merging.work.plan.merged)
            for part in merging.work.parts(ignore, share=own):
                merged[part.name] = part.values

    expected = by_definition(models)
    assert merged.keys() == expected.keys()
    assert all(np.array_equal(value, expected[key]) for key, value in merged.items())


def test_a_step_of_a_chain_has_the_values_of_a_merge_by_itself(tmp_path: Path):
    models = leaning(1, -1, -1)
    write(tmp_path, models)
    (tmp_path / "recipe.toml").write_text("""
        base = "base.safetensors"
        [[steps]]
        name = "first"
        method = "ties"
        inputs = ["one.safetensors", "two.safetensors"]
        density = 1.0
        aggregate = "sum"
        [[steps]]
        method = "average"
        inputs = ["first"]
    """)

    report = merge_recipe(tmp_path / "recipe.toml", output=tmp_path / "out.safetensors")

    assert_merged(report.output, by_definition(models))
