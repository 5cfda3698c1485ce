"""Router: from a node's features to the weights of its outgoing edges."""

from collections.abc import Callable
from typing import Any

import keras
import tensorflow as tf

from dgnet_keras.layers.gate import gate_dtype
from dgnet_keras.layers.gates import check_edge_scale

LOGIT_LIMIT = 12.0
# Values of a sample's features from which average pooling is faster than a mean: up to three times.
LARGE = 2**17


def pool(features: tf.Tensor) -> tf.Tensor:
    """Mean over height and width: (batch, height, width, channels) to (batch, 1, 1, channels).

    In float32, or float64 for float64 features: a large map's sum overflows in float16.
    """
    x = tf.cast(features, gate_dtype(features.dtype))
    height, width, channels = x.shape[1:]
    if height and width and height * width * channels >= LARGE and x.shape[0] != 0:
        return tf.nn.avg_pool2d(x, (height, width), 1, "VALID")
    # Over one axis: TensorFlow's sum over two neighbouring axes is slower on a CPU.
    if height and width:
        flat = tf.reshape(x, [-1, height * width, channels])
    else:
        shape = tf.shape(x)
        flat = tf.reshape(x, tf.stack([shape[0], shape[1] * shape[2], channels]))
    return tf.reshape(tf.reduce_mean(flat, axis=1), [-1, 1, 1, channels])


def edge_weights_from_logits(logits: tf.Tensor, edge_scale: float) -> dict[str, tf.Tensor]:
    """`edge_scale * sigmoid(clip(logits, -12, 12))`: weights, and the clipped logits.

    Args:
        logits: tensor of any shape, float32 or float64.
        edge_scale: the largest value that an edge weight can take.

    Returns:
        Dict with `"logits"` (clipped) and `"edge_weights"`, both of the shape of `logits`.
    """
    logits = tf.clip_by_value(logits, -LOGIT_LIMIT, LOGIT_LIMIT)
    return {"logits": logits, "edge_weights": edge_scale * tf.sigmoid(logits)}


@keras.saving.register_keras_serializable(package="dgnet_keras")
class Router(keras.layers.Layer):
    """Global average pooling, Dense, clip to [-12, 12], sigmoid, times `edge_scale`.

    One edge weight for each later node of the graph. Pooling and everything after it is
    computed in float32 under every dtype policy. This form of router is this implementation's
    own definition.

    Args:
        num_edges: number of outgoing edges.
        edge_scale: positive float; the largest value that an edge weight can take.
        kernel_initializer: initializer of the dense kernel, (channels, num_edges).
        bias_initializer: initializer of the dense bias, (num_edges,).

    Call arguments:
        inputs: features, (batch, height, width, channels), any float dtype.

    Returns:
        Dict of two float32 tensors of shape (batch, num_edges): `"logits"`, in [-12, 12], and
        `"edge_weights"`, in (0, edge_scale).

    Raises:
        ValueError: if `num_edges` is not positive, or the input is not of rank 4.
    """

    def __init__(
        self,
        num_edges: int,
        *,
        edge_scale: float = 1.0,
        kernel_initializer: str | Callable[..., Any] = "zeros",
        bias_initializer: str | Callable[..., Any] = "zeros",
        **kwargs: Any,
    ) -> None:
        super().__init__(autocast=False, **kwargs)
        if num_edges < 1:
            raise ValueError(f"`num_edges` must be at least 1. Received: num_edges={num_edges}")
        check_edge_scale(edge_scale)
        self.num_edges = num_edges
        self.edge_scale = float(edge_scale)
        self.kernel_initializer = keras.initializers.get(kernel_initializer)
        self.bias_initializer = keras.initializers.get(bias_initializer)
        self.input_spec = keras.InputSpec(ndim=4)

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the kernel, (channels, num_edges), and the bias, (num_edges,)."""
        channels = input_shape[-1]
        self.kernel = self.add_weight(
            name="kernel",
            shape=(channels, self.num_edges),
            initializer=self.kernel_initializer,
            autocast=False,
        )
        self.bias = self.add_weight(
            name="bias",
            shape=(self.num_edges,),
            initializer=self.bias_initializer,
            autocast=False,
        )
        self.input_spec = keras.InputSpec(ndim=4, axes={-1: channels})

    def call(self, inputs: tf.Tensor) -> dict[str, tf.Tensor]:
        """Returns logits and edge weights, both (batch, num_edges)."""
        dtype = gate_dtype(self.compute_dtype)
        is_pooled = tuple(inputs.shape[1:3]) == (1, 1)
        pooled = tf.cast(inputs if is_pooled else pool(inputs), dtype)
        pooled = tf.reshape(pooled, [-1, self.kernel.shape[0]])
        logits = tf.matmul(pooled, tf.cast(self.kernel, dtype)) + tf.cast(self.bias, dtype)
        return edge_weights_from_logits(logits, self.edge_scale)

    def macs(self, channels: int) -> int:
        """Multiply-adds of one sample's features of so many channels."""
        return channels * self.num_edges

    def compute_output_spec(self, inputs: keras.KerasTensor) -> dict[str, keras.KerasTensor]:
        """Two tensors of shape (batch, num_edges), float32 under every policy."""
        shape = (inputs.shape[0], self.num_edges)
        dtype = gate_dtype(self.compute_dtype)
        return {name: keras.KerasTensor(shape, dtype) for name in ("logits", "edge_weights")}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "num_edges": self.num_edges,
            "edge_scale": self.edge_scale,
            "kernel_initializer": keras.initializers.serialize(self.kernel_initializer),
            "bias_initializer": keras.initializers.serialize(self.bias_initializer),
        }
