import csv
import json
import shutil
import subprocess
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from tiny_models import CLASSES

from momacli.align import align
from momacli.alignment.settings import Settings as AlignSettings
from momacli.data.shots import Shots
from momacli.errors import ConflictError, OutputError
from momacli.evaluate import evaluate
from momacli.merge import merge
from momacli.probe import probe
from momacli.probing.findings import FewShot, Protocols
from momacli.probing.settings import Settings
from momacli.probing.tables import accuracy_cells, few_shot_rows
from momacli.progress import Progress
from momacli.statistics.score import Score

TASKS = ("cats", "dogs")
QUICK = Settings(shots=(Shots(1), Shots(3)), draws=2, steps=5, points=10)


@pytest.fixture(scope="module")
def made(tmp_path_factory, vit_folders, vit_images):
    """A merged model of two tasks, with its inputs, samples and the report of a probe."""
    root = tmp_path_factory.mktemp("probe")
    for name in ("base", *TASKS):
        shutil.copytree(vit_folders / name, root / name)
    shutil.copytree(vit_images / "labeled", root / "labeled")
    merge([root / task for task in TASKS], base=root / "base", output=root / "merged")
    merge(
        [root / task for task in TASKS],
        base=root / "base",
        options={"lam": 0.0},
        output=root / "pre-trained",
    )
    report = probe_of(root, compared=[root / "pre-trained"], output=root / "report")
    return root, report


def probe_of(root: Path, model: str = "merged", **options):
    settings = options.pop("settings", QUICK)
    return probe(
        root / model,
        data=[f"{task}={root / 'labeled' / task}" for task in TASKS],
        settings=settings,
        cache=root / "cache",
        device="cpu",
        **options,
    )


def files(folder: Path) -> dict[str, bytes]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in found}


class Page(HTMLParser):
    """What a page refers to, and what it lacks for those who do not see it."""

    def __init__(self, text: str):
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.tags if name == tag]


def test_models_are_shown_beside_by_the_same_samples_and_choices(made):
    root, report = made
    itself = probe_of(root, compared=[root / "merged"]).compared[str(root / "merged")]

    for task, found in report.tasks.items():
        assert {key: getattr(found, key) for key in vars(itself[task])} == vars(itself[task])
    (other,) = report.compared.values()
    whole = evaluate([root / "pre-trained"], data=root / "labeled").scores
    for task, score in whole[str(root / "pre-trained")].items():
        half = other[task].merged
        assert 0 <= score.correct - half.correct <= score.total - half.total
    paths = {str(root / name) for name in ("merged", "pre-trained")}
    rows = csv_rows(root / "report" / "tables" / "few-shot.csv")
    assert {row["model"] for row in rows} == paths
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert all(f'<th scope="row">{path}</th>' in page for path in paths)


def csv_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_a_model_of_other_tasks_is_not_shown_beside(made, vit_folders):
    root, _ = made
    merge([vit_folders / "birds"], base=root / "base", output=root / "birds-alone", force=True)

    with pytest.raises(ConflictError, match="models of other tasks"):
        probe(root / "merged", data=root / "labeled", compared=[root / "birds-alone"])


def test_the_deviation_of_an_average_is_over_choices_not_over_tasks():
    found = [FewShot(0.5, 0.1, 3, (0.4, 0.6)), FewShot(0.5, 0.1, 3, (0.6, 0.4))]
    tasks = {
        str(number): Protocols(Score(1, 2), Score(1, 2), {"1": one}, {})
        for number, one in enumerate(found)
    }

    row = few_shot_rows({"merged": tasks})[-1]

    assert row.deviations == [0.1, 0.1]
    assert row.of_average == 0.0
    assert accuracy_cells([row]) == [["+ kNN, 1 a class", *["50.0 ± 10.0"] * 2, "50.0 ± 0.0"]]


def test_numbers_are_those_of_evaluate_on_the_evaluated_half(made):
    root, report = made

    for task in TASKS:
        found = report.tasks[task]
        assert found.classes == len(CLASSES[task])
        assert found.fitted + found.evaluated == 40
        assert found.dimensions == 16
    whole = probe_of(root, settings=replace(QUICK, fit_share=0.01))
    scores = evaluate([root / "merged"], data=root / "labeled").scores[str(root / "merged")]
    for task in TASKS:  # all but one sample of each class
        left_out = len(CLASSES[task])
        assert whole.tasks[task].evaluated == 40 - left_out
        assert abs(whole.tasks[task].merged.correct - scores[task].correct) <= left_out


def test_the_report_lists_all_its_files_and_their_numbers_agree(made):
    root, report = made
    content = json.loads((root / "report" / "numbers.json").read_text(encoding="utf-8"))

    assert content["files"] == sorted(files(root / "report"))
    assert {"index.html", "figures/families.svg", "figures/embedding-cats.png"} <= set(
        content["files"]
    )
    with (root / "report" / "tables" / "families.csv").open(newline="", encoding="utf-8") as file:
        rows = {(row["task"], row["family"]): row for row in csv.DictReader(file)}
    for task in TASKS:
        for name, fit in report.tasks[task].families.items():
            assert content["tasks"][task]["families"][name]["error"] == fit.error
            assert float(rows[task, name]["squared error, evaluated"]) == fit.error
            assert float(rows[task, name]["accuracy"]) == fit.accuracy.accuracy


