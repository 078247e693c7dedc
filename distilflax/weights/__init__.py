"""Tensors from and to disk: Hugging Face folders of BERT and DistilBERT, in and out.

    checkpoint = weights.load("bert-base-uncased")        # or a folder, or package:NAME/SUBFOLDER
    settings, params = weights.surgery.make_student(
        checkpoint.encoder, checkpoint.params, Student(num_layers=6), jax.random.key(0)
    )
    weights.save("student", settings, params, tokenizer_folder=checkpoint.folder)

Reading, from the outside in:

    source.py       a name to a folder: local, inside a Python package, from the hub
    hf_config.py    config.json to `settings.Encoder`, and back
    tensor_file.py  safetensors files, sharded or not: headers checked, tensors read and written
    names.py        the table of names: our tree of parameters and theirs
    sentence.py     what sentence-transformers keeps beside the encoder
    reader.py       all of them together: `load`
    writer.py       and back: `save`, `save_student`
    whole_folder.py a folder written whole or not at all
    task_head.py    the head of a fine-tuned model, with the names of its labels
    surgery.py      a student out of a teacher: its layers
    width.py        its width, heads and neurons

Files from outside are not trusted. Descriptions are read and checked against each other before
memory is taken, pickles are refused, and what was wrong is said in one sentence (`UserError`).
What `save` writes, `load` reads back to the last bit, and transformers computes the same with it.
"""

from distilflax.weights import surgery, task_head, width
from distilflax.weights.checkpoint import Checkpoint, fingerprint, fingerprint_of_head
from distilflax.weights.reader import load
from distilflax.weights.sentence import SentenceFiles
from distilflax.weights.source import short_name
from distilflax.weights.writer import save, save_student

__all__ = [
    "Checkpoint",
    "SentenceFiles",
    "fingerprint",
    "fingerprint_of_head",
    "load",
    "save",
    "save_student",
    "short_name",
    "surgery",
    "task_head",
    "width",
]
