"""Convolutional blocks: the nodes of a graph. A block is tensor in, tensor out."""

from typing import Any

import keras
import tensorflow as tf

from dgnet_keras.layers.devices import cpu_takes_grouped_kernels, has_accelerator
from dgnet_keras.layers.normalization import BatchNormalization
from dgnet_keras.layers.rebuild import convolve


def symmetric_padding(kernel_size: int) -> int:
    """Zero padding in pixels on each side, as PyTorch and timm pad: independent of image size."""
    return kernel_size // 2


def check_positive(**values: object) -> None:
    """Raises `ValueError` unless every named value is an int of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")


def check_divides(divisor_name: str, divisor: int, **values: int) -> None:
    """Raises `ValueError` unless `divisor` divides every named value."""
    for name, value in values.items():
        if value % divisor:
            raise ValueError(
                f"`{divisor_name}` must divide `{name}`. Received: {divisor_name}={divisor}, "
                f"{name}={value}"
            )


@keras.saving.register_keras_serializable(package="dgnet_keras")
class GroupedConv2D(keras.layers.Conv2D):
    """`keras.layers.Conv2D` whose groups do not go through XLA on a CPU.

    Keras compiles a grouped convolution with XLA, which is slow on a CPU (`python -m
    benchmarks.grouped_conv`) and would be frozen into a SavedModel. Here a depthwise one
    (groups = channels) runs as `tf.nn.depthwise_conv2d`, any other as `tf.nn.conv2d` with a grouped
    kernel, or, where the kernel is missing (a CPU without oneDNN), group by group.

    Arguments, weights and errors are those of `keras.layers.Conv2D`.
    """

    def convolution_op(self, inputs: tf.Tensor, kernel: tf.Tensor) -> tf.Tensor:
        """Convolves (batch, height, width, channels) with (kh, kw, channels / groups, filters)."""
        return convolve(self._convolve, inputs, kernel)

    def _convolve(self, inputs, kernel):
        if self.groups == 1 or self.data_format != "channels_last":
            return super().convolution_op(inputs, kernel)
        options = {"padding": self.padding.upper(), "dilations": list(self.dilation_rate)}
        depthwise = self.groups == inputs.shape[-1] and len(set(self.strides)) == 1
        if depthwise and (self.strides[0] == 1 or max(self.dilation_rate) == 1):
            shape = (*self.kernel_size, self.groups, self.filters // self.groups)
            return tf.nn.depthwise_conv2d(
                inputs, tf.reshape(kernel, shape), (1, *self.strides, 1), **options
            )
        if has_accelerator() or cpu_takes_grouped_kernels(inputs.dtype):
            return tf.nn.conv2d(inputs, kernel, self.strides, **options)
        parts = zip(
            tf.split(inputs, self.groups, axis=-1),
            tf.split(kernel, self.groups, axis=-1),
            strict=True,
        )
        # `tf.nn.convolution` has a gradient for dilated kernels on such a CPU, `tf.nn.conv2d` not.
        return tf.concat(
            [tf.nn.convolution(x, k, self.strides, **options) for x, k in parts], axis=-1
        )


class _Composite(keras.layers.Layer):
    """A layer made of named sub-layers that run one after the other in `call`.

    A subclass makes its sub-layers in the constructor with `self._layer(cls, name, ...)`, which
    gives them this layer's dtype policy.
    """

    def _layer(self, cls, name, *args, **kwargs):
        return cls(*args, name=name, dtype=self.dtype_policy, **kwargs)


@keras.saving.register_keras_serializable(package="dgnet_keras")
class ConvNormAct(_Composite):
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
        self.pad = self._layer(keras.layers.ZeroPadding2D, "pad", pad) if needs_pad else None
        self.conv = self._layer(
            GroupedConv2D,
            "conv",
            filters,
            kernel_size,
            strides=strides,
            padding="valid" if needs_pad else "same",
            groups=groups,
            use_bias=False,
            # He's normal initialisation over fan-out, of which each group has its share.
            kernel_initializer=keras.initializers.VarianceScaling(
                2.0 * groups, "fan_out", "normal"
            ),
        )
        self.norm = self._layer(BatchNormalization, "norm", momentum=momentum, epsilon=epsilon)
        self.act = self._layer(keras.layers.Activation, "act", activation) if activation else None

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the kernel and the normalisation's variables."""
        if self.pad is not None:
            input_shape = self.pad.compute_output_shape(input_shape)
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))

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


