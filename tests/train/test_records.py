import builtins
import errno
import json
import math
from pathlib import Path

import pytest

from distilflax.errors import UserError
from distilflax.train import records
from distilflax.train.records import JsonLines, TensorBoard, curve, read_json, write_json


def steps_in(path):
    return [json.loads(line)["step"] for line in path.read_text().splitlines()]


def write(path, start, *steps):
    lines = JsonLines(path, start)
    for step in steps:
        lines.write("train", step, {"loss": 0.1 * step})
    lines.close()


def test_a_resumed_run_leaves_each_step_once(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2, 3, 4, 5)
    write(path, 3, 4, 5, 6)
    assert steps_in(path) == [1, 2, 3, 4, 5, 6]


def test_what_was_written_is_what_an_uninterrupted_run_writes(tmp_path):
    write(tmp_path / "one", 0, 1, 2, 3, 4)
    write(tmp_path / "two", 0, 1, 2, 3)
    write(tmp_path / "two", 2, 3, 4)
    assert (tmp_path / "one").read_bytes() == (tmp_path / "two").read_bytes()


def test_a_run_that_starts_afresh_starts_the_file_afresh(tmp_path):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 0, 1, 2)
    write(path, 0, 1)
    assert steps_in(path) == [1]


@pytest.mark.parametrize("tail", ['{"kind": "train", "st', "{}\n", "3\n", "\0\0\0", "\xff\n"])
def test_lines_cut_short_or_damaged_are_dropped(tmp_path, tail):
    path = tmp_path / "metrics.jsonl"
    write(path, 0, 1, 2)
    with open(path, "a", encoding="latin-1") as out:
        out.write(tail)
    write(path, 2, 3)
    assert steps_in(path) == [1, 2, 3]


def test_lines_are_there_as_soon_as_they_are_written(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)
    lines.write("train", 1, {"loss": 1.5, "mfu": None})
    line = json.loads((tmp_path / "metrics.jsonl").read_text())
    assert line == {"kind": "train", "step": 1, "loss": 1.5, "mfu": None}
    lines.close()


def test_not_a_number_is_null(tmp_path):
    path = tmp_path / "metrics.jsonl"
    lines = JsonLines(path, 0)
    lines.write("train", 1, {"a": math.nan, "b": math.inf})
    lines.close()
    json.loads(path.read_text(), parse_constant=pytest.fail)
    assert json.loads(path.read_text()) == {"kind": "train", "step": 1, "a": None, "b": None}


def test_a_file_that_cannot_be_written(tmp_path):
    with pytest.raises(UserError, match=r"metrics.jsonl cannot be written .*another --workdir"):
        JsonLines(tmp_path / "missing" / "metrics.jsonl", 0)


def test_a_disk_that_is_full_to_the_end_is_one_sentence_on_closing_too(tmp_path):
    """Python tries what it could not write once more when it closes the file."""
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)
    lines._file.close()
    lines._file = open("/dev/full", "a", buffering=1)  # noqa: SIM115 - closed by what is tested.
    for act in (lambda: lines.write("train", 1, {"loss": 0.5}), lines.close):
        with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
            act()


def test_a_full_disk_is_one_sentence(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)

    class Full:
        def write(self, text):
            raise OSError(errno.ENOSPC, "No space left on device")

    lines._file.close()
    lines._file = Full()
    with pytest.raises(UserError, match=r"cannot be written \(No space left on device\)"):
        lines.write("train", 1, {})


def test_json_is_whole_or_not_at_all(tmp_path):
    path = tmp_path / "result.json"
    write_json(path, {"a": 1})
    with pytest.raises(TypeError):
        write_json(path, {"a": object()})
    for number in (math.nan, math.inf):
        with pytest.raises(ValueError, match="not JSON compliant"):
            write_json(path, {"a": [number]})
    (tmp_path / "taken").mkdir()
    with pytest.raises(UserError, match="taken cannot be written"):
        write_json(tmp_path / "taken", {"a": 2})
    assert json.loads(path.read_text()) == {"a": 1}
    assert sorted(p.name for p in tmp_path.iterdir()) == ["result.json", "taken"]


