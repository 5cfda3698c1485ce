"""What training minimises: cross-entropy, and the distance from a static network's answers."""

import tensorflow as tf


def losses_of(logits, batch, label_smoothing):
    """Cross-entropy of each example, (batch,), float32."""
    classes = logits.shape[-1]
    targets = batch["target"] if "target" in batch else tf.one_hot(batch["label"], classes)
    targets = targets * (1 - label_smoothing) + label_smoothing / classes
    return tf.nn.softmax_cross_entropy_with_logits(targets, tf.cast(logits, tf.float32))


def divergence(teacher_logits, logits, temperature):
    """Kullback-Leibler divergence from the teacher's probabilities, times the temperature's square.

    Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.

    Args:
        teacher_logits: (batch, classes).
        logits: likewise.
        temperature: that both are divided by.

    Returns:
        float32 (batch,).
    """
    wanted, given = (
        tf.nn.log_softmax(tf.cast(z, tf.float32) / temperature) for z in (teacher_logits, logits)
    )
    return temperature**2 * tf.reduce_sum(tf.exp(wanted) * (wanted - given), axis=-1)
