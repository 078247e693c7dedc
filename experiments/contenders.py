"""Who takes part in a benchmark: one encoder with the same weights, in every runtime that is here.

Each contender is made from the same Hugging Face folder as its own users would make it, with the
number of threads that it is given, and becomes a function of ids and mask [B, L] to the last hidden
state [B, L, D]. Those whose package is not installed are left out, with a reason.
"""

import importlib
import shutil
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np

from distilflax import json_file
from distilflax.errors import UserError
from distilflax.export import manifest, samples
from distilflax.export.formats import jitted
from distilflax.export.leave import export
from distilflax.export.samples import Batch
from distilflax.export.subject import open_subject
from distilflax.settings import Compute
from distilflax.tasks import batches
from experiments import torch_side

# Whose versions say what was compared.
PACKAGES = (
    *("onnx", "onnxruntime", "ai_edge_litert", "torch", "transformers"),
    *("ctranslate2", "openvino", "nncf"),
)
PEER = "peer: "  # how the names of those begin that are not ours
_CALIBRATED_ON = 8  # sequences
_IR = "model.xml"  # OpenVINO's

# (input_ids, attention_mask), int64 [B, L], to the last hidden state.
Forward = Callable[[np.ndarray, np.ndarray], Any]


def _jax_jit(dtype: str) -> Callable[[Path, Path, int], Forward]:
    def make(folder: Path, work: Path, threads: int) -> Forward:
        """Our model, jitted; XLA's threads are as many as the process has cores.

        Padded to one of a few lengths, as our own commands do: every shape is compiled once.
        """
        del work, threads
        subject = open_subject(folder, "encoder")
        run = jitted(subject, Compute(dtype=dtype))
        lengths = batches.buckets(subject.encoder.max_positions)

        def padded(ids: np.ndarray, mask: np.ndarray) -> np.ndarray:
            length = ids.shape[1]
            more = next((size for size in lengths if size >= length), length) - length
            ids, mask = (np.pad(array, ((0, 0), (0, more))) for array in (ids, mask))
            found = run(Batch(ids, mask, np.zeros_like(ids)))["last_hidden_state"]
            return found[:, :length].astype(np.float32)

        return padded

    return make


def _ours(name: str) -> Callable[[Path, Path, int], Forward]:
    def make(folder: Path, work: Path, threads: int) -> Forward:
        session = _need("distilflax.export.onnx_file").session
        made = _made(work / name, lambda part: _export(folder, name, part))
        return _of_session(session(made / "model.onnx", threads))

    return make


def _litert(name: str) -> Callable[[Path, Path, int], Forward]:
    def make(folder: Path, work: Path, threads: int) -> Forward:
        """One row after the other: a graph of any length takes one."""
        load = _need("distilflax.export.litert_file").load
        made = _made(work / name, lambda part: _export(folder, name, part))
        run = load(made, json_file.read(made / manifest.FILE), threads)
        return lambda ids, mask: run(Batch(ids, mask, np.zeros_like(ids)))["last_hidden_state"]

    return make


def _torch(dtype: str, compiled: bool) -> Callable[[Path, Path, int], Forward]:
    def make(folder: Path, work: Path, threads: int) -> Forward:
        """transformers' model, on the accelerator where jax has one; compiled anew for a new shape
        until torch has seen that they vary, with packed weights (`freezing`) on a CPU and CUDA
        graphs ("reduce-overhead") on a GPU."""
        del work
        torch, device = _need("torch"), torch_side.device()
        torch.set_num_threads(threads)
        torch_side.multiply_as_xla(torch)
        given = {"dtype": getattr(torch, dtype)}
        model = _need("transformers").AutoModel.from_pretrained(folder, **given).eval().to(device)
        if compiled:
            _need("torch._inductor.config").freezing = device == "cpu"
            model = torch.compile(model, mode="default" if device == "cpu" else "reduce-overhead")
        return _of_torch(torch, model, device)

    return make


def ort_plain(folder: Path, work: Path, threads: int) -> Forward:
    """ONNX Runtime on the file that tracing transformers' model gives."""
    return _of_session(_need("distilflax.export.onnx_file").session(_traced(folder, work), threads))


def ort_quantize_dynamic(folder: Path, work: Path, threads: int) -> Forward:
    """The same after ONNX Runtime's own `quantize_dynamic`, with its defaults."""
    quantize = _need("onnxruntime.quantization").quantize_dynamic
    path = _made(work / "traced-int8.onnx", lambda part: quantize(_traced(folder, work), part))
    return _of_session(_need("distilflax.export.onnx_file").session(path, threads))


def _ctranslate2(compute_type: str) -> Callable[[Path, Path, int], Forward]:
    def make(folder: Path, work: Path, threads: int) -> Forward:
        library = _need("ctranslate2")
        converter = _need("ctranslate2.converters").TransformersConverter(str(folder))
        path = _made(
            work / f"ctranslate2-{compute_type}",
            lambda part: converter.convert(str(part), quantization=compute_type),
        )
        encoder = library.Encoder(str(path), compute_type=compute_type, intra_threads=threads)

        def run(ids: np.ndarray, mask: np.ndarray) -> Any:
            rows = [row[: int(m.sum())].tolist() for row, m in zip(ids, mask, strict=True)]
            return np.array(encoder.forward_batch(rows).last_hidden_state)

        return run

    return make


def openvino(folder: Path, work: Path, threads: int) -> Forward:
    """OpenVINO on the traced file, in float32: left to itself it computes in bfloat16 where the
    processor does."""
    library = _need("openvino")

    def write(part: Path) -> None:
        library.save_model(library.convert_model(_traced(folder, work)), part / _IR, False)

    made = _made(work / "openvino", write)
    return _of_openvino(library, made, threads, INFERENCE_PRECISION_HINT="f32")


