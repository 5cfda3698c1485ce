"""The fused normalisation against Keras's."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dgnet_keras.layers import normalization
from dgnet_keras.layers.normalization import BatchNormalization

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
