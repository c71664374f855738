from pathlib import Path

import pytest

from momacli.errors import UsageError
from momacli.recipes.yaml_file import read_yaml


def written(folder: Path, text: str) -> Path:
    path = folder / "mergekit.yml"
    path.write_text(text, encoding="utf-8")
    return path


def test_plain_values_and_aliases_are_read(tmp_path):
    path = written(tmp_path, "a: &x [1, 0.5, yes]\nb: *x\n")

    assert read_yaml(path) == {"a": [1, 0.5, True], "b": [1, 0.5, True]}


BOMB = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]\n" for n in range(1, 9)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a: 1\na: 2", "a is given twice"),
        ("a: &x {b: 1}\nc: {<<: *x}", "merge keys"),
        (BOMB, "stands for more than"),
        ("a: &x [*x]", "stands for more than"),
        ("[" * 5000, "not valid YAML"),
        ("a: 1\n---\nb: 2", "not valid YAML"),
        ("just a text", "holds no table"),
        ("\x00", "not valid YAML"),
    ],
)
def test_what_is_unsound_is_refused(tmp_path, text, message):
    with pytest.raises(UsageError, match=message):
        read_yaml(written(tmp_path, text))