def openvino_int8(folder: Path, work: Path, threads: int) -> Forward:
    """The same quantised by NNCF: static int8, calibrated on ids that are drawn, which will do for
    its time and not for its quality. What stays in float is computed with as OpenVINO likes."""
    library, quantization = _need("openvino"), _need("nncf")

    def write(part: Path) -> None:
        encoder = open_subject(folder, "encoder").encoder
        shape = (_CALIBRATED_ON, 1, min(64, encoder.max_positions))
        drawn = np.random.default_rng(1).integers(0, encoder.vocab_size, shape)
        given = [{"input_ids": ids, "attention_mask": np.ones_like(ids)} for ids in drawn]
        model = quantization.quantize(
            library.convert_model(_traced(folder, work)),
            quantization.Dataset(given),
            model_type=quantization.ModelType.TRANSFORMER,
            subset_size=_CALIBRATED_ON,
        )
        library.save_model(model, part / _IR, False)

    return _of_openvino(library, _made(work / "openvino-int8", write), threads)


CONTENDERS: dict[str, Callable[[Path, Path, int], Forward]] = {
    "jax.jit": _jax_jit("float32"),
    "jax.jit, bfloat16": _jax_jit("bfloat16"),
    "onnx": _ours("onnx"),
    "onnx-ort": _ours("onnx-ort"),
    "onnx-int8": _ours("onnx-int8"),
    "onnx-ort-int8": _ours("onnx-ort-int8"),
    "litert": _litert("litert"),
    "litert-int8": _litert("litert-int8"),
    "peer: torch eager": _torch("float32", compiled=False),
    "peer: torch compiled": _torch("float32", compiled=True),
    "peer: torch eager, bfloat16": _torch("bfloat16", compiled=False),
    "peer: torch compiled, bfloat16": _torch("bfloat16", compiled=True),
    "peer: ONNX Runtime, traced": ort_plain,
    "peer: ONNX Runtime, quantize_dynamic": ort_quantize_dynamic,
    "peer: CTranslate2": _ctranslate2("float32"),
    "peer: CTranslate2 int8": _ctranslate2("int8"),
    "peer: OpenVINO": openvino,
    "peer: OpenVINO int8": openvino_int8,
}


# Only where jax has a GPU, unless they are named: a CPU is seldom faster in bfloat16. And the rest
# runs on a CPU wherever it is.
ON_GPU = [name for name in CONTENDERS if "torch" in name or "jax" in name]
ON_CPU = [name for name in CONTENDERS if "bfloat16" not in name]


def opened(name: str, folder: Path, work: Path) -> tuple[str, Path]:
    """What a contender opens, once it was made: (one of `cold.RUNTIMES`, the file or folder)."""
    peers = {
        "jax.jit": ("jax", folder),
        "peer: torch eager": ("torch", folder),
        "peer: torch compiled": ("torch_compiled", folder),
        "peer: ONNX Runtime, traced": ("onnxruntime", work / "traced.onnx"),
        "peer: ONNX Runtime, quantize_dynamic": ("onnxruntime", work / "traced-int8.onnx"),
        "peer: CTranslate2": ("ctranslate2", work / "ctranslate2-float32"),
        "peer: CTranslate2 int8": ("ctranslate2", work / "ctranslate2-int8"),
        "peer: OpenVINO": ("openvino", work / "openvino"),
        "peer: OpenVINO int8": ("openvino_int8", work / "openvino-int8"),
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


def _made(path: Path, write: Callable[[Path], Any]) -> Path:
    """`path`, written by `write` unless it is there from before; whole or not at all."""
    if not path.exists():
        part = path.with_name(f"part-{path.name}")
        shutil.rmtree(part, ignore_errors=True)  # of a run that was stopped
        write(part)
        part.rename(path)
    return path


def _export(folder: Path, name: str, path: Path) -> None:
    # Two texts will do: the benchmark itself compares what comes out. And random weights are no
    # text's, so that how near int8 comes to them says nothing.
    loose = {"texts": samples.TEXTS[:2], "least_cosine": 0.0, "allow_slower": True}
    export(open_subject(folder, "encoder"), name, path, **loose)


def _traced(folder: Path, work: Path) -> Path:
    return _made(work / "traced.onnx", lambda part: _trace(folder, part))


def _trace(folder: Path, path: Path) -> None:
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


def _of_torch(torch: Any, model: Any, device: str) -> Forward:
    def run(ids: np.ndarray, mask: np.ndarray) -> Any:
        with torch.inference_mode():
            ids, mask = (torch.from_numpy(array).to(device) for array in (ids, mask))
            found = model(input_ids=ids, attention_mask=mask).last_hidden_state
            return found.float().cpu().numpy()

    return run


def _of_openvino(library: Any, path: Path, threads: int, **options: Any) -> Forward:
    options |= {"INFERENCE_NUM_THREADS": threads, "PERFORMANCE_HINT": "LATENCY"}
    compiled = library.Core().compile_model(path / _IR, "CPU", options)
    # A copy: what it returns is its own memory, which the next call overwrites.
    return lambda ids, mask: compiled({"input_ids": ids, "attention_mask": mask})[0].copy()


def _of_session(session: Any) -> Forward:
    name = session.get_outputs()[0].name
    return lambda ids, mask: session.run([name], {"input_ids": ids, "attention_mask": mask})[0]


def wait(value: Any) -> np.ndarray:
    """The finished array, on the host."""
    return np.asarray(jax.block_until_ready(value))
