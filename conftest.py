"""Before any test imports torch: how its threads behave, and which device tests run on."""

import os

from support import machine  # noqa: F401  (threads that wait do not spin for ever)

# Two workers with a thread each are faster than one with two: much of a test is Python.
if "PYTEST_XDIST_WORKER" in os.environ:
    os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_configure(config):
    """Tests run on the CPU, on a machine with a GPU as well. Those marked `gpu` are asked for."""
    if config.getoption("markexpr") != "gpu":
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
