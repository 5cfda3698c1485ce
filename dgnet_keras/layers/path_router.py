"""Routers and gate of paths: whether a sample takes a node, from the features that reach it."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.checks import is_number
from dgnet_keras.layers.gate import gate_dtype
from dgnet_keras.layers.initializers import ArrayInitializer
from dgnet_keras.layers.router import pool

# Logit, above the threshold, that nodes start with: with the noise of training 95 % are taken.
INITIAL_LOGIT = 3.0
_MOMENTUM = 0.9
_EPSILON = 1e-5


@keras.saving.register_keras_serializable(package="dgnet_keras")
class PathRouter(keras.layers.Layer):
    """Global average pooling, normalisation, Dense, ReLU, Dense: one logit a sample.

    The normalisation is over the batch in training; in inference, and for a batch of one sample,
    which has no spread, by moving statistics. All is computed in float32 under every dtype policy.
    Features get no gradient from here. This form of router is this implementation's own definition.

    Args:
        hidden_units: of the first dense layer.
        seed: int, or sequence of ints, of its initial kernel.
        bias_initializer: initializer of the logit's bias, (1,); its kernel starts at 0, so that
            all samples start with this logit.

    Call arguments:
        inputs: features, (batch, height, width, channels), any float dtype.
        training: whether statistics are the batch's, and moving ones are updated.

    Returns:
        Logits, float32 (batch,).

    Raises:
        ValueError: if `hidden_units` is not positive, or the input is not of rank 4.
    """

    def __init__(
        self,
        hidden_units: int = 16,
        *,
        seed: int | Sequence[int] = 0,
        bias_initializer: str | Callable[..., Any] = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if hidden_units < 1:
            raise ValueError(f"`hidden_units` must be at least 1. Received: {hidden_units}")
        self.hidden_units = hidden_units
        self.seed = seed
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.input_spec = keras.InputSpec(ndim=4)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates two kernels and biases, and moving mean and variance, (channels,)."""
        channels = input_shape[-1]
        assert channels is not None
        drawn = np.random.default_rng(self.seed).normal(size=(channels, self.hidden_units))
        kernel = ArrayInitializer((drawn * np.sqrt(2 / channels)).astype("float32"))
        weights = {
            "moving_mean": ((channels,), "zeros"),
            "moving_variance": ((channels,), "ones"),
            "hidden_kernel": ((channels, self.hidden_units), kernel),
            "hidden_bias": ((self.hidden_units,), "zeros"),
            "kernel": ((self.hidden_units, 1), "zeros"),
            "bias": ((1,), self.bias_initializer),
        }
        for name, (shape, initializer) in weights.items():
            weight = self.add_weight(
                name=name,
                shape=shape,
                initializer=initializer,
                trainable=not name.startswith("moving"),
                autocast=False,
            )
            setattr(self, name, weight)
        self.input_spec = keras.InputSpec(ndim=4, axes={-1: channels})

    def call(self, inputs: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """Returns the logits, (batch,)."""
        dtype = gate_dtype(self.compute_dtype)
        pooled = tf.cast(pool(tf.stop_gradient(inputs)), dtype)
        pooled = tf.reshape(pooled, [-1, self.moving_mean.shape[0]])
        moving = self.moving_mean, self.moving_variance
        mean, variance = kept = [tf.cast(v.value, dtype) for v in moving]
        if training and self.trainable:
            several = tf.shape(pooled)[0] > 1
            own = tf.nn.moments(pooled, axes=[0])
            mean, variance = (
                tf.where(several, new, old) for new, old in zip(own, kept, strict=True)
            )
            for variable, new, old in zip(moving, (mean, variance), kept, strict=True):
                moved = old * _MOMENTUM + new * (1 - _MOMENTUM)
                variable.assign(tf.where(several, moved, old))
        x = (pooled - mean) * tf.math.rsqrt(variance + _EPSILON)
        kernel, hidden_bias, weights, bias = (
            tf.cast(v.value, dtype)
            for v in (self.hidden_kernel, self.hidden_bias, self.kernel, self.bias)
        )
        x = tf.nn.relu(_product(x, kernel) + hidden_bias)
        return tf.reduce_sum(x * tf.reshape(weights, [-1]), axis=1) + bias

    def macs(self, channels: int) -> int:
        """Multiply-adds of one sample's features of so many channels."""
        return (channels + 1) * self.hidden_units

    def compute_output_spec(self, inputs: keras.KerasTensor, **kwargs: Any) -> keras.KerasTensor:
        """(batch,), float32 under every policy."""
        return keras.KerasTensor((inputs.shape[0],), gate_dtype(self.compute_dtype))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "hidden_units": self.hidden_units,
            "seed": self.seed,
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }


def _product(x, kernel):
    """`x @ kernel`, (batch, units).

    oneDNN has no kernel of this version of the operation; its others are several times slower
    for a single sample.
    """
    batched = tf.raw_ops.BatchMatMulV3(x=x[None], y=kernel[None], Tout=x.dtype)
    return tf.reshape(batched, [-1, kernel.shape[1]])


@keras.saving.register_keras_serializable(package="dgnet_keras")
class PathGate(keras.layers.Layer):
    """Takes a node where its logit is above the threshold: a hard choice.

    In training logistic noise is added to the logits, and the choice has the gradient of the
    sigmoid of what is compared (Gumbel straight-through of two classes, temperature 1, arXiv
    1611.01144). In inference there is no noise, and no gradient.

    Args:
        threshold: float, in logits: where the weight of that name starts.
        seed: int, of the noise.

    Call arguments:
        logits: (batch,).
        threshold: optional; taken in place of the gate's own. Scalar, or (batch, 1).
        training: whether there is noise, and a gradient.

    Returns:
        Whether the node is taken, (batch,): boolean, in training float32, 1 or 0.

    Attributes:
        threshold: weight, a scalar, not trained.
        noise: weight, a scalar, not trained: what the noise is multiplied by, 1 at first.
    """

    def __init__(self, threshold: float = 0.0, *, seed: int = 0, **kwargs: Any) -> None:
        super().__init__(autocast=False, **kwargs)
        self.initial_threshold = float(threshold)
        self.seed = seed
        self._noise_seeds = keras.random.SeedGenerator(seed)
        # Keras does not have `tf.train.Checkpoint` see it.
        self._noise_state = self._noise_seeds.state.value

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the threshold and the noise's scale."""
        start = {"threshold": self.initial_threshold, "noise": 1.0}
        self.threshold, self.noise = (
            self.add_weight(
                name=name,
                shape=(),
                initializer=keras.initializers.Constant(value),
                trainable=False,
                autocast=False,
            )
            for name, value in start.items()
        )

    def call(
        self,
        logits: tf.Tensor,
        threshold: float | tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Returns which samples take the node, (batch,)."""
        limit = tf.cast(self.threshold if threshold is None else threshold, logits.dtype)
        margin = logits - (limit if limit.shape.rank == 0 else tf.reshape(limit, [-1]))
        if not training:
            return margin > 0
        tiny = np.finfo(logits.dtype.as_numpy_dtype).tiny
        u = keras.random.uniform(
            tf.shape(logits), tiny, 1.0, dtype=logits.dtype.name, seed=self._noise_seeds
        )
        logistic = tf.math.log(u) - tf.math.log1p(-u)
        return hard(margin + tf.cast(self.noise, logits.dtype) * logistic)

    @property
    def noise_state(self) -> tf.Variable:
        """State of what draws the noise: with it and its weights a gate goes on as it was."""
        return self._noise_state

    def set_threshold(self, threshold: float) -> None:
        """Gives the weight `threshold` a value, in logits; infinity takes no node, minus it all."""
        if not is_number(threshold) or math.isnan(threshold):
            raise ValueError(f"`threshold` must be a number. Received: {threshold!r}")
        self.threshold.assign(threshold)

    def current_threshold(self) -> tf.Tensor:
        """The threshold in force, a scalar in logits."""
        return self.threshold.value

    def compute_output_spec(self, logits: keras.KerasTensor, **kwargs: Any) -> keras.KerasTensor:
        """The shape of the logits."""
        return keras.KerasTensor(logits.shape, gate_dtype(self.compute_dtype))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "threshold": self.initial_threshold, "seed": self.seed}


@tf.custom_gradient
def hard(margin: tf.Tensor) -> tuple[tf.Tensor, Callable[[tf.Tensor], tf.Tensor]]:
    """1 where `margin` is above 0, else 0, with the gradient of the sigmoid of `margin`."""

    def gradient(upstream):
        soft = tf.sigmoid(margin)
        return upstream * soft * (1 - soft)

    return tf.cast(margin > 0, margin.dtype), gradient
