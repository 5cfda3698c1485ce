"""Features that the backward pass makes again, where keeping them costs more memory than it saves.

What a node takes in is needed once more: by the gradient of its first convolution's kernel. It is
a sum of features that are kept anyway, so a cheap sum is made again then, and its memory is free
from the forward pass on. (`tf.recompute_grad` and `keras.RematScope` would run the whole block
again.)
"""

import tensorflow as tf

_ATTRIBUTE = "_dgnet_rebuild"


def mark_rebuildable(features, rebuild):
    """Notes on the tensor `features` that `rebuild()` gives an equal one."""
    setattr(features, _ATTRIBUTE, rebuild)


def convolve(convolution, features, kernel):
    """`convolution(features, kernel)`, whose backward pass rebuilds features that can be.

    Args:
        convolution: function of features and kernel, linear in both.
        features: tensor (batch, height, width, channels), perhaps marked as rebuildable.
        kernel: Keras variable or tensor.

    Returns:
        The convolution's output.
    """
    rebuild = getattr(features, _ATTRIBUTE, None)
    if rebuild is None:
        return convolution(features, kernel)

    @tf.custom_gradient
    def apply(features, kernel):
        def gradient(upstream):
            # Not before `upstream` is there: else the features would be made at once, and kept.
            with tf.control_dependencies([upstream]):
                again = rebuild()
            with tf.GradientTape() as tape:
                tape.watch([again, kernel])
                outputs = convolution(again, kernel)
            return tape.gradient(outputs, [again, kernel], output_gradients=upstream)

        return convolution(features, kernel), gradient

    return apply(features, tf.convert_to_tensor(kernel))
