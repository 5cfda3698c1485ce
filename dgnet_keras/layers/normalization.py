"""Batch normalisation by TensorFlow's fused operation."""

import keras
import tensorflow as tf

from dgnet_keras.layers.devices import cpu_takes_grouped_kernels, has_accelerator


@keras.saving.register_keras_serializable(package="dgnet_keras")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, computed by one operation where TensorFlow has one.

    Keras takes statistics and normalises in a dozen operations, most of which read or write the
    whole feature map (without XLA). Training on a CPU without oneDNN stays with them, where the
    fused operation can be slower (docs/performance.md).

    Arguments, weights and values are those of `keras.layers.BatchNormalization`, whose moving
    variance is that of the biased one.
    """

    def call(self, inputs, training=None, mask=None):
        """Normalises (batch, height, width, channels) by channel."""
        in_training = bool(training and self.trainable)
        if mask is not None or not self._fits(inputs, in_training):
            return super().call(inputs, training=training, mask=mask)
        options = {"epsilon": self.epsilon, "is_training": in_training}
        scale, offset = (tf.convert_to_tensor(v.value) for v in (self.gamma, self.beta))
        moving = [tf.convert_to_tensor(v.value) for v in (self.moving_mean, self.moving_variance)]
        if not in_training:
            return tf.raw_ops.FusedBatchNormV3(
                x=inputs, scale=scale, offset=offset, mean=moving[0], variance=moving[1], **options
            ).y
        none = tf.constant([], tf.float32)
        found = tf.raw_ops.FusedBatchNormV3(
            x=inputs, scale=scale, offset=offset, mean=none, variance=none, **options
        )
        shape = tf.shape(inputs)
        count = tf.cast(tf.reduce_prod(shape[:3]), tf.float32)
        variance = found.batch_variance * ((count - 1) / count)  # it is the unbiased one
        for variable, old, new in zip(
            (self.moving_mean, self.moving_variance),
            moving,
            (found.batch_mean, variance),
            strict=True,
        ):
            variable.assign(old * self.momentum + new * (1 - self.momentum))
        return found.y

    def _fits(self, inputs, in_training):
        """Whether the fused operation computes this, and is the faster one."""
        if in_training and (self.synchronized or not _fast_in_training()):
            return False
        return (
            len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and not self.renorm
            and inputs.dtype in (tf.float32, tf.float16, tf.bfloat16)
        )


def _fast_in_training():
    # The CPU's grouped kernels are oneDNN's: where they are, so is its normalisation.
    return has_accelerator() or cpu_takes_grouped_kernels("float32")
