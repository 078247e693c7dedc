"""What a model is for: tasks, and fine-tuning on them with or without a task teacher.

task.py             the shared interface: read, encode, head, loss, decode, metrics
classification.py   one text or a pair: one label, many labels, or a number
tagging.py          words: entities, slots, parts of speech
answering.py        the span of a text that answers a question
retrieval.py        a vector a text: similarity, and what answers a query
reranking.py        a query with each of its candidates: a cross-encoder

records.py, sentences.py, word_rows.py, tagged_text.py, squad.py, queries.py    files to examples
tables.py, conll.py, written_lists.py    how those are written
named_files.py, class_folders.py      where they lie
labels.py, faults.py                  what a record says, and what is wrong with it
texts.py, spans.py, bio.py            texts to ids, windows and spans, tags of spans
scores.py, label_scores.py, squad_score.py, confidence.py    the field's figures, and thresholds
softened.py                           a student's logits and its teacher's
batches.py, runner.py                 rows to batches of few shapes, and models over them
settings.py, data.py, teacher.py      what a run may say, reads, and is taught by
augmentation.py                       more texts for a teacher, words replaced
intermediate.py                       the stage before: a task teacher's layers
finetune.py, stage.py, step.py        a run, the loop of a stage, and its step
probe.py                              a linear model on frozen states
"""

from distilflax.tasks.answering import Answering
from distilflax.tasks.classification import Classification
from distilflax.tasks.reranking import Reranking
from distilflax.tasks.retrieval import Retrieval
from distilflax.tasks.tagging import Tagging
from distilflax.tasks.task import Task

# A new task is one line here.
TASKS: dict[str, type[Task]] = {
    task.name: task for task in (Classification, Tagging, Answering, Retrieval, Reranking)
}

__all__ = ["TASKS", "Answering", "Classification", "Reranking", "Retrieval", "Tagging", "Task"]