def test_the_page_refers_to_nothing_outside_itself(made):
    text = (made[0] / "report" / "index.html").read_text(encoding="utf-8")
    page = Page(text)

    targets = [
        value or ""
        for _, attributes in page.tags
        for key, value in attributes.items()
        if key in ("src", "href", "srcset", "data", "poster", "action", "background")
    ]
    assert len(targets) > 10
    anchors = {f"#{attributes['id']}" for _, attributes in page.tags if "id" in attributes}
    assert all(target.startswith("data:") or target in anchors for target in targets)
    assert not {"script", "iframe", "object", "embed", "form"} & {tag for tag, _ in page.tags}
    assert "url(" not in text
    assert "@import" not in text


BROWSERS = ("chromium", "chromium-browser", "google-chrome", "chrome")

STRANGER = "http://stranger.test/picture.png"


def opened(page: Path, folder: Path) -> tuple[str, str, str]:
    """Open a page in a headless browser: its document, its console, its requests.

    No name is resolved, so nothing leaves this machine.
    """
    browser = next(filter(None, map(shutil.which, BROWSERS)), None)
    if browser is None:
        pytest.fail(f"there is none of {', '.join(BROWSERS)} on this machine")
    log = folder / "requests.json"
    options = [
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--host-resolver-rules=MAP * ~NOTFOUND",
        "--enable-logging=stderr",
        f"--user-data-dir={folder / 'profile'}",
        f"--log-net-log={log}",
        f"--screenshot={folder / 'page.png'}",
        "--dump-dom",
    ]
    done = subprocess.run(
        [browser, *options, page.as_uri()], capture_output=True, text=True, timeout=120, check=True
    )
    console = "\n".join(line for line in done.stderr.splitlines() if "CONSOLE" in line)
    return done.stdout, console, log.read_text(encoding="utf-8")


def asked_for(requests: str) -> set[str]:
    """What a page asked for, of all that its browser did."""
    events = json.loads(requests)["events"]
    asked = [event.get("params", {}) for event in events]
    own = [one for one in asked if str(one.get("initiator", "")).startswith(("file:", "null"))]
    return {str(one["url"]) for one in own if "url" in one}


@pytest.mark.browser
def test_a_browser_shows_the_page_without_a_request_or_an_error(made, tmp_path):
    other = tmp_path / "other.html"
    other.write_text(f"<img src='{STRANGER}'><script>nothing()</script>", encoding="utf-8")

    _, known_console, known_requests = opened(other, tmp_path)
    document, console, requests = opened(made[0] / "report" / "index.html", tmp_path)

    assert asked_for(known_requests) == {STRANGER}  # a request would be seen,
    assert "nothing is not defined" in known_console  # and an error, too
    assert asked_for(requests) == set()
    assert console == ""
    assert document.count("<img ") == 4 + len(TASKS)
    assert (tmp_path / "page.png").stat().st_size > 10_000


def test_the_page_can_be_heard_and_read_without_colours(made):
    page = Page((made[0] / "report" / "index.html").read_text(encoding="utf-8"))

    assert page.all("html") == [{"lang": "en"}]
    images = page.all("img")
    assert len(images) == 4 + len(TASKS)
    assert all(len(image["alt"] or "") > 40 for image in images)
    assert all(cell.get("scope") in ("row", "col") for cell in page.all("th"))
    assert len(page.all("caption")) == len(page.all("table")) >= 4
    assert [tag for tag, _ in page.tags if tag in ("h1", "h2")] == ["h1", *["h2"] * 6]


@pytest.mark.long
def test_the_same_probe_gives_the_same_bytes(made):
    root, _ = made
    shutil.copytree(root / "report", root / "before")

    probe_of(root, output=root / "report")

    assert files(root / "report") == files(root / "before")


def test_features_are_computed_once(made):
    root, report = made
    stages: list[str] = []

    def listen(event):
        if isinstance(event, Progress):
            stages.append(event.stage)

    again = probe_of(root, listener=listen)

    assert again.tasks == report.tasks
    assert not any("features" in stage for stage in stages)


def test_an_aligned_model_is_judged_by_its_own_head_and_mapped_to_its_experts(made):
    root, _ = made
    align(
        root / "merged",
        data=root / "labeled",
        settings=AlignSettings(mask="none"),
        output=root / "aligned",
        cache=root / "cache",
        device="cpu",
    )
    expert = load_file(root / "cats" / "model.safetensors")["classifier.weight"]
    turned = load_file(root / "aligned" / "cats" / "model-00002-of-00002.safetensors")

    found = probe_of(root, "aligned").tasks["cats"]
    before = probe_of(root).tasks["cats"]

    assert not torch.allclose(turned["classifier.weight"], expert)
    assert found.finetuned == before.finetuned
    assert found.families == before.families  # the encoder is the same
    scores = evaluate([root / "aligned"], data=root / "labeled").scores[str(root / "aligned")]
    assert abs(scores["cats"].accuracy - found.merged.accuracy) < 0.2


def test_a_dry_run_writes_nothing_and_says_where_samples_are(made):
    root, _ = made

    report = probe_of(root, output=root / "dry", dry_run=True)

    assert report.sources == {task: root / "labeled" / task for task in TASKS}
    assert not (root / "dry").exists()


def test_a_report_never_replaces_what_it_is_made_from(made):
    root, _ = made

    with pytest.raises(OutputError):
        probe_of(root, output=root / "labeled", force=True)


def test_a_model_of_unknown_origin_is_refused(made):
    root, _ = made

    with pytest.raises(ConflictError) as caught:
        probe_of(root, "cats")
    assert "merged from" in caught.value.message
