"""The end of a run with a budget: its threshold moved to the target, and what others would give."""

import numpy as np

import dgnet_keras as dg
from dgnet_keras.layers.wiring import BY_IMAGE, PATHS
from train.classification import input_pipeline

MAX_IMAGES = 2048
# Thresholds that are evaluated too: in logits around the found one; of edge weights, times it.
OFFSETS = (-1.0, -0.5, 0.0, 0.5, 1.0)
FACTORS = (0.5, 0.75, 1.0, 1.25, 1.5)


def calibrate_run(run):
    """Moves the threshold until training images compute `macs_target`, and evaluates.

    Args:
        run: a `ClassificationRun` that has ended, with a budget.

    Returns:
        Dict: `threshold`; `training_share_of_macs` at it, `training_images` that it was found on;
        `metrics` of the evaluated split at it, see `task.Evaluator`; `curve`, a list of dicts of
        `threshold`, `share_of_macs` and `accuracy` of that split, the lowest threshold first.
    """
    images = _training_images(run)
    found = dg.calibrate(run.model, images, run.recipe.macs_target)
    threshold = found["threshold"]
    metrics = {value: run.evaluate_at(value) for value in _around(run.model, threshold)}
    run.evaluate_at(threshold)  # which leaves the model so
    if run.model.wiring in BY_IMAGE:
        health = {finding.kind: finding.message for finding in run.evaluator.findings}
        metrics[threshold] = {**metrics[threshold], "router_health": health}
    return {
        "threshold": threshold,
        "training_share_of_macs": found["macs"],
        "training_images": len(images),
        "metrics": metrics[threshold],
        "curve": [
            {"threshold": value, **{k: row[k] for k in ("share_of_macs", "accuracy")}}
            for value, row in sorted(metrics.items())
        ],
    }


def _around(model, threshold):
    if model.wiring in PATHS:
        return [threshold + offset for offset in OFFSETS]
    scale = model.backbone.stages[0].edge_scale
    return sorted({min(threshold * factor, np.nextafter(scale, 0)) for factor in FACTORS})


def _training_images(run):
    """Preprocessed training images without augmentation, (count, height, width, channels)."""
    batches = input_pipeline.test_batches(
        run.data.train.sample(MAX_IMAGES), run.model.preprocessing, 128, skipped=run.skipped
    )
    return np.concatenate(
        [batch["image"].numpy()[batch["weight"].numpy() > 0] for batch in batches]
    )
