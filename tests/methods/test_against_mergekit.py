"""The same merges by mergekit, which shares no line with moma: float32, to 1e-6.

mergekit is no dependency. MOMA_TEST_MERGEKIT_PYTHON names an interpreter that has mergekit
0.1.5; without it, one beside this test's own is tried.
"""

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file
from torch import Tensor

from momacli.merge import merge
from momacli.merge_recipe import merge_recipe

VERSION = "0.1.5"
PYTHON = os.environ.get("MOMA_TEST_MERGEKIT_PYTHON", sys.executable)

_RUN_MANY = """
import json, sys
from click.testing import CliRunner
from mergekit.scripts.merge_raw_pytorch import main as raw
from mergekit.scripts.run_yaml import main as models
for tool, config, output in json.loads(sys.argv[1]):
    result = CliRunner().invoke(raw if tool == "raw" else models, [config, output])
    if result.exception:
        raise result.exception
"""

pytestmark = pytest.mark.mergekit

LAYERS = 5
NEAR = ("a", "b", "c")
"""Experts whose task vectors agree in part: where they oppose each other, Model Stock differs."""


def why_not() -> str | None:
    """Why mergekit cannot be run here, or None."""
    probe = "import importlib.metadata as m, mergekit, torch; print(m.version('mergekit'))"
    try:
        done = subprocess.run([PYTHON, "-c", probe], capture_output=True, text=True, check=False)
    except OSError as error:
        return f"{PYTHON} cannot be run: {error.strerror}"
    if done.returncode:
        return (
            f"{PYTHON} has no mergekit: name an interpreter that has it in "
            "MOMA_TEST_MERGEKIT_PYTHON"
        )
    found = done.stdout.strip()
    return None if found == VERSION else f"{PYTHON} has mergekit {found}, expected {VERSION}"


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of tiny Llama folders, base and experts, of unequal depth of change."""
    reason = why_not()
    if reason is not None:
        pytest.fail(reason)
    root = tmp_path_factory.mktemp("models")
    generator = torch.Generator().manual_seed(0)
    base = {name: torch.randn(shape, generator=generator) for name, shape in shapes().items()}
    common = {name: torch.randn(value.shape, generator=generator) for name, value in base.items()}
    for model in ("base", *NEAR):
        moved = {
            name: value
            + (model != "base")
            * (0.6 * common[name] + 0.3 * torch.randn(value.shape, generator=generator))
            for name, value in base.items()
        }
        write_llama(root / model, moved)
    return root


def shapes() -> dict[str, tuple[int, ...]]:
    width, hidden = 8, 12
    found: dict[str, tuple[int, ...]] = {
        "model.embed_tokens.weight": (20, width),
        "model.norm.weight": (width,),
        "lm_head.weight": (20, width),
    }
    for layer in range(LAYERS):
        before = f"model.layers.{layer}"
        for norm in ("input_layernorm", "post_attention_layernorm"):
            found[f"{before}.{norm}.weight"] = (width,)
        for name in "qkvo":
            found[f"{before}.self_attn.{name}_proj.weight"] = (width, width)
        found |= {f"{before}.mlp.{n}_proj.weight": (hidden, width) for n in ("gate", "up")}
        found[f"{before}.mlp.down_proj.weight"] = (width, hidden)
    return found


def write_llama(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    folder.mkdir()
    save_file(dict(tensors), folder / "model.safetensors", metadata={"format": "pt"})
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 12,
        "num_attention_heads": 2,
        "num_key_value_heads": 2,
        "num_hidden_layers": LAYERS,
        "vocab_size": 20,
        "tie_word_embeddings": False,
        "torch_dtype": "float32",
    }
    (folder / "config.json").write_text(json.dumps(config))


def listed(*names: str, **parameters: Any) -> list[dict[str, Any]]:
    """Models of a configuration; of a list the first value is the first model's."""
    tables = []
    for number, name in enumerate(names):
        own = {k: v[number] if isinstance(v, tuple) else v for k, v in parameters.items()}
        tables.append({"model": name, **({"parameters": own} if own else {})})
    return tables


def configuration(method: str, models: Any, base: str | None = "base", **parameters: Any) -> Any:
    config = {"merge_method": method, "models": models, "dtype": "float32"}
    if base is not None:
        config["base_model"] = base
    return {**config, "parameters": parameters} if parameters else config


