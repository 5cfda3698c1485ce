"""Losses of a two-stage detector of Model Garden on a batch of its input pipeline."""

import tensorflow as tf


def losses_of(task, model, images, labels, seed=0):
    """Dict of name to loss, in training; with one seed the same regions are sampled."""
    tf.random.set_seed(seed)
    outputs = model(
        images,
        image_shape=labels["image_info"][:, 1, :],
        anchor_boxes=labels["anchor_boxes"],
        gt_boxes=labels["gt_boxes"],
        gt_classes=labels["gt_classes"],
        training=True,
    )
    return task.build_losses(outputs, labels, model.losses)
