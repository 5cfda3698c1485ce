"""A trained model, its export and images, as the commands are given them."""

import contextlib
import io
import shutil

import pytest
from PIL import Image


@pytest.fixture
def image_folder(tmp_path, rng):
    """Four images of each of two classes."""
    for name in ("cat", "dog"):
        (tmp_path / "images" / name).mkdir(parents=True)
        for k in range(4):
            pixels = rng.integers(0, 256, (20, 16, 3), "uint8")
            Image.fromarray(pixels).save(tmp_path / "images" / name / f"{k}.png")
    return tmp_path / "images"


@pytest.fixture(scope="session")
def trained(tmp_path_factory):
    from catalog import create, randomize

    path = tmp_path_factory.mktemp("trained") / "model.keras"
    randomize(create("resnet_basic", input_shape=(16, 16, 3))).save(path)
    return path


@pytest.fixture
def saved(trained, tmp_path):
    """A model's file, in a folder of its own."""
    return shutil.copy(trained, tmp_path / "model.keras")


@pytest.fixture(scope="session")
def exported(trained, tmp_path_factory):
    """A folder of versions, made by the command with labels that Windows wrote."""
    from dgnet_keras.__main__ import main

    folder = tmp_path_factory.mktemp("exported")
    (folder / "names.txt").write_bytes(b"\xef\xbb\xbfcat\r\ndog\r\nemu\r\n")
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        main(["export", str(trained), str(folder / "m"), "--labels", str(folder / "names.txt")])
    assert printed.getvalue() == f"{folder / 'm' / '1'}\n"
    return folder / "m"


@pytest.fixture
def served(exported, tmp_path):
    """A folder of versions that a test may change."""
    return shutil.copytree(exported, tmp_path / "served")
