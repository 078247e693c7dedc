"""How a model leaves: to other runtimes, each checked against the model that it came from.

    subject = export.open_subject("runs/demo", part="auto")
    export.export(subject, "onnx-int8", "runs/demo/export/onnx-int8")
    run = export.load("runs/demo/export/onnx-int8")

Reading, from the outside in:

    subject.py       which model, and which of its outputs
    formats.py       the table of formats
    leave.py         write, check, describe: whole or not at all
    numpy_model.py   the model in numpy alone: what every format is compared with
    onnx_model.py    the graph, operator by operator, over onnx_graph.py (nodes, constants) and
                     onnx_weights.py (float32, float16, int8), onnx_static.py (int8, calibrated)
                     and onnx_blocks.py (4 and 8 bits, weights alone); onnx_file.py writes and
                     runs it
    litert_model.py  the same for LiteRT, over litert_graph.py; litert_file.py writes and runs it
    rounding.py      weights as whole numbers
    calibration.py   what activations range over on a user's text
    sensitivity.py   which groups of products (groups.py) to leave in float32
    stablehlo.py     the jitted program for CPU, GPU and TPU
    vocabulary.py    a domain's words; importance.py, pruning.py: fewer heads and neurons
    card.py          the model card
    samples.py, parity.py    real texts, and the comparison on them
    speed.py         int8 beside float32 on this machine
    tradeoff.py      exports beside each other: size, a task's figure, time; tradeoff_plot.py
    manifest.py      what an export says of itself
"""

from distilflax.export.formats import FORMATS, Options, format_of
from distilflax.export.leave import export, load
from distilflax.export.subject import PARTS, Subject, open_subject

__all__ = [
    "FORMATS",
    "PARTS",
    "Options",
    "Subject",
    "export",
    "format_of",
    "load",
    "open_subject",
]
