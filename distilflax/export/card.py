"""README.md of an exported Hugging Face folder: a model card out of the run's own records.

No number in it is typed by hand: architecture from the model, figures from report.json or
result.json of its run. What no record says (licence, intended use) is left for its author to say.
"""

import json
import re
from pathlib import Path
from typing import Any

from distilflax import models
from distilflax.export.subject import Subject
from distilflax.weights import SentenceFiles

FILE = "README.md"

_HUB_NAME = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", re.ASCII)

_PIPELINES = {
    "": "feature-extraction",
    "masked_lm": "fill-mask",
    "sequence": "text-classification",
    "token": "token-classification",
    "answer": "question-answering",
}
_COMPARED = {"cosine": "their cosine", "dot": "their dot product"}
_CLASSES = {
    "": "AutoModel",
    "masked_lm": "AutoModelForMaskedLM",
    "sequence": "AutoModelForSequenceClassification",
    "token": "AutoModelForTokenClassification",
    "answer": "AutoModelForQuestionAnswering",
}


def write(subject: Subject) -> str:
    """The card of `subject` as Markdown with the hub's header."""
    run, result = _json(subject.run, "config.json"), _json(subject.run, "result.json")
    report = _json(subject.run and subject.run.parent, "report.json")
    sections = [_header(subject, run), f"# {subject.name}", _about(subject, run)]
    sections += [_use(subject)]
    sections += _distilled(subject, report) if not result else _fine_tuned(report, result)
    sections += _made_with(report)
    sections += [
        "## Not said here\n\nLicence, intended use and limits are in no record of the run: whoever "
        "publishes this model should add them, with those of the data and of the base model."
    ]
    return "\n\n".join(sections) + "\n"


def _header(subject: Subject, run: dict) -> str:
    """What the hub reads; quoted as JSON, which YAML is a superset of."""
    sentence = subject.sentence is not None
    pipeline = "sentence-similarity" if sentence else _PIPELINES[subject.head]
    lines = [
        f"library_name: {'sentence-transformers' if sentence else 'transformers'}",
        f"pipeline_tag: {pipeline}",
        "tags: [distilflax, distillation]" if "teacher" in run else "tags: [distilflax]",
    ]
    base = _base(run).partition("@")[0]
    if _HUB_NAME.fullmatch(base) and not _is_local(subject, base):
        lines.append(f"base_model: {json.dumps(base)}")
    return "\n".join(["---", *lines, "---"])


def _base(run: dict) -> str:
    """What the run started from: its teacher, or the model that was fine-tuned. A path on some
    disk is told by its last two steps."""
    base = str(_at(run, "teacher", "path") or _at(run, "model", "path") or "")
    if not base.startswith("package:") and len(Path(base).parts) > 2:
        return "/".join((".", *Path(base).parts[-2:]))
    return base


def _is_local(subject: Subject, base: str) -> bool:
    """Whether `base` is a path: from here, or from a folder that the run lies in."""
    return any((folder / base).exists() for folder in (Path(), *subject.run.absolute().parents))


def _about(subject: Subject, run: dict) -> str:
    encoder = subject.encoder
    family = {"bert": "BERT", "distilbert": "DistilBERT"}[encoder.family]
    count = models.parameter_count(subject.params)
    text = (
        f"A {family} of {encoder.num_layers} layers, {encoder.hidden_size} wide, with "
        f"{encoder.num_heads} heads, a vocabulary of {encoder.vocab_size:,} and "
        f"{encoder.max_positions} positions: {count:,} parameters."
    )
    if _base(run):
        verb = "Distilled from" if "teacher" in run else "Fine-tuned from"
        text += f" {verb} `{_base(run)}`."
    if subject.head in ("sequence", "token"):
        labels = subject.checkpoint.head.labels
        shown = ", ".join(f"`{label}`" for label in labels[:20])
        text += f" Labels: {shown}{f' and {len(labels) - 20} more' if len(labels) > 20 else ''}."
    return text


def _use(subject: Subject) -> str:
    if subject.sentence is not None:
        kind = f"{subject.sentence.pooling} pooling"
        kind += ", unit length" if subject.sentence.normalize else ""
        code = (
            "from sentence_transformers import SentenceTransformer\n\n"
            'vectors = SentenceTransformer("THIS_FOLDER").encode(["a sentence"])'
        )
        most, compared = subject.sentence.max_seq_length, _COMPARED[subject.sentence.similarity]
        note = (
            f"Sentence vectors: {kind}, of texts of at most {most} tokens, compared by {compared}."
        )
        note += _prompts(subject.sentence)
        return f"## Use\n\n{note}\n\n```python\n{code}\n```"
    name = _CLASSES[subject.head]
    code = (
        f"from transformers import {name}, AutoTokenizer\n\n"
        f'model = {name}.from_pretrained("THIS_FOLDER")\n'
        'tokenizer = AutoTokenizer.from_pretrained("THIS_FOLDER")'
    )
    return f"## Use\n\n```python\n{code}\n```"


