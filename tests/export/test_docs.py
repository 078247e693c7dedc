"""The Python in the README and on the pages of docs/ runs as it stands there, beside the exports
and runs that it names."""

import re
import shutil
from pathlib import Path

import jax.numpy as jnp
import pytest

from distilflax import export
from distilflax.export import samples

ROOT = Path(__file__).parents[2]
# Hugging Face's libraries take longer to import than all other blocks to run.
BLOCKS = {
    (page.name, i): block
    for page in (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M))
    if not re.search(r"^from (sentence_)?transformers", block, re.M)
}
FORMATS = ("onnx-int8", "litert-int8", "stablehlo")
RUNS = {"runs/sst2/seed0/model": "sequence", "runs/search/seed0/model": "sentence"}
# What a reader of a block has.
GIVEN = {
    "texts": samples.TEXTS * 40,
    "queries": samples.TEXTS[:2],
    "input_ids": jnp.ones((1, 4), jnp.int32),
    "attention_mask": jnp.ones((1, 4), jnp.int32),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_code_runs(name, folder_of, tmp_path, monkeypatch):
    block = BLOCKS[name]
    for module in re.findall(r"^(?:import|from) (\w+)", block, re.M):
        pytest.importorskip(module)
    if "search.index" in block:
        pytest.importorskip("faiss")
    for name, kind in RUNS.items():
        if name in block:
            shutil.copytree(folder_of("distilbert", kind), tmp_path / name)
    for form in FORMATS:
        if form in block:
            subject = export.open_subject(folder_of("distilbert", "sentence"))
            # Of the pages, shortened to what the tiny model reads.
            loose = {"texts": samples.TEXTS[:1], "least_cosine": 0.5, "allow_slower": True}
            export.export(subject, form, tmp_path / "export" / form, **loose)
    monkeypatch.chdir(tmp_path)
    exec(block.replace("enable_truncation(128)", "enable_truncation(16)"), dict(GIVEN))


def test_every_page_with_code_is_run():
    pages = {"README.md", "distilling.md", "tasks.md", "server.md", "raspberry-pi.md", "phone.md"}
    assert {page for page, _ in BLOCKS} == pages
