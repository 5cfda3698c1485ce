import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import scipy.linalg
import tensorflow as tf

from dgnet_keras.layers import conv
from dgnet_keras.layers.blocks import (
    BasicBlock,
    BottleneckBlock,
    InvertedResidualBlock,
    SqueezeExcite,
)
from dgnet_keras.layers.conv import ConvNormAct, GroupedConv2D
from dgnet_keras.layers.rebuild import mark_rebuildable

BLOCKS = {
    "basic": lambda: BasicBlock(6, strides=2),
    "bottleneck": lambda: BottleneckBlock(4, strides=2, groups=2, se_channels=3),
    "bottleneck_to": lambda: BottleneckBlock(4, out_channels=6),
    "inverted": lambda: InvertedResidualBlock(6, 6, strides=1, expansion=2),
    "inverted_strided": lambda: InvertedResidualBlock(8, 6, strides=2, expansion=1),
    "conv": lambda: ConvNormAct(6, 3, groups=3, activation="relu6"),
    "se": lambda: SqueezeExcite(6, 2),
}


def images(rng, channels=6, size=9):
    return rng.normal(size=(2, size, size, channels)).astype("float32")


@pytest.mark.parametrize("groups", [1, 2, 3, 6])
@pytest.mark.parametrize(
    "options",
    [
        {"padding": "same"},
        {"padding": "valid", "strides": 2},
        {"padding": "same", "strides": (2, 1)},
        {"padding": "same", "dilation_rate": 2},
        {"padding": "same", "activation": "relu", "use_bias": False},
    ],
)
def test_grouped_convolution_equals_keras_forward_and_backward(groups, options, rng):
    ours, theirs = (
        cls(12, 3, groups=groups, **options) for cls in (GroupedConv2D, keras.layers.Conv2D)
    )
    x = tf.constant(images(rng))
    theirs.build(x.shape)
    ours.build(x.shape)
    ours.set_weights(theirs.get_weights())
    results = []
    for layer in (ours, theirs):
        with tf.GradientTape() as tape:
            tape.watch(x)
            y = layer(x)
            loss = tf.reduce_sum(tf.sin(y))
        results.append([y, *tape.gradient(loss, [x, layer.kernel.value])])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_grouped_convolution_works_without_onednn():
    code = """
import numpy as np, tensorflow as tf
from dgnet_keras.layers.conv import GroupedConv2D
from dgnet_keras.layers.conv import cpu_takes_grouped_kernels
assert not cpu_takes_grouped_kernels("float32")
layer, x = GroupedConv2D(8, 3, groups=2, padding="same"), tf.random.normal((2, 5, 5, 4))
with tf.GradientTape() as tape:
    y = layer(x)
    loss = tf.reduce_sum(y)
gradient = tape.gradient(loss, layer.kernel.value)
kernel = layer.kernel.numpy()
halves = [tf.nn.conv2d(x[..., 2*g:2*g+2], kernel[..., 4*g:4*g+4], 1, "SAME") for g in (0, 1)]
np.testing.assert_allclose(y, tf.concat(halves, -1), atol=1e-5)
assert gradient.shape == (3, 3, 2, 8)
"""
    environment = {**os.environ, "TF_ENABLE_ONEDNN_OPTS": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


STRIDED_1X1 = """
import keras, numpy as np, tensorflow as tf
import dgnet_keras as dg
from dgnet_keras.layers.conv import GroupedConv2D

rng = np.random.default_rng(0)
for channels in (4, 8, 12, 15):
    for batch, size, padding in ((8, 64, "valid"), (7, 32, "same"), (1, 128, "valid")):
        images = rng.normal(size=(batch, size, size, channels)).astype("float32")
        upstream = rng.normal(size=(batch, size // 2, size // 2, 6)).astype("float32")
        layer = GroupedConv2D(6, 1, strides=2, padding=padding)
        layer.build(images.shape)
        for call in (layer, tf.function(layer)):
            with tf.GradientTape() as tape:
                y = call(images)
            gradient = tape.gradient(y, layer.kernel.value, upstream)[0, 0]
            expected = np.einsum("bhwc,bhwf->cf", images[:, ::2, ::2], upstream)
            np.testing.assert_allclose(gradient, expected, rtol=1e-3, atol=1e-2)

model = dg.create("resnet20_cifar", input_shape=(64, 64, 3), depths=(4, 4), widths=(8, 16))
model.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
images = rng.normal(size=(24, 64, 64, 3)).astype("float32")
model.fit(images, rng.integers(0, 10, 24), batch_size=8, verbose=0)
"""


@pytest.mark.slow
def test_a_narrow_strided_1x1_convolution_stays_within_its_memory():
    environment = {
        **os.environ,
        "TF_ENABLE_ONEDNN_OPTS": "1",
        # Tensors come from malloc, which ends the process where memory around them was written.
        "TF_ONEDNN_USE_SYSTEM_ALLOCATOR": "1",
        "LD_PRELOAD": "libc_malloc_debug.so.0",
        "MALLOC_CHECK_": "3",
        "MALLOC_PERTURB_": "165",
    }
    done = subprocess.run(
        [sys.executable, "-c", STRIDED_1X1], env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("strides", [2, (2, 1), (1, 3)])
@pytest.mark.parametrize("padding", ["valid", "same"])
@pytest.mark.parametrize("policy", ["float32", "mixed_bfloat16"])
def test_a_strided_1x1_convolution_by_hand(groups, strides, padding, policy, rng):
    layer = GroupedConv2D(
        8, 1, strides=strides, padding=padding, groups=groups, use_bias=False, dtype=policy
    )
    x = tf.constant(rng.normal(size=(2, 7, 8, 4)), layer.compute_dtype)
    layer.build(x.shape)
    rows, columns = layer.strides
    taken = tf.cast(x, "float32").numpy()[:, ::rows, ::columns]
    parts = np.split(tf.cast(layer.kernel, layer.compute_dtype)[0, 0], groups, axis=-1)
    # A grouped kernel as an ungrouped one: zero where an output does not see an input.
    kernel = scipy.linalg.block_diag(*parts).astype("float32")
    with tf.GradientTape() as tape:
        tape.watch(x)
        # The image size is unknown, as in a served model.
        y = tf.function(layer, input_signature=[tf.TensorSpec((None, None, None, 4), x.dtype)])(x)
    d_features, d_kernel = tape.gradient(y, [x, layer.kernel.value], tf.ones_like(y))
    tolerance = 1e-5 if policy == "float32" else 5e-2
    np.testing.assert_allclose(tf.cast(y, "float32"), taken @ kernel, atol=tolerance)
    expected = np.zeros(x.shape, "float32")
    expected[:, ::rows, ::columns] = kernel.sum(axis=-1)
    np.testing.assert_allclose(tf.cast(d_features, "float32"), expected, atol=tolerance)
    seen = np.split(taken.sum(axis=(0, 1, 2)), groups)
    expected = np.concatenate([np.outer(part, np.ones(8 // groups)) for part in seen], axis=-1)
    np.testing.assert_allclose(d_kernel[0, 0], expected, rtol=tolerance, atol=10 * tolerance)


@pytest.mark.parametrize(("channels", "strides"), [(15, [1, 1, 1, 1]), (16, [1, 2, 2, 1])])
def test_narrow_1x1_convolutions_take_their_strides_first(channels, strides):
    layer = GroupedConv2D(6, 1, strides=2)
    graph = tf.function(layer).get_concrete_function(tf.zeros((1, 4, 4, channels))).graph
    (convolution,) = [op for op in graph.get_operations() if op.type == "Conv2D"]
    assert convolution.get_attr("strides") == strides


def test_a_strided_1x1_convolution_with_channels_first(rng):
    x = images(rng).transpose(0, 3, 1, 2)
    layer = GroupedConv2D(4, 1, strides=(2, 3), groups=2, data_format="channels_first")
    found = layer(x)
    first, second = np.split(layer.kernel[0, 0], 2, axis=-1)
    kernel = scipy.linalg.block_diag(first, second)
    expected = np.einsum("bchw,cf->bfhw", x[:, :, ::2, ::3], kernel)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_the_gradient_of_a_strided_1x1_rebuilds_its_features(rng):
    layer, x = GroupedConv2D(6, 1, strides=2), tf.constant(images(rng))
    layer.build(x.shape)

    @tf.function
    def gradients(x, *, marked):
        with tf.GradientTape() as tape:
            tape.watch(x)
            features = 2 * x
            if marked:
                mark_rebuildable(features, lambda: 2 * x, like=x)
            loss = tf.reduce_sum(tf.sin(layer(features)))
        return tape.gradient(loss, [x, layer.kernel.value])

    for found, expected in zip(gradients(x, marked=True), gradients(x, marked=False), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-5)


def test_where_the_kernel_is_missing_groups_are_convolved_one_by_one(rng, monkeypatch):
    x, layer = images(rng), GroupedConv2D(12, 3, groups=3, padding="same")
    expected = layer(x)
    monkeypatch.setattr(conv, "cpu_takes_grouped_kernels", lambda dtype: False)
    graph = tf.function(lambda x: layer(x)).get_concrete_function(x).graph
    assert len([op for op in graph.get_operations() if op.type == "Conv2D"]) == 3
    np.testing.assert_allclose(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_a_grouped_convolution_does_not_go_through_xla(rng):
    layer = GroupedConv2D(12, 3, groups=3)
    concrete = tf.function(lambda x: layer(x)).get_concrete_function(images(rng))
    graph = concrete.graph.as_graph_def()
    attributes = [f.attr for f in graph.library.function] + [n.attr for n in graph.node]
    assert not any(a["_XlaMustCompile"].b for a in attributes if "_XlaMustCompile" in a)


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "mixed_bfloat16"])
def test_the_symbolic_output_has_the_shape_and_dtype_of_the_real_one(name, policy, rng):
    keras.config.set_dtype_policy(policy)
    block = BLOCKS[name]()
    real, spec = block(images(rng)), block(keras.Input((9, 9, 6)))
    assert spec.shape == (None, *real.shape[1:])
    assert spec.dtype == real.dtype.name


@pytest.mark.parametrize("name", BLOCKS)
def test_the_config_recreates_the_block(name, rng):
    block, x = BLOCKS[name](), images(rng)
    block(x)
    again = type(block).from_config(block.get_config())
    again(x)
    again.set_weights(block.get_weights())
    np.testing.assert_array_equal(block(x), again(x))


@pytest.mark.parametrize("size", [8, 9])
def test_padding_is_symmetric_at_every_stride(size, rng):
    x = images(rng, size=size)
    conv = ConvNormAct(4, 3, strides=2, activation=None)
    mirrored = conv(x)
    expected = tf.nn.conv2d(
        tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]]), conv.conv.kernel, 2, "VALID"
    )
    np.testing.assert_allclose(mirrored, expected / np.sqrt(1 + 1e-5), rtol=1e-4, atol=1e-5)


def test_squeeze_excite_by_hand(rng):
    x, layer = images(rng), SqueezeExcite(6, 2)
    found = layer(x)
    (w1, b1), (w2, b2) = layer.fc1.get_weights(), layer.fc2.get_weights()
    hidden = np.maximum(x.mean(axis=(1, 2)) @ w1 + b1, 0)
    scale = 1 / (1 + np.exp(-(hidden @ w2 + b2)))
    np.testing.assert_allclose(found, x * scale[:, None, None], rtol=1e-5)


def test_an_inverted_residual_adds_its_input_only_where_shapes_agree(rng):
    for block, adds in (
        (InvertedResidualBlock(6, 6), True),
        (InvertedResidualBlock(8, 6), False),
        (InvertedResidualBlock(6, 6, strides=2), False),
    ):
        block.build((None, 9, 9, 6))
        for step in block.steps:
            step.conv.kernel.assign(np.zeros(step.conv.kernel.shape))
        x = images(rng)
        y = block(x)
        if adds:
            np.testing.assert_allclose(y, x, atol=1e-6)
        else:
            np.testing.assert_array_equal(y, np.zeros(y.shape))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: ConvNormAct(6, 3, groups=4), r"groups.*divide.*filters.*groups=4, filters=6"),
        (lambda: ConvNormAct(0, 3), r"filters.*at least 1.*0"),
        (lambda: BottleneckBlock(6, groups=4), r"groups=4, filters=6"),
        (lambda: BottleneckBlock(6, strides=0), r"strides.*0"),
        (lambda: BottleneckBlock(6, expansion=0), r"expansion.*0"),
        (lambda: SqueezeExcite(6, 0), r"reduced.*0"),
        (lambda: InvertedResidualBlock(6, 6, expansion=1.5), r"expansion.*1.5"),
    ],
)
def test_bad_sizes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()