def test_the_records_that_are_kept_are_json_to_strict_readers_too():
    paths = list((Path(__file__).parents[2] / "experiments" / "results").rglob("*.json"))
    assert paths
    for path in paths:
        refuse = lambda name, path=path: pytest.fail(f"{path} holds {name}")  # noqa: E731
        json.loads(path.read_text(), parse_constant=refuse)


def test_what_a_record_says_is_on_the_disk_before_its_name_is(tmp_path, monkeypatch):
    synced = []
    monkeypatch.setattr(records, "sync", lambda path: synced.append(path.read_text()))
    write_json(tmp_path / "a.json", {"a": 1})
    assert synced == [(tmp_path / "a.json").read_text()]


def test_two_that_write_one_record_at_once_leave_the_last_one_whole(tmp_path, monkeypatch):
    path, inner = tmp_path / "a.json", iter([2])

    def meanwhile(part):
        for value in inner:
            write_json(path, {"a": value})

    monkeypatch.setattr(records, "sync", meanwhile)
    write_json(path, {"a": 1})
    assert json.loads(path.read_text()) == {"a": 1}
    assert [p.name for p in tmp_path.iterdir()] == ["a.json"]


def test_a_record_in_no_folder_is_one_sentence(tmp_path):
    (tmp_path / "file").touch()
    for place in ("file", "none"):
        with pytest.raises(UserError, match=r"a\.json cannot be written"):
            write_json(tmp_path / place / "a.json", {"a": 1})


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ('{"a": 1,', "is damaged or cannot be read; delete it"),
        ("null", "is damaged or cannot be read"),
        ("5", "is damaged or cannot be read"),
        ('{"a": 1}', r"is damaged \(it has no b and no c\); delete it, and the same command"),
    ],
)
def test_a_damaged_record_is_one_sentence(tmp_path, content, says):
    path = tmp_path / "a.json"
    write_json(path, {"a": 1, "b": 2, "c": None})
    assert read_json(path, "abc") == {"a": 1, "b": 2, "c": None}
    path.write_text(content)
    with pytest.raises(UserError, match=says):
        read_json(path, "abc")
    with pytest.raises(UserError, match=r"a\.json .*; burn it\.$"):
        read_json(path, "abc", "burn it")


def test_tensorboard_writes_events(tmp_path):
    pytest.importorskip("tensorboardX")
    board = TensorBoard(tmp_path, 0)
    board.write("train", 1, {"loss": 1.0, "mfu": None})
    board.close()
    (events,) = tmp_path.glob("events.out.tfevents.*")
    assert b"train/loss" in events.read_bytes() and b"train/mfu" not in events.read_bytes()


def test_tensorboard_that_is_not_installed(tmp_path, monkeypatch):
    real = builtins.__import__

    def missing(name, *args, **kwargs):
        if name == "tensorboardX":
            raise ImportError(name)
        return real(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", missing)
    with pytest.raises(UserError, match=r"tensorboardX: pip install 'distilflax\[tensorboard\]'"):
        TensorBoard(tmp_path, 0)


def test_a_term_without_a_value_at_a_step_keeps_its_place_in_the_curve(tmp_path):
    lines = JsonLines(tmp_path / "metrics.jsonl", 0)
    lines.write("train", 1, {"loss": 3.0, "loss/cosine": 3.0})  # no row was masked
    lines.write("evaluation", 1, {"loss": 9.0})
    lines.write("train", 2, {"loss": 5.0, "loss/cosine": 2.0, "loss/kl": 3.0})
    lines.close()
    assert curve(tmp_path / "metrics.jsonl") == {
        "step": [1, 2],
        "loss": [3.0, 5.0],
        "cosine": [3.0, 2.0],
        "kl": [None, 3.0],
    }
