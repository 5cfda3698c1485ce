"""Features that the backward pass makes again, where keeping them costs more memory than it saves.

What a node takes in is needed once more: by the gradient of its first convolution's kernel. It is
a sum of features that are kept anyway, so a cheap sum is made again then, and its memory is free
from the forward pass on. (`tf.recompute_grad` and `keras.RematScope` would run the whole block
again.)
"""

from collections.abc import Callable

import tensorflow as tf

_ATTRIBUTE = "_dgnet_rebuild"


def mark_rebuildable(
    features: tf.Tensor, rebuild: Callable[[], tf.Tensor], *, like: tf.Tensor
) -> None:
    """Notes on the tensor `features` that `rebuild()` gives an equal one.

    Args:
        features: tensor.
        rebuild: function without arguments.
        like: a tensor of the shape and dtype of `features` that is kept anyway.
    """
    setattr(features, _ATTRIBUTE, (rebuild, like))


def convolve(
    convolution: Callable[[tf.Tensor, tf.Tensor], tf.Tensor],
    features: tf.Tensor,
    kernel: tf.Tensor,
) -> tf.Tensor:
    """`convolution(features, kernel)`, whose backward pass rebuilds features that can be.

    Eager execution keeps them: there, gradients would run the convolution again.

    Args:
        convolution: function of features and kernel, linear in both.
        features: tensor (batch, height, width, channels), perhaps marked as rebuildable.
        kernel: Keras variable or tensor.

    Returns:
        The convolution's output.
    """
    marked = getattr(features, _ATTRIBUTE, None)
    if marked is None or tf.executing_eagerly():
        return convolution(features, kernel)
    rebuild, like = marked

    @tf.custom_gradient
    def apply(features, kernel):
        def gradient(upstream):
            # Not before `upstream` is there: else the features would be made at once, and kept.
            with tf.control_dependencies([upstream]):
                again = rebuild()
            # Only shapes of `like` are read: the features' gradient need not wait for `again`.
            d_features = _gradient(lambda x: convolution(x, kernel), like, upstream)
            return d_features, _gradient(lambda k: convolution(again, k), kernel, upstream)

        return convolution(features, kernel), gradient

    return apply(features, tf.convert_to_tensor(kernel))


def _gradient(function, argument, upstream):
    with tf.GradientTape() as tape:
        tape.watch(argument)
        outputs = function(argument)
    return tape.gradient(outputs, argument, output_gradients=upstream)
