import numpy as np
import pytest

import dgnet_keras as dg


def test_pixels_become_centred_and_scaled():
    preprocessing = dg.Preprocessing((2, 2), 1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    x = preprocessing(np.array([[[[0] * 3, [255] * 3]] * 2], "uint8"))
    np.testing.assert_allclose(x[0, 0, :, 0], [-2, 2], rtol=1e-6)


def test_an_image_of_the_right_size_is_not_resampled(rng):
    images = rng.integers(0, 256, (2, 32, 32, 3), "uint8")
    same = dg.Preprocessing((32, 32), 1.0).resize_and_crop(images)
    np.testing.assert_array_equal(same, images)


@pytest.mark.parametrize("shape", [(50, 100), (100, 50), (20, 33), (224, 224)])
def test_the_centre_of_an_image_of_any_shape_is_kept(shape):
    ramp = np.linspace(-1, 1, shape[1])[None, :, None] * np.ones((*shape, 3))
    image = (ramp + 1) * 127.5
    found = dg.Preprocessing((32, 32), crop=0.8).resize_and_crop(image).numpy()
    assert found.shape == (32, 32, 3)
    np.testing.assert_allclose(found + found[:, ::-1], 255, atol=1.5)
    share = 0.8 * min(shape) / shape[1]
    assert np.ptp(found[16]) == pytest.approx(255 * share, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (3, 30_000)])
def test_a_strip_of_pixels_stays_small(shape):
    found = dg.Preprocessing().resize_and_crop(np.full((*shape, 3), 9, "uint8"))
    np.testing.assert_allclose(found, np.full((224, 224, 3), 9), atol=1e-3)


def test_denormalize_is_the_inverse(rng):
    images = rng.integers(0, 256, (2, 8, 8, 3), "uint8")
    preprocessing = dg.Preprocessing((8, 8), 1.0)
    np.testing.assert_array_equal(preprocessing.denormalize(preprocessing(images)), images)


def test_a_config_recreates_it():
    preprocessing = dg.Preprocessing((8, 9), 0.5, (0.1,), (0.2,))
    assert dg.Preprocessing(**preprocessing.to_config()) == preprocessing


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": (0, 8)}, r"image_size.*\(0, 8\)"),
        ({"crop": 0}, "crop.*0"),
        ({"image_size": (16.0, 16.0)}, "image_size.*16.0"),
        ({"mean": (0.5,)}, "same length"),
        ({"std": (0.0,)}, "std.*0.0"),
    ],
)
def test_bad_fields_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        dg.Preprocessing(**kwargs)
