"""Golden models to read, copies of them to damage, and files with headers of one's own."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

GOLDEN = Path(__file__).parents[1] / "golden"


@pytest.fixture(params=["bert", "distilbert"])
def family(request):
    return request.param


@pytest.fixture
def golden():
    """golden("bert") -> (the folder, the arrays that transformers computed with it)."""

    def find(name: str):
        with np.load(GOLDEN / f"{name}.npz") as arrays:
            return GOLDEN / name, dict(arrays)

    return find


@pytest.fixture
def damaged(tmp_path):
    """damaged("bert", tensors=f, config=g): a copy whose tensors and config went through f and g.

    Each takes a dict and changes it, or returns another.
    """

    def copy(name: str, tensors=None, config=None) -> Path:
        folder = tmp_path / f"damaged-{name}-{len(list(tmp_path.iterdir()))}"
        shutil.copytree(GOLDEN / name, folder)
        if tensors:
            found = load_file(folder / "model.safetensors")
            found = tensors(found) or found
            save_file(found, folder / "model.safetensors", metadata={"format": "pt"})
        if config:
            found = json.loads((folder / "config.json").read_text())
            found = config(found) or found
            (folder / "config.json").write_text(json.dumps(found))
        return folder

    return copy


@pytest.fixture
def packed(tmp_path):
    """packed(header, data): a safetensors file of that header (a dict, or text) and those bytes."""

    def write(header: dict | str, data: bytes = b"", length: int | None = None) -> Path:
        text = (header if isinstance(header, str) else json.dumps(header)).encode()
        path = tmp_path / "model.safetensors"
        length = len(text) if length is None else length
        path.write_bytes(length.to_bytes(8, "little") + text + data)
        return path

    return write
