"""Weights of real shapes, generated: what a merge costs does not depend on their values."""

import json
import math
from pathlib import Path

Shapes = dict[str, tuple[int, ...]]


def vit_shapes() -> Shapes:
    """The image encoder of CLIP ViT-B/32, as transformers names its tensors."""
    d = 768
    shapes: Shapes = {
        "vision_model.embeddings.class_embedding": (d,),
        "vision_model.embeddings.patch_embedding.weight": (d, 3, 32, 32),
        "vision_model.embeddings.position_embedding.weight": (50, d),
    }
    norms = ["vision_model.pre_layrnorm", "vision_model.post_layernorm"]
    for i in range(12):
        layer = f"vision_model.encoder.layers.{i}."
        norms += [layer + "layer_norm1", layer + "layer_norm2"]
        linear = {f"self_attn.{name}_proj": (d, d) for name in ("k", "v", "q", "out")}
        linear |= {"mlp.fc1": (4 * d, d), "mlp.fc2": (d, 4 * d)}
        for name, shape in linear.items():
            shapes |= {f"{layer}{name}.weight": shape, f"{layer}{name}.bias": shape[:1]}
    for norm in norms:
        shapes |= {f"{norm}.weight": (d,), f"{norm}.bias": (d,)}
    return shapes


def llm_shapes(
    d: int = 2048, key_value: int = 256, inner: int = 5632, words: int = 32000, layers: int = 22
) -> Shapes:
    """A Llama; by default TinyLlama 1.1B."""
    shapes: Shapes = {"model.embed_tokens.weight": (words, d)}
    for i in range(layers):
        layer = f"model.layers.{i}."
        shapes |= {
            f"{layer}self_attn.q_proj.weight": (d, d),
            f"{layer}self_attn.k_proj.weight": (key_value, d),
            f"{layer}self_attn.v_proj.weight": (key_value, d),
            f"{layer}self_attn.o_proj.weight": (d, d),
            f"{layer}mlp.gate_proj.weight": (inner, d),
            f"{layer}mlp.up_proj.weight": (inner, d),
            f"{layer}mlp.down_proj.weight": (d, inner),
            f"{layer}input_layernorm.weight": (d,),
            f"{layer}post_attention_layernorm.weight": (d,),
        }
    return shapes | {"model.norm.weight": (d,), "lm_head.weight": (words, d)}


LARGE = {"d": 8192, "key_value": 1024, "inner": 28672, "words": 128256, "layers": 80}
"""The sizes of Llama 3 70B."""

SETS = {"vit": (vit_shapes, 8, "F32"), "llm": (llm_shapes, 3, "BF16")}
"""By name: the shapes, the number of experts, the type."""

_LLAMA = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 2048,
    "intermediate_size": 5632,
    "num_hidden_layers": 22,
    "num_attention_heads": 32,
    "num_key_value_heads": 4,
    "vocab_size": 32000,
    "max_position_embeddings": 2048,
    "rms_norm_eps": 1e-05,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
}


def generate(name: str, folder: Path) -> tuple[list[Path], list[Path]]:
    """The base and the experts, made where they are not there yet; and all their files."""
    _, experts, _ = SETS[name]
    names = ["base", *(f"t{number}" for number in range(experts))]
    if name == "vit":
        models = [folder / f"{model}.safetensors" for model in names]
    else:
        models = [folder / model for model in names]
    for seed, model in enumerate(models):
        if not model.exists():
            _write(name, model, seed)
    files = [file for model in models for file in ([model] if model.is_file() else _shards(model))]
    return models, files


def generate_empty(shapes: Shapes, folder: Path, models: int, largest: int) -> list[Path]:
    """Sharded models in bfloat16 with true headers and no data: the files are holes."""
    folders = [folder / name for name in ("base", *(f"t{n}" for n in range(models - 1)))]
    shards: list[Shapes] = [{}]
    size = 0
    for key, shape in shapes.items():
        if size + 2 * math.prod(shape) > largest and shards[-1]:
            shards.append({})
            size = 0
        shards[-1][key] = shape
        size += 2 * math.prod(shape)
    names = [f"model-{n:05}-of-{len(shards):05}.safetensors" for n in range(1, len(shards) + 1)]
    table = {key: name for name, part in zip(names, shards, strict=True) for key in part}
    for place in folders:
        place.mkdir(parents=True, exist_ok=True)
        (place / "config.json").write_text(json.dumps(_LLAMA))
        (place / "model.safetensors.index.json").write_text(json.dumps({"weight_map": table}))
        for name, part in zip(names, shards, strict=True):
            _write_hole(place / name, part)
    return folders


def _write_hole(path: Path, shapes: Shapes) -> None:
    header: dict[str, object] = {}
    end = 0
    for key, shape in shapes.items():
        start, end = end, end + 2 * math.prod(shape)
        header[key] = {"dtype": "BF16", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(header).encode()
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + end)


def _shards(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.safetensors"))


def _write(name: str, target: Path, seed: int) -> None:
    """Write the base, or with seed above 0 the base plus a small step."""
    import torch

    from momacli.checkpoint.dtypes import torch_dtype
    from momacli.checkpoint.sharded_writer import sharded_writer
    from momacli.checkpoint.staging import staged_file, staged_folder
    from momacli.checkpoint.writer import CheckpointWriter, TensorSpec

    shapes, _, dtype = SETS[name]
    specs = [TensorSpec(key, dtype, shape) for key, shape in shapes().items()]
    base, step = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed)
    folder = name == "llm"
    with staged_folder(target) if folder else staged_file(target) as staged:
        if folder:
            (staged / "config.json").write_text(json.dumps(_LLAMA))
            opened = sharded_writer(staged, specs, {"format": "pt"}, largest=800_000_000)
        else:
            opened = CheckpointWriter(staged, specs, {"format": "pt"})
        with opened as writer:
            for spec in specs:
                values = 0.02 * torch.randn(spec.shape, generator=base)
                if seed:
                    values += 1e-3 * torch.randn(spec.shape, generator=step)
                writer.append(spec.name, values.to(torch_dtype(dtype, spec.name)))
