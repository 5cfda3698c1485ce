"""What training minimises: cross-entropy."""

import tensorflow as tf


def losses_of(logits, batch, label_smoothing):
    """Cross-entropy of each example, (batch,), float32."""
    classes = logits.shape[-1]
    targets = batch["target"] if "target" in batch else tf.one_hot(batch["label"], classes)
    targets = targets * (1 - label_smoothing) + label_smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))
