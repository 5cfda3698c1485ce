import numpy as np
import pytest
from catalog import create, images, randomize

import dgnet_keras as dg

ROW = "resnet_cifar_split"


def values(model):
    return [v.numpy() for v in model.weights]


def unchanged(model, before):
    return all(np.array_equal(a, b) for a, b in zip(values(model), before, strict=True))


def test_copying_reports_what_was_copied():
    source, target = randomize(create(ROW)), create(ROW, wiring="chain")
    assert set(dg.copy_weights(source, target)) == {v.path for v in target.weights}


@pytest.mark.parametrize("change", [{"widths": (4, 12)}, {"depths": (5, 3)}, {"num_classes": 5}])
def test_weights_that_do_not_fit_are_named_and_change_nothing(change):
    source, target = create(ROW, **change), create(ROW, seed=1)
    before = values(target)
    with pytest.raises(ValueError, match=r"left as it was.*\n.*(expected|only in)"):
        dg.copy_weights(source, target)
    assert unchanged(target, before)


def test_a_weights_file_of_another_model_changes_nothing(tmp_path):
    path = tmp_path / "other.weights.h5"
    create(ROW, widths=(4, 12)).save_weights(path)
    target = create(ROW, seed=1)
    before = values(target)
    with pytest.raises(ValueError, match=r"does not fit the model.*left as it was"):
        dg.convert.load_weights(target, path)
    assert unchanged(target, before)


def test_missing_and_foreign_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nowhere.weights.h5"):
        create(ROW, weights=tmp_path / "nowhere.weights.h5")
    with pytest.raises(ValueError, match=r"weights.h5.*model.pkl"):
        create(ROW, weights=tmp_path / "model.pkl")
    (tmp_path / "broken.weights.h5").write_bytes(b"not an HDF5 file")
    with pytest.raises(ValueError, match=r"broken.weights.h5 does not fit"):
        create(ROW, weights=tmp_path / "broken.weights.h5")


def test_a_backbone_takes_weights_too():
    source, target = (create(ROW, num_classes=None, seed=s) for s in (0, 1))
    dg.copy_weights(source, target)
    np.testing.assert_array_equal(source(images()), target(images()))