class SqueezeExcite(_Composite):
    """Global average pooling, dense, ReLU, dense, sigmoid, times the input (arXiv 1709.01507).

    Args:
        channels: number of channels of the input.
        reduced: number of channels of the first dense layer.

    Call arguments:
        inputs: (batch, height, width, channels).

    Returns:
        Tensor like `inputs`: each channel scaled by its sample's weight in (0, 1).

    Raises:
        ValueError: if a size is not a positive integer.
    """

    def __init__(self, channels: int, reduced: int, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(channels=channels, reduced=reduced)
        self.channels = channels
        self.reduced = reduced
        self.fc1 = self._layer(keras.layers.Dense, "fc1", reduced, activation="relu")
        self.fc2 = self._layer(keras.layers.Dense, "fc2", channels, activation="sigmoid")

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Creates the two dense layers."""
        self.fc1.build((input_shape[0], self.channels))
        self.fc2.build((input_shape[0], self.reduced))

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Scales the channels; pools in float32, where a large map's sum does not overflow."""
        pooled = keras.ops.mean(keras.ops.cast(inputs, "float32"), axis=(1, 2), keepdims=True)
        return inputs * self.fc2(self.fc1(keras.ops.cast(pooled, self.compute_dtype)))

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """The input's shape."""
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "channels": self.channels, "reduced": self.reduced}


class ResidualBlock(_Composite):
    """Layers one after the other, and a shortcut around them; base of the blocks below.

    A subclass fills `self.steps` with its layers, the last convolution being a `ConvNormAct`.
    The shortcut projects (1x1) where the shape changes, if `project` says so; otherwise there is
    none in that case.
    """

    project = True
    activation: str | None = "relu"

    def __init__(self, filters: int, *, strides: int = 1, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check_positive(filters=filters, strides=strides)
        self.filters = filters
        self.strides = strides
        self.steps: list[keras.layers.Layer] = []
        self.shortcut: ConvNormAct | None = None
        if self.activation:
            self.act = self._layer(keras.layers.Activation, "act", self.activation)

    @property
    def out_channels(self) -> int:
        """Number of output channels."""
        return self.steps[-1].filters

    def build(self, input_shape: tuple[int | None, ...]) -> None:
        """Builds the layers in order, and the shortcut where the shape changes."""
        self.keeps_shape = self.strides == 1 and input_shape[-1] == self.out_channels
        if self.project and not self.keeps_shape:
            self.shortcut = self._layer(
                ConvNormAct,
                "shortcut",
                self.out_channels,
                1,
                strides=self.strides,
                activation=None,
            )
            self.shortcut.build(input_shape)
        for step in self.steps:
            step.build(input_shape)
            input_shape = step.compute_output_shape(input_shape)

    def call(self, inputs: tf.Tensor) -> tf.Tensor:
        """Runs the layers, adds the shortcut, activates."""
        x = inputs
        for step in self.steps:
            x = step(x)
        if self.shortcut is not None:
            x = x + self.shortcut(inputs)
        elif self.keeps_shape:
            x = x + inputs
        return self.act(x) if self.activation else x

    def compute_output_shape(self, input_shape: tuple[int | None, ...]) -> tuple[int | None, ...]:
        """(batch, ceil(height / strides), ceil(width / strides), out_channels)."""
        for step in self.steps:
            input_shape = step.compute_output_shape(input_shape)
        return input_shape

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "filters": self.filters, "strides": self.strides}


@keras.saving.register_keras_serializable(package="dgnet_keras")
class BasicBlock(ResidualBlock):
    """3x3 (strided), 3x3, shortcut, ReLU (ResNet, arXiv 1512.03385).

    Args:
        filters: number of channels of both convolutions.
        strides: int, of the first convolution and the shortcut.

    Call arguments:
        inputs: (batch, height, width, channels).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), filters).

    Raises:
        ValueError: if a size is not a positive integer.
    """

    def __init__(self, filters: int, *, strides: int = 1, **kwargs: Any) -> None:
        super().__init__(filters, strides=strides, **kwargs)
        self.steps = [
            self._layer(ConvNormAct, "conv1", filters, 3, strides=strides),
            self._layer(ConvNormAct, "conv2", filters, 3, activation=None),
        ]


