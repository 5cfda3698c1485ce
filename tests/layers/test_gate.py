import copy

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import adjacency, create, images, randomize, weight

from dgnet_keras.layers import ThresholdGate, gates, register_gate

TAU = 0.4
WEIGHTS = np.array([[0.1, 0.39, 0.41, 0.9], [0.2, 0.5, 0.05, 0.7]])


def gate_gradient(gate, upstream, **kwargs):
    layer = ThresholdGate(TAU, gate=gate, dtype="float64", **kwargs)
    a = tf.constant(WEIGHTS)
    with tf.GradientTape() as tape:
        tape.watch(a)
        value = tf.reduce_sum(layer(a) * upstream)
    return tape.gradient(value, a)


def finite_difference(function, x, eps=1e-6):
    gradient = np.zeros_like(x)
    for index in np.ndindex(x.shape):
        step = np.zeros_like(x)
        step[index] = eps
        gradient[index] = (function(x + step) - function(x - step)) / (2 * eps)
    return gradient


@pytest.fixture
def upstream(rng):
    return rng.normal(size=WEIGHTS.shape)


@pytest.mark.parametrize("gate", ["straight_through", "masked", "surrogate"])
def test_open_edges_keep_their_weight_and_closed_ones_are_zero(gate):
    gated = ThresholdGate(TAU, gate=gate)(WEIGHTS.astype("float32"))
    np.testing.assert_allclose(gated, [[0, 0, 0.41, 0.9], [0, 0.5, 0, 0.7]], rtol=1e-6)


def test_an_edge_exactly_at_the_threshold_is_closed():
    assert np.array_equal(ThresholdGate(0.5)(tf.constant([0.5, 0.50001]))[0], 0.0)


def test_kept_edges_stay_open_under_the_threshold():
    keep = tf.constant([[True, False, False, False]] * 2)
    gated = ThresholdGate(TAU)(WEIGHTS.astype("float32"), keep=keep)
    np.testing.assert_allclose(gated[:, 0], [0.1, 0.2], rtol=1e-6)


def test_straight_through_gradient_is_that_of_closed_entries_with_their_value_removed(upstream):
    closed = WEIGHTS <= TAU

    def replaced(a):
        return np.sum(np.where(closed, a - WEIGHTS, a) * upstream)

    gradient = gate_gradient("straight_through", upstream)
    np.testing.assert_allclose(gradient, finite_difference(replaced, WEIGHTS), rtol=1e-6)


def test_masked_gradient_is_the_finite_difference_of_the_gate(upstream):
    def gate(a):
        return np.sum(np.where(a > TAU, a, 0) * upstream)

    gradient = gate_gradient("masked", upstream)
    np.testing.assert_allclose(gradient, finite_difference(gate, WEIGHTS), rtol=1e-6, atol=1e-9)
    assert np.all(gradient.numpy()[WEIGHTS <= TAU] == 0)


def test_surrogate_gradient_is_that_of_the_smooth_gate(upstream):
    def smooth(a, tau=TAU):
        return np.sum(a / (1 + np.exp(-7.0 * (a - tau))) * upstream)

    gradient = gate_gradient("surrogate", upstream, sharpness=7.0)
    np.testing.assert_allclose(gradient, finite_difference(smooth, WEIGHTS), rtol=1e-6)


def test_learned_threshold_gets_the_surrogate_gradient(upstream):
    layer = ThresholdGate(
        TAU, gate="surrogate", sharpness=7.0, learn_threshold=True, edge_scale=2.0, dtype="float64"
    )
    with tf.GradientTape() as tape:
        value = tf.reduce_sum(layer(tf.constant(WEIGHTS)) * upstream)
    gradient = tape.gradient(value, layer.threshold_logit.value)

    def smooth(t):
        tau = 2.0 / (1 + np.exp(-t))
        return np.sum(WEIGHTS / (1 + np.exp(-7.0 * (WEIGHTS - tau))) * upstream)

    logit = layer.threshold_logit.numpy()
    np.testing.assert_allclose(gradient, finite_difference(smooth, np.array(logit)), rtol=1e-5)
    np.testing.assert_allclose(layer.current_threshold(), TAU, rtol=1e-6)


