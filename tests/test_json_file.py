"""What is no file, or has no end, is not read as JSON."""

import os
from pathlib import Path

import pytest

from distilflax import json_file
from distilflax.errors import UserError

STATUS = Path("/proc/self/status")


def test_what_is_no_regular_file_is_refused(tmp_path):
    # A pipe is opened by nobody here: were it read, this would wait for ever.
    os.mkfifo(tmp_path / "pipe")
    for path in (Path(os.devnull), tmp_path, tmp_path / "pipe"):
        for read in (json_file.read, json_file.read_list):
            with pytest.raises(UserError, match=f"{path} is no regular file; put one that holds"):
                read(path)


def test_a_file_is_bounded_by_what_is_read(tmp_path, monkeypatch):
    monkeypatch.setattr(json_file, "LARGEST", 8)
    path = tmp_path / "config.json"
    path.write_text('{"a": 1}')
    assert json_file.read(path) == {"a": 1}
    path.write_text('{"a": 12}')
    with pytest.raises(UserError, match=r"config\.json is over 0 MiB of JSON"):
        json_file.read(path)


@pytest.mark.skipif(not STATUS.exists(), reason="there is no /proc")
def test_a_file_without_a_size_is_bounded_too(monkeypatch):
    monkeypatch.setattr(json_file, "LARGEST", 8)
    assert not STATUS.stat().st_size
    with pytest.raises(UserError, match="over 0 MiB of JSON"):
        json_file.read(STATUS)
