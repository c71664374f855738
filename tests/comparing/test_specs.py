import pytest

from momacli.comparing.alignments import ALIGNMENTS, alignment_arguments
from momacli.comparing.specs import BASES, Spec, Step, read_specs
from momacli.errors import UsageError
from momacli.merging.catalog import method_names


def rows(*texts: str) -> list[str]:
    return [str(spec) for spec in read_specs(texts)[0]]


def test_a_row_is_a_merge_with_options_behind_colons_and_perhaps_an_alignment():
    (_, spec), _ = read_specs(["ties:lambda=0.4:density=1e-1+moma:steps=100"])

    assert spec == Spec(
        Step("ties", (("lambda", "0.4"), ("density", "1e-1"))), Step("moma", (("steps", "100"),))
    )
    assert spec.merge.own_options == {"lam": "0.4", "density": "1e-1"}
    assert spec.merge.merge_arguments() == ["--set", "lambda=0.4", "--set", "density=1e-1"]


def test_an_alignment_brings_the_merge_that_it_is_of_before_it_and_each_row_comes_once():
    found = rows("ties+moma,average", "ties+orthogonal,average,ties")

    assert found == ["ties", "ties+moma", "ties+orthogonal", "average"]


def test_other_options_make_another_row():
    assert rows("ties,ties:density=0.1+moma") == [
        "ties",
        "ties:density=0.1",
        "ties:density=0.1+moma",
    ]


def test_methods_whose_names_end_in_plus_are_aligned_with_one_more():
    (merge, aligned), _ = read_specs(["regmean+++moma"])

    assert (merge.merge.name, aligned.alignment) == ("regmean++", Step("moma"))


def test_a_plus_that_is_part_of_a_number_or_a_name_does_not_part_steps():
    (_, spec), _ = read_specs(["task-arithmetic:lambda=1e+0+moma"])

    assert spec.merge == Step("task-arithmetic", (("lambda", "1e+0"),))


def test_all_means_every_method_and_every_alignment_of_the_papers_three():
    found = rows("all")

    assert set(found) >= set(method_names())
    for base in BASES:
        assert {f"{base}+{name}" for name in ALIGNMENTS} <= set(found)


def test_paper_has_the_alignments_of_its_table_under_their_merges():
    found = rows("paper")

    assert found[:5] == [
        "fisher",
        "regmean",
        "concrete-task-arithmetic",
        "concrete-adamerging",
        "adamerging:per=task",
    ]
    for base in BASES:
        start = found.index(base)
        ends = ("", "+surgery", "+probsurgery", "+moma")
        assert found[start : start + 4] == [f"{base}{end}" for end in ends]


def test_rows_that_need_unlabeled_samples_are_known():
    specs, _ = read_specs(["average+moma,regmean"])

    assert [spec.sees_samples for spec in specs] == [False, True, True]


def test_only_what_was_written_counts_as_named():
    _, named = read_specs(["all", "ties+moma"])

    assert named == {Spec(Step("ties"), Step("moma"))}


def test_all_that_is_wrong_is_said_at_once_with_the_nearest_names():
    with pytest.raises(UsageError) as caught:
        read_specs(["avrage,ties:densty=1,ties+mona,ties:x,ties+moma:stps=3,average+moma+moma"])

    details = caught.value.details
    assert [text.partition(":")[0] for text in details[:1]] == ["avrage"]
    assert len(details) == 6
    for word, text in zip(
        ("average?", "density?", "moma?", "OPTION=VALUE", "steps?", "one alignment"),
        details,
        strict=True,
    ):
        assert word in text


@pytest.mark.parametrize(
    "row",
    [
        "ties:density=high",
        "ties:density=0.1:density=0.2",
        "average+moma:steps=0",
        "average+moma:steps=1.5",
        "average+moma:mask-rate=nan",
        "average+moma:transform=affine",
        "average+moma:sample=120%",
        "average+moma:max-samples=0",
        "emr+moma",
        "average+surgery:rank=0",
        "average+surgery:mask-rate=0.1",
        "regmean:lambda=0.3",
    ],
)
def test_values_that_cannot_be_are_refused_before_any_work(row):
    with pytest.raises(UsageError) as caught:
        read_specs([row])

    assert len(caught.value.details) == 1


def test_no_method_at_all_is_refused():
    with pytest.raises(UsageError, match="no method"):
        read_specs([" , "])


def test_the_label_says_the_options_in_words():
    (merge, aligned), _ = read_specs(["ties:density=0.1+moma:steps=5"])

    assert merge.label == "ties (density 0.1)"
    assert aligned.label == "w/ MOMA (steps 5)"


def test_an_alignment_is_what_the_command_takes():
    assert alignment_arguments("orthogonal", []) == ["--mask", "none"]
    assert alignment_arguments("moma", [("batch-size", "8")]) == ["--batch-size", "8"]
    assert alignment_arguments("surgery", [("rank", "8"), ("steps", "9"), ("sample", "5%")]) == [
        *("--method", "surgery", "--sample", "5%", "--set", "rank=8", "--steps", "9")
    ]
