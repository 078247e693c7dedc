"""The house rules that no linter knows: who may import whom, and what nothing is called."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "distilflax"

# Data flows downwards: a room imports from rooms above it, never from rooms below.
ROOMS = (
    "errors",
    "json_file",
    "bounds",
    "allocator",
    "ablation",
    "term",
    "teacher_cache",
    "settings",
    "text",
    "batches",
    "models",
    "weights",
    "losses",
    "train",
    "search",
    "tasks",
    "evaluate",
    "predict",
    "export",
    "experiments",
)
SOURCES = sorted(
    path
    for folder in (PACKAGE, ROOT / "experiments", ROOT / "configs", ROOT / "tests")
    for path in folder.rglob("*.py")
)
LIBRARY = [path for path in SOURCES if path.is_relative_to(PACKAGE)]


def name_of(path):
    return str(path.relative_to(ROOT))


def room_of(path):
    """`distilflax/train/step.py` is in train, and what lies in experiments/ in experiments."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    return parts[1] if parts[0] == "distilflax" else parts[0]


def imports(source):
    """Dotted names that the source imports, wherever the statement stands."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "relative imports hide which room is meant"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def imports_of(path):
    return set(imports(path.read_text(encoding="utf-8")))


def is_of(name, package):
    return name == package or name.startswith(f"{package}.")


def test_imports_are_seen_in_every_form():
    source = "import a.b, c\nfrom d import e as f\ndef g():\n    from h.i import j\n"
    assert set(imports(source)) == {"a.b", "c", "d.e", "h.i.j"}
    assert room_of(PACKAGE / "train" / "step.py") == "train"
    assert room_of(PACKAGE / "settings.py") == "settings"


def test_every_room_is_on_the_list():
    rooms = {room_of(path) for path in LIBRARY} - {"__init__"}
    assert rooms <= set(ROOMS)
    assert LIBRARY, "the package was not found"


@pytest.mark.parametrize(
    "path",
    [p for p in SOURCES if room_of(p) in ROOMS],
    ids=name_of,
)
def test_imports_only_point_up(path):
    own = ROOMS.index(room_of(path))
    for name in imports_of(path):
        if is_of(name, "distilflax") and name != "distilflax":
            room = name.split(".")[1]
            assert room in ROOMS, f"{name_of(path)} imports {name}"
            assert ROOMS.index(room) <= own, f"{name_of(path)} imports {name}, a room below"
        assert not is_of(name, "experiments") or own == ROOMS.index("experiments")
        assert not is_of(name, "configs") and not is_of(name, "tests")


@pytest.mark.parametrize("path", LIBRARY, ids=name_of)
def test_frameworks_stay_behind_their_walls(path):
    for name in imports_of(path):
        if is_of(name, "flax.linen") or is_of(name, "flax.nnx"):
            assert room_of(path) == "models", f"{name_of(path)} imports {name}"
        if is_of(name, "orbax"):
            assert path == PACKAGE / "train" / "checkpoint.py", f"{name_of(path)} imports {name}"
        for foreign in ("torch", "tensorflow", "transformers", "pickle", "cloudpickle", "dill"):
            assert not is_of(name, foreign), f"{name_of(path)} imports {name}"


@pytest.mark.parametrize("path", SOURCES, ids=name_of)
def test_a_file_has_a_subject_and_an_end(path):
    relative = path.relative_to(ROOT)
    for part in relative.with_suffix("").parts:
        assert not {"utils", "util", "helpers", "helper", "common", "misc"} & set(part.split("_"))
    lines = path.read_text(encoding="utf-8").count("\n")
    assert lines <= 400, f"{relative} has {lines} lines; it is asking to be two files"
