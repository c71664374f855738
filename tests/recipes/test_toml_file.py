from pathlib import Path

import pytest

from momacli.errors import CheckpointError, UsageError
from momacli.recipes.rules import Rule
from momacli.recipes.steps import File, Model, Result, decode_steps, encode_steps
from momacli.recipes.toml_file import read_toml

CHAIN = """
base = "base.safetensors"
output = "out"
seed = 3

[[steps]]
name = "animals"
method = "ties"
density = 0.3
inputs = ["cats.safetensors", "dogs=hounds.safetensors"]

[[steps]]
inputs = ["animals", "all=animals", "birds.safetensors"]
seed = 4
"""


def written(folder: Path, text: str) -> Path:
    path = folder / "recipe.toml"
    path.write_text(text, encoding="utf-8")
    return path


def test_everything_the_command_line_says_can_be_written_down(tmp_path):
    path = written(
        tmp_path,
        """
        method = "ties"
        base = "base.safetensors"
        inputs = ["a.safetensors", "two=b.safetensors"]
        output = "merged"
        config = "config.json"
        heads = ["head.*"]
        exclude = "norm.*"
        lambda = 0.5
        density = 0.1
        aggregate = "sum"
        weights = { two = 2 }
        scope = "tensor"
        seed = 1
        dtype = "bf16"

        [[rules]]
        tensors = "layers.0.*"
        lambda = 1
        weights = [3, 4.5]
        """,
    )

    recipe = read_toml(path)

    (step,) = recipe.steps
    assert step.method == "ties"
    assert step.base == Model("base", File(tmp_path / "base.safetensors"))
    assert step.experts == (
        Model("a", File(tmp_path / "a.safetensors")),
        Model("two", File(tmp_path / "b.safetensors")),
    )
    assert step.options == {"lam": 0.5, "density": 0.1, "aggregate": "sum"}
    assert step.weights == {"two": 2.0}
    assert (step.scope, step.seed, step.dtype, step.exclude) == ("tensor", 1, "bf16", ("norm.*",))
    assert step.rules == (Rule(("layers.0.*",), {"lam": 1}, {"a": 3.0, "two": 4.5}),)
    assert recipe.output == tmp_path / "merged"
    assert recipe.config == tmp_path / "config.json"
    assert recipe.heads == ("head.*",)


def test_a_step_is_an_input_of_a_later_one_by_its_name(tmp_path):
    first, last = read_toml(written(tmp_path, CHAIN)).steps

    assert [model.name for model in first.experts] == ["cats", "dogs"]
    assert last.base == first.base == Model("base", File(tmp_path / "base.safetensors"))
    assert last.experts == (
        Model("animals", Result("animals")),
        Model("all", Result("animals")),
        Model("birds", File(tmp_path / "birds.safetensors")),
    )
    assert (first.seed, last.seed) == (3, 4)


def test_steps_survive_being_recorded(tmp_path):
    recipe = read_toml(written(tmp_path, CHAIN))

    assert decode_steps(encode_steps(recipe), recipe.files).steps == recipe.steps


def test_the_base_may_be_one_of_the_inputs(tmp_path):
    by_name = 'inputs = ["base.safetensors", "a.safetensors"]'
    by_path = 'base = "b.safetensors"\ninputs = ["b.safetensors", "a.safetensors"]'

    for text, name in ((by_name, "base"), (by_path, "b")):
        (step,) = read_toml(written(tmp_path, text)).steps
        assert step.base.name == name
        assert [model.name for model in step.experts] == ["a"]


SOUND = 'base = "b"\ninputs = ["a"]\n'


@pytest.mark.parametrize(
    ("text", "message", "hint"),
    [
        (SOUND + "lambd = 1", "unknown key lambd", "did you mean lambda?"),
        (SOUND + "wieghts = [1]", "unknown key wieghts", "did you mean weights?"),
        (SOUND + "density = 0.1", "method task-arithmetic", None),
        (SOUND + "[[rules]]\ntensor = 'x'", "tensors", None),
        (SOUND + "[[rules]]\ntensors = 'x'\nlamda = 1", "unknown key lamda", "lambda?"),
        (SOUND + "weights = { c = 1 }", "unknown key c", "it may have: a"),
        (SOUND + "weights = [1, 2]", "expected 1 numbers, found 2", "the experts are a"),
        (SOUND + "weights = [nan]", "finite", None),
        (SOUND + "seed = 1.5", "seed: expected an integer", None),
        (SOUND + "method = 'tie'", "no merge method tie", "did you mean ties?"),
        ('inputs = ["a"]', "no base", None),
        ('base = "b"\ninputs = []', "nothing to merge", None),
        ('base = "b"\ninputs = ["x/a", "y/a"]', "the same name: a", "NAME=PATH"),
        ('base = "b"', "inputs: expected a list of texts, found nothing", None),
        ('base = "b"\nsteps = []', "expected at least one", None),
        ('lambda = 1\n[[steps]]\ninputs = ["a"]', "unknown key lambda", None),
        (
            'base = "b"\n[[steps]]\nname = "x"\ninputs = ["a"]\n[[steps]]\ninputs = ["c"]',
            "no later step uses the result of x",
            None,
        ),
        ("inputs = [", "not valid TOML", None),
    ],
)
def test_what_is_wrong_is_named_with_a_way_out(tmp_path, text, message, hint):
    with pytest.raises(UsageError) as caught:
        read_toml(written(tmp_path, text))

    assert message in caught.value.message
    assert "recipe.toml" in caught.value.message or "merge method" in message
    assert hint is None or hint in str(caught.value.hint)


def test_a_recipe_that_is_not_there_is_said_to_be_missing(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        read_toml(tmp_path / "recipe.toml")


def test_a_recipe_says_what_to_do_with_embeddings_of_other_sizes(tmp_path):
    inputs = 'base = "b.safetensors"\ninputs = ["a.safetensors"]\n'

    recipe = read_toml(written(tmp_path, inputs + 'vocab = "min"'))

    assert recipe.vocab == "min"
    with pytest.raises(UsageError, match="vocab: expected base or min"):
        read_toml(written(tmp_path, inputs + 'vocab = "max"'))
