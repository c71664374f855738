"""What merges of a 70B model and three experts need, told from the headers alone.

The files are true headers over holes: 141 GB each, a few kilobytes on the disk. What a merge
expects to need is compared with what it did need by `merge --set llm`.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from tests.benchmarks.merge_cost import ROWS
from tests.benchmarks.weights import LARGE, generate_empty, llm_shapes

_SHARD = 5_000_000_000


def run(arguments: argparse.Namespace) -> None:
    """Print for each method what `--dry-run` says."""
    data: Path = arguments.data / "large"
    base, *experts = generate_empty(llm_shapes(**LARGE), data, 4, _SHARD)
    print(f"{'':20} {'parameters':>12} {'reads GB':>9} {'needs GB':>9} {'minutes':>8}")
    for name in arguments.methods or ROWS:
        row = ROWS[name]
        command = [sys.executable, "-m", "momacli", "merge", *map(str, experts[: row.experts])]
        command += ["--base", str(base), "-o", str(data / "merged"), *row.options]
        done = subprocess.run([*command, "--dry-run", "--json"], capture_output=True, text=True)
        if done.returncode:
            sys.exit(done.stderr)
        found = json.loads(done.stdout)
        minutes = found["estimate"] and f"{found['estimate'] / 60:.0f}"
        print(
            f"{name:20} {found['merged_parameters'] / 1e9:10.1f} B "
            f"{found['bytes_read'] / 1e9:9.0f} {found['memory'] / 1e9:9.1f} {minutes or '':>8}",
            flush=True,
        )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What the command line says of this benchmark."""
    parser.add_argument("--data", type=Path, required=True, help="folder for the headers")
    parser.add_argument("--methods", nargs="+", choices=sorted(ROWS), help="of the table's rows")
