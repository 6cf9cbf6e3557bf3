import os
import stat
from pathlib import Path

import pytest

from circuits.files import check_folder, replace_folder, write_json, write_text


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


def write_folder(folder, **content):
    with replace_folder(folder) as new:
        for name, text in content.items():
            (new / name).write_text(text)


def content_of(folder):
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_a_folder_is_replaced_whole_and_nothing_is_left_beside(tmp_path):
    folder = tmp_path / "above" / "run"
    write_folder(folder, a="1", b="2")
    write_folder(folder, b="3")
    assert content_of(folder) == {"b": "3"}
    assert stat.S_IMODE(folder.stat().st_mode) == 0o755
    assert os.listdir(folder.parent) == ["run"]


def test_everybody_reads_what_only_its_writer_could(tmp_path):
    with replace_folder(tmp_path / "run") as new:
        (new / "inside").mkdir(mode=0o700)
        for path in (new / "a", new / "inside" / "b"):
            path.touch(mode=0o600)
    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in (tmp_path / "run").rglob("*")}
    assert modes == {"inside": 0o755, "a": 0o644, "b": 0o644}


def test_an_error_while_writing_leaves_the_old_folder_and_nothing_beside(tmp_path):
    write_folder(tmp_path / "run", a="old")
    with pytest.raises(KeyboardInterrupt), replace_folder(tmp_path / "run") as new:
        (new / "a").write_text("new")
        assert content_of(tmp_path / "run") == {"a": "old"}
        raise KeyboardInterrupt
    assert content_of(tmp_path / "run") == {"a": "old"}
    assert os.listdir(tmp_path) == ["run"]


@pytest.mark.parametrize("failing", [1, 2], ids=["of the old one", "of the new one"])
def test_the_old_folder_returns_when_a_rename_fails(failing, tmp_path, monkeypatch):
    write_folder(tmp_path / "run", a="old")
    rename, renamed = os.rename, []

    def fail(source, target):
        renamed.append(source)
        if len(renamed) == failing:
            raise OSError("no space left on device")
        rename(source, target)

    monkeypatch.setattr(os, "rename", fail)
    with pytest.raises(OSError, match="no space left"):
        write_folder(tmp_path / "run", a="new")
    assert content_of(tmp_path / "run") == {"a": "old"}
    assert os.listdir(tmp_path) == ["run"]


def test_everything_is_on_the_disk_before_the_rename_and_the_rename_after_it(tmp_path, monkeypatch):
    done = []
    rename = os.rename

    def flush(descriptor):
        done.append(Path(os.readlink(f"/proc/self/fd/{descriptor}")).name)

    def noted_rename(source, target):
        done.append("renamed")
        rename(source, target)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "rename", noted_rename)
    with replace_folder(tmp_path / "run") as new:
        (new / "inner").mkdir()
        (new / "inner" / "a").write_text("1")
        (new / "b").write_text("2")
    assert sorted(done[:-2]) == ["a", "b", "inner", "new"]
    assert done[-2:] == ["renamed", tmp_path.name]


def test_a_link_to_a_folder_stays_one(tmp_path):
    write_folder(tmp_path / "run", a="old")
    (tmp_path / "link").symlink_to("run")
    write_folder(tmp_path / "link", a="new")
    assert (tmp_path / "link").is_symlink()
    assert content_of(tmp_path / "run") == {"a": "new"}