WEIGHTS = (0.5, 0.3, 0.4)
UNEQUAL = {"weight": WEIGHTS, "density": (0.5, 0.9, 0.33)}
RAW: dict[str, Any] = {
    "linear": configuration("linear", listed(*NEAR, weight=WEIGHTS), None),
    "linear, not normalized": configuration(
        "linear", listed(*NEAR, weight=WEIGHTS), None, normalize=False
    ),
    "slerp": configuration("slerp", listed("base", "a"), t=0.3),
    "task_arithmetic": configuration(
        "task_arithmetic", listed(*NEAR, weight=WEIGHTS), **{"lambda": 0.7}
    ),
    "task_arithmetic, normalized": configuration(
        "task_arithmetic", listed(*NEAR, weight=(1.0, 2.0, -0.5)), normalize=True
    ),
    "ties": configuration("ties", listed(*NEAR, weight=1.0, density=0.4), int8_mask=True),
    "ties, weighted": configuration("ties", listed(*NEAR, weight=WEIGHTS, density=0.4)),
    "ties, unequal": configuration("ties", listed(*NEAR, **UNEQUAL)),
    "ties, summed": configuration(
        "ties", listed(*NEAR, **UNEQUAL), normalize=False, **{"lambda": 0.5}
    ),
    "dare_ties, dense": configuration("dare_ties", listed(*NEAR, weight=WEIGHTS)),
    "dare_linear, dense": configuration("dare_linear", listed(*NEAR, weight=WEIGHTS)),
    "della, dense": configuration("della", listed(*NEAR, weight=WEIGHTS, density=1.0)),
    "della_linear, dense": configuration("della_linear", listed(*NEAR, weight=WEIGHTS)),
    "breadcrumbs": configuration("breadcrumbs", listed(*NEAR, **UNEQUAL, gamma=(0.1, 0.02, 0.2))),
    "breadcrumbs, all alike": configuration(
        "breadcrumbs", listed(*NEAR, weight=WEIGHTS), density=0.6, gamma=0.05, normalize=True
    ),
    "breadcrumbs_ties": configuration(
        "breadcrumbs_ties", listed(*NEAR, **UNEQUAL), gamma=0.1, **{"lambda": 1.5}
    ),
    "model_stock": configuration("model_stock", listed(*NEAR)),
    "model_stock, filter-wise": configuration("model_stock", listed(*NEAR), filter_wise=True),
    "nuslerp": configuration("nuslerp", listed("a", "b", weight=(1.0, 2.0))),
    "nuslerp, rows": configuration(
        "nuslerp", listed("a", "b", weight=(1.0, 2.0)), nuslerp_flatten=False
    ),
    "nuslerp, columns": configuration(
        "nuslerp",
        listed("a", "b", weight=(1.0, 2.0)),
        nuslerp_flatten=False,
        nuslerp_row_wise=True,
    ),
    "nuslerp of weights": configuration("nuslerp", listed("a", "b", weight=(1.0, 2.0)), None),
    "multislerp": configuration("multislerp", listed(*NEAR, weight=WEIGHTS)),
    "multislerp of weights": configuration("multislerp", listed(*NEAR, weight=WEIGHTS), None),
    "multislerp, not normalized": configuration(
        "multislerp", listed(*NEAR, weight=WEIGHTS), normalize_weights=False
    ),
    "karcher": configuration("karcher", listed(*NEAR), None, max_iter=100, tol=1e-9),
    "sce": configuration("sce", listed(*NEAR), select_topk=0.5),
    "sce, all": configuration("sce", listed(*NEAR)),
    "arcee_fusion": configuration("arcee_fusion", listed("a")),
    "passthrough": configuration("passthrough", listed("a"), None, scale=0.5),
}
"""What both are given, as `mergekit-pytorch` takes it."""

GRADIENT = [
    {"filter": "self_attn", "value": [0, 0.5, 0.3, 0.7, 1]},
    {"filter": "mlp", "value": [1, 0.5, 0.7, 0.3, 0]},
    {"value": 0.5},
]


def sliced(*sources: tuple[str, int, int], **more: Any) -> dict[str, Any]:
    tables = [{"model": name, "layer_range": [a, b]} for name, a, b in sources]
    return {"sources": tables, **more}


