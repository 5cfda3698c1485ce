"""Convolutional blocks: the nodes of a graph. A block is tensor in, tensor out."""

import keras


def symmetric_padding(kernel_size):
    """Zero padding in pixels on each side, as PyTorch and timm pad: independent of image size."""
    return kernel_size // 2


def check_positive(**values):
    """Raises `ValueError` unless every named value is an int of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")


class _Composite(keras.layers.Layer):
    """A layer made of named sub-layers that run one after the other in `call`.

    A subclass makes its sub-layers in the constructor with `self._layer(cls, name, ...)`, which
    gives them this layer's dtype policy.
    """

    def _layer(self, cls, name, *args, **kwargs):
        return cls(*args, name=name, dtype=self.dtype_policy, **kwargs)


@keras.saving.register_keras_serializable(package="dgnet_keras")
class ConvNormAct(_Composite):
    """kxk convolution without bias, batch normalisation, activation.

    Padding is symmetric (kernel_size // 2 on each side, as in timm) at every stride, so that
    published weights give the same numbers at any image size.

    Args:
        filters: number of output channels.
        kernel_size: odd int, in pixels.
        strides: int.
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
        filters,
        kernel_size,
        *,
        strides=1,
        activation="relu",
        momentum=0.9,
        epsilon=1e-5,
        **kwargs,
    ):
        super().__init__(**kwargs)
        check_positive(filters=filters, kernel_size=kernel_size, strides=strides)
        self.filters = filters
        self.kernel_size = kernel_size
        self.strides = strides
        self.activation = activation
        self.momentum = momentum
        self.epsilon = epsilon
        pad = symmetric_padding(kernel_size)
        # With stride 1, TensorFlow's "same" is the symmetric padding, and needs no extra copy.
        needs_pad = strides > 1 and pad > 0
        self.pad = self._layer(keras.layers.ZeroPadding2D, "pad", pad) if needs_pad else None
        self.conv = self._layer(
            keras.layers.Conv2D,
            "conv",
            filters,
            kernel_size,
            strides=strides,
            padding="valid" if needs_pad else "same",
            use_bias=False,
            kernel_initializer=keras.initializers.VarianceScaling(2.0, "fan_out", "normal"),
        )
        self.norm = self._layer(
            keras.layers.BatchNormalization, "norm", momentum=momentum, epsilon=epsilon
        )
        self.act = self._layer(keras.layers.Activation, "act", activation) if activation else None

    def build(self, input_shape):
        """Creates the kernel and the normalisation's variables."""
        if self.pad is not None:
            input_shape = self.pad.compute_output_shape(input_shape)
        self.conv.build(input_shape)
        self.norm.build(self.conv.compute_output_shape(input_shape))

    def call(self, inputs):
        """Convolves, normalises, activates."""
        x = inputs if self.pad is None else self.pad(inputs)
        x = self.norm(self.conv(x))
        return x if self.act is None else self.act(x)

    def compute_output_shape(self, input_shape):
        """(batch, ceil(height / strides), ceil(width / strides), filters)."""
        if self.pad is not None:
            input_shape = self.pad.compute_output_shape(input_shape)
        return self.conv.compute_output_shape(input_shape)

    def get_config(self):
        """The constructor's arguments."""
        return {
            **super().get_config(),
            "filters": self.filters,
            "kernel_size": self.kernel_size,
            "strides": self.strides,
            "activation": self.activation,
            "momentum": self.momentum,
            "epsilon": self.epsilon,
        }


class ResidualBlock(_Composite):
    """relu(convolutions(x) + shortcut(x)); the shortcut projects (1x1) where shapes change."""

    def __init__(self, filters, *, strides=1, **kwargs):
        super().__init__(**kwargs)
        check_positive(filters=filters, strides=strides)
        self.filters = filters
        self.strides = strides
        self.convs = []
        self.shortcut = None
        self.act = self._layer(keras.layers.Activation, "act", "relu")

    @property
    def out_channels(self):
        """Number of output channels."""
        return self.convs[-1].filters

    def build(self, input_shape):
        """Builds the convolutions in order, and the shortcut where the shape changes."""
        if self.strides > 1 or input_shape[-1] != self.out_channels:
            self.shortcut = self._layer(
                ConvNormAct,
                "shortcut",
                self.out_channels,
                1,
                strides=self.strides,
                activation=None,
            )
            self.shortcut.build(input_shape)
        for conv in self.convs:
            conv.build(input_shape)
            input_shape = conv.compute_output_shape(input_shape)

    def call(self, inputs):
        """Adds the shortcut to the last convolution's output, then ReLU."""
        x = inputs
        for conv in self.convs:
            x = conv(x)
        return self.act(x + (inputs if self.shortcut is None else self.shortcut(inputs)))

    def compute_output_shape(self, input_shape):
        """(batch, ceil(height / strides), ceil(width / strides), out_channels)."""
        for conv in self.convs:
            input_shape = conv.compute_output_shape(input_shape)
        return input_shape

    def get_config(self):
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

    def __init__(self, filters, *, strides=1, **kwargs):
        super().__init__(filters, strides=strides, **kwargs)
        self.convs = [
            self._layer(ConvNormAct, "conv1", filters, 3, strides=strides),
            self._layer(ConvNormAct, "conv2", filters, 3, activation=None),
        ]


@keras.saving.register_keras_serializable(package="dgnet_keras")
class BottleneckBlock(ResidualBlock):
    """1x1, 3x3 (strided), 1x1, shortcut, ReLU (ResNet v1.5: stride on the 3x3).

    Args:
        filters: number of channels of the first two convolutions.
        strides: int, of the 3x3 convolution and the shortcut.
        expansion: the last convolution has filters * expansion channels.

    Call arguments:
        inputs: (batch, height, width, channels).

    Returns:
        (batch, ceil(height / strides), ceil(width / strides), filters * expansion).

    Raises:
        ValueError: if a size is not a positive integer.
    """

    def __init__(self, filters, *, strides=1, expansion=4, **kwargs):
        super().__init__(filters, strides=strides, **kwargs)
        check_positive(expansion=expansion)
        self.expansion = expansion
        self.convs = [
            self._layer(ConvNormAct, "conv1", filters, 1),
            self._layer(ConvNormAct, "conv2", filters, 3, strides=strides),
            self._layer(ConvNormAct, "conv3", filters * expansion, 1, activation=None),
        ]

    def get_config(self):
        """The constructor's arguments."""
        return {**super().get_config(), "expansion": self.expansion}


def imagenet_stem(inputs, *, strides=2):
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
