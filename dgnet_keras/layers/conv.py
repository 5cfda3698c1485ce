"""Convolutions: grouped ones off XLA, and with normalisation and activation as one layer."""

from typing import Any

import keras
import tensorflow as tf

from dgnet_keras.checks import check_divides, check_positive
from dgnet_keras.layers.composite import Composite
from dgnet_keras.layers.devices import cpu_takes_grouped_kernels, has_accelerator
from dgnet_keras.layers.initializers import next_seed
from dgnet_keras.layers.normalization import BatchNormalization
from dgnet_keras.layers.rebuild import convolve


def symmetric_padding(kernel_size: int) -> int:
    """Zero padding in pixels on each side, as PyTorch and timm pad: independent of image size."""
    return kernel_size // 2


# Channels that oneDNN computes at once with AVX-512; with AVX2 they are 8.
ONEDNN_BLOCK = 16


@keras.saving.register_keras_serializable(package="dgnet_keras")
class GroupedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose groups do not go through XLA on a CPU.

    Keras compiles a grouped convolution with XLA, which is slow on a CPU (`python -m
    benchmarks.grouped_conv`) and would be frozen into a SavedModel. Here a depthwise one
    (groups = channels) runs as `tf.nn.depthwise_conv2d`, any other as `tf.nn.conv2d` with a grouped
    kernel, or, where the kernel is missing (a CPU without oneDNN), group by group.

    A 1x1 convolution of fewer than 16 input channels takes its strides from the input first:
    oneDNN's gradient of the strided one writes past its memory (oneDNN issue 6035).

    Arguments, weights and errors are those of `keras.layers.Conv2D`.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves (batch, height, width, channels) with (kh, kw, channels / groups, filters)."""
        outputs = convolve(self._convolve, inputs, kernel)
        if tf.executing_eagerly() and inputs.shape[0] == 0:
            # oneDNN gives an empty batch the shape of its input.
            outputs = tf.reshape(outputs, self.compute_output_shape(tuple(inputs.shape)))
        return outputs

    def _convolve(self, inputs, kernel):
        strides = self.strides
        # Wider ones are right, and slower so: see docs/performance.md.
        narrow = kernel.shape[-2] < ONEDNN_BLOCK
        if narrow and self.kernel_size == (1, 1) and max(strides) > 1:
            inputs, strides = self._every_stride(inputs), (1, 1)
        if self.groups == 1 or self.data_format != "channels_last":
            return keras.ops.conv(
                inputs, kernel, strides, self.padding, self.data_format, self.dilation_rate
            )
        options = {"padding": self.padding.upper(), "dilations": list(self.dilation_rate)}
        depthwise = self.groups == inputs.shape[-1] and len(set(strides)) == 1
        if depthwise and (strides[0] == 1 or max(self.dilation_rate) == 1):
            shape = (*self.kernel_size, self.groups, self.filters // self.groups)
            return tf.nn.depthwise_conv2d(
                inputs, tf.reshape(kernel, shape), (1, *strides, 1), **options
            )
        if has_accelerator() or cpu_takes_grouped_kernels(inputs.dtype):
            return tf.nn.conv2d(inputs, kernel, strides, **options)
        parts = zip(
            tf.split(inputs, self.groups, axis=-1),
            tf.split(kernel, self.groups, axis=-1),
            strict=True,
        )
        # `tf.nn.convolution` has a gradient for dilated kernels on such a CPU, `tf.nn.conv2d` not.
        return tf.concat([tf.nn.convolution(x, k, strides, **options) for x, k in parts], axis=-1)

    def _every_stride(self, inputs):
        """The pixels that a 1x1 kernel takes, whatever the padding: 0, s, 2 s, ..."""
        rows, columns = self.strides
        if self.data_format == "channels_last":
            return inputs[:, ::rows, ::columns]
        return inputs[:, :, ::rows, ::columns]


@keras.saving.register_keras_serializable(package="dgnet_keras")
class ConvNormAct(Composite):
    """kxk convolution (grouped) without bias, batch normalisation, activation.

    Padding is symmetric (kernel_size // 2 on each side, as in timm) at every stride, so that
    published weights give the same numbers at any image size.

    Args:
        filters: number of output channels.
        kernel_size: odd int, in pixels.
        strides: int.
        groups: int that divides the input's channels and `filters`; equal to both, the
            convolution is depthwise.
        activation: Keras activation name, or None.
        momentum: of the moving statistics.
        epsilon: of the normalisation.

    Call arguments:
        inputs: (batch, height, width, channels).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), filters).

    Raises:
        ValueError: if a size is not a positive integer.
    """

    def __init__(
        self,
        filters: int,
        kernel_size: int,
        *,
        strides: int = 1,
        groups: int = 1,
        activation: str | None = "relu",
        momentum: float = 0.9,
        epsilon: float = 1e-5,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check_positive(filters=filters, kernel_size=kernel_size, strides=strides, groups=groups)
        check_divides("groups", groups, filters=filters)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.groups = groups
        self.activation = activation
        self.momentum = momentum
        self.epsilon = epsilon
        pad = symmetric_padding(kernel_size)
        # With stride 1, TensorFlow's "same" is the symmetric padding, and needs no extra copy.
        needs_pad = strides > 1 and pad > 0
        last = {"data_format": "channels_last"}  # whatever Keras is set to
        padding = keras.layers.ZeroPadding2D
        self.pad = self._layer(padding, "pad", pad, **last) if needs_pad else None
        self.conv = self._layer(
            GroupedConv2D,
            "conv",
            filters,
            kernel_size,
            strides=strides,
            padding="valid" if needs_pad else "same",
            groups=groups,
            use_bias=False,
            **last,
            # He's normal initialisation over fan-out, of which each group has its share.
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0 * groups, "fan_out", "normal", seed=next_seed()
            ),
        )
        self.norm = self._layer(BatchNormalization, "norm", momentum=momentum, epsilon=epsilon)
        self.act = self._layer(keras.layers.Activation, "act", activation) if activation else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the kernel and the normalisation's variables."""
        for layer in (self.pad, self.conv, self.norm, self.act):
            if layer is not None:
                layer.build(input_shape)
                input_shape = layer.compute_output_shape(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Convolves, normalises, activates."""
        x = inputs if self.pad is None else self.pad(inputs)
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """(batch, ceil(height / strides), ceil(width / strides), filters)."""
        if self.pad is not None:
            input_shape = self.pad.compute_output_shape(input_shape)
        return self.conv.compute_output_shape(input_shape)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "groups": self.groups,
            "activation": self.activation,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }
