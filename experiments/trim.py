"""Cut a model's vocabulary to what the texts of a domain use; the result is an HF folder again.

    python -m experiments.trim --model=runs/demo --texts=my_texts/*.txt --output=runs/demo/trimmed
    python -m experiments.export --model=runs/demo/trimmed --format=onnx-int8 --output=...

`--new` trains a vocabulary of `--words` pieces on the texts in place of cutting the old one. Each
piece starts as the mean of the old pieces that it falls into; the model has to learn to read them,
so it wants some steps of masked words before it teaches or is used.

Without `--new`, texts whose words are all kept give what they gave before, to the last bit; others
fall into smaller pieces. `--words` bounds the vocabulary: the most used words, all letters and the
words of the model's own prompts are kept. What is printed was counted on the texts; the last line
on every tenth of them, by the words of the others: what the next text of this kind can expect.
"""

from itertools import islice

from absl import flags
from rich.console import Console
from rich.table import Table

from distilflax import weights
from distilflax.errors import UserError
from distilflax.export import samples, vocabulary
from distilflax.export.subject import open_subject
from distilflax.models import parameter_count
from distilflax.text import tokenizer
from distilflax.train.progress import say_on
from experiments import command

_MODEL = flags.DEFINE_string("model", None, "A workdir, an HF folder, a hub name or package:NAME.")
_OUTPUT = flags.DEFINE_string("output", None, "Folder for the trimmed model.")
_TEXTS = flags.DEFINE_string("texts", "", "Files, folders, globs, hf:...: texts of the domain.")
_COLUMN = flags.DEFINE_string("column", "text", "Of JSON lines, CSV and Parquet among them.")
_WORDS = flags.DEFINE_integer("words", 0, "Keep at most so many; 0 is all that occur.", 0)
_NEW = flags.DEFINE_bool("new", False, "Train a vocabulary of --words pieces on the texts.")
_MOST = flags.DEFINE_integer("most_texts", 1_000_000, "Read at most so many texts.", 1)


def run() -> None:
    if not _MODEL.value:
        raise UserError("--model is missing; give a workdir, an HF folder or a hub name.")
    if not _TEXTS.value:
        raise UserError("--texts is missing; give texts of the domain that the model is for.")
    output = command.required(_OUTPUT)
    subject = open_subject(_MODEL.value)
    checkpoint, words = subject.checkpoint, subject.words
    found = samples.documents(_TEXTS.value, _COLUMN.value)
    texts = [text for text in islice(found, _MOST.value) if text.strip()]

    share = None
    if _NEW.value:
        if not _WORDS.value:
            raise UserError("--new needs --words, the size of the new vocabulary; give it.")
        path = vocabulary.renew(checkpoint, words, texts, _WORDS.value, output)
    else:
        how = (words, texts, _WORDS.value, vocabulary.prompts_of(checkpoint))
        kept, share = vocabulary.choose(*how), vocabulary.held_out_share(*how)
        path = vocabulary.trim(checkpoint, words, kept, output)

    after = weights.load(path)
    table = Table(title=f"{len(texts):,} texts")
    for column in ("", "before", "after"):
        table.add_column(column, justify="right" if column else "left")
    read_by = (words, tokenizer.load(path))
    sides = [vocabulary.reading(one, texts) for one in read_by]
    sizes = [parameter_count(c.params["encoder"]) for c in (checkpoint, after)]
    table.add_row("words", *(f"{one.vocab_size:,}" for one in read_by))
    table.add_row("parameters of the encoder", *(f"{size:,}" for size in sizes))
    table.add_row("tokens a text", *(f"{side.tokens:.2f}" for side in sides))
    table.add_row("unknown tokens", *(f"{side.unknown:.3%}" for side in sides))
    if share is not None:
        table.add_row("kept of a held-out tenth", "", f"{share:.2%}")
    console = Console()
    console.print(table)
    say_on(console)(f"model: {path}")


if __name__ == "__main__":
    command.main(run)
