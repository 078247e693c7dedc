"""A fresh process that opens one file and answers once, and imports what its user would.

    python -m experiments.cold onnxruntime MODEL.onnx THREADS BATCH LENGTH

Prints, when the answer is there, the most memory that the process has held, in bytes. It imports
nothing of this package unless the runtime is our own: jax would weigh more than most of the others.
"""

import sys
from pathlib import Path

import numpy as np


def onnxruntime(path, threads, ids, mask):
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.intra_op_num_threads = threads
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    return session.run(None, {"input_ids": ids, "attention_mask": mask})[0]


def litert(path, threads, ids, mask):
    from ai_edge_litert.interpreter import Interpreter

    run = Interpreter(path, num_threads=threads).get_signature_runner("any_length")
    rows = zip(ids.astype(np.int32), mask.astype(np.int32), strict=True)
    return [run(input_ids=one[None], attention_mask=real[None]) for one, real in rows]


def jax(path, threads, ids, mask):
    del threads
    from distilflax.export.formats import jitted
    from distilflax.export.samples import Batch
    from distilflax.export.subject import open_subject

    return jitted(open_subject(path, "encoder"))(Batch(ids, mask, np.zeros_like(ids)))


def torch(path, threads, ids, mask):
    import torch
    from transformers import AutoModel

    torch.set_num_threads(threads)
    model = AutoModel.from_pretrained(path).eval()
    with torch.inference_mode():
        return model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()


def torch_compiled(path, threads, ids, mask):
    """What torch compiled before is in its cache on disk."""
    import torch
    import torch._inductor.config as inductor
    from transformers import AutoModel

    torch.set_num_threads(threads)
    inductor.freezing = True
    model = torch.compile(AutoModel.from_pretrained(path).eval())
    with torch.inference_mode():
        return model(torch.from_numpy(ids), torch.from_numpy(mask)).last_hidden_state.numpy()


def openvino(path, threads, ids, mask):
    return _openvino(path, ids, mask, INFERENCE_NUM_THREADS=threads, INFERENCE_PRECISION_HINT="f32")


def openvino_int8(path, threads, ids, mask):
    return _openvino(path, ids, mask, INFERENCE_NUM_THREADS=threads)


def _openvino(path, ids, mask, **options):
    import openvino

    model = openvino.Core().compile_model(Path(path) / "model.xml", "CPU", options)
    return model({"input_ids": ids, "attention_mask": mask})[0]


def ctranslate2(path, threads, ids, mask):
    import ctranslate2

    del mask
    encoder = ctranslate2.Encoder(path, intra_threads=threads)
    return np.array(encoder.forward_batch(ids.tolist()).last_hidden_state)


def nothing(*_):
    """Python and numpy, which all others stand on."""


RUNTIMES = {
    run.__name__: run
    for run in (
        onnxruntime,
        litert,
        jax,
        torch,
        torch_compiled,
        ctranslate2,
        openvino,
        openvino_int8,
        nothing,
    )
}


def peak_bytes() -> int:
    """The most memory that this process has held since it became this program.

    Not `ru_maxrss`: Linux carries that over from the process that started this one.
    """
    try:
        lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return unit * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss


if __name__ == "__main__":
    name, path, threads, batch, length = sys.argv[1:]
    # Small ids: every vocabulary has them.
    ids = np.random.default_rng(0).integers(5, 50, (int(batch), int(length)))
    RUNTIMES[name](path, int(threads), ids, np.ones_like(ids))
    print(peak_bytes(), flush=True)