@pytest.mark.parametrize("gate", ["straight_through", "masked"])
def test_a_kept_edge_has_the_gradient_of_an_open_one(gate):
    a = tf.constant([0.1, 0.2])
    with tf.GradientTape() as tape:
        tape.watch(a)
        value = tf.reduce_sum(ThresholdGate(TAU, gate=gate)(a, keep=tf.constant([True, False])))
    assert tape.gradient(value, a).numpy()[0] == 1


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float32"])
def test_the_comparison_is_in_float32_under_every_policy(policy):
    # 0.1001 is not above 0.1 once rounded to bfloat16 or compared in it.
    gated = ThresholdGate(0.1, dtype=policy)(tf.constant([0.1001, 0.0999]))
    assert gated.dtype == tf.float32
    np.testing.assert_array_equal(gated > 0, [True, False])


def test_the_symbolic_output_has_the_shape_and_dtype_of_the_real_one():
    gate = ThresholdGate(dtype="mixed_bfloat16")
    spec = gate(keras.Input((5,), dtype="bfloat16"))
    assert spec.shape == (None, 5)
    assert spec.dtype == "float32"


def test_the_config_recreates_the_gate():
    gate = ThresholdGate(0.3, gate="surrogate", learn_threshold=True, edge_scale=2.0, sharpness=4.0)
    assert ThresholdGate.from_config(gate.get_config()).get_config() == gate.get_config()


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"threshold": -0.1}, r"threshold.*\[0, edge_scale\).*-0.1"),
        ({"threshold": 1.0}, r"threshold.*\[0, 1.0\).*1.0"),
        ({"threshold": float("nan")}, "threshold"),
        ({"gate": "hard"}, "straight_through.*'hard'"),
        ({"learn_threshold": True}, "surrogate.*straight_through"),
        ({"learn_threshold": True, "gate": "surrogate", "threshold": 0}, "above 0"),
        ({"edge_scale": 0.0}, "edge_scale"),
        ({"sharpness": -1.0}, "sharpness.*-1.0"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        ThresholdGate(**kwargs)


@keras.saving.register_keras_serializable(package="tests")
class GumbelGate(keras.layers.Layer):
    """Open where the edge's logit, in training with logistic noise, is above 0; weight 1."""

    def __init__(self, temperature=1.0, **kwargs):
        super().__init__(autocast=False, **kwargs)
        self.temperature = temperature

    def call(self, edge_weights, *, logits, keep, threshold, training):
        if training:
            noise = tf.random.stateless_uniform(tf.shape(logits), (1, 2), 1e-6, 1 - 1e-6)
            logits += tf.math.log(noise) - tf.math.log(1 - noise)
        soft = tf.sigmoid(logits / self.temperature)
        is_open = tf.cast(soft > 0.5 if keep is None else (soft > 0.5) | keep, soft.dtype)
        return soft + tf.stop_gradient(is_open - soft)


@pytest.fixture
def gumbel(monkeypatch):
    """The name of a registered gate with noise in training."""
    monkeypatch.setattr(gates, "_registered", {})
    register_gate("gumbel", lambda options, **kwargs: GumbelGate(temperature=0.5, **kwargs))
    return "gumbel"


def test_a_registered_gate_gets_logits_and_training(gumbel, tmp_path):
    model = randomize(create("resnet_basic", gate=gumbel))
    x = images()
    assert set(np.unique(adjacency(model, x)["stage2"])) == {0, 1}
    stage = model.get_layer("stage2")
    features = np.random.default_rng(0).normal(size=(16, 8, 8, 4)).astype("float32")
    still, noisy = (stage(features, training=t)["adjacency"]["stage2"] for t in (False, True))
    np.testing.assert_array_equal(still, stage(features)["adjacency"]["stage2"])
    assert not np.array_equal(still, noisy)
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(x), model(x))
    stage._gates["1"].trainable = False  # the gate has no config
    again = copy.deepcopy(model).get_layer("stage2")
    assert [again._gates[key].trainable for key in ("1", "2", "3")] == [False, True, True]


def test_a_registered_gate_is_trained_through_its_own_gradient(gumbel):
    model = randomize(create("resnet_basic", gate=gumbel))
    kernel = weight(model, "stage2/router_0/kernel")
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(model(images(), training=True) ** 2)
    assert np.abs(tape.gradient(loss, kernel.value)).max() > 0


def test_a_gate_that_is_not_registered_is_refused(gumbel):
    with pytest.raises(ValueError, match=r"`gate` must be one of .*'gumbel'.*'gumble'"):
        create("resnet_basic", gate="gumble")
    for name in ("masked", ""):
        with pytest.raises(ValueError, match="`name` must be a new gate's"):
            register_gate(name, GumbelGate)
