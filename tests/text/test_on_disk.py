"""Locks: one at a time, nothing left of them, and a file system that has none."""

import errno
import fcntl
import threading
import time

from distilflax.text.on_disk import exclusive


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
