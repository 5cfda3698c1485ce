import dataclasses
import shutil

import numpy as np
import pytest
from image_files import FOLDER, PREPROCESSING, take

from train.classification import datasets, input_pipeline
from train.classification.examples import Records, Split


def test_files_of_one_size_can_be_decoded_at_once(image_folder):
    data = datasets.load_data(FOLDER, image_folder)
    decoded = data.test.decoded()
    assert decoded.images.shape == (6, 10, 12, 3)
    seen = take(input_pipeline.test_batches(data.test, PREPROCESSING, 6))["image"]
    np.testing.assert_allclose(seen, PREPROCESSING(decoded.images), atol=1e-6)
    (image_folder / "test" / "cat" / "1.jpg").write_bytes(b"")
    with pytest.raises(ValueError, match="cannot be decoded"):
        data.test.decoded()


def prints(folder, recipe=FOLDER):
    data = datasets.load_data(recipe, folder)
    return data.train.fingerprint(), data.test.fingerprint()


@pytest.mark.parametrize("is_flat", [False, True])
def test_a_fingerprint_is_that_of_the_images_wherever_they_lie(
    image_folder, is_flat, tmp_path, monkeypatch
):
    folder = image_folder / "train" if is_flat else image_folder
    before = prints(folder)
    assert prints(folder, dataclasses.replace(FOLDER, cache=True)) == before
    moved = shutil.copytree(folder, tmp_path / "elsewhere" / "other")
    assert prints(moved) == before
    monkeypatch.chdir(moved)
    assert prints(".") == before
    file = next(moved.rglob("*.jpg"))
    file.write_bytes(file.read_bytes() + b"more")
    assert prints(moved) != before


def test_a_file_that_is_gone_stops_no_fingerprint(image_folder):
    (image_folder / "test" / "cat" / "gone.jpg").symlink_to("/nowhere.jpg")
    assert len(prints(image_folder)) == 2


def test_fingerprints_of_pixels_labels_and_records():
    images, labels = np.zeros((2, 4, 4, 3), "uint8"), np.array([0, 1])
    splits = [Split(labels, images=images), Split(labels, images=images + 1)]
    splits += [Split(labels[::-1], images=images)]
    records = [
        Records((f"{folder}/a",), (n,), None) for folder, n in (("x", 1), ("y", 1), ("x", 2))
    ]
    found = [part.fingerprint() for part in splits + records]
    assert found[3] == found[4]
    assert len(set(found)) == 5
