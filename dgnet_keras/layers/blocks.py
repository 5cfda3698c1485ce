"""Convolutional blocks: the nodes of a graph. A block is tensor in, tensor out."""

from typing import Any

import keras
import tensorflow as tf

from dgnet_keras.checks import check_positive
from dgnet_keras.layers.composite import Composite
from dgnet_keras.layers.conv import ConvNormAct, GroupedConv2D
from dgnet_keras.layers.initializers import next_seed

__all__ = [
    "BasicBlock",
    "BottleneckBlock",
    "ConvNormAct",
    "GroupedConv2D",
    "InvertedResidualBlock",
    "ResidualBlock",
    "SqueezeExcite",
    "check_positive",
    "imagenet_stem",
]


class SqueezeExcite(Composite):
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
        self.fc1 = self._dense("fc1", reduced, "relu")
        self.fc2 = self._dense("fc2", channels, "sigmoid")

    def _dense(self, name, units, activation):
        initializer = keras.initializers.GlorotUniform(seed=next_seed())
        return self._layer(
            keras.layers.Dense, name, units, activation=activation, kernel_initializer=initializer
        )

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


class ResidualBlock(Composite):
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
        if self.activation:
            self.act.build(input_shape)

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
    last = {"data_format": "channels_last"}  # whatever Keras is set to
    x = keras.layers.ZeroPadding2D(1, name="stem_pool_pad", **last)(x)
    return keras.layers.MaxPooling2D(3, strides=2, name="stem_pool", **last)(x)
