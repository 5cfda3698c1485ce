"""Two CPU devices in one process, and images that are split over them."""

import catalog
import numpy as np
import tensorflow as tf


def configure():
    """Makes two logical devices of the CPU; before TensorFlow has used it."""
    cpu = tf.config.list_physical_devices("CPU")[0]
    tf.config.set_logical_device_configuration(cpu, [tf.config.LogicalDeviceConfiguration()] * 2)


def strategy_of(devices):
    """Of the first so many devices."""
    return tf.distribute.MirroredStrategy([f"cpu:{k}" for k in range(devices)])


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
