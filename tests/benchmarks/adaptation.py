"""What a step of AdaMerging and of Concrete costs, beside others' in the same run.

Memory of its own is what no file stands behind, and the peak has the mapped libraries too, which
are larger where torch is built for GPUs. The ratios are of processor time and of memory of its own.
moma computes in float32, as the others do, and as it does
where nothing else is asked for: in bfloat16 on a processor that has tiles for it.
"""

import argparse

from tests.benchmarks.steps import measured_step

METHODS = ("adamerging", "concrete")
TASKS, BATCH = 8, 4

Numbers = tuple[float, float, float]


def run(arguments: argparse.Namespace) -> None:
    """Print seconds and memory of each kind of step, each in a process of its own."""
    print(
        f"{f'{arguments.size}, {TASKS} tasks of {BATCH}':40} {'CPU s/step':>10} {'ratio':>6} "
        f"{'own GB':>8} {'ratio':>6} {'peak GB':>8}"
    )
    _show("plain training step", _cost("adaptation_step", "plain", arguments))
    for kind in arguments.methods:
        others = {f"{kind}, naive": _cost("adaptation_step", f"{kind}-naive", arguments)}
        if arguments.fusionbench:
            python = arguments.fusionbench
            others[f"{kind}, FusionBench"] = _cost("fusionbench_step", kind, arguments, python)
        for name, cost in others.items():
            _show(name, cost)
        for end in ("-float32", ""):
            own = _cost("adaptation_step", f"{kind}{end}", arguments)
            for name, other in others.items():
                _show(f"{kind}{end}, moma, of {name.split(', ')[1]}", own, other)


def _cost(
    module: str, kind: str, arguments: argparse.Namespace, python: str | None = None
) -> Numbers:
    """Processor seconds a step, and bytes of memory at most: its own, and with mapped files."""
    cost, found = measured_step(
        module, kind, arguments.size, TASKS, BATCH, arguments.steps,
        python=python, threads=arguments.threads,
    )  # fmt: skip
    return found["seconds"], cost.own, cost.peak


def _show(name: str, numbers: Numbers, other: Numbers | None = None) -> None:
    seconds, own, peak = numbers
    ratios = ("", "") if other is None else (f"{seconds / other[0]:.2f}", f"{own / other[1]:.2f}")
    print(
        f"{name:40} {seconds:10.3f} {ratios[0]:>6} {own / 1e9:8.2f} {ratios[1]:>6} "
        f"{peak / 1e9:8.2f}",
        flush=True,
    )


def add_arguments(command: argparse.ArgumentParser) -> None:
    """How large, how often, and beside what."""
    command.add_argument("--size", choices=("vit-b32", "small"), default="vit-b32")
    command.add_argument(
        "--methods", nargs="+", choices=METHODS, default=METHODS,
        help="FusionBench holds 20 GB for a step of concrete on vit-b32",
    )  # fmt: skip
    command.add_argument("--steps", type=int, default=3, help="to measure of each kind")
    command.add_argument("--threads", type=int, default=1, help="of each process")
    command.add_argument(
        "--fusionbench", metavar="PYTHON", help="interpreter that has fusion-bench 0.2.33"
    )
