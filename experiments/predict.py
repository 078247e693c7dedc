"""Ask a fine-tuned model: a text, a file or a pipe in; JSON lines out, in order, as they come.

    python -m experiments.predict --model=runs/sst2/seed0/model --text="a charming film"
    python -m experiments.predict --model=runs/wnut17/seed0/model --input=sentences.txt
    python -m experiments.predict --model=runs/squad/seed0/model --question="Who?" --context="..."
    tail -f log | python -m experiments.predict --model=...

A file or a pipe has one text a line; .jsonl, .tsv, .csv, .parquet and .arrow have columns (tables
of other suffixes with --delimiter, without a first line of names with --header), taggers read
CoNLL's columns too (--word_column and --comment say how those are written), questions may be in
SQuAD's format (.json) or MRQA's (.jsonl), and any file may be compressed (.gz, .xz, .bz2, .zst). A
pipe is answered as its lines arrive, JSON objects with --format=jsonl. What a model gives depends
on its head: labels, tagged words, answers, or, where it has none, sentence vectors.
"""

import sys
from collections.abc import Iterator
from pathlib import Path

from absl import flags

import distilflax
from distilflax.errors import UserError
from distilflax.predict import Predictor
from distilflax.tasks import records, sentences, squad, tables, tagged_text
from distilflax.tasks.records import Record
from distilflax.text.lines import local
from distilflax.train.workdir import enable_compilation_cache
from experiments import command, json_lines, pipe, progress
from experiments.items import Item, Passed

_MODEL = flags.DEFINE_string("model", None, "An HF folder, a hub name or package:NAME/SUBFOLDER.")
_TEXT = flags.DEFINE_multi_string("text", [], "A text; give the flag again for each more.")
_INPUT = flags.DEFINE_string("input", "", "A file, or - for standard input (the default).")
_FORMAT = flags.DEFINE_enum(
    "format",
    "",
    ["", "text", "jsonl", "conll"],
    "Of a pipe, or of a file whose suffix does not say; conll of any file, for taggers.",
)
_HEADER = flags.DEFINE_list("header", [], "The columns of a table without a first line of names.")
_DELIMITER = flags.DEFINE_string("delimiter", "", "Of a table of any suffix: tab, or a character.")
_QUOTING = flags.DEFINE_enum("quoting", "auto", tables.QUOTING, "As config.options.quoting was.")
_QUESTION = flags.DEFINE_string("question", "", "A question about --context, or about every text.")
_CONTEXT = flags.DEFINE_string("context", "", "The text that --question is about.")
_COLUMN = flags.DEFINE_string("text_column", "text", "Column of the text (or of its context).")
_PAIR = flags.DEFINE_string("pair_column", "", "Column of the second text, for models of pairs.")
_WORDS = flags.DEFINE_string("words_column", "tokens", "Column of ready-made words to tag.")
_WORD_COLUMN = flags.DEFINE_integer(
    "word_column", 0, "The words' column in CoNLL's, from 0.", lower_bound=0
)
_COMMENT = flags.DEFINE_string("comment", "", "What lines of CoNLL's begin with that are no words.")
_LENGTH = flags.DEFINE_integer("max_length", 0, "In tokens; 0 as the model says.", lower_bound=0)
_N_BEST = flags.DEFINE_bool("n_best", False, "Print other answers too.")
_SKIP = flags.DEFINE_bool("skip_faulty", False, "Answer a faulty line with its error, and go on.")

# Lines that are run together: enough to fill batches of like length, few enough to stream.
CHUNK = 256
_DOES = {
    "answer": "answers questions",
    "sequence": "labels texts",
    "token": "tags words",
    "vector": "makes vectors",
}
_LINES = (".jsonl", ".ndjson")  # which a pipe has too
_RECORDS = {*records.TABLES, *records.KEYED}
_COLUMNS = {"words": "tokens", "tags": "tags", "column": -1, "flags": "--"}
_OF_TABLES = ("header", "quoting", "delimiter")
_BY_NAME = ("text_column", "pair_column", "words_column")
# So much of a file may be texts of one word before that is told.
_MOST = 0.9


