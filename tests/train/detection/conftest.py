"""Scenes of digits, and tiny detectors that are trained and built once for all tests."""

import functools
import json

import pytest
from coco_files import CATEGORIES
from PIL import Image
from train_helpers import ANY_SCORE, tiny_detector

from train.detection.data import load_data
from train.detection.run import DetectionRun, train
from train.detection.scenes import make_digit_scenes
from train.strategies import one_device

DETECTORS = ("coco_tiny_fasterrcnn", "coco_tiny_maskrcnn", "coco_tiny_retinanet")


@pytest.fixture(scope="session")
def scenes(tmp_path_factory):
    """Folder in COCO's layout."""
    folder = tmp_path_factory.mktemp("data") / "scenes"
    make_digit_scenes(folder)
    return folder


@pytest.fixture(scope="session")
def data(scenes, tmp_path_factory):
    """The data of a recipe without masks."""
    recipe = tiny_detector("coco_tiny_retinanet")
    return load_data(recipe, tmp_path_factory.mktemp("work"), scenes)


@pytest.fixture(scope="session")
def finish_once(scenes, tmp_path_factory):
    """A function of a recipe's name that gives recipe, workdir and results of a finished run.

    Tests that use it are of the xdist group of that name.
    """

    @functools.cache
    def finish(name):
        recipe, workdir = tiny_detector(name, ANY_SCORE), tmp_path_factory.mktemp("run")
        is_drawn = recipe.detector == "retinanet"  # which takes long, and is alike for all
        results = train(recipe, workdir, data_dir=scenes, visualize=int(is_drawn))
        return recipe, workdir, results

    return finish


@pytest.fixture(params=[pytest.param(n, marks=pytest.mark.xdist_group(n)) for n in DETECTORS])
def finished(request, finish_once):
    """Recipe, workdir and results of the finished run of each detector."""
    return finish_once(request.param)


@pytest.fixture(scope="session")
def restore_once(finish_once, scenes):
    """A function of a recipe's name that gives its finished run, in a model of its own."""

    @functools.cache
    def restore(name):
        recipe, workdir, _ = finish_once(name)
        run = DetectionRun(recipe, load_data(recipe, workdir, scenes), one_device())
        run.restore(workdir)
        return run

    return restore


@pytest.fixture
def dataset(tmp_path):
    """Writes images 7 (30 x 20), 8 and annotations, and returns what `load_split` takes."""

    def write(annotations, images=None, categories=CATEGORIES, text=None):
        folder = tmp_path / "train2017"
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("a.jpg", "b.png"):
            Image.new("RGB", (30, 20), (200, 30, 30)).save(folder / name)
        listed = images or [
            {"id": 7, "file_name": "a.jpg", "width": 30, "height": 20},
            {"id": 8, "file_name": "b.png"},
        ]
        content = {"images": listed, "annotations": annotations, "categories": categories}
        file = tmp_path / "annotations" / "instances_train2017.json"
        file.parent.mkdir(exist_ok=True)
        file.write_text(json.dumps(content) if text is None else text)
        return file, folder

    return write
