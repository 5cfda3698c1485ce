"""Trains a tiny detector so many steps, or restores it, and writes its state and next loss.

python one_detector.py SCENES WORKDIR STEPS OUTPUT
"""

import pathlib
import sys

import numpy as np
import tensorflow as tf
from train_helpers import tiny_detector

from train.detection.data import load_data
from train.detection.run import DetectionRun
from train.strategies import one_device

scenes, workdir, output = (pathlib.Path(sys.argv[k]) for k in (1, 2, 4))
steps = int(sys.argv[3])
recipe = tiny_detector("coco_tiny_fasterrcnn", "random_flip=false")
run = DetectionRun(recipe, load_data(recipe, workdir, scenes), one_device())
run.restore(workdir)
if steps:
    run.train_to(steps)
    run.save()
run.trainer.optimizer._create_all_weights(run.model.trainable_variables)  # else on first use
state = {f"{k}/{v.name}": v.numpy() for k, v in enumerate(run.model.weights)}
slots = [run.trainer.optimizer.get_slot(v, "momentum") for v in run.model.trainable_weights]
state |= {f"momentum{k}": slot.numpy() for k, slot in enumerate(slots)}

# Anchors are matched with random draws in the input pipeline: the batch is made once and kept.
batch = next(iter(run.task.build_inputs(run.params.task.train_data)))
kept = workdir / "batch.npz"
if not kept.exists():
    np.savez(kept, *[x.numpy() for x in tf.nest.flatten(batch)])
with np.load(kept) as arrays:
    images, labels = tf.nest.pack_sequence_as(
        batch, [tf.constant(arrays[f"arr_{k}"]) for k in range(len(arrays))]
    )
tf.random.set_seed(0)  # of the regions that are sampled
outputs = run.model(
    images,
    image_shape=labels["image_info"][:, 1, :],
    anchor_boxes=labels["anchor_boxes"],
    gt_boxes=labels["gt_boxes"],
    gt_classes=labels["gt_classes"],
    training=True,
)
losses = run.task.build_losses(outputs, labels, run.model.losses)
np.savez(output, next_loss=losses["total_loss"], **state)