def run() -> int:
    if not _MODEL.value:
        raise UserError("--model is missing; give the folder of a fine-tuned model.")
    if _QUESTION.value and _FORMAT.value == "jsonl":
        raise UserError("--question and --format=jsonl exclude each other; put it in the lines.")
    inputs = [f"--{name}" for name in ("text", "input", "context") if command.is_named(name)]
    if len(inputs) > 1:
        raise UserError(f"{' and '.join(inputs)} exclude each other; give one of them.")
    if command.is_named("input") and not _INPUT.value:
        raise UserError("--input is empty; give a file, or - for standard input.")
    _keep_programs()
    model = distilflax.load(_MODEL.value, max_length=_LENGTH.value)
    _check_flags(model)
    faulty, passed = 0, Passed(_SKIP.value)
    # JSON lines are UTF-8 whatever the locale says, as the lines that are read are.
    sys.stdout.reconfigure(encoding="utf-8")
    try:
        with progress.Bar(progress.total(_INPUT.value)) as advance:
            for chunk in pipe.chunks(_items(model, passed), CHUNK):
                for line in answers(model, chunk):
                    faulty += "error" in line
                    print(json_lines.written(line))
                sys.stdout.flush()
                advance(len(chunk))
    except BrokenPipeError:
        command.stop_output()  # whoever read has had enough (`| head`)
    for note in (*passed.lines.notes(), *passed.faults.notes):
        print(note, file=sys.stderr)
    if faulty:
        print(f"{faulty:,} faulty lines were answered with their errors", file=sys.stderr)
    return 0


def _keep_programs() -> None:
    """Compiled programs are there for the next call; not for a user without a home."""
    try:
        home = Path.home()
    except RuntimeError:
        return
    enable_compilation_cache(home / ".cache" / "distilflax" / "predict")


def _check_flags(model: Predictor) -> None:
    """
    Raises:
      UserError: a flag that this model would not hear, or the second texts of pairs are missing.
    """
    kind = model.task.kind if model.task else "vector"
    if _FORMAT.value == "conll" and kind != "token":
        raise UserError(
            f"--format=conll is for a model that tags words; {_MODEL.value} {_DOES[kind]}."
        )
    heard = {
        "question": "answer",
        "context": "answer",
        "n_best": "answer",
        "pair_column": "sequence",
        "word_column": "token",
        "comment": "token",
        "words_column": "token",
    }
    for name, only in heard.items():
        if _is_given(name) and kind != only:
            raise UserError(
                f"--{name} is for a model that {_DOES[only]}; {_MODEL.value} {_DOES[kind]}."
            )
    if kind == "token" and _is_given("text_column") and _is_given("words_column"):
        raise UserError(
            "--text_column and --words_column exclude each other; name what is to be tagged."
        )
    # --text has one text alone, whatever the columns are called.
    if getattr(model.task, "pair", "") and (_TEXT.value or not _PAIR.value):
        raise UserError(
            f"{_MODEL.value} was fine-tuned on pairs; give --pair_column, the column of the second "
            "text, and as --input a file that has it."
        )


def _is_given(name: str) -> bool:
    """Whether the command line has the flag, and not as nothing."""
    return bool(flags.FLAGS[name].value) and command.is_named(name)


def _check_unheard(names: tuple[str, ...], what: str, remedy: str) -> None:
    """
    Raises:
      UserError: one of these flags, of an input that has no use for it.
    """
    for name in names:
        if _is_given(name):
            raise UserError(f"--{name} is not heard of {what}; {remedy}.")


def answers(model: Predictor, chunk: list[Item]) -> Iterator[dict]:
    """One JSON object for each item, in order.

    Raises:
      UserError: for the first faulty item, after what came before it, unless --skip_faulty.
    """
    bad = next((i for i, item in enumerate(chunk) if item.error), len(chunk))
    good = [item for item in (chunk if _SKIP.value else chunk[:bad]) if not item.error]
    found = iter(_call(model, good))
    for item in chunk:
        if item.error and not _SKIP.value:
            raise UserError(item.error)
        yield item.shown | ({"error": item.error} if item.error else next(found))


