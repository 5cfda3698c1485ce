"""What the devices of this process can do; layers choose between equal implementations by it."""

import functools

import tensorflow as tf


def has_accelerator() -> bool:
    """Whether TensorFlow sees a GPU or a TPU."""
    return bool(tf.config.list_physical_devices("GPU") or tf.config.list_physical_devices("TPU"))


@functools.lru_cache
def cpu_takes_grouped_kernels(dtype: tf.DType) -> bool:
    """Whether `tf.nn.conv2d` and its gradients take grouped kernels of `dtype` on this CPU.

    They do with oneDNN; without it the gradients fail. TensorFlow turns oneDNN on by itself on
    some x86 CPUs only (AVX-512 VNNI and newer), on others with `TF_ENABLE_ONEDNN_OPTS=1`.
    """
    # `init_scope` runs this at once, also while a graph is built; it pauses gradient tapes.
    with tf.init_scope(), tf.device("/cpu:0"):
        images, kernel = tf.ones((1, 3, 3, 4), dtype), tf.ones((3, 3, 2, 4), dtype)
        options = {"strides": [1, 1, 1, 1], "padding": "SAME"}
        try:
            value = tf.nn.conv2d(images, kernel, **options)
            tf.raw_ops.Conv2DBackpropInput(
                input_sizes=images.shape, filter=kernel, out_backprop=value, **options
            )
            tf.raw_ops.Conv2DBackpropFilter(
                input=images, filter_sizes=kernel.shape, out_backprop=value, **options
            )
        except tf.errors.OpError:
            return False
    return True
