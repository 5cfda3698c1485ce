"""The fused normalisation against Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dgnet_keras.layers import normalization
from dgnet_keras.layers.normalization import BatchNormalization, statistics_of

OPTIONS = {"momentum": 0.8, "epsilon": 1e-3, "name": "norm"}


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    """As where oneDNN or an accelerator is."""
    monkeypatch.setattr(normalization, "_fused_is_fast", lambda: True)


def make(cls, rng, dtype="float32", **options):
    layer = cls(**{**OPTIONS, **options}, dtype=dtype)
    layer.build((None, None, None, 3))
    for variable in layer.weights:
        variable.assign(np.random.default_rng(len(variable.name)).uniform(0.5, 2, 3))
    return layer


def run(layer, images, training, mode="graph"):
    """Value, gradients of images, scale and offset, and then the moving statistics."""
    variables = [v.value for v in (layer.gamma, layer.beta)]

    def step(images):
        with tf.GradientTape() as tape:
            tape.watch([images, *variables])
            value = layer(images, training=training)
            total = tf.reduce_sum(tf.sin(tf.cast(value, tf.float32)))
        return [value, *tape.gradient(total, [images, *variables])]

    if mode != "eager":
        step = tf.function(step, jit_compile=mode == "xla")
    return [*step(images), layer.moving_mean.value, layer.moving_variance.value]


@pytest.mark.parametrize("mode", ["eager", "graph", "xla"])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-5), ("mixed_float16", 2e-3), ("mixed_bfloat16", 2e-2)]
)
def test_it_equals_keras(dtype, tolerance, training, mode, rng):
    images = tf.constant(rng.normal(1.0, 2.0, size=(4, 5, 6, 3)), dtype.removeprefix("mixed_"))
    found, expected = (
        run(make(cls, rng, dtype), images, training, mode)
        for cls in (BatchNormalization, keras.layers.BatchNormalization)
    )
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = (np.float64(tf.cast(t, tf.float32)) for t in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


def operations(layer, shape=(2, 4, 4, 3), dtype=tf.float32, training=True):
    function = tf.function(lambda x: layer(x, training=training))
    graph = function.get_concrete_function(tf.TensorSpec(shape, dtype)).graph
    return {operation.type for operation in graph.get_operations()}


def test_it_is_one_operation_in_training_where_there_is_one(rng, monkeypatch):
    fused = "FusedBatchNormV3"
    assert fused in operations(make(BatchNormalization, rng))
    assert fused not in operations(make(BatchNormalization, rng), training=False)
    assert fused not in operations(make(BatchNormalization, rng, "float64"), dtype=tf.float64)
    monkeypatch.setattr(normalization, "_fused_is_fast", lambda: False)
    assert fused not in operations(make(BatchNormalization, rng))


@pytest.mark.parametrize(
    ("options", "shape"),
    [({}, (2, 4, 4, 3)), ({"synchronized": True}, (2, 4, 4, 3)), ({"scale": False}, (2, 4, 4, 3))],
)
def test_what_the_fused_operation_cannot_do_stays_keras(options, shape, rng):
    layer = BatchNormalization(**OPTIONS, **options)
    layer.build(shape)
    assert ("FusedBatchNormV3" in operations(layer, shape)) == (not options)


def test_a_frozen_layer_keeps_its_statistics(rng):
    layer = make(BatchNormalization, rng)
    layer.trainable = False
    before = layer.moving_mean.numpy()
    images = tf.constant(rng.normal(size=(4, 5, 6, 3)), tf.float32)
    np.testing.assert_array_equal(layer(images, training=True), layer(images, training=False))
    np.testing.assert_array_equal(layer.moving_mean, before)


@pytest.mark.parametrize("form", ["gathered", "masked", "synchronized"])
@pytest.mark.parametrize(("dtype", "tolerance"), [("float32", 1e-5), ("mixed_bfloat16", 2e-2)])
def test_statistics_are_those_of_the_samples_that_are_on(dtype, tolerance, form, rng):
    images = rng.normal(1.0, 2.0, size=(6, 5, 6, 3))
    images[3] = 100.0  # of a sample that is off
    is_on = np.array([True, True, False, False, True, False])
    share = is_on.sum() / 6
    expected = run(
        make(keras.layers.BatchNormalization, rng, dtype, momentum=OPTIONS["momentum"] ** share),
        tf.constant(images[is_on], dtype.removeprefix("mixed_")),
        True,
    )
    layer = make(BatchNormalization, rng, dtype, synchronized=form == "synchronized")
    gathered = form == "gathered"

    rows = tf.constant(is_on[is_on] if gathered else is_on)
    x = tf.constant(images[is_on] if gathered else images, dtype.removeprefix("mixed_"))

    def counted(x, training):
        with statistics_of(rows, batch=6, gathered=gathered):
            y = layer(x, training=training)
        return y if gathered else tf.boolean_mask(y, is_on)

    counted.gamma, counted.beta = layer.gamma, layer.beta
    counted.moving_mean, counted.moving_variance = layer.moving_mean, layer.moving_variance
    found = run(counted, x, True)
    if not gathered:
        found[1] = tf.boolean_mask(found[1], is_on)
    for a, b in zip(found, expected, strict=True):
        a, b = (np.float64(tf.cast(t, tf.float32)) for t in (a, b))
        np.testing.assert_allclose(a, b, atol=tolerance * np.abs(b).max())


@pytest.mark.parametrize("gathered", [True, False])
def test_without_a_sample_statistics_stay(gathered, rng):
    layer = make(BatchNormalization, rng)
    before = layer.moving_mean.numpy(), layer.moving_variance.numpy()
    rows = 1 if gathered else 4
    images = tf.constant(rng.normal(size=(rows, 5, 6, 3)), tf.float32)
    with statistics_of(tf.fill([rows], False), batch=4, gathered=gathered):
        assert np.isfinite(layer(images, training=True)).all()
    np.testing.assert_array_equal(layer.moving_mean, before[0])
    np.testing.assert_array_equal(layer.moving_variance, before[1])
