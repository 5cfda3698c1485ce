"""A dynamic network that starts as a trained static one reproduces its numbers, then learns."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import images, randomize

import dgnet_keras as dg

ROWS = {
    "basic": {"name": "resnet18", "depths": (2, 3), "widths": (8, 16)},
    "bottleneck": {"name": "resnet50", "depths": (3, 2), "widths": (8, 16)},
    "cifar": {"name": "resnet20_cifar", "depths": (2, 3), "widths": (8, 16)},
}


def pair(row, **kwargs):
    options = {**ROWS[row], "num_classes": 10, "input_shape": (32, 32, 3), **kwargs}
    static = randomize(dg.create(wiring="chain", seed=1, **options))
    dynamic = dg.create(wiring="dynamic", init="static", seed=2, **options)
    dg.copy_weights(static, dynamic)
    return static, dynamic


@pytest.fixture(
    scope="module",
    params=[pytest.param(row, marks=pytest.mark.xdist_group(f"static_init_{row}")) for row in ROWS],
)
def float32_pair(request):
    return pair(request.param)


def test_logits_are_equal_bit_for_bit_in_eager_float32(float32_pair):
    static, dynamic = float32_pair
    np.testing.assert_array_equal(static(images(4, 32)), dynamic(images(4, 32)))


@pytest.mark.parametrize("jit_compile", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_logits_agree_in_graph_mode_and_xla(float32_pair, jit_compile):
    outputs = [tf.function(m, jit_compile=jit_compile)(images(4, 32)) for m in float32_pair]
    np.testing.assert_allclose(*outputs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("row", ROWS)
def test_logits_agree_in_bfloat16(row):
    keras.config.set_dtype_policy("mixed_bfloat16")
    static, dynamic = pair(row)
    np.testing.assert_allclose(static(images(4, 32)), dynamic(images(4, 32)), rtol=1e-2, atol=1e-2)


def test_routers_change_in_the_first_step(float32_pair):
    _, dynamic = float32_pair
    weights = dynamic.get_weights()
    routers = [v for v in dynamic.trainable_variables if "router" in v.path]
    before = [v.numpy() for v in routers]
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    dynamic.compile(keras.optimizers.SGD(0.1), loss, run_eagerly=True)
    dynamic.train_on_batch(images(8, 32), np.arange(8))
    after = [v.numpy() for v in routers]
    dynamic.set_weights(weights)
    for variable, new, old in zip(routers, after, before, strict=True):
        assert not np.array_equal(new, old), variable.path