@keras.saving.register_keras_serializable(package="dgnet_keras")
class BottleneckBlock(ResidualBlock):
    """1x1, 3x3 (strided, grouped) [+SE], 1x1, shortcut, ReLU.

    The stride is on the 3x3, as in ResNet v1.5, ResNeXt (arXiv 1611.05431) and RegNet (arXiv
    2003.13678).

    Args:
        filters: number of channels of the first two convolutions.
        expansion: the last convolution has filters * expansion channels, unless `out_channels`.
        out_channels: number of channels of the last convolution, or None.
        strides: int, of the 3x3 convolution and the shortcut.
        groups: of the 3x3 convolution; divides `filters`.
        se_channels: reduced channels of squeeze-and-excite after the 3x3; 0 for none.

    Call arguments:
        inputs: (batch, height, width, channels).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), channels of the last convolution).

    Raises:
        ValueError: if a size is not a positive integer, or groups do not divide filters.
    """

    def __init__(
        self,
        filters: int,
        *,
        strides: int = 1,
        expansion: int = 4,
        out_channels: int | None = None,
        groups: int = 1,
        se_channels: int = 0,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, strides=strides, **kwargs)
        check_positive(expansion=expansion)
        self.expansion = expansion
        self.groups = groups
        self.se_channels = se_channels
        outputs = filters * expansion if out_channels is None else out_channels
        self.steps = [
            self._layer(ConvNormAct, "conv1", filters, 1),
            self._layer(ConvNormAct, "conv2", filters, 3, strides=strides, groups=groups),
            self._layer(ConvNormAct, "conv3", outputs, 1, activation=None),
        ]
        if se_channels:
            self.steps.insert(2, self._layer(SqueezeExcite, "se", filters, se_channels))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "expansion": self.expansion,
            "out_channels": self.out_channels,
            "groups": self.groups,
            "se_channels": self.se_channels,
        }


@keras.saving.register_keras_serializable(package="dgnet_keras")
class InvertedResidualBlock(ResidualBlock):
    """1x1 (expand), 3x3 depthwise (strided), 1x1 linear; shortcut only where shapes agree.

    MobileNetV2 (arXiv 1801.04381), with ReLU6. With expansion 1 there is no first 1x1.

    Args:
        filters: number of output channels.
        in_channels: number of input channels.
        strides: int, of the depthwise convolution.
        expansion: the depthwise convolution has in_channels * expansion channels.

    Call arguments:
        inputs: (batch, height, width, in_channels).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), filters).

    Raises:
        ValueError: if a size is not a positive integer.
    """

    project = False
    activation = None

    def __init__(
        self,
        filters: int,
        in_channels: int,
        *,
        strides: int = 1,
        expansion: int = 6,
        **kwargs: Any,
    ) -> None:
        super().__init__(filters, strides=strides, **kwargs)
        check_positive(in_channels=in_channels, expansion=expansion)
        self.in_channels = in_channels
        self.expansion = expansion
        hidden = in_channels * expansion
        relu6 = {"activation": "relu6"}
        self.steps = [
            self._layer(ConvNormAct, "conv2", hidden, 3, strides=strides, groups=hidden, **relu6),
            self._layer(ConvNormAct, "conv3", filters, 1, activation=None),
        ]
        if expansion > 1:
            self.steps.insert(0, self._layer(ConvNormAct, "conv1", hidden, 1, **relu6))

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "in_channels": self.in_channels,
            "expansion": self.expansion,
        }


def imagenet_stem(inputs: keras.KerasTensor, *, strides: int = 2) -> keras.KerasTensor:
    """7x7 convolution of 64 filters (strided), batch norm, ReLU, 3x3 max pooling of stride 2.

    Args:
        inputs: symbolic images, (batch, height, width, channels).
        strides: of the convolution.

    Returns:
        Symbolic features, (batch, height / (2 * strides), width / (2 * strides), 64).
    """
    x = ConvNormAct(64, 7, strides=strides, name="stem")(inputs)
    # Features are not negative after ReLU, so that padding with zeros pads with -infinity.
    x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad")(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="stem_pool")(x)
