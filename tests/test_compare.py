"""Comparisons of tiny real models; commands run in this process, or only pretend to."""

import contextlib
import io
import json
import shutil
from pathlib import Path

import pytest
import typer

from momacli.align import align
from momacli.alignment.settings import Settings
from momacli.cli.commands import app
from momacli.compare import Options, compare
from momacli.comparing.plan import Sweeps
from momacli.comparing.process import Done
from momacli.errors import ConflictError, DataError, MomaError, OutputError, UsageError
from momacli.evaluate import EvalReport, evaluate
from momacli.merge import merge
from momacli.progress import Notice
from momacli.statistics.score import Score

TASKS = ("birds", "cats")
EXPERTS = [f"experts/{task}" for task in TASKS]
QUICK = "task-arithmetic+moma:steps=2:batch-size=8"
SURGERY = "task-arithmetic+surgery:steps=2:rank=3"


def run_here(arguments, listener):
    """Run a command in this process, with no memory of its own to tell."""
    command = typer.main.get_command(app)
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        command([*arguments, "--json"], standalone_mode=False)
    return Done(json.loads(out.getvalue()), memory=1000)


@pytest.fixture(scope="module")
def inputs(tmp_path_factory, vit_folders, vit_images):
    """Experts, their base and samples, as a user has them. Not to be written to."""
    root = tmp_path_factory.mktemp("compare")
    for task in TASKS:
        shutil.copytree(vit_folders / task, root / "experts" / task)
        for kind in ("unlabeled", "labeled"):
            shutil.copytree(vit_images / kind / task, root / kind / task)
    shutil.copytree(vit_folders / "base", root / "base")
    return root


@pytest.fixture
def place(inputs, tmp_path, monkeypatch):
    """An empty folder beside which the inputs are."""
    for item in inputs.iterdir():
        (tmp_path / item.name).symlink_to(item)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(inputs / "cache"))
    return tmp_path


def compared(methods, *, run=run_here, listener=lambda event: None, **options):
    given = {"base": "base", "data": "unlabeled", "evaluation": "labeled"} | options
    return compare(EXPERTS, methods=[methods], run=run, listener=listener, **given)


class Counting:
    """Remembers commands, and hands them on; fails or stops where it is told to."""

    def __init__(self, run, at=None, error=None):
        self.run, self.commands, self.at, self.error = run, [], at, error

    def __call__(self, arguments, listener):
        self.commands.append(list(arguments))
        if self.at is not None and self.at in " ".join(arguments):
            raise self.error
        return self.run(arguments, listener)

    @property
    def names(self):
        return [command[0] for command in self.commands]


@pytest.fixture
def counting(place, monkeypatch):
    """Makes runs that only pretend to work: models are empty folders, all answers half right."""

    def pretend(arguments, listener):
        Path(arguments[-1]).mkdir(parents=True)
        return Done({"seconds": 1.0}, memory=1000)

    def half_right(models, *, data, **options):
        tasks = [item.partition("=")[0] for item in data]
        return EvalReport({str(models[0]): {task: Score(20, 40) for task in tasks}})

    monkeypatch.setattr("momacli.compare.evaluate", half_right)
    return lambda at=None, error=None: Counting(pretend, at, error)


@pytest.fixture(scope="module")
def whole(inputs, tmp_path_factory):
    """A comparison with both sweeps, and the place it was made in."""
    root = tmp_path_factory.mktemp("whole")
    for item in inputs.iterdir():
        (root / item.name).symlink_to(item)
    counting = Counting(run_here)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(root)
        patch.setenv("XDG_CACHE_HOME", str(inputs / "cache"))
        report = compared(
            f"average,{QUICK}",
            sweeps=Sweeps(masking_rates=[0.9], data_ratios=[0.1, 1.0]),
            run=counting,
        )
    return root, report, counting


def test_rows_come_in_the_papers_order_with_alignments_under_their_merge(whole):
    _, report, _ = whole

    assert [(row.label, row.indented) for row in report.rows] == [
        ("Pre-trained", False),
        ("Fine-tuned", False),
        ("average", False),
        ("task-arithmetic", False),
        ("w/ MOMA (steps 2, batch-size 8)", True),
    ]
    assert report.tasks == TASKS
    assert not report.failed


def test_scores_are_those_of_merge_align_and_evaluate_by_hand(whole, place):
    _, report, _ = whole
    found = {row.name: row.scores for row in report.rows}

    merge(EXPERTS, base="base")
    merge(EXPERTS, base="base", options={"lam": 0.0}, output="unchanged")
    align(data="unlabeled", settings=Settings(steps=2, batch_size=8))
    models = ["unchanged", "experts", "merged", "aligned"]
    expected = evaluate(models, data="labeled").scores

    names = ["pre-trained", "fine-tuned", "task-arithmetic", QUICK]
    for name, model in zip(names, models, strict=True):
        assert found[name] == expected[model], name


