import functools
import warnings

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import CATALOG, adjacency, create, images, randomize

import dgnet_keras as dg
from dgnet_keras.adjacencies import answers_at


def deep(wiring, **kwargs):
    options = {"depths": (5, 5), "widths": (4, 8), "input_shape": (16, 16, 3)}
    return create("resnet_cifar_path", wiring=wiring, **{**options, **kwargs})


def raw(count):
    return np.random.default_rng(0).integers(0, 256, (count, 16, 16, 3)).astype("uint8")


@functools.cache
def static_macs():
    return dg.count_macs(deep("chain"))["macs"]


def shares(model, x):
    return dg.count_macs(model, x)["per_instance"]["macs"] / static_macs()


@pytest.mark.parametrize("wiring", ["path", "dynamic"])
def test_images_compute_the_wanted_share(wiring):
    model = randomize(deep(wiring), scale=0.5)
    x = images(1200)
    for wanted in (0.4, 0.7):
        found = dg.calibrate(model, x[:600], macs=wanted)
        seen, others = np.split(shares(model, x), 2)
        assert wanted - 0.01 <= seen.mean() <= wanted
        np.testing.assert_allclose(found["macs"], seen.mean(), rtol=1e-6)
        assert abs(others.mean() - wanted) < 0.03
        rates = dg.connectivity.metrics(dg.adjacency(model, x[:600]))
        for stage, rate in found["open"].items():
            np.testing.assert_allclose(rate, rates[f"open_rate/{stage}"], rtol=1e-6)


@pytest.mark.parametrize("wiring", ["path", "dynamic"])
def test_what_answered_before_answers_anew_and_so_does_a_saved_model(wiring, tmp_path):
    model = randomize(deep(wiring, depths=(3, 3)), scale=0.5)
    x = images(64)
    behind, pixels = model.with_preprocessing(), raw(64)
    views = [(model, x), (model.backbone, x), (behind, pixels)]
    before = [view.predict(given, verbose=0) for view, given in views]
    found = dg.calibrate(model, x, macs=0.5)
    answers = [view.predict(given, verbose=0) for view, given in views]
    assert all((a != b).any() for a, b in zip(answers, before, strict=True))
    after = answers[0]
    np.testing.assert_allclose(
        answers[2], model.predict(model.preprocessing(pixels), verbose=0), atol=1e-5
    )
    np.testing.assert_allclose(after, answers_at(model, x, found["threshold"])[0], atol=1e-5)
    model.save(tmp_path / "model.keras")
    loaded = keras.models.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded.predict(x, verbose=0), after)


def test_the_nearest_share_below_is_said_where_steps_are_large():
    model = randomize(deep("learned_path"))
    with pytest.warns(UserWarning, match=r"compute 0\.\d+, the nearest below"):
        found = dg.calibrate(model, images(8), macs=0.5)
    assert found["macs"] < 0.49


@pytest.mark.parametrize("wiring", ["path", "dynamic"])
def test_no_choice_hangs_on_the_last_bits_of_a_float(wiring):
    # Other runtimes round otherwise. With few images a share is a stair, and a search for the
    # wanted one ends at the edge of a step: where an image's own logit is.
    model = randomize(deep(wiring), scale=0.5)
    x = images(6)
    found = dg.calibrate(model, x, macs=0.5)
    at = [answers_at(model, x, found["threshold"] + d)[1] for d in (-1e-5, 0.0, 1e-5)]
    for other in (at[0], at[2]):
        for name, matrix in at[1].items():
            np.testing.assert_array_equal(matrix > 0, other[name] > 0)


@pytest.mark.parametrize("row", CATALOG)
def test_answers_at_a_threshold_are_those_of_a_model_of_it(row):
    model = randomize(create(row))
    x = images(4)
    given = 0.35
    output, found = answers_at(model, x, given)
    if any(stage.gates() for stage in model.backbone.stages):
        model.set_threshold(given)
    np.testing.assert_allclose(model(x), output, atol=1e-6)
    for name, matrix in adjacency(model, x).items():
        np.testing.assert_allclose(found[name], matrix, atol=1e-6)


@pytest.mark.parametrize(
    ("wiring", "macs", "x", "message"),
    [
        ("path", 0.0, images(4), r"`macs` must be in \(0, 1\].*Received: macs=0.0"),
        ("path", float("nan"), images(4), r"`macs` must be in \(0, 1\]"),
        ("path", 0.05, images(4), r"always run cost 0\.\d+"),
        ("path", 0.5, images(4, size=24), r"\(24, 24, 3\)"),
        ("path", 0.5, images(4)[0], r"of at least 1. Received: shape \(16, 16, 3\)"),
        ("path", 0.5, np.full((4, 16, 16, 3), np.nan, "float32"), "finite|NaN"),
        ("chain", 0.5, images(4), "wiring with gates"),
    ],
)
def test_what_cannot_be_is_refused_and_changes_nothing(wiring, macs, x, message):
    model = deep(wiring, depths=(3, 3))
    before = model.get_weights()
    with pytest.raises(ValueError, match=message):
        dg.calibrate(model, x, macs=macs)
    for a, b in zip(model.get_weights(), before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_other_models_are_refused():
    with pytest.raises(ValueError, match="backbone or classifier"):
        dg.calibrate(keras.Sequential([keras.layers.Dense(1)]), images(2))


def test_raw_pixels_as_floats_are_warned_of():
    pixels, model = raw(8).astype("float32"), deep("path")
    with pytest.warns(UserWarning, match=r"values of up to 255.*gives up to 2\.64.*raw"):
        dg.adjacency(model, pixels)
    with pytest.warns(UserWarning) as found:
        dg.calibrate(model, pixels, macs=0.9)
    assert sum("are they raw?" in str(w.message) for w in found) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error", UserWarning)
        dg.adjacency(model, model.preprocessing(pixels))


@pytest.mark.parametrize("row", ["resnet_basic", "resnet_cifar_path"])
def test_a_threshold_of_each_image_may_be_a_row_or_a_column(row):
    model, x = randomize(create(row)), images(4)
    limits = tf.constant([0.1, 0.3, 0.5, 0.7])
    for a, b in zip(
        tf.nest.flatten(answers_at(model, x, limits)),
        tf.nest.flatten(answers_at(model, x, limits[:, None])),
        strict=True,
    ):
        np.testing.assert_array_equal(a, b)
