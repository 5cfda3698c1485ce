"""Threshold gate: edges whose weight does not exceed the threshold are closed."""

import math
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from dgnet_keras.checks import check_choice
from dgnet_keras.layers.gates import GRADIENTS, Gradient, check_gate, registered_gate

if TYPE_CHECKING:
    from dgnet_keras.layers.options import GraphOptions


def make_gate(options: "GraphOptions", **kwargs: Any) -> keras.layers.Layer:
    """The gate that a stage's options name; `kwargs` are the layer's `name` and `dtype`."""
    make = registered_gate(options.gate)
    if make is not None:
        return make(options, **kwargs)
    return ThresholdGate(
        options.resolved_threshold,
        gate=options.gate,  # type: ignore[arg-type]  # one of GRADIENTS, the options say
        learn_threshold=options.learn_threshold,
        edge_scale=options.resolved_edge_scale,
        **kwargs,
    )


def gate_dtype(compute_dtype: str | tf.DType) -> str:
    """The dtype of edge weights: float32 under every policy, wider only under a float64 policy."""
    return "float64" if keras.backend.standardize_dtype(compute_dtype) == "float64" else "float32"


def threshold_gate(
    edge_weights: tf.Tensor,
    threshold: float | tf.Tensor,
    *,
    gate: Gradient = "straight_through",
    sharpness: float = 10.0,
    keep: tf.Tensor | None = None,
) -> tf.Tensor:
    """Closes the edges under the threshold: `a * (a > threshold)`, with a chosen gradient.

    Gradient with regard to the edge weight a and the threshold tau, s = sigmoid(k (a - tau)):

    - `straight_through`: da = 1 everywhere, so that a closed edge can open again;
    - `masked`: da = 1 on open edges, 0 on closed ones;
    - `surrogate`: da = s + a k s (1 - s), dtau = -a k s (1 - s).

    Args:
        edge_weights: tensor of any shape, float32 or float64.
        threshold: scalar, or a tensor that broadcasts against `edge_weights`, of its dtype.
        gate: one of `GRADIENTS`.
        sharpness: k above, per unit of edge weight.
        keep: boolean tensor shaped like `edge_weights`; its edges are open even under the
            threshold. None keeps none.

    Returns:
        Tensor shaped like `edge_weights`: the weight of an open edge, 0 of a closed one.
    """

    @tf.custom_gradient
    def apply(a, tau):
        is_open = a > tau
        if keep is not None:
            is_open = tf.logical_or(is_open, keep)
        mask = tf.cast(is_open, a.dtype)

        def gradient(upstream):
            if gate == "straight_through":
                return upstream, tf.zeros_like(tau)
            if gate == "masked":
                return upstream * mask, tf.zeros_like(tau)
            s = tf.sigmoid(sharpness * (a - tau))
            slope = a * sharpness * s * (1 - s)
            return upstream * (s + slope), _sum_to_shape(-upstream * slope, tau)

        return a * mask, gradient

    return apply(edge_weights, tf.convert_to_tensor(threshold, edge_weights.dtype))


def _sum_to_shape(gradient, target):
    """Sums a gradient over the axes along which `target` was broadcast."""
    axes, _ = tf.raw_ops.BroadcastGradientArgs(s0=tf.shape(target), s1=tf.shape(gradient))
    return tf.reshape(tf.reduce_sum(gradient, axes), tf.shape(target))


