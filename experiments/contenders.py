"""Who takes part in a benchmark: one encoder with the same weights, in every runtime that is here.

Each contender is made from the same Hugging Face folder as its own users would make it, with the
number of threads that it is given, and becomes a function of ids and mask [B, L] to the last hidden
state [B, L, D]. Those whose package is not installed are left out, with a reason.
"""

import importlib
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distilflax.errors import UserError
from distilflax.export.formats import jitted
from distilflax.export.leave import export
from distilflax.export.samples import Batch
from distilflax.export.subject import open_subject

# (input_ids, attention_mask), int64 [B, L], to the last hidden state.
Forward = Callable[[np.ndarray, np.ndarray], Any]


def jax_jit(folder: Path, work: Path, threads: int) -> Forward:
    """Our model, jitted; XLA's threads are as many as the process has cores."""
    del work, threads
    subject = open_subject(folder, "encoder")
    run = jitted(subject)
    return lambda ids, mask: run(Batch(ids, mask, np.zeros_like(ids)))["last_hidden_state"]


def _ours(name: str) -> Callable[[Path, Path, int], Forward]:
    def make(folder: Path, work: Path, threads: int) -> Forward:
        session = _need("distilflax.export.onnx_file").session
        subject = open_subject(folder, "encoder")
        # Random weights are no text's: how near int8 comes to them says nothing.
        export(subject, name, work / name, least_cosine=0.0, allow_slower=True)
        return _of_session(session(work / name / "model.onnx", threads))

    return make


def _litert(name: str) -> Callable[[Path, Path, int], Forward]:
    def make(folder: Path, work: Path, threads: int) -> Forward:
        """One row after the other: a graph of any length takes one."""
        load = _need("distilflax.export.litert_file").load
        manifest = export(open_subject(folder, "encoder"), name, work / name, least_cosine=0.0)
        run = load(work / name, manifest, threads)
        return lambda ids, mask: run(Batch(ids, mask, np.zeros_like(ids)))["last_hidden_state"]

    return make


def torch_eager(folder: Path, work: Path, threads: int) -> Forward:
    """transformers' model in eager torch."""
    del work
    torch = _need("torch")
    torch.set_num_threads(threads)
    model = _need("transformers").AutoModel.from_pretrained(folder).eval()

    def run(ids: np.ndarray, mask: np.ndarray) -> Any:
        with torch.inference_mode():
            given = {"input_ids": torch.from_numpy(ids), "attention_mask": torch.from_numpy(mask)}
            return model(**given).last_hidden_state.numpy()

    return run


def ort_plain(folder: Path, work: Path, threads: int) -> Forward:
    """ONNX Runtime on the file that tracing transformers' model gives."""
    return _of_session(_need("distilflax.export.onnx_file").session(_traced(folder, work), threads))


def ort_quantize_dynamic(folder: Path, work: Path, threads: int) -> Forward:
    """The same after ONNX Runtime's own `quantize_dynamic`, with its defaults."""
    path = work / "traced-int8.onnx"
    if not path.exists():
        quantization = _need("onnxruntime.quantization")
        quantization.quantize_dynamic(_traced(folder, work), path)
    return _of_session(_need("distilflax.export.onnx_file").session(path, threads))


def _ctranslate2(compute_type: str) -> Callable[[Path, Path, int], Forward]:
    def make(folder: Path, work: Path, threads: int) -> Forward:
        library = _need("ctranslate2")
        path = work / f"ctranslate2-{compute_type}"
        if not path.exists():
            converter = _need("ctranslate2.converters").TransformersConverter(str(folder))
            converter.convert(str(path), quantization=compute_type)
        encoder = library.Encoder(str(path), compute_type=compute_type, intra_threads=threads)

        def run(ids: np.ndarray, mask: np.ndarray) -> Any:
            rows = [row[: int(m.sum())].tolist() for row, m in zip(ids, mask, strict=True)]
            return np.array(encoder.forward_batch(rows).last_hidden_state)

        return run

    return make


CONTENDERS: dict[str, Callable[[Path, Path, int], Forward]] = {
    "jax.jit": jax_jit,
    "onnx": _ours("onnx"),
    "onnx-ort": _ours("onnx-ort"),
    "onnx-int8": _ours("onnx-int8"),
    "onnx-ort-int8": _ours("onnx-ort-int8"),
    "litert": _litert("litert"),
    "litert-int8": _litert("litert-int8"),
    "peer: torch eager": torch_eager,
    "peer: ONNX Runtime, traced": ort_plain,
    "peer: ONNX Runtime, quantize_dynamic": ort_quantize_dynamic,
    "peer: CTranslate2": _ctranslate2("float32"),
    "peer: CTranslate2 int8": _ctranslate2("int8"),
}


def opened(name: str, folder: Path, work: Path) -> tuple[str, Path]:
    """What a contender opens, once it was made: (one of `cold.RUNTIMES`, the file or folder)."""
    peers = {
        "jax.jit": ("jax", folder),
        "peer: torch eager": ("torch", folder),
        "peer: ONNX Runtime, traced": ("onnxruntime", work / "traced.onnx"),
        "peer: ONNX Runtime, quantize_dynamic": ("onnxruntime", work / "traced-int8.onnx"),
        "peer: CTranslate2": ("ctranslate2", work / "ctranslate2-float32"),
        "peer: CTranslate2 int8": ("ctranslate2", work / "ctranslate2-int8"),
    }
    if name in peers:
        return peers[name]
    if name.startswith("litert"):
        return "litert", work / name / "model.tflite"
    return "onnxruntime", work / name / "model.onnx"


def _need(module: str) -> Any:
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        raise UserError(f"{error.name} is not installed") from None


def _traced(folder: Path, work: Path) -> Path:
    path = work / "traced.onnx"
    if path.exists():
        return path
    torch = _need("torch")
    model = _need("transformers").AutoModel.from_pretrained(folder).eval()
    ids = torch.ones((2, 8), dtype=torch.int64)
    length = torch.export.Dim("length", max=model.config.max_position_embeddings)
    axes = {0: torch.export.Dim("batch"), 1: length}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.onnx.export(
            model,
            kwargs={"input_ids": ids, "attention_mask": ids},
            f=str(path),
            dynamic_shapes={"input_ids": axes, "attention_mask": axes},
            input_names=["input_ids", "attention_mask"],
            output_names=["last_hidden_state"],
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    return path


def _of_session(session: Any) -> Forward:
    name = session.get_outputs()[0].name
    return lambda ids, mask: session.run([name], {"input_ids": ids, "attention_mask": mask})[0]


def wait(value: Any) -> np.ndarray:
    """The finished array, on the host."""
    return np.asarray(jax.block_until_ready(value))