WHOLE: dict[str, Any] = {
    "slerp by layers": {
        "slices": [sliced(("base", 0, LAYERS), ("a", 0, LAYERS))],
        "merge_method": "slerp",
        "base_model": "base",
        "parameters": {"t": GRADIENT},
        "dtype": "float32",
    },
    "ties with gradients": {
        "models": [
            {"model": "base"},
            {"model": "a", "parameters": {"density": [1, 0.7, 0.1], "weight": 1.0}},
            {
                "model": "b",
                "parameters": {
                    "density": 0.5,
                    "weight": [0, 0.3, {"filter": "mlp", "value": 0.5}][:2],
                },
            },
            {
                "model": "c",
                "parameters": {
                    "density": 0.33,
                    "weight": [{"filter": "mlp", "value": 0.5}, {"value": 0.2}],
                },
            },
        ],
        "merge_method": "ties",
        "base_model": "base",
        "parameters": {"normalize": True, "int8_mask": True},
        "dtype": "float32",
    },
    "layers of two models": {
        "slices": [sliced(("a", 0, 4)), sliced(("b", 2, 5))],
        "merge_method": "passthrough",
        "dtype": "float32",
    },
    "slices merged": {
        "slices": [
            sliced(("a", 0, 3), ("b", 0, 3), parameters={"weight": [0.2, 0.8]}),
            sliced(("b", 2, 5), ("c", 1, 4), parameters={"weight": 0.5}),
        ],
        "merge_method": "linear",
        "dtype": "float32",
    },
    "part of each, with a base": {
        "slices": [
            sliced(("base", 1, 3), ("a", 1, 3), ("b", 2, 4)),
        ],
        "merge_method": "task_arithmetic",
        "base_model": "base",
        "parameters": {"weight": [{"filter": "layers.2", "value": 0.9}, {"value": 0.4}]},
        "dtype": "float32",
    },
}
"""What both are given, as `mergekit-yaml` takes it: it knows where the layers are."""


@pytest.fixture(scope="module")
def by_mergekit(models: Path, tmp_path_factory: pytest.TempPathFactory) -> Mapping[str, Path]:
    """All configurations run by mergekit, in one process: it takes seconds to start."""
    root = tmp_path_factory.mktemp("mergekit")
    jobs, outputs = [], {}
    for number, (name, config) in enumerate([*RAW.items(), *WHOLE.items()]):
        file, outputs[name] = root / f"{number}.yml", root / f"{number}"
        suffix = "/model.safetensors" if name in RAW else ""
        file.write_text(yaml.safe_dump(located(config, models, suffix)))
        jobs.append(("raw" if name in RAW else "models", str(file), str(outputs[name])))
    done = subprocess.run(
        [PYTHON, "-c", _RUN_MANY, json.dumps(jobs)],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""},
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return outputs


def located(config: Any, folder: Path, suffix: str) -> Any:
    """The configuration with the paths of models in the place of their names."""
    if isinstance(config, list):
        return [located(item, folder, suffix) for item in config]
    if isinstance(config, dict):
        return {
            key: f"{folder / value}{suffix}"
            if key in ("model", "base_model")
            else located(value, folder, suffix)
            for key, value in config.items()
        }
    return config


def assert_same(merged: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Dicts are compared tensor by tensor, and a difference is told with the tensor's name."""
    torch.testing.assert_close(dict(merged), dict(expected), rtol=1e-6, atol=1e-6)


def weights_in(folder: Path) -> dict[str, Tensor]:
    return {k: v for file in folder.glob("*.safetensors") for k, v in load_file(file).items()}


@pytest.mark.parametrize("name", [*RAW, *WHOLE])
def test_a_configuration_of_mergekit_gives_what_mergekit_gives(
    name: str, models: Path, by_mergekit: Mapping[str, Path], tmp_path: Path
):
    file = tmp_path / "mergekit.yml"
    file.write_text(yaml.safe_dump(located({**RAW, **WHOLE}[name], models, "")))

    merge_recipe(file, output=tmp_path / "out")

    assert_same(weights_in(tmp_path / "out"), weights_in(by_mergekit[name]))


@pytest.mark.parametrize(
    ("name", "method", "options", "weights", "scope"),
    [
        ("task_arithmetic", "task-arithmetic", {"lam": 0.7}, WEIGHTS, None),
        ("ties", "ties", {"density": 0.4}, None, "tensor"),
        ("model_stock", "model-stock", {}, None, None),
        ("multislerp", "multislerp", {}, WEIGHTS, None),
        ("karcher", "karcher", {}, None, None),
        ("sce", "sce", {"density": 0.5}, None, None),
    ],
)
def test_methods_agree_as_the_command_line_spells_them(
    name, method, options, weights, scope, models, by_mergekit, tmp_path
):
    merge(
        [models / expert for expert in NEAR],
        base=models / "base",
        method=method,
        options=options,
        weights=weights,
        scope=scope,
        output=tmp_path / "out.safetensors",
    )

    assert_same(load_file(tmp_path / "out.safetensors"), weights_in(by_mergekit[name]))
