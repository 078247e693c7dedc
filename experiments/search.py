"""Ask the text that a run held out, and see teacher and student answer beside each other.

    python -m experiments.search --run=runs/demo --query="How do I sort a list?" [--query=...]

Without --query three example questions are asked. The documents are the run's validation split,
which neither model was trained on here.
"""

import numpy as np
from absl import flags
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from distilflax import evaluate, json_file, search, weights
from distilflax.errors import UserError
from distilflax.settings import Compute, Experiment, from_config
from distilflax.text import corpus as text_corpus
from distilflax.text import tokenizer as text_tokenizer
from distilflax.train.workdir import Workdir, enable_compilation_cache
from distilflax.weights.sentence import DOCUMENT, QUERY
from experiments import command

_RUN = flags.DEFINE_string("run", None, "The --workdir of a finished run.")
_QUERY = flags.DEFINE_multi_string("query", [], "A question; give the flag again for each more.")
_TOP = flags.DEFINE_integer("top", 3, "Answers shown for each question.", lower_bound=1)

EXAMPLES = (
    "How do I run something in the background without blocking?",
    "Which function tells how similar two pieces of text are?",
    "What happens to a file that is no longer needed?",
)
# Tokens of an entry: enough to know what it is about; the rest would cost time and blur the vector.
_LENGTH = 32


def run() -> None:
    folder = command.required(_RUN)
    enable_compilation_cache(folder / "distilled")
    experiment = _experiment(Workdir(folder / "distilled"))
    if not (folder / "distilled" / "model").is_dir():
        raise UserError(
            f"--run: {folder} has no distilled/model yet; give experiments.distill the command of "
            "that run again, which takes it to its end."
        )
    teacher = weights.load(experiment.teacher.path)
    student = weights.load(folder / "distilled" / "model")
    words = text_tokenizer.load(teacher.folder)
    held_out = text_corpus.prepare(experiment.data, words).validation_documents
    documents = [held_out[i] for i in range(len(held_out))]
    questions = _QUERY.value or list(EXAMPLES)

    own, answers = teacher.vectors, {}
    texts = [*own.prompted(questions, QUERY), *own.prompted(documents, DOCUMENT)]
    for name, checkpoint in (("teacher", teacher), ("student", student)):
        model = evaluate.Model(name, checkpoint.encoder, checkpoint.params)
        vectors = evaluate.embed(
            model,
            words,
            texts,
            compute=Compute(),
            max_length=_LENGTH,
            sentence=own,
        )
        asked, found = np.split(vectors, [len(questions)])
        answers[name] = search.nearest(asked, found, min(_TOP.value, len(documents)))
    _show(questions, documents, answers)


def _experiment(workdir: Workdir) -> Experiment:
    try:
        return from_config(json_file.read(workdir.config))
    except UserError as error:
        raise UserError(
            f"--run: {str(error).rstrip('.')}; give the --workdir of a run of experiments.distill."
        ) from None


def _show(questions: list[str], documents: list[str], answers: dict) -> None:
    console = Console()
    for number, question in enumerate(questions):
        table = Table(title=escape(question), title_justify="left", title_style="bold", expand=True)
        for name in answers:
            table.add_column(f"{name} ({len(documents):,} entries searched)", ratio=1)
        columns = [
            [
                f"{score:.2f}  {escape(documents[index].partition(chr(10))[0])}"
                for score, index in zip(scores[number], found[number], strict=True)
            ]
            for scores, found in answers.values()
        ]
        for row in zip(*columns, strict=True):
            table.add_row(*row)
        console.print(table)


if __name__ == "__main__":
    command.main(run)
