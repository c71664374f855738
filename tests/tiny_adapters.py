"""PEFT adapters put together by hand, as save_pretrained of peft writes them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor

LORA: Mapping[str, Any] = {
    "peft_type": "LORA",
    "base_model_name_or_path": "hub/of-the-base",
    "bias": "none",
    "fan_in_fan_out": False,
    "inference_mode": True,
    "init_lora_weights": True,
    "lora_alpha": 6,
    "lora_dropout": 0.1,
    "modules_to_save": None,
    "r": 2,
    "target_modules": ["query", "value"],
    "task_type": None,
    "use_dora": False,
    "use_rslora": False,
}
OFT: Mapping[str, Any] = {
    "peft_type": "OFT",
    "peft_version": "0.18.1",
    "base_model_name_or_path": "hub/of-the-base",
    "bias": "none",
    "block_share": False,
    "coft": False,
    "eps": 6e-05,
    "fan_in_fan_out": False,
    "module_dropout": 0.0,
    "modules_to_save": None,
    "num_cayley_neumann_terms": 5,
    "oft_block_size": 4,
    "r": 0,
    "use_cayley_neumann": True,
}


def write_adapter(
    folder: Path, tensors: Mapping[str, Tensor], config: Mapping[str, Any], **changed: Any
) -> Path:
    """Write an adapter's folder; its tensors are named without PEFT's prefix."""
    folder.mkdir(parents=True, exist_ok=True)
    named = {f"base_model.model.{key}": value.contiguous() for key, value in tensors.items()}
    save_file(named, folder / "adapter_model.safetensors", metadata={"format": "pt"})
    (folder / "adapter_config.json").write_text(json.dumps({**config, **changed}))
    return folder


def random_tensors(seed: int, size: float = 0.1, **shapes: Sequence[int]) -> dict[str, Tensor]:
    """Random tensors of these shapes; two underscores in a name stand for a dot."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name.replace("__", "."): size * torch.randn(*shape, generator=generator)
        for name, shape in shapes.items()
    }


def lora_tensors(modules: Sequence[str], seed: int, outputs: int, inputs: int) -> dict[str, Tensor]:
    """The factors of rank 2 of linear modules of one size."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for module in modules:
        tensors[f"{module}.lora_A.weight"] = 0.2 * torch.randn(2, inputs, generator=generator)
        tensors[f"{module}.lora_B.weight"] = 0.2 * torch.randn(outputs, 2, generator=generator)
    return tensors


def oft_tensors(
    modules: Sequence[str], seed: int, inputs: int, size: float = 0.1
) -> dict[str, Tensor]:
    """Generators in blocks of 4 of linear modules of one number of inputs."""
    generator = torch.Generator().manual_seed(seed)
    return {
        f"{module}.oft_R.weight": size * torch.randn(inputs // 4, 6, generator=generator)
        for module in modules
    }
