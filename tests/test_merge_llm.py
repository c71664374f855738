import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from momacli.cli.merge_summary import summary_lines
from momacli.errors import ConflictError, UsageError
from momacli.merge import merge
from momacli.merge_recipe import merge_like

SHAPES = {
    "model.embed_tokens.weight": (10, 4),
    "model.layers.0.mlp.up_proj.weight": (6, 4),
    "model.norm.weight": (4,),
    "lm_head.weight": (10, 4),
}


def llm(folder: Path, seed: int, **changed: tuple[int, ...]) -> Path:
    """A model folder of a language model, with a tokenizer; other shapes by name."""
    folder.mkdir()
    generator = torch.Generator().manual_seed(seed)
    shapes = SHAPES | {key.replace("__", "."): shape for key, shape in changed.items()}
    tensors = {key: torch.randn(s, generator=generator).bfloat16() for key, s in shapes.items()}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 10}
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(f'{{"seed": {seed}}}')
    (folder / "generation_config.json").write_text("{}")
    return folder


@pytest.fixture
def models(tmp_path: Path) -> list[Path]:
    """A base and two experts."""
    return [llm(tmp_path / name, seed) for seed, name in enumerate(("base", "math", "code"))]


def test_language_models_give_one_plain_model_folder(models, tmp_path):
    output = tmp_path / "merged"

    merge(models, method="average", output=output)

    names = {"model.safetensors", "config.json", "tokenizer.json", "generation_config.json"}
    names |= {"README.md"}
    assert {path.name for path in output.iterdir()} == names
    assert (output / "tokenizer.json").read_text() == '{"seed": 0}'  # the base's
    math, code = (load_file(model / "model.safetensors") for model in models[1:])
    for key, merged in load_file(output / "model.safetensors").items():
        expected = (math[key].float() + code[key].float()) / 2
        torch.testing.assert_close(merged.float(), expected, atol=0.01, rtol=0.01)


def test_a_large_model_is_written_in_shards_with_an_index_that_merges_again(models, tmp_path):
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"

    merge(models, output=whole)
    merge(models, output=sharded, max_shard_size="130")

    index = json.loads((sharded / "model.safetensors.index.json").read_text())
    files = sorted(path.name for path in sharded.glob("*.safetensors"))
    assert files == [f"model-0000{n}-of-00003.safetensors" for n in (1, 2, 3)]
    assert sorted(set(index["weight_map"].values())) == files
    tensors = {key: value for file in files for key, value in load_file(sharded / file).items()}
    expected = load_file(whole / "model.safetensors")
    assert index["metadata"]["total_size"] == sum(value.nbytes for value in expected.values())
    assert tensors.keys() == expected.keys()
    assert all(torch.equal(tensors[key], value) for key, value in expected.items())
    merge([models[0], sharded, models[1]], output=tmp_path / "again")


def test_a_folder_of_one_model_is_replaced_with_no_stale_shard_left_and_repeated(models, tmp_path):
    output = tmp_path / "merged"

    merge(models, output=output, max_shard_size="130")
    merge_like(output)

    assert len(list(output.glob("*.safetensors"))) == 1
    assert not (output / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("size", ["", "5", "5 parsecs", "-1GB", "0GB", "nanGB"])
def test_a_shard_size_that_is_none_is_refused(models, tmp_path, size):
    if size == "5":
        merge(models, output=tmp_path / "out", max_shard_size=size)  # a file a tensor
        assert len(list((tmp_path / "out").glob("*.safetensors"))) == len(SHAPES)
        return
    with pytest.raises(UsageError, match="max-shard-size"):
        merge(models, output=tmp_path / "out", max_shard_size=size)


def test_a_dry_run_says_what_is_read_written_and_needed_and_a_run_what_it_took(models, tmp_path):
    planned = merge(models, output=tmp_path / "out", dry_run=True)
    done = merge(models, output=tmp_path / "out")

    assert planned.bytes_read == done.bytes_read == 3 * 2 * (40 + 24 + 4 + 40)
    assert planned.estimate is not None
    assert any("of memory" in line for line in summary_lines(planned))
    assert any("peak memory" in line for line in summary_lines(done))
    assert done.memory > 10_000_000


EMBEDDINGS = ("model.embed_tokens.weight", "lm_head.weight")


def words(count: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a model with another number of words."""
    return {key.replace(".", "__"): (count, 4) for key in EMBEDDINGS}


def test_other_numbers_of_words_are_a_conflict_that_says_how_to_go_on(models, tmp_path):
    more = llm(tmp_path / "more", 7, **words(12))

    with pytest.raises(ConflictError) as caught:
        merge([*models, more], output=tmp_path / "out")

    details = "more: lm_head.weight   expected BF16[10, 4], found BF16[12, 4]"
    assert details in list(caught.value.details)
    assert "--vocab base" in str(caught.value.hint)
    with pytest.raises(UsageError, match="expected base or min"):
        merge([*models, more], output=tmp_path / "out", vocab="max")


def test_vocab_base_ignores_further_words_and_leaves_missing_ones_as_they_were(tmp_path):
    base = llm(tmp_path / "base", 0)
    experts = [llm(tmp_path / "more", 1, **words(12)), llm(tmp_path / "fewer", 2, **words(8))]

    merge([base, *experts], options={"lam": 0.5}, vocab="base", output=tmp_path / "out")

    theta_0, more, fewer = (
        load_file(model / "model.safetensors")["lm_head.weight"].float()
        for model in (base, *experts)
    )
    padded = torch.cat([fewer, theta_0[8:]])
    expected = theta_0 + 0.5 * ((more[:10] - theta_0) + (padded - theta_0))
    merged = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(merged, expected.bfloat16())


def test_vocab_min_keeps_the_words_that_all_have_and_says_so_in_the_config(models, tmp_path):
    fewer = llm(tmp_path / "fewer", 2, **words(8))
    output = tmp_path / "out"

    merge([*models, fewer], method="average", vocab="min", output=output)
    first = (output / "model.safetensors").read_bytes()
    merge_like(output)

    assert load_file(output / "model.safetensors")["lm_head.weight"].shape == (8, 4)
    assert json.loads((output / "config.json").read_text())["vocab_size"] == 8
    assert (output / "model.safetensors").read_bytes() == first


def test_a_single_expert_with_fewer_words_comes_back_with_the_words_of_the_base(tmp_path):
    base, one = llm(tmp_path / "base", 0), llm(tmp_path / "one", 1, **words(8))

    merge([base, one], method="average", vocab="base", output=tmp_path / "out")

    theta_0, theta_1 = (load_file(m / "model.safetensors")["lm_head.weight"] for m in (base, one))
    merged = load_file(tmp_path / "out" / "model.safetensors")["lm_head.weight"]
    assert torch.equal(merged, torch.cat([theta_1, theta_0[8:]]))


def test_other_columns_are_a_conflict_whatever_the_vocabulary(models, tmp_path):
    other = llm(tmp_path / "other", 3, lm_head__weight=(12, 5))

    with pytest.raises(ConflictError, match="not fit the base"):
        merge([*models, other], vocab="base", output=tmp_path / "out")


def test_a_shard_size_is_refused_where_the_output_is_no_single_model(vit_folders, tmp_path):
    with pytest.raises(UsageError, match="one model"):
        merge(
            [vit_folders / "cats"],
            base=vit_folders / "base",
            output=tmp_path / "out",
            max_shard_size="1GB",
        )
    assert not list(tmp_path.iterdir())
