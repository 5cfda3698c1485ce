"""Batch normalisation that trains with TensorFlow's fused operation."""

import keras
import tensorflow as tf

from dgnet_keras.layers.devices import cpu_takes_grouped_kernels, has_accelerator


@keras.saving.register_keras_serializable(package="dgnet_keras")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, in training by one operation where TensorFlow has one.

    Keras takes statistics and normalises in a dozen operations, most of which read or write the
    whole feature map (without XLA). Inference stays with them, and so does training on a CPU
    without oneDNN: docs/performance.md says why.

    Arguments, weights and values are those of `keras.layers.BatchNormalization`, whose moving
    variance is that of the biased one.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalises (batch, height, width, channels) by channel."""
        if not (training and self.trainable and mask is None and self._has_fused(inputs)):
            return super().call(inputs, training=training, mask=mask)
        none = tf.constant([], tf.float32)  # no statistics from before are needed
        found = tf.raw_ops.FusedBatchNormV3(
            x=inputs,
            scale=self.gamma.value,
            offset=self.beta.value,
            mean=none,
            variance=none,
            epsilon=self.epsilon,
            is_training=True,
        )
        count = tf.cast(tf.reduce_prod(tf.shape(inputs)[:3]), tf.float32)
        variance = found.batch_variance * ((count - 1) / count)  # it is the unbiased one
        for moving, new in ((self.moving_mean, found.batch_mean), (self.moving_variance, variance)):
            moving.assign(moving.value * self.momentum + new * (1 - self.momentum))
        return found.y

    def _has_fused(self, inputs):
        """Whether the fused operation computes this, and is the faster one."""
        return (
            _fused_is_fast()
            and len(inputs.shape) == 4
            and self.axis in (-1, 3)
            and self.scale
            and self.center
            and not self.renorm
            and not self.synchronized
            and inputs.dtype in (tf.float32, tf.float16, tf.bfloat16)
            and self.gamma.dtype == "float32"  # not under the policy "float16"
        )


def _fused_is_fast():
    # The CPU's grouped kernels are oneDNN's: where they are, so is its normalisation.
    return has_accelerator() or cpu_takes_grouped_kernels("float32")
