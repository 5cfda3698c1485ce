"""The fast aggregation against the plain one, `tf.einsum` over stacked features."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from dgnet_keras.layers import GraphStage, aggregation, graph
from dgnet_keras.layers.aggregation import aggregate
from dgnet_keras.layers.blocks import BottleneckBlock
from dgnet_keras.layers.conv import ConvNormAct
from dgnet_keras.layers.devices import cpu_takes_grouped_kernels
from dgnet_keras.layers.gate import gate_dtype
from dgnet_keras.layers.rebuild import convolve, mark_rebuildable

WIRINGS = ["dynamic", "learned", "random", "complete"]  # those that aggregate


def einsum(column, features):
    """The definition, in the column's dtype."""
    stacked = tf.stack([tf.cast(x, column.dtype) for x in features])
    return tf.cast(tf.einsum("bj,jbhwc->bhwc", column, stacked), features[0].dtype)


class ReferenceFeatures:
    """Stands in for what runs the nodes: every operation as the definition has it."""

    def __init__(self, *args):
        self.features = []

    def add(self, features, route):
        self.features.append(features)
        wide = tf.cast(features, gate_dtype(features.dtype))
        return route(tf.reduce_mean(wide, axis=(1, 2), keepdims=True)) if route else None

    def run(self, block, column, is_on, route):
        return self.add(block(self.output(column)), route)

    def output(self, column):
        return einsum(column, self.features)


def use_reference(monkeypatch):
    monkeypatch.setattr(graph, "make_sources", ReferenceFeatures)


def value_and_gradients(function, inputs, mode):
    """A list: the value, and the gradients of a curved function of it."""

    def run(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            value = function(inputs)
            total = tf.reduce_sum(tf.sin(tf.cast(value, tf.float64)))
        return [value, *tape.gradient(total, inputs)]

    if mode != "eager":
        run = tf.function(run, jit_compile=mode == "xla")
    return run(inputs)


def assert_close(found, expected, tolerance):
    """Float32 and float64: no difference above `tolerance` times the tensor's largest value.

    For less precise features, where single values are off by many times that, it is the norm of
    the differences against the tensor's norm.
    """
    assert np.mean([np.any(b) for b in expected]) > 0.5, "hardly a gradient to compare"
    for a, b in zip(found, expected, strict=True):
        assert a.dtype == b.dtype
        a, b = (np.asarray(tf.cast(t, tf.float64)) for t in (a, b))
        if tolerance < 1e-5:
            np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())
        else:
            assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b)


@pytest.mark.parametrize(
    ("dtype", "tolerance"), [("float32", 1e-6), ("bfloat16", 2e-2), ("float16", 2e-3)]
)
@pytest.mark.parametrize(
    ("mode", "sources"),
    [("eager", 9), ("graph", 1), ("graph", 3), ("graph", 9), ("xla", 3)],
)
def test_aggregate_equals_einsum_over_stacked_features(mode, sources, dtype, tolerance, rng):
    column = tf.constant(rng.uniform(size=(4, sources)), tf.float32)
    features = [tf.cast(rng.normal(size=(4, 5, 5, 2)), dtype) for _ in range(sources)]
    found, expected = (
        value_and_gradients(lambda inputs, f=f: f(inputs[0], inputs[1:]), [column, *features], mode)
        for f in (aggregate, einsum)
    )
    assert_close(found, expected, tolerance)


def make_stage(wiring, dtype, threshold=0.45):
    """Blocks with convolutions whose inputs are rebuilt; five, so that some are and some not.

    In 16 bits their activations are smooth: one value that rounding moves over the kink of a ReLU
    changes a gradient by 5 %.
    """
    keras.utils.set_random_seed(0)
    blocks = [ConvNormAct(8, 3, strides=2, name="block_0", dtype=dtype)]
    blocks += [
        BottleneckBlock(4, expansion=2, groups=2, name=f"block_{i}", dtype=dtype)
        for i in range(1, 5)
    ]
    stage = GraphStage(blocks, wiring=wiring, threshold=threshold, dtype=dtype, name="stage1")
    stage.build((None, 10, 10, 3))
    for layer in stage._flatten_layers():
        if isinstance(layer, keras.layers.BatchNormalization):
            layer.trainable = False  # statistics of so small a batch would magnify rounding
        if isinstance(layer, keras.layers.Activation) and dtype.startswith("mixed"):
            layer.activation = keras.activations.silu
    rng = np.random.default_rng(0)
    for variable in stage.weights:
        if "router" in variable.path or variable.name.startswith("edge_logits"):
            variable.assign(rng.normal(0, 0.5, variable.shape))
    return stage


