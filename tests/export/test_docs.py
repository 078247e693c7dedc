"""The Python on the pages of docs/ runs as it stands there, beside the exports that it names."""

import re
from pathlib import Path

import pytest

from distilflax import export
from distilflax.export import samples

DOCS = Path(__file__).parents[2] / "docs"
# Hugging Face's libraries take longer to import than all other blocks to run.
BLOCKS = {
    (page.name, i): block
    for page in sorted(DOCS.glob("*.md"))
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", page.read_text(), re.S | re.M))
    if "transformers" not in block
}
FORMATS = ("onnx-int8", "litert-int8", "stablehlo")


@pytest.mark.parametrize("name", BLOCKS)
def test_the_code_runs(name, folder_of, tmp_path, monkeypatch):
    block = BLOCKS[name]
    for module in re.findall(r"^(?:import|from) (\w+)", block, re.M):
        pytest.importorskip(module)
    form = next(form for form in FORMATS if form in block)
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    # Of the pages, shortened to what the tiny model reads.
    loose = {"texts": samples.TEXTS[:1], "least_cosine": 0.5}
    export.export(subject, form, tmp_path / "export" / form, **loose)
    monkeypatch.chdir(tmp_path)
    exec(block.replace("enable_truncation(128)", "enable_truncation(16)"), {})


def test_every_page_with_code_is_run():
    assert {page for page, _ in BLOCKS} == {"server.md", "raspberry-pi.md", "phone.md"}
