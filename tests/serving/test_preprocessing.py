"""What an export makes of JPEG files, against the pipeline that evaluates a model."""

import io
import tarfile

import numpy as np
import pytest
import tensorflow as tf
from catalog import create, randomize
from conftest import SHARED
from PIL import Image

import dgnet_keras as dg
from train.classification import input_pipeline
from train.classification.datasets import load_data
from train.classification.recipes import get_recipe

pytestmark = pytest.mark.xdist_group("served_preprocessing")  # what its fixtures make is made once
COUNT = 300


def coco_files():
    """Contents of the COCO images at hand, of many sizes; none where there are none."""
    path = SHARED / "data" / "coco128.tar"
    if not path.exists():
        return []
    with tarfile.open(path) as archive:
        members = [m for m in archive.getmembers() if m.name.endswith(".jpg")]
        return [archive.extractfile(member).read() for member in members]


def random_files(count, rng):
    """JPEG files of random pictures and sizes."""
    files = []
    for _ in range(count):
        coarse = rng.integers(0, 256, (6, 6, 3), "uint8")
        size = tuple(int(s) for s in rng.integers(20, 400, 2))
        buffer = io.BytesIO()
        Image.fromarray(coarse).resize(size, Image.BICUBIC).save(buffer, "JPEG")
        files.append(buffer.getvalue())
    return files


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of two classes of images, as `train.imagenet` takes it; all of them JPEG files."""
    rng = np.random.default_rng(0)
    files = coco_files()
    files += random_files(COUNT - len(files), rng)
    root = tmp_path_factory.mktemp("jpegs")
    for k, content in enumerate(files):
        for split in ("train", "test") if k < 8 else ("test",):
            path = root / split / "ab"[k % 2] / f"{k:04}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("crop", [0.875, 1.0])
def test_jpegs_are_prepared_as_in_evaluation(folder, crop, tmp_path):
    model = randomize(create("resnet_basic"))
    model.preprocessing = dg.Preprocessing((32, 32), crop)
    exported = tf.saved_model.load(str(dg.export_saved_model(model, tmp_path)))
    predict = exported.signatures["predict_jpeg"]
    recipe = get_recipe("cifar10_resnet20", ["input_shape=[32,32,3]"])
    split = load_data(recipe, folder).test
    assert len(split) == COUNT
    batches = input_pipeline.test_batches(split, model.preprocessing, 50)
    for start, batch in zip(range(0, COUNT, 50), batches, strict=True):
        paths = [p.decode() if isinstance(p, bytes) else p for p in split.paths[start : start + 50]]
        files = tf.constant([tf.io.read_file(path).numpy() for path in paths])
        served = exported.preprocess_jpeg(files)
        np.testing.assert_allclose(served, batch["image"], atol=1e-6, rtol=0)
        expected = np.argmax(model.predict_on_batch(batch["image"]), axis=1)
        np.testing.assert_array_equal(predict(files)["classes"], expected)
