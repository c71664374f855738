import os

import pytest

from momacli.data.folders import (
    class_numbers,
    count_from_one,
    image_files,
    labels_of,
    task_sources,
)
from momacli.data.leaving_out import LeftOut
from momacli.errors import DataError


def touch(path):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(b"")
    return path


def test_each_task_gets_the_folder_of_its_name(tmp_path):
    for task in ("b", "a", "unused"):
        (tmp_path / task).mkdir()

    assert task_sources(tmp_path, ["a", "b"]) == {"a": tmp_path / "a", "b": tmp_path / "b"}


def test_unmatched_tasks_and_folders_are_listed_together(tmp_path):
    (tmp_path / "mnits").mkdir()

    with pytest.raises(DataError) as caught:
        task_sources(tmp_path, ["mnist", "svhn"])

    assert caught.value.details == (
        "mnist: no folder or file",
        "svhn: no folder or file",
        "mnits: no task of this name",
    )


def test_a_single_task_may_have_its_images_right_in_the_data_folder(tmp_path):
    touch(tmp_path / "one.png")

    assert task_sources(tmp_path, ["anything"]) == {"anything": tmp_path}


def test_a_missing_data_folder_is_named(tmp_path):
    with pytest.raises(DataError, match="nowhere"):
        task_sources(tmp_path / "nowhere", ["a"])


def test_images_are_found_at_any_depth_in_a_fixed_order_and_other_files_are_not(tmp_path):
    wanted = [touch(tmp_path / name) for name in ("a/1.PNG", "a/b/2.jpeg", "c.webp")]
    touch(tmp_path / "notes.txt")
    touch(tmp_path / ".hidden/3.png")

    assert list(image_files(tmp_path)) == sorted(wanted)


def test_a_loop_of_links_ends(tmp_path):
    wanted = touch(tmp_path / "a/1.png")
    (tmp_path / "a/again").symlink_to(tmp_path, target_is_directory=True)

    assert image_files(tmp_path / "a")[0] == wanted
    assert len(image_files(tmp_path)) == 1


def test_folders_full_of_links_to_one_another_are_read_once(tmp_path):
    """Twenty levels of three links each to the next are three thousand million paths."""
    for level in range(20):
        for number in range(3):
            link = tmp_path / "farm" / str(level) / f"link{number}"
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to(tmp_path / "farm" / str(level + 1), target_is_directory=True)
    wanted = touch(tmp_path / "farm" / "20" / "1.png")
    left_out = LeftOut()

    found = image_files(tmp_path / "farm" / "0", leave_out=left_out)

    assert [path.resolve() for path in found] == [wanted]
    assert found[0] == tmp_path.joinpath("farm", "0", *["link0"] * 20, "1.png")
    assert left_out.count == 40


def test_a_real_folder_goes_before_links_to_it(tmp_path):
    wanted = touch(tmp_path / "z/1.png")
    (tmp_path / "a").symlink_to(tmp_path / "z", target_is_directory=True)

    assert list(image_files(tmp_path, leave_out=LeftOut())) == [wanted]
    with pytest.raises(DataError, match="a is a folder that is read under another name"):
        image_files(tmp_path)


def test_a_link_to_itself_is_left_out_by_name(tmp_path):
    wanted = touch(tmp_path / "1.png")
    (tmp_path / "2.png").symlink_to("2.png")
    left_out = LeftOut()

    assert list(image_files(tmp_path, leave_out=left_out)) == [wanted]
    assert left_out.count == 1


def test_images_are_in_the_order_of_their_folders(tmp_path):
    names = ("a/1.png", "a b/1.png", "a.b/1.png", "a/b/1.png", "a.png")
    wanted = [touch(tmp_path / name) for name in names]

    assert list(image_files(tmp_path)) == sorted(wanted)
    assert image_files(tmp_path)[1:3] == sorted(wanted)[1:3]


