import numpy as np
import pytest

from benchmarks import accuracy_runs
from train.classification import datasets
from train.classification.recipes import get_recipe


def test_decoded_images_are_kept_with_their_labels(tmp_path):
    recipe = get_recipe("digits_resnet20", ["validation=0.25"])
    accuracy_runs.save_images(recipe, None, tmp_path / "images.npz")
    loaded = accuracy_runs.load_images(recipe, tmp_path / "images.npz")
    with pytest.raises(ValueError, match="holds the images of 'digits None'"):
        accuracy_runs.save_images(recipe, "elsewhere", tmp_path / "images.npz")
    direct = datasets.load_data(recipe)
    for ours, theirs in ((loaded.train, direct.train), (loaded.test, direct.test)):
        np.testing.assert_array_equal(ours.images, theirs.images)
        np.testing.assert_array_equal(ours.labels, theirs.labels)
