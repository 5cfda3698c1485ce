import json
import pathlib

import numpy as np
import pytest

from benchmarks import input as pipelines
from train.classification.model import preprocessing_of

ROOT = pathlib.Path(__file__).parents[2]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("jpegs")
    pipelines.write_folders(pipelines.encode(pipelines.drawn_photographs(4), 64), folder)
    return folder


def test_keras_s_pipelines_give_what_ours_gives(folder):
    recipe = pipelines.imagenet_recipe("folder")
    ours = next(iter(pipelines.training_batches(recipe, folder)))["image"]
    assert ours.shape == (32, 224, 224, 3)
    for resized in (256, None):
        theirs, _ = next(iter(pipelines.keras_batches(folder, recipe, resized)))
        assert theirs.shape == ours.shape
        # Another crop of the same pictures: normalised alike.
        np.testing.assert_allclose(np.mean(theirs), np.mean(ours), atol=0.1)
        np.testing.assert_allclose(np.std(theirs), np.std(ours), rtol=0.1)
    flat = preprocessing_of(recipe).normalize(np.full((1, 224, 224, 3), 128.0, "float32"))
    assert abs(float(np.mean(ours)) - float(np.mean(flat))) < 0.3


def test_every_pipeline_has_a_rate_and_ours_a_ratio_to_each(folder):
    row = pipelines.measure_peers(folder, turns=1, images=32)
    assert {name for name, rate in row["images_per_second"].items() if rate["median"] > 0} == {
        "ours",
        "image_dataset_from_directory",
        "its_files",
        "decoding",
    }
    assert len(row["ratios"]) == 3


def test_the_document_has_the_rows():
    rows = json.loads((ROOT / "benchmarks" / "results" / "input.json").read_text())
    document = (ROOT / "docs" / "training.md").read_text()
    assert "\n".join(pipelines.table(rows)) in document
