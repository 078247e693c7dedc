import re

import pytest

from distilflax.train import seal


def truncate(path):
    path.write_bytes(path.read_bytes()[:-1])


def lengthen(path):
    path.write_bytes(path.read_bytes() + b"\0")


def flip_a_bit(path):
    content = bytearray(path.read_bytes())
    content[-1] ^= 0x80
    path.write_bytes(content)


@pytest.fixture
def folder(tmp_path):
    """Small and large files at two depths, and a mark that the writer keeps for itself."""
    (tmp_path / "arrays" / "d").mkdir(parents=True)
    (tmp_path / "record").mkdir()
    (tmp_path / "arrays" / "d" / "large").write_bytes(bytes(range(256)) * 1024)
    (tmp_path / "arrays" / "small").write_bytes(b"small")
    (tmp_path / "record" / "json").write_bytes(b"{}")
    (tmp_path / "mark").write_bytes(b"")
    seal.write_seal(tmp_path)
    return tmp_path


FILES = ["arrays/d/large", "arrays/small", "record/json"]


def test_a_whole_folder_is_good(folder):
    assert seal.broken_seal(folder) is None
    assert seal.broken_seal(folder, quick=True) is None


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize(
    "damage, clause",
    [
        (truncate, "has .* bytes instead of"),
        (lengthen, "has .* bytes instead of"),
        (flip_a_bit, "contents of"),
        (lambda path: path.unlink(), "is missing"),
    ],
    ids=["truncate", "lengthen", "flip", "delete"],
)
def test_any_damage_to_any_file_is_named(folder, name, damage, clause):
    damage(folder / name)
    trouble = seal.broken_seal(folder)
    assert name in trouble
    assert re.search(clause, trouble)
    # A quick look misses only what needs reading a large file.
    assert (seal.broken_seal(folder, quick=True) is None) == (
        damage is flip_a_bit and name == "arrays/d/large"
    )


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000])
def test_a_damaged_seal_is_named(folder, text):
    (folder / seal.FILE).write_text(text)
    assert seal.broken_seal(folder) == f"{seal.FILE} cannot be read"


def test_the_writers_own_marks_may_change(folder):
    (folder / "mark").write_bytes(b"committed")
    (folder / "later").write_bytes(b"")
    assert seal.broken_seal(folder) is None


def test_a_folder_in_place_of_a_file_is_damage(folder):
    (folder / "arrays" / "small").unlink()
    (folder / "arrays" / "small").mkdir()
    assert "arrays/small" in seal.broken_seal(folder)


def test_no_seal_is_damage(folder):
    (folder / seal.FILE).unlink()
    assert seal.broken_seal(folder) == "seal.json is missing"