def _prompts(sentence: SentenceFiles) -> str:
    """What goes before which texts; nothing where that is nothing."""
    named = {name: text for name, text in sentence.prompts.items() if text}
    if not named:
        return ""
    # As JSON, as a space at the end is a part of it.
    listed = (f"- `{name}`: `{json.dumps(t, ensure_ascii=False)}`" for name, t in named.items())
    when = "where its `prompt_name` is given"
    if sentence.prompt():
        when = f"`{sentence.default_prompt}` where no other `prompt_name` is given"
    return "\n\n".join([f" Before a text goes, {when}, one of these:", "\n".join(listed)])


def _distilled(subject: Subject, report: dict) -> list[str]:
    """The figures of the model in its run's report, beside those of the teacher."""
    named = {m.get("name"): m for m in report.get("models", []) if isinstance(m, dict)}
    own = named.get(subject.run.name) if subject.run else None
    if own is None:
        return []
    rows = []
    for label, *path in (
        ("parameters", "parameters"),
        ("masked words put first", "masked_lm", "accuracy"),
        ("perplexity of masked words", "masked_lm", "perplexity"),
        ("MRR@10, retrieval", "retrieval", "mrr@10", "mean"),
        ("nDCG@10, retrieval", "retrieval", "ndcg@10", "mean"),
    ):
        cells = [_at(model, *path) for model in (own, named.get("teacher", {}))]
        if cells[0] is not None:
            rows.append(f"| {label} | {_number(cells[0])} | {_number(cells[1])} |")
    if not rows:
        return []
    table = "\n".join(["| | this model | teacher |", "|---|---:|---:|", *rows])
    said, kept = [], _at(own, "retrieval", "mrr@10", "retention")
    # None, where the teacher found nothing: there is no share of that.
    if isinstance(kept, dict) and None not in kept.values():
        low, high = (100 * kept[side] for side in ("low", "high"))
        said.append(
            f"MRR@10 kept: {100 * kept['value']:.1f}% of the teacher's "
            f"(95% interval over queries {low:.1f} to {high:.1f})."
        )
    training = own.get("training") or {}
    if training.get("tokens"):
        said.append(
            f"Trained for {training.get('steps'):,} steps on {training['tokens']:,} tokens of "
            f"`{_at(report, 'text', 'sources')}`; measured on text held out of it."
        )
    return ["\n\n".join(filter(None, ["## Figures", table, " ".join(said)]))]


def _fine_tuned(report: dict, result: dict) -> list[str]:
    metric, parts = result.get("metric"), [p for p in ("dev", "test") if p in result]
    if not parts:
        return []
    rows = [
        f"| {name}{' (chosen by)' if name == metric else ''} | "
        + " | ".join(_number(result[part].get(name)) for part in parts)
        + " |"
        for name in result[parts[0]]
    ]
    head = [f"| | {' | '.join(parts)} |", "|---|" + "---:|" * len(parts)]
    text = "\n".join(head + rows) + f"\n\nSeed {result.get('seed')}{_among(report, result)}."
    return [f"## Figures\n\n{text}"]


def _among(report: dict, result: dict) -> str:
    """Where the run stands among those of other seeds: one that was named need not be the best."""
    metric = result.get("metric", "")
    every = [_at(run, "dev", metric) for run in report.get("runs", [])]
    if len(every) < 2:
        return ""
    own = _at(result, "dev", metric)
    # A figure that is no number (null, NaN) is not known to be lower.
    if all(isinstance(x, int | float) for x in (own, *every)) and all(own >= x for x in every):
        return f", the best of {len(every)} by its figure on dev"
    return f", one of {len(every)}"


def _made_with(report: dict) -> list[str]:
    if not report.get("command"):
        return []
    versions = report.get("versions") or _at(report, "environment", "versions") or {}
    shown = ", ".join(f"{k} {v}" for k, v in versions.items() if k in ("jax", "flax", "distilflax"))
    made = f"```\n{report['command']}\n```"
    return [f"## Made with\n\n{made}\n\n{shown}" if shown else f"## Made with\n\n{made}"]


def _json(folder: Path | None, name: str) -> dict:
    """A record of the run; nothing where there is none."""
    try:
        found = json.loads((folder / name).read_text(encoding="utf-8")) if folder else {}
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def _at(tree: Any, *path: str) -> Any:
    for key in path:
        tree = tree.get(key) if isinstance(tree, dict) else None
    return tree


def _number(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return f"{value:.4g}" if isinstance(value, float) else "–"
