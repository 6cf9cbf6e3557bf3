import os

import pytest

from circuits.files import check_folder, write_json, write_text


def test_what_is_written_can_be_read(tmp_path):
    write_text(tmp_path / "a.txt", "é")
    assert (tmp_path / "a.txt").read_text(encoding="utf-8") == "é"


def test_a_crash_while_writing_leaves_the_old_file_and_nothing_beside(tmp_path, monkeypatch):
    path = tmp_path / "a.txt"
    write_text(path, "old")

    def full_disk(_descriptor):
        raise OSError("no space left on device")

    monkeypatch.setattr(os, "fsync", full_disk)
    with pytest.raises(OSError, match="no space left"):
        write_text(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.txt"]


@pytest.mark.parametrize("kind", ["device", "pipe", "folder"])
def test_what_is_no_regular_file_is_not_replaced(tmp_path, kind):
    path = tmp_path / kind
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/full")
    before = os.lstat(path)
    with pytest.raises(FileExistsError, match=f"{kind}.*(is a folder|neither a file nor a folder)"):
        write_text(path, "new")
    assert os.lstat(path).st_mode == before.st_mode
    assert os.listdir(tmp_path) == [kind]


def test_a_file_where_a_folder_should_be_is_refused(tmp_path):
    (tmp_path / "file").write_text("")
    for path in (tmp_path / "file", tmp_path / "file" / "inside" / "deep"):
        with pytest.raises(FileExistsError, match="file is a file; give a folder"):
            check_folder(path)
    check_folder(tmp_path / "new" / "deep")
    assert os.listdir(tmp_path) == ["file"]


def test_a_name_as_long_as_a_file_system_allows_can_be_written(tmp_path):
    write_text(tmp_path / ("x" * 250), "long")
    assert (tmp_path / ("x" * 250)).read_text() == "long"


def test_nan_is_no_json(tmp_path):
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "a.json", {"x": float("nan")})
