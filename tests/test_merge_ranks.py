"""`torchrun -m momacli merge`: several processes write one output together."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from momacli.checkpoint.writer import TensorSpec
from momacli.cli.main import run
from momacli.merging.ranks import Ranks


def models(folder: Path) -> list[str]:
    """A base and three experts of several tensors, a head's worth of integers among them."""
    generator = torch.Generator().manual_seed(0)
    shapes = {f"layers.{i}.weight": (300 + i, 40) for i in range(7)} | {"norm": (40,)}
    base = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    for name in ("base", "birds", "cats", "dogs"):
        scale = 0.1 * (name != "base")
        model = {k: v + scale * torch.randn(v.shape, generator=generator) for k, v in base.items()}
        save_file(model | {"position_ids": torch.arange(9)}, folder / f"{name}.safetensors")
    return [str(path) for path in sorted(folder.glob("*.safetensors"))]


def torchrun(*arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2"]
    command += ["--master-port", "0", "--standalone", "-m", "momacli", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


def test_two_processes_write_the_bytes_of_one(tmp_path: Path):
    merge = ["merge", *models(tmp_path), "--method", "dare", "--set", "then=ties"]
    assert run([*merge, "-o", str(tmp_path / "one.safetensors")]) == 0

    both = torchrun(*merge, "-o", "two.safetensors", folder=tmp_path)

    assert both.returncode == 0, both.stderr
    assert both.stdout == "two.safetensors\n"
    assert (tmp_path / "two.safetensors").read_bytes() == (
        tmp_path / "one.safetensors"
    ).read_bytes()
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


@pytest.mark.long
def test_what_cancels_in_the_share_of_one_process_is_settled_by_those_of_all(tmp_path: Path):
    one = torch.randint(1, 5, (2, 700, 60), generator=torch.Generator().manual_seed(0)).float()
    two = torch.where(torch.arange(60) % 5 > 0, one, -one)
    for name, x in {"base": torch.zeros_like(one), "one": one, "two": two}.items():
        layers = {"layers.0.w": x[0], "layers.1.w": -x[0], "layers.2.w": -x[1]}
        save_file(layers, tmp_path / f"{name}.safetensors")
    files = [str(path) for path in sorted(tmp_path.glob("*.safetensors"))]
    merge = ["merge", *files, "--method", "ties", "--density", "1"]
    assert run([*merge, "-o", str(tmp_path / "alone.safetensors")]) == 0

    both = torchrun(*merge, "-o", "both.safetensors", folder=tmp_path)

    assert both.returncode == 0, both.stderr
    alone = (tmp_path / "alone.safetensors").read_bytes()
    assert (tmp_path / "both.safetensors").read_bytes() == alone


@pytest.mark.long
def test_two_processes_write_the_folders_of_one(vit_folders: Path, tmp_path: Path):
    experts = [str(path) for path in sorted(vit_folders.iterdir()) if path.name != "base"]
    merge = ["merge", *experts, "--base", str(vit_folders / "base"), "--method", "ties"]
    subprocess.run([sys.executable, "-m", "momacli", *merge, "-o", "one"], cwd=tmp_path, check=True)

    both = torchrun(*merge, "-o", "two", folder=tmp_path)

    assert both.returncode == 0, both.stderr
    one, two = (
        {path.relative_to(root): path.read_bytes() for path in root.rglob("*") if path.is_file()}
        for root in (tmp_path / "one", tmp_path / "two")
    )
    assert two == one


@pytest.mark.long
def test_a_mistake_is_said_once_and_nothing_is_left(tmp_path: Path):
    files = models(tmp_path)
    before = set(tmp_path.iterdir())

    both = torchrun("merge", *files, files[1], "-o", "out.safetensors", folder=tmp_path)

    assert both.returncode != 0
    assert both.stderr.count("error: ") == 1
    assert set(tmp_path.iterdir()) == before


@pytest.mark.parametrize("count", [1, 2, 3, 8])
def test_shares_are_consecutive_and_none_is_left_out(count: int):
    specs = [TensorSpec(str(i), "F32", (size,)) for i, size in enumerate([900, 1, 1, 50, 50, 400])]

    shares = [Ranks(number, count).share(specs) for number in range(count)]

    assert [spec for share in shares for spec in share] == specs
    if count == 2:
        assert max(sum(spec.nbytes for spec in share) for share in shares) <= 4 * 902
