"""Calibration: the threshold at which images compute a wanted share of multiply-adds."""

import functools
import math
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dgnet_keras import connectivity
from dgnet_keras.adjacencies import adjacency_at, check_network
from dgnet_keras.budget import check_reachable, check_target, stages_of
from dgnet_keras.checks import check_images, warn_of_raw_pixels
from dgnet_keras.complexity import model_costs
from dgnet_keras.layers.wiring import PATHS
from dgnet_keras.user_warnings import warn

# What is near enough to the wanted share, and what is worth a warning.
_EXACT = 0.001
_FAR = 0.01
_STEPS = 30
# How far above an image's own logit, or weight, a threshold is looked for.
_NEAR, _APART = 1e-6, 0.1
# Logits beyond which a path's threshold is not looked for.
_WIDEST = 64.0


def calibrate(
    model: keras.Model, images: ArrayLike, macs: float = 0.5, *, batch_size: int = 128
) -> dict[str, Any]:
    """Moves a model's threshold until images compute a wanted share of multiply-adds.

    No labels are needed. Some hundreds of images of all kinds are; their share is that of others
    to within about 0.03. All gates get the same threshold, learned ones too.

    Args:
        model: a backbone or classifier of this package, whose wiring has gates.
        images: what the model takes (preprocessed), (count, height, width, channels).
        macs: wanted mean share of the static twin's multiply-adds, in (0, 1].
        batch_size: images computed at a time.

    Returns:
        Dict: `threshold`, that the model has now; `macs`, the mean share of these images at it:
        the nearest found that is not above the wanted one; `open`, dict of stage (or graph) name
        to the share of its edges that an image keeps open, on average. A warning says so where
        `macs` is more than 0.01 under the wanted share.

    Raises:
        ValueError: for a share outside (0, 1] or that cannot be reached, a model without gates, or
            images that do not fit; the model is then as it was.
    """
    check_network(model, "adjacency_outputs")
    check_target(macs, "macs")
    check_reachable(model, macs)
    images = check_images(images, model.input_shape[1:])
    warn_of_raw_pixels(images, model.preprocessing)
    measure = functools.cache(_Measure(model, images, batch_size))
    low, high = _bracket(model, measure, macs)
    for _ in range(_STEPS):
        middle = (low + high) / 2
        share = measure(middle)[0]
        low, high = (middle, high) if share > macs else (low, middle)
        if 0 <= macs - share < _EXACT:
            break
    else:  # it ended at the edge of a step
        high += _room(measure, high, _limit(model))
    share, open_rates = measure(high)
    if share > macs:
        raise ValueError(
            f"No threshold was found at which these images compute at most {macs} of the static "
            f"twin's multiply-adds. Received: a model that computes {share:.3f} at {high:.4g}"
        )
    model.set_threshold(high)
    if macs - share > _FAR:
        warn(
            f"No threshold was found at which these images compute {macs:.3f} of the static twin's "
            f"multiply-adds: at {high:.4g} they compute {share:.3f}, the nearest below."
        )
    return {"threshold": high, "macs": share, "open": open_rates}


class _Measure:
    """Mean share of MACs, and open edges by graph, of images at a threshold."""

    def __init__(self, model: keras.Model, images: np.ndarray, batch_size: int) -> None:
        self._costs = model_costs(model, images.shape[1:3])
        self._batches = [images[i : i + batch_size] for i in range(0, len(images), batch_size)]
        spec = tf.TensorSpec((None, *images.shape[1:]), tf.float32)
        self._adjacency = tf.function(
            lambda x, threshold: adjacency_at(model, x, threshold),
            input_signature=[spec, tf.TensorSpec((), tf.float32)],
            autograph=False,
        )

    def __call__(self, threshold: float) -> tuple[float, dict[str, float]]:
        shares, parts = [], []
        for batch in self._batches:
            found = {k: v.numpy() for k, v in self._adjacency(batch, threshold).items()}
            connectivity.check_adjacency(found)  # all finite
            shares.append(self._costs.shares(found, len(batch)))
            parts.append(found)
        matrices = {k: np.concatenate([part[k] for part in parts]) for k in parts[0]}
        rates = connectivity.EdgeStatistics.of(matrices).open_rate
        opened = {k: float(v[connectivity.edges_of(v)].mean()) for k, v in rates.items()}
        return float(np.concatenate(shares).mean()), opened


def _limit(model):
    """What a threshold is below."""
    return math.inf if model.wiring in PATHS else stages_of(model)[0].edge_scale


def _room(measure, threshold, limit):
    """How far to move a threshold up, for no image's choice to hang on how a runtime rounds.

    The search ends just above a logit (or weight) of one of the images. Up to the next one, the
    edges that are open stay the same: halfway through as much of that as is known.
    """
    step, open_rates = _NEAR, measure(threshold)[1]
    while step < min(_APART, limit - threshold) and measure(threshold + step)[1] == open_rates:
        step *= 2
    return step / 4 if step > _NEAR else 0.0


def _bracket(model, measure, macs):
    """Two thresholds: images compute more than `macs` at the first, no more at the second."""
    if model.wiring not in PATHS:
        return 0.0, float(np.nextafter(np.float32(_limit(model)), np.float32(0)))
    low, high = -1.0, 1.0
    while measure(low)[0] <= macs and -low < _WIDEST:
        low *= 2
    while measure(high)[0] > macs and high < _WIDEST:
        high *= 2
    return low, high
