"""Two devices in one process, and images that are split over them.

GPUs where there are some, one of them as two where there is no other; else the CPU as two.
"""

import catalog
import numpy as np
import tensorflow as tf

GPU_MIB = 3000  # of each half of a GPU


def configure():
    """Makes two logical devices of one; before TensorFlow has used it."""
    gpus = tf.config.list_physical_devices("GPU")
    if len(gpus) > 1:
        return
    device = gpus[0] if gpus else tf.config.list_physical_devices("CPU")[0]
    half = tf.config.LogicalDeviceConfiguration(memory_limit=GPU_MIB if gpus else None)
    tf.config.set_logical_device_configuration(device, [half] * 2)


def strategy_of(devices):
    """Of the first so many devices."""
    gpus = tf.config.list_physical_devices("GPU")
    names = [f"{'gpu' if gpus else 'cpu'}:{k}" for k in range(devices)]
    # NCCL does not reduce between halves of one GPU.
    halves = tf.distribute.HierarchicalCopyAllReduce() if len(gpus) == 1 else None
    return tf.distribute.MirroredStrategy(names, cross_device_ops=halves)


def two_kinds():
    """Eight images, of which the second four, those of a second device, take other paths."""
    images = catalog.images(batch=8)
    images[4:] *= 0.1
    return images


def split(strategy, images, first=None):
    """The images in equal parts, one for each replica; or so many to the first of two."""
    parts = np.split(images, strategy.num_replicas_in_sync if first is None else [first])
    return strategy.experimental_distribute_values_from_function(
        lambda context: tf.constant(parts[context.replica_id_in_sync_group])
    )