@keras.saving.register_keras_serializable(package="dgnet_keras")
class ThresholdGate(keras.layers.Layer):
    """Threshold gate: keeps an edge weight above the threshold, sets every other to 0.

    The forward pass is `a * (a > threshold)`; what the backward pass does is `gate`, see
    `threshold_gate`. The comparison is done in float32 under every dtype policy (float64 under
    a float64 policy). That the paper closes edges under a threshold is its abstract (arXiv
    2010.01097); the three gradients are this implementation's own definitions.

    Args:
        threshold: float in [0, edge_scale), in units of edge weight. With `learn_threshold` it
            is the initial value, and must be above 0.
        gate: `"straight_through"`, `"masked"` or `"surrogate"`.
        learn_threshold: whether the threshold is trained, as `edge_scale * sigmoid(t)` with one
            trainable scalar t. Needs `gate="surrogate"`, the only gate with a gradient for it.
        edge_scale: positive float; the largest value that an edge weight can take.
        sharpness: positive float, k of the surrogate gradient, per unit of edge weight.

    Call arguments:
        inputs: edge weights, any shape.
        keep: optional boolean tensor of the shape of `inputs`: edges that stay open.
        threshold: optional; taken in place of the gate's own. Scalar, or a tensor that broadcasts
            against `inputs`.

    Returns:
        Tensor of the shape of `inputs`, float32.

    Raises:
        ValueError: for an unknown gate, a threshold outside [0, edge_scale), or a learned
            threshold without the surrogate gradient or at 0.
    """

    def __init__(
        self,
        threshold: float = 0.1,
        *,
        gate: Gradient = "straight_through",
        learn_threshold: bool = False,
        edge_scale: float = 1.0,
        sharpness: float = 10.0,
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        check_choice("gate", gate, GRADIENTS)
        check_gate(
            gate, threshold=threshold, edge_scale=edge_scale, learn_threshold=learn_threshold
        )
        if not sharpness > 0:
            raise ValueError(f"`sharpness` must be positive. Received: sharpness={sharpness}")
        self.threshold = float(threshold)
        self.gate = gate
        self.learn_threshold = learn_threshold
        self.edge_scale = float(edge_scale)
        self.sharpness = float(sharpness)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the trainable threshold logit, a scalar, where the threshold is learned."""
        if self.learn_threshold:
            share = self.threshold / self.edge_scale
            self.threshold_logit = self.add_weight(
                name="threshold_logit",
                shape=(),
                initializer=keras.initializers.Constant(math.log(share / (1 - share))),
                autocast=False,
            )

    def current_threshold(self) -> float | tf.Tensor:
        """The threshold in force: a float, or a scalar tensor where it is learned."""
        if not self.learn_threshold:
            return self.threshold
        dtype = gate_dtype(self.compute_dtype)
        return self.edge_scale * tf.sigmoid(tf.cast(self.threshold_logit, dtype))

    def set_threshold(self, threshold: float) -> None:
        """Gives the gate another threshold, in [0, edge_scale), learned or not."""
        check_gate(
            self.gate, threshold=threshold, edge_scale=self.edge_scale, learn_threshold=False
        )
        if self.learn_threshold:
            share = max(threshold / self.edge_scale, 1e-6)
            self.threshold_logit.assign(math.log(share / (1 - share)))
        else:
            self.threshold = float(threshold)

    def call(
        self,
        inputs: tf.Tensor,
        keep: tf.Tensor | None = None,
        threshold: float | tf.Tensor | None = None,
        logits: tf.Tensor | None = None,
        training: bool | None = None,
    ) -> tf.Tensor:
        """Gates the edge weights, of any shape; `logits` and `training` change nothing here."""
        edge_weights = tf.cast(inputs, gate_dtype(self.compute_dtype))
        return threshold_gate(
            edge_weights,
            self.current_threshold() if threshold is None else threshold,
            gate=self.gate,
            sharpness=self.sharpness,
            keep=keep,
        )

    def compute_output_spec(self, inputs: keras.KerasTensor, **kwargs: Any) -> keras.KerasTensor:
        """The output's shape is the input's; its dtype is float32 under every policy."""
        return keras.KerasTensor(inputs.shape, dtype=gate_dtype(self.compute_dtype))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "threshold": self.threshold,
            "gate": self.gate,
            "learn_threshold": self.learn_threshold,
            "edge_scale": self.edge_scale,
            "sharpness": self.sharpness,
        }
