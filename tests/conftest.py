"""Shared fixtures. TensorFlow is quiet, on the CPU, and seeded anew for each test."""

import gc
import os
import pathlib
import tarfile

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
# XLA compiles in half the time; what it fuses stays, how well loops are unrolled does not matter.
os.environ.setdefault("XLA_FLAGS", "--xla_backend_optimization_level=0")
if "PYTEST_XDIST_WORKER" in os.environ:  # a core each: threads that wait for each other cost 25 %
    os.environ.setdefault("TF_NUM_INTRAOP_THREADS", "1")

import pytest

_tests: list[None] = []
SHARED = pathlib.Path(__file__).resolve().parents[2] / "shared"


# Imported by fixtures, not here: pytest-xdist's first process runs no test, and would wait for it.
@pytest.fixture(autouse=True)
def clean_keras():
    import keras

    keras.utils.set_random_seed(0)
    yield
    keras.config.set_dtype_policy("float32")


@pytest.fixture(autouse=True)
def little_to_collect():
    """Garbage is collected after each test, and what outlives one is not looked at again.

    Collections among millions of objects took a third of the time of some files.
    """
    gc.disable()
    yield
    _tests.append(None)
    if len(_tests) % 100 == 0:  # what has died since it was frozen
        gc.unfreeze()
    gc.collect()
    gc.freeze()


@pytest.fixture
def rng():
    import numpy as np

    return np.random.default_rng(0)


@pytest.fixture(scope="session")
def cifar10_archive():
    path = SHARED / "data" / "cifar10.tar.gz"
    if not path.exists():
        pytest.skip(f"needs the CIFAR-10 images: {path} is not there")
    return path


@pytest.fixture(scope="session")
def coco128(tmp_path_factory):
    """Folder of 128 COCO images in COCO's layout."""
    path = SHARED / "data" / "coco128.tar"
    if not path.exists():
        pytest.skip(f"needs the COCO images: {path} is not there")
    folder = tmp_path_factory.mktemp("coco128")
    with tarfile.open(path) as archive:
        archive.extractall(folder, filter="data")
    (annotations,) = folder.rglob("annotations")
    return annotations.parent