def test_costs_are_told_of_all_but_the_experts(whole):
    _, report, _ = whole

    for row in report.rows:
        known = row.name != "fine-tuned"
        assert (row.added, row.memory) == ((0, 1000) if known else (None, None))
        assert (row.seconds is not None) == known
    merged, aligned = report.rows[-2:]
    assert aligned.seconds > merged.seconds


def test_features_are_computed_before_the_aligned_rows_of_a_merge(counting):
    run = counting()

    compared("average+surgery,average+orthogonal,ties,task-arithmetic+surgery", run=run)

    made = [command[-1].split("/")[2] for command in run.commands if command[0] == "align"]
    assert made == [
        *("features", "average+surgery", "average+orthogonal"),
        *("features", "task-arithmetic+surgery"),
    ]


def test_no_model_is_left_and_finished_rows_are_in_the_folder(whole):
    root, report, _ = whole

    files = {file.name for file in (root / "comparison").iterdir()}
    figures = {f"{name}.{end}" for name in ("masking-rate", "data-ratio") for end in ("png", "svg")}
    assert files == {"rows.json"} | figures
    assert {file.name for file in report.figures} == figures


def test_a_masking_rate_is_a_row_of_its_own_under_the_same_label(whole):
    _, report, _ = whole

    merge, row = report.masking
    assert merge == report.rows[-2]
    assert row.masking_rate == 0.9
    assert row.label == report.rows[-1].label
    assert row.seconds > report.rows[-1].seconds


def test_figures_show_the_experts_and_the_merge_beside_its_alignment(whole):
    root, report, _ = whole

    drawn = (root / "comparison" / "masking-rate.svg").read_text(encoding="utf-8")
    for label in ("Fine-tuned", "task-arithmetic", report.masking[1].name):
        assert f"<!-- {label} -->" in drawn


def test_all_of_the_data_is_the_row_itself_and_the_merge_stands_before(whole):
    _, report, _ = whole

    assert [row.data_ratio for row in report.ratios] == [None, 0.1, 1.0]
    assert report.ratios[0] == report.rows[-2]
    assert report.ratios[-1].scores == report.rows[-1].scores
    assert len(report.every) == len(report.rows) + 1 + 1


def test_what_is_finished_is_not_made_again_and_gives_the_same_rows(whole, monkeypatch, inputs):
    root, report, _ = whole
    monkeypatch.chdir(root)
    monkeypatch.setenv("XDG_CACHE_HOME", str(inputs / "cache"))
    refusing = Counting(run_here, "", MomaError("nothing is to be run"))

    again = compared(f"average,{QUICK}", run=refusing)

    assert again.rows == report.rows


def test_a_stopped_run_keeps_its_rows_says_so_and_goes_on_from_them(counting):
    told = []
    with pytest.raises(KeyboardInterrupt):
        compared(
            "task-arithmetic,average",
            run=counting("--method average", KeyboardInterrupt()),
            listener=told.append,
        )
    said = [event.text for event in told if isinstance(event, Notice)][-1]
    assert said.startswith("stopped; 3 of 4 rows are finished and kept in comparison/rows.json")

    run = counting()
    report = compared("task-arithmetic,average", run=run)

    assert [command[command.index("--method") + 1] for command in run.commands] == ["average"]
    assert [row.name for row in report.rows][-2:] == ["task-arithmetic", "average"]
    assert not report.failed


def test_a_run_that_is_stopped_before_its_first_row_is_gone_on_with(counting, monkeypatch):
    def stopped(*_args, **_options):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("momacli.compare.evaluate", stopped)
        with pytest.raises(KeyboardInterrupt):
            compared("average", run=counting())
    Path("comparison/models/left").mkdir(parents=True)

    assert not compared("average", run=counting()).failed


def test_a_method_that_fails_is_a_row_with_its_error_and_is_tried_again(counting):
    error = ConflictError("it does not fit", details=["w: shape"])

    report = compared("average,task-arithmetic", run=counting("--method average", error))

    (failed,) = report.failed
    assert (failed.name, failed.error, failed.scores) == (
        "average",
        "it does not fit; w: shape",
        {},
    )
    assert report.rows[-1].name == "task-arithmetic"
    assert report.rows[-1].scores
    again = counting()
    assert not compared("average,task-arithmetic", run=again).failed
    assert again.names == ["merge"]


def test_a_merge_that_fails_fails_its_alignments_too(counting):
    report = compared("average+orthogonal", run=counting("--method average", MomaError("no")))

    assert [row.name for row in report.failed] == ["average", "average+orthogonal"]


