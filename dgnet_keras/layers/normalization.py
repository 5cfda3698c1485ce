"""Batch normalisation of the samples that take a node, with TensorFlow's fused operation."""

import contextlib
import contextvars
import dataclasses
from collections.abc import Iterator

import keras
import tensorflow as tf

from dgnet_keras.layers.devices import cpu_takes_grouped_kernels, has_accelerator


@dataclasses.dataclass(frozen=True)
class _Counted:
    """Whose features normalisation takes its statistics from; see `statistics_of`."""

    is_on: tf.Tensor
    batch: tf.Tensor
    gathered: bool

    @property
    def count(self) -> tf.Tensor:
        """Rows that are on, an int scalar."""
        return tf.reduce_sum(tf.cast(self.is_on, tf.int32))

    @property
    def share(self) -> tf.Tensor:
        """Share of the batch that is on, a float32 scalar."""
        return tf.cast(self.count / tf.maximum(self.batch, 1), tf.float32)


_counted: contextvars.ContextVar[_Counted | None] = contextvars.ContextVar("counted", default=None)


@contextlib.contextmanager
def statistics_of(is_on: tf.Tensor, *, batch: tf.Tensor, gathered: bool = False) -> Iterator[None]:
    """Inside, `BatchNormalization` trains with statistics of the samples that are on.

    Moving statistics keep `momentum ** (on / batch)` of what they were: those of a node that no
    sample takes stay, and one that few take does not change by few.

    Args:
        is_on: boolean (rows,), of the features that come.
        batch: int scalar, samples in the batch, those without features included.
        gathered: whether all rows are on, or there is but one that is not.
    """
    token = _counted.set(_Counted(is_on, batch, gathered))
    try:
        yield
    finally:
        _counted.reset(token)


@keras.saving.register_keras_serializable(package="dgnet_keras")
class BatchNormalization(keras.layers.BatchNormalization):
    """`keras.layers.BatchNormalization`, in training by one operation where TensorFlow has one.

    Keras takes statistics and normalises in a dozen operations, most of which read or write the
    whole feature map (without XLA). Inference stays with them, and so does training on a CPU
    without oneDNN: docs/performance.md says why.

    In a graph's node it trains with the statistics of the samples that take the node, see
    `statistics_of`; with `synchronized`, of those on all replicas. Where all samples take it, and
    outside of graphs, arguments, weights and values are those of
    `keras.layers.BatchNormalization`, whose moving variance is that of the biased one.
    """

    def call(
        self, inputs: tf.Tensor, training: bool | None = None, mask: tf.Tensor | None = None
    ) -> tf.Tensor:
        """Normalises (batch, ..., channels) by channel."""
        counted = _counted.get()
        fused = (counted is None or counted.gathered) and self._has_fused(inputs)
        plain = mask is None and self.counts_samples(len(inputs.shape))
        if not (training and self.trainable and plain and (fused or counted)):
            return super().call(inputs, training=training, mask=mask)
        if fused:
            outputs, mean, variance = self._fused(inputs)
            share = None if counted is None else counted.share
        else:
            outputs, mean, variance, share = self._of_those_on(inputs, counted)
        momentum = self.momentum if share is None else self.momentum**share
        for moving, new in ((self.moving_mean, mean), (self.moving_variance, variance)):
            kept = tf.cast(momentum, new.dtype)
            moving.assign(tf.cast(moving.value, new.dtype) * kept + new * (1 - kept))
        return outputs

    def counts_samples(self, rank: int = 4) -> bool:
        """Whether it trains with the statistics of some samples: not with `renorm`, other axes."""
        return not self.renorm and self.axis in (-1, rank - 1)

    def _fused(self, inputs):
        """Outputs, mean and biased variance, of all rows."""
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
        return found.y, found.batch_mean, variance

    def _of_those_on(self, inputs, counted):
        """Outputs, mean, biased variance and share of the rows that are on, of all replicas."""
        dtype = keras.backend.result_type(keras.backend.standardize_dtype(inputs.dtype), "float32")
        x = tf.cast(inputs, dtype)
        axes = list(range(len(x.shape) - 1))
        is_on = tf.reshape(counted.is_on, [-1, *[1] * len(axes)])

        def total(values):
            values = tf.reduce_sum(tf.where(is_on, values, tf.zeros([], dtype)), axes)
            return self._over_replicas(values)

        counts = tf.cast(tf.stack([counted.count, counted.batch]), dtype)
        on, batch = tf.unstack(self._over_replicas(counts))
        area = tf.cast(tf.reduce_prod(tf.shape(x)[1:-1]), dtype)
        count = tf.maximum(on, 1) * area
        mean = total(x) / count
        variance = total(tf.math.squared_difference(x, mean)) / count
        outputs = keras.ops.batch_normalization(
            x,
            mean,
            variance,
            axis=-1,
            offset=tf.cast(self.beta.value, dtype) if self.center else None,
            scale=tf.cast(self.gamma.value, dtype) if self.scale else None,
            epsilon=self.epsilon,
        )
        return tf.cast(outputs, self.compute_dtype), mean, variance, on / tf.maximum(batch, 1)

    def _over_replicas(self, values):
        if not self.synchronized:
            return values
        return tf.distribute.get_replica_context().all_reduce("SUM", values)

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
