"""`python -m tests.benchmarks merge --data DIR`: what a merge costs, as whole processes.

In one run, side by side: the floor (`cat` of every input, `cp` of one), moma method by method,
and mergekit where `--mergekit` names an interpreter that has it. Weights of real shapes are
generated once in DIR: "vit" is CLIP ViT-B/32's image encoder and 8 experts in float32 (3.2 GB),
"llm" TinyLlama 1.1B and 3 experts in bfloat16, each in shards (8.8 GB).

`python -m tests.benchmarks hashes`: how fast SHA-256 of several files is, side by side.

`python -m tests.benchmarks align`: what a step of an alignment costs, beside a plain training
step of the same encoder on as many samples and a step written as the formulas are.

`python -m tests.benchmarks adapt`: what a step of AdaMerging and of Concrete costs, likewise,
and beside FusionBench's own steps where `--fusionbench` names an interpreter that has it.

`python -m tests.benchmarks features`: what methods cost that see cached features alone.

`python -m tests.benchmarks choices --demo moma-demo`: what alignments would be worth with other
masks, transforms and precision. `python -m tests.benchmarks SUITE … --choices all` measures the
same on a suite, `--samples 10 40` with so few samples of each task.

`python -m tests.benchmarks SUITE --data-root DIR --out DIR`: what merges and alignments are
worth on real data. A suite is a file in `suites/`; see its docstring. Trained experts are kept in
OUT/cells by the content of what they were made from, and finished rows in OUT/comparison, so a run
that was stopped goes on, and one with another setting does only what is new. `--seeds 0 1 2` gives
means and standard deviations, `--choose` takes lambda and density by a validation split,
`--together` adds the encoder that was trained on all tasks with labels, `--own-length` an
alignment of as many steps as moma takes by itself, `--data-ratios` and `--masking-rates` repeat an
alignment, and `--transductive` adapts to what is evaluated, as papers do. `--earlier DIR` takes
over rows and seeds that results there have: `tests/benchmarks/results`, or another machine's OUT.

`python -m tests.benchmarks readme`: writes the tables and figures of the README from the results
that are committed in `results/`, each the JSON that a suite wrote.
"""

import argparse
from pathlib import Path

from tests.benchmarks import (
    adaptation,
    alignment_cost,
    choices,
    hashes,
    headers,
    large,
    merge_cost,
    on_features,
    readme,
    suite_run,
)


def main() -> None:
    """Read the command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    commands = parser.add_subparsers(required=True)
    command = commands.add_parser("merge", help="what a merge costs")
    merge_cost.add_arguments(command)
    command.set_defaults(run=merge_cost.run)
    command = commands.add_parser("headers", help="what it costs to read headers strictly")
    headers.add_arguments(command)
    command.set_defaults(run=headers.run)
    command = commands.add_parser("hashes", help="how fast SHA-256 is, side by side")
    command.set_defaults(run=hashes.run)
    command = commands.add_parser("large", help="what merges of a 70B model need")
    large.add_arguments(command)
    command.set_defaults(run=large.run)
    command = commands.add_parser("align", help="what a step of an alignment costs")
    alignment_cost.add_arguments(command)
    command.set_defaults(run=alignment_cost.run)
    command = commands.add_parser("features", help="what methods cost that see features alone")
    on_features.add_arguments(command)
    command.set_defaults(run=on_features.run)
    command = commands.add_parser("choices", help="what an alignment could be made of instead")
    choices.add_arguments(command)
    command.set_defaults(run=choices.run)
    command = commands.add_parser("adapt", help="what a step of AdaMerging and Concrete costs")
    adaptation.add_arguments(command)
    command.set_defaults(run=adaptation.run)
    command = commands.add_parser("readme", help="write the README's tables and figures")
    command.set_defaults(run=lambda _: readme.write())
    for file in sorted((Path(__file__).parent / "suites").glob("*.py")):
        suite = suite_run.suite_named(file.stem)
        assert suite.__doc__ is not None
        command = commands.add_parser(file.stem, help=suite.__doc__.splitlines()[0])
        suite_run.add_arguments(command)
        suite.add_arguments(command)
        command.set_defaults(run=suite_run.run_suite, suite=file.stem)
    arguments = parser.parse_args()
    arguments.run(arguments)


if __name__ == "__main__":
    main()
