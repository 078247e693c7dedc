"""Before anything imports jax: eight virtual CPU devices, and annotations checked at run time.

Most of the suite's time is compilation, so programs are compiled without LLVM's optimisations and
kept for the session: a run that starts again finds the program of the first.
"""

import os
import shutil
import tempfile
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ["XLA_FLAGS"] = (
    os.environ.get("XLA_FLAGS", "")
    + " --xla_force_host_platform_device_count=8 --xla_backend_optimization_level=0"
)
# The workers of one session share it: they inherit the environment of the process that starts them.
_OWN_CACHE = "JAX_COMPILATION_CACHE_DIR" not in os.environ
if _OWN_CACHE:
    os.environ["JAX_COMPILATION_CACHE_DIR"] = tempfile.mkdtemp(prefix="distilflax-tests-")
    os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.2"

from jaxtyping import install_import_hook  # noqa: E402 - only now may jax be imported.

install_import_hook("distilflax", "beartype.beartype")


def pytest_sessionfinish(session, exitstatus):
    del session, exitstatus
    if _OWN_CACHE:
        shutil.rmtree(Path(os.environ["JAX_COMPILATION_CACHE_DIR"]), ignore_errors=True)
