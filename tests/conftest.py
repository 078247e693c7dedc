"""Before anything imports jax: eight virtual CPU devices, and annotations checked at run time.

Most of the suite's time is compilation, so programs are compiled without LLVM's optimisations and
kept for the session: a run that starts again finds the program of the first.
"""

import functools
import os
import shutil
import tempfile
from importlib.metadata import version
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# The older way from fusions to LLVM compiles in half the time. jaxlib 0.12 dropped it, and XLA ends
# the process at a flag that it does not know: hence only where it was seen to be there.
# In one piece it compiles a program with a fifth less work than in 32, side by side: the workers of
# a session keep all cores busy anyway.
if tuple(map(int, version("jaxlib").split(".")[:2])) < (0, 11):
    os.environ["XLA_FLAGS"] += " --xla_cpu_use_fusion_emitters=false"
    os.environ["XLA_FLAGS"] += " --xla_cpu_parallel_codegen_split_count=1"
# The workers of one session share it: they inherit the environment of the process that starts them.
_OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="distilflax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.02"

import jax  # noqa: E402 - only now.
import numpy as np  # noqa: E402
import pytest  # noqa: E402
from jaxtyping import install_import_hook  # noqa: E402

install_import_hook("distilflax", "beartype.beartype")

from distilflax import models  # noqa: E402 - only now are they checked.
from distilflax.train import sharding, throughput  # noqa: E402


@pytest.fixture(scope="session", autouse=True)
def quick_peak():
    """Every run begins by measuring its processor, for which these products are far too large."""
    measure = throughput.matmul_peak

    def quick(size=64, *rest, **options):
        return measure(size, *rest, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(throughput, "matmul_peak", quick)
        yield


@pytest.fixture
def one_device(monkeypatch):
    """Compiling for eight devices takes far longer, and few tests of whole runs are about them."""
    one = functools.partial(sharding.make_mesh, devices=jax.devices()[:1])
    monkeypatch.setattr(sharding, "make_mesh", one)


@pytest.fixture(scope="session")
def drawn():
    """drawn(encoder, seed): as BERT starts, but in numpy: `models.init` is compiled for each."""

    def draw(encoder, seed, **options):
        rng = np.random.default_rng(seed)

        def one(path, leaf):
            if path[-1].key in ("scale", "bias"):
                return np.full(leaf.shape, path[-1].key == "scale", np.float32)
            return 0.02 * rng.normal(size=leaf.shape).astype(np.float32)

        return jax.tree_util.tree_map_with_path(one, models.shapes(encoder, **options))

    return draw


def pytest_sessionfinish(session, exitstatus):
    del session, exitstatus
    if _OWN_CACHE:
        shutil.rmtree(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]), ignore_errors=True)