def _call(model: Predictor, items: list[Item]) -> list[dict]:
    if not items:
        return []
    column = {name: [item.given[name] for item in items] for name in items[0].given}
    if model.task is None:
        return [{"vector": vector.tolist()} for vector in model.encode(column["text"])]
    if model.task.kind == "sequence":
        return model.classify(column["text"], column.get("pair"))
    if model.task.kind == "token":
        return model.tag(column["text"])
    found = model.answer(column["question"], column["context"])
    drop = () if _N_BEST.value else ("n_best",)
    return [{name: value for name, value in one.items() if name not in drop} for one in found]


def _items(model: Predictor, passed: Passed) -> Iterator[Item]:
    kind = model.task.kind if model.task else "vector"
    path = local(_INPUT.value or "-")
    if str(path) != "-" and path.is_dir():
        raise UserError(f"{path} is a folder; give a file in it as --input.")
    in_columns = kind == "token" and (_FORMAT.value == "conll" or _looks_like_columns(path))
    for name in ("word_column", "comment"):
        if flags.FLAGS[name].value and (_TEXT.value or not in_columns):
            raise UserError(
                f"--{name} is for columns, a word a line; give a file of them as --input, with "
                "--format=conll."
            )
    if kind == "answer" and command.is_named("context"):
        yield _item(kind, Record("--context", {_COLUMN.value: _CONTEXT.value}))
        return
    if _TEXT.value:
        for number, text in enumerate(_TEXT.value, 1):
            yield _item(kind, Record(f"--text {number}", {_COLUMN.value: text}))
        return
    # SQuAD's own column may be named, and is there, though not at the top.
    named = command.is_named("question") or (
        _is_given("text_column") and _COLUMN.value != "context"
    )
    if kind == "answer" and not named and _is_squad(path):
        asked = squad.read(path, passed.faults, labelled=False)
        yield from passed.faults.between(map(_asked, asked))
        return
    if str(path) == "-" and (_FORMAT.value == "conll" or _DELIMITER.value or _HEADER.value):
        raise UserError(
            "A pipe has a text or a JSON object a line; give a file as --input for columns."
        )
    if in_columns:
        what = f"columns, a word a line, as {path} is read"
        remedy = "give --delimiter and no --format if it is a table"
        _check_unheard(_OF_TABLES + _BY_NAME, what, remedy)
        if not _FORMAT.value:
            passed.faults.note(
                f"{path} was read as columns, a word a line; --format=text if its lines are texts"
            )
        own = _COLUMNS | {"word_column": _WORD_COLUMN.value, "comment": _COMMENT.value}
        found = sentences.read(path, passed.faults, labelled=False, in_columns=True, **own)
        yield from passed.faults.between(map(_tokens, found))
        return
    number = alone = 0
    for record in _records(path, passed):
        item = record if isinstance(record, Item) else _item(kind, record)
        number, alone = number + 1, alone + _is_of_one_word(item)
        yield item
    if kind == "token" and str(path) != "-" and number > 1 and alone > _MOST * number:
        passed.faults.note(
            f"Texts of {path} are of one word each, and were tagged alone; if its rows are words "
            "of sentences, give a file of columns with tabs between, blank lines between sentences "
            "and --format=conll, or JSON lines with the words of each as a list"
        )


def _is_squad(path: Path) -> bool:
    suffix = records.suffix(path)
    return suffix == ".json" or (suffix in _LINES and squad.is_mrqa(path))


def _asked(q: squad.Question) -> Item:
    given = {"question": q.question, "context": q.context}
    return Item(q.place, given, {"id": q.id, "question": q.question})


def _tokens(sentence: sentences.Sentence) -> Item:
    line = int(sentence.place.rpartition(" ")[2])
    return Item(sentence.place, {"text": list(sentence.words)}, {"line": line})


def _is_of_one_word(item: Item) -> bool:
    text = item.given.get("text")
    return isinstance(text, str) and len(text.split()) == 1