def test_what_is_no_regular_file_is_left_out_by_name(tmp_path):
    wanted = touch(tmp_path / "1.png")
    os.mkfifo(tmp_path / "2.png")
    (tmp_path / "3.png").mkdir()
    (tmp_path / "4.png").symlink_to("nowhere.png")
    left_out = LeftOut()

    assert list(image_files(tmp_path, leave_out=left_out)) == [wanted]
    assert left_out.count == 2
    with pytest.raises(DataError, match=r"[24]\.png is no file"):
        image_files(tmp_path)


def test_a_folder_without_images_is_an_error_that_says_what_counts_as_one(tmp_path):
    with pytest.raises(DataError) as caught:
        image_files(tmp_path)

    assert ".png" in str(caught.value)


def test_labels_come_from_class_folders_by_name_or_number(tmp_path):
    files = [tmp_path / name for name in ("cat/1.png", "dog/x/2.png", "0/3.png")]

    assert labels_of(tmp_path, files, ["dog", "cat"]) == [1, 0, 0]


def test_a_class_folder_the_model_does_not_know_is_named_with_the_known_ones(tmp_path):
    with pytest.raises(DataError) as caught:
        labels_of(tmp_path, [tmp_path / "bird/1.png"], ["dog", "cat"])

    assert caught.value.details == ("bird",)
    assert "dog, cat" in str(caught.value.hint)


def test_images_outside_any_class_folder_are_refused_as_labels(tmp_path):
    files = [tmp_path / "1.png", tmp_path / "dog/2.png"]

    with pytest.raises(DataError, match="1 of 2 images") as caught:
        labels_of(tmp_path, files, ["dog", "cat"])

    assert caught.value.details == ("1.png",)
    assert f"{tmp_path}/CLASS/1.png" in str(caught.value.hint)


def test_text_files_stand_for_their_tasks_and_single_paths_are_given_by_name(tmp_path):
    sst2 = touch(tmp_path / "data/sst2.jsonl.gz")
    mnli = touch(tmp_path / "data/mnli.csv")
    other = touch(tmp_path / "elsewhere.txt")

    found = task_sources([tmp_path / "data", f"trec={other}"], ["sst2", "mnli", "trec"])

    assert found == {"sst2": sst2, "mnli": mnli, "trec": other}


def test_labels_from_one_to_the_number_of_classes_are_told_from_those_from_zero():
    four = ["World", "Sports", "Business", "Sci/Tech"]

    assert count_from_one(["1", "3", 4], four)
    assert class_numbers(["1", "3", 4], four, first=1) == [0, 2, 3]
    assert not count_from_one(["1", "2", "3"], four)  # it may be that nothing is of the first
    assert not count_from_one(["0", "4"], four)
    assert not count_from_one(["1", "World", "5"], four)
    assert not count_from_one(["1", "2"], ["1", "2"])  # the names themselves
    with pytest.raises(DataError):
        class_numbers(["0", "4"], four)


def test_a_path_for_a_task_that_does_not_exist_is_refused(tmp_path):
    (tmp_path / "cats").mkdir()

    with pytest.raises(DataError) as caught:
        task_sources([f"cats={tmp_path}/cats", f"cast={tmp_path}/cats"], ["cats"])
    assert caught.value.details == ("cast: no task of this name",)


def test_a_folder_that_cannot_be_listed_is_left_out_or_refused(tmp_path, monkeypatch):
    wanted = touch(tmp_path / "a/1.png")
    touch(tmp_path / "secret/2.png")
    listed = os.scandir

    def scandir(path):
        if str(path).endswith("secret"):
            raise PermissionError(13, "Permission denied", str(path))
        return listed(path)

    monkeypatch.setattr("os.scandir", scandir)
    left_out = LeftOut()

    assert list(image_files(tmp_path, leave_out=left_out)) == [wanted]
    assert left_out.count == 1
    with pytest.raises(DataError, match="secret cannot be listed: Permission denied"):
        image_files(tmp_path)
