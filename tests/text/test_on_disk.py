"""Locks: one at a time, nothing left of them, a file system that has none. Files that are whole."""

import errno
import fcntl
import os
import threading
import time

import pytest

from distilflax.text.on_disk import exclusive, replacing


def test_those_who_wait_take_turns_though_each_takes_the_file_with_it(tmp_path, capsys):
    inside, most = [], []

    def enter():
        for _ in range(5):  # those who come back find the next file
            with exclusive(tmp_path / "new" / "lock", "counting"):
                inside.append(1)
                most.append(len(inside))
                time.sleep(0.01)
                inside.pop()

    threads = [threading.Thread(target=enter) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1] * 20
    assert "Another process is counting; waiting for it." in capsys.readouterr().err
    assert not list((tmp_path / "new").iterdir())


def test_a_file_system_without_locks_is_written_to_all_the_same(tmp_path, monkeypatch):
    def none(*_):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    with exclusive(tmp_path / "lock", "counting"):
        (tmp_path / "done").touch()
    assert [path.name for path in tmp_path.iterdir()] == ["done"]


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path):
    path = tmp_path / "a[0].json"
    with pytest.raises(KeyboardInterrupt), replacing(path) as part:
        part.write_text("half")
        raise KeyboardInterrupt
    assert not list(tmp_path.iterdir())
    with replacing(path) as first:
        first.write_text("first")
        with replacing(path) as second:
            second.write_text("second")
        assert path.read_text() == "second"
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


def test_what_a_killed_process_left_of_a_file_goes_after_a_day(tmp_path):
    names = ("a.json.0123456789abcdef.part", "a.json.fedcba9876543210.part", "a.json.mine.part")
    for name in names:
        (tmp_path / name).touch()
    two_days_ago = time.time() - 2 * 86_400
    for name in (names[0], names[2]):
        os.utime(tmp_path / name, (two_days_ago, two_days_ago))
    with replacing(tmp_path / "a.json") as part:
        part.touch()
    assert {path.name for path in tmp_path.iterdir()} == {"a.json", *names[1:]}