def test_an_alignment_that_fails_fails_alone(counting):
    report = compared("average+orthogonal", run=counting("align", MomaError("no")))

    assert [row.name for row in report.failed] == ["average+orthogonal"]


def test_a_method_of_a_list_that_takes_other_experts_is_left_out_and_that_is_said(counting):
    told = []
    error = UsageError("at most one expert")

    report = compared("paper", run=counting("--method ties", error), listener=told.append)

    assert not [row.name for row in report.rows if row.name.startswith("ties")]
    assert not report.failed
    assert "left out ties: at most one expert" in [event.text for event in told]


def test_models_can_be_kept_and_are_made_again_where_they_are_gone(counting):
    compared("average+orthogonal", keep_models=True, run=counting())
    kept = Path("comparison/models")
    assert {path.name for path in kept.iterdir()} == {
        "pre-trained",
        "average",
        "average+orthogonal",
    }

    shutil.rmtree(kept / "average+orthogonal")
    shutil.rmtree(kept / "average")
    again = counting()
    compared("average+orthogonal", keep_models=True, run=again)

    assert (kept / "average+orthogonal").is_dir()
    assert again.names == ["merge", "align", "align"]


@pytest.mark.parametrize("change", ["sample", "expert", "seed"])
def test_rows_of_other_inputs_or_settings_are_made_anew(counting, place, change):
    shutil.copytree("experts", "changed")
    shutil.copytree("labeled", "held-out")
    given = {"base": "base", "data": "unlabeled", "evaluation": "held-out", "methods": ["average"]}
    experts = [f"changed/{task}" for task in TASKS]
    compare(experts, run=counting(), **given)
    if change == "sample":
        next(Path("held-out/cats").glob("*/*.png")).unlink()
    elif change == "expert":
        shutil.copy("changed/birds/model.safetensors", "changed/cats/model.safetensors")
    else:
        given["options"] = Options(seed=1)
    again = counting()

    compare(experts, run=again, **given)

    assert again.names == ["merge", "merge"]


def test_a_second_run_to_the_same_folder_is_refused_while_one_lives(counting):
    refused = []

    def run_another(arguments, listener):
        with pytest.raises(OutputError, match="being written by another run"):
            compared("average", run=counting())
        refused.append(arguments)
        raise MomaError("so much for that")

    compared("average", run=Counting(run_another))

    assert len(refused) == 2
    assert not compared("average", run=counting()).failed


def test_samples_on_both_sides_are_named(place):
    shutil.copytree("unlabeled", "both")
    one = next(Path("labeled/cats").glob("*/*.png"))
    shutil.copy(one, "both/cats/again.png")
    told = []

    report = compared("average+orthogonal", data="both", dry_run=True, listener=told.append)

    (overlap,) = report.overlaps
    assert overlap.startswith("cats: 1 of 41, such as both/cats/again.png and labeled/cats/")
    assert any("samples to adapt to are evaluated, too" in event.text for event in told)


def test_a_dry_run_lists_the_rows_and_writes_nothing(place):
    before = sorted(Path().iterdir())

    report = compared("average+moma,breadcrumbs", dry_run=True, sweeps=Sweeps(data_ratios=[0.5]))

    assert [row.name for row in report.rows] == [
        "pre-trained",
        "fine-tuned",
        "average",
        "average+moma",
        "breadcrumbs",
    ]
    assert sorted(Path().iterdir()) == before


@pytest.mark.parametrize(
    ("change", "kind", "words"),
    [
        ({"data": None}, UsageError, "1 of 2 methods need unlabeled samples"),
        ({"data": "nowhere"}, DataError, "nowhere does not exist"),
        ({"evaluation": "nowhere"}, DataError, "nowhere does not exist"),
        ({"sweeps": Sweeps(masking_rates=[1.5])}, UsageError, "sweeps cannot be run"),
        ({"sweeps": Sweeps(data_ratios=[0.0])}, UsageError, "sweeps cannot be run"),
        ({"base": "experts/none"}, MomaError, "does not exist"),
    ],
)
def test_what_no_row_could_be_made_with_is_refused_before_any_work(place, change, kind, words):
    with pytest.raises(kind, match=words):
        compared("average+orthogonal", run=Counting(run_here, "", MomaError("ran")), **change)
    assert not Path("comparison").exists()


def test_data_free_methods_need_no_unlabeled_samples(counting):
    assert not compared("average", data=None, run=counting()).failed


def test_plain_files_are_compared_as_folders_are(whole, place):
    _, folders, _ = whole
    files = [f"{task}=experts/{task}/model.safetensors" for task in TASKS]

    report = compare(
        files,
        base="base/model.safetensors",
        evaluation="labeled",
        methods=["average"],
        run=run_here,
    )

    assert [row.scores for row in report.rows] == [row.scores for row in folders.rows[:3]]