def _looks_like_columns(path: Path) -> bool:
    if _FORMAT.value or _DELIMITER.value or records.suffix(path) in _RECORDS or not path.is_file():
        return False
    return sentences.is_in_columns(path, _COMMENT.value)


def _records(path: Path, passed: Passed) -> Iterator[Record | Item]:
    table = records.Table(tuple(_HEADER.value), _DELIMITER.value, "--", _QUOTING.value)
    suffix = records.suffix(path)
    if suffix not in _LINES and (suffix in _RECORDS or table.delimiter):
        yield from passed.faults.between(records.read(path, passed.faults, table))
        return
    form = _FORMAT.value or ("jsonl" if suffix in _LINES else "text")
    if form == "text":
        other = "a table as --input" if str(path) == "-" else "--delimiter if it is a table"
        what = "a pipe" if str(path) == "-" else path
        remedy = f"give --format=jsonl if its lines are JSON objects, or {other}"
        _check_unheard(_OF_TABLES + _BY_NAME, f"{what} with a text a line", remedy)
    else:
        _check_unheard(_OF_TABLES, "JSON objects, which name their own values", "leave it out")
    begun = False
    for place, line in pipe.lines(passed.lines) if str(path) == "-" else records.lines(path):
        number = {"line": int(place.rpartition(" ")[2])}
        if isinstance(line, UserError):
            yield Item(place, {}, number, str(line))
        elif not line.strip():
            passed.lines.blank += 1
        elif form == "text":
            if not begun and not _FORMAT.value and isinstance(json_lines.parsed(line), dict):
                raise UserError(
                    f"{place} is a JSON object; add --format=jsonl if these are records, or "
                    "--format=text to take each line as a text."
                )
            begun = True
            yield Record(place, number | {_COLUMN.value: line})
        else:
            value = json_lines.parsed(line)
            if isinstance(value, dict):
                yield Record(place, number | value)
            else:
                yield Item(place, {}, number, f"{place} is not a JSON object ({value!s:.60}).")


def _item(kind: str, record: Record) -> Item:
    """What the model's call is given of a record, or the error that it is."""
    shown = {name: record.values[name] for name in ("line", "id") if name in record.values}
    try:
        if kind == "answer":
            given = _question(record)
            return Item(record.place, given, shown | {"question": given["question"]})
        if kind == "token" and _has_words(record):
            words = records.column(record, _WORDS.value, "words", flag="--words_column")
            if isinstance(words, str):  # A table's cell, of which taggers learn these words.
                words = list(tagged_text.words_of(record, _WORDS.value))
            if not isinstance(words, list) or not all(isinstance(word, str) for word in words):
                raise UserError(
                    f"{record.place}: {_WORDS.value!r} should be a list of texts, or a text with "
                    "spaces between words; name another as --words_column or --text_column."
                )
            return Item(record.place, {"text": words}, shown)
        text = records.text(record, _COLUMN.value, "text", flag="--text_column")
        given = {"text": text}
        if _PAIR.value:
            given["pair"] = records.text(record, _PAIR.value, "pair", flag="--pair_column")
        return Item(record.place, given, shown | given)
    except UserError as error:
        return Item(record.place, {}, shown, str(error))


def _has_words(record: Record) -> bool:
    """Whether ready-made words are to be tagged: a column that is named goes before one that only
    happens to be there."""
    happens = _WORDS.value in record.values and not _is_given("text_column")
    return _is_given("words_column") or happens


def _question(record: Record) -> dict[str, str]:
    column = _COLUMN.value
    # A flat record may have its answer as `text`, beside the context.
    if not _is_given("text_column") and ("context" in record.values or column not in record.values):
        column = "context"
    context = records.text(record, column, "context", flag="--text_column")
    question = _QUESTION.value
    if not command.is_named("question"):
        question = records.text(record, "question", "question", flag="--question")
    for what, text in (("question", question), ("context", context)):
        if not text.strip():
            raise UserError(f"{record.place}: the {what} is empty; give it some text.")
    return {"question": question, "context": context}


if __name__ == "__main__":
    command.main(run)