POLICIES = {"float32": 2e-6, "mixed_bfloat16": 5e-2, "mixed_float16": 8e-3}
HAS_GPU = bool(tf.config.list_physical_devices("GPU"))


def is_run(wiring, mode, policy):
    """Everything with one wiring; the others differ in what makes the column, not in its sums."""
    if wiring == "dynamic":
        return mode != "eager" or policy == "float32"
    if HAS_GPU:  # whose kernels are others by mode and precision
        return policy == "float32" or mode == "graph"
    return policy == "float32" and mode == "graph"


STAGES = [
    (wiring, mode, policy, training)
    for wiring in WIRINGS
    for mode in ("eager", "graph", "xla")
    for policy in POLICIES
    for training in (True, False)
    if is_run(wiring, mode, policy) and (training or mode == "graph")
]


@pytest.mark.parametrize(("wiring", "mode", "dtype", "training"), STAGES)
def test_a_stage_equals_one_that_aggregates_by_einsum(wiring, mode, dtype, training, monkeypatch):
    stage = make_stage(wiring, dtype)
    images = tf.random.stateless_normal((3, 10, 10, 3), (1, 2))
    variables = [v.value for v in stage.trainable_variables]

    def run(inputs):
        return stage(inputs[0], training=training)["features"]

    found = value_and_gradients(run, [images, *variables], mode)
    use_reference(monkeypatch)
    expected = value_and_gradients(run, [images, *variables], mode)
    assert_close(found, expected, POLICIES[dtype])


def test_on_accelerators_edge_gradients_are_a_sum_that_xla_fuses(monkeypatch, rng):
    column = tf.constant(rng.uniform(size=(4, 2)), tf.float32)
    features = [tf.constant(rng.normal(size=(4, 5, 5, 2)), tf.float32) for _ in range(2)]

    def edge_gradients():
        _, gradient, *_ = value_and_gradients(lambda x: aggregate(x[0], x[1:]), inputs, "eager")
        return gradient

    inputs = [column, *features]
    on_cpu = edge_gradients()
    monkeypatch.setattr(aggregation, "has_accelerator", lambda: True)
    np.testing.assert_allclose(edge_gradients(), on_cpu, rtol=1e-5)


@pytest.mark.skipif(
    cpu_takes_grouped_kernels("float32"),
    reason="TensorFlow's convolution with oneDNN gives an empty batch the shape of its input",
)
def test_an_empty_batch_has_gradients():
    stage = make_stage("dynamic", "float32")
    images = tf.zeros((0, 10, 10, 3))
    value, d_images = value_and_gradients(
        lambda inputs: stage(inputs[0], training=False)["features"], [images], "graph"
    )
    assert value.shape == (0, 5, 5, 8)
    assert d_images.shape == images.shape


def test_the_gradient_of_a_gradient_is_that_of_einsum(monkeypatch):
    stage = make_stage("dynamic", "float64", threshold=0.0)
    images = tf.random.stateless_normal((3, 10, 10, 3), (1, 2), dtype=tf.float64)

    @tf.function
    def slope(images):
        with tf.GradientTape() as tape:
            tape.watch(images)
            value = tf.reduce_sum(tf.sin(stage(images, training=True)["features"]))
        return tape.gradient(value, images)

    found = value_and_gradients(lambda inputs: slope(inputs[0]), [images], "graph")
    use_reference(monkeypatch)
    again = tf.function(slope.python_function)
    expected = value_and_gradients(lambda inputs: again(inputs[0]), [images], "graph")
    assert_close(found, expected, 1e-9)


def test_the_kernel_gradient_takes_rebuilt_features_and_the_others_stay(rng):
    images = tf.constant(rng.normal(size=(2, 5, 5, 3)), tf.float32)
    kernel = tf.constant(rng.normal(size=(3, 3, 3, 4)), tf.float32)

    def convolution(x, k):
        return tf.nn.conv2d(x, k, 1, "SAME")

    def run(inputs, factor):
        features = tf.identity(inputs[0])
        if factor:
            mark_rebuildable(features, lambda: factor * inputs[0], like=inputs[0])
        return tf.math.asin(tf.sin(0.001 * convolve(convolution, features, inputs[1])))

    plain = value_and_gradients(lambda i: run(i, None), [images, kernel], "graph")
    same = value_and_gradients(lambda i: run(i, 1.0), [images, kernel], "graph")
    doubled = value_and_gradients(lambda i: run(i, 2.0), [images, kernel], "graph")
    assert_close(same, plain, 1e-6)
    assert_close(doubled, [plain[0], plain[1], 2 * plain[2]], 1e-6)
