"""The connectivity that images take: reading it, giving it, and at another threshold."""

import weakref
from typing import Any

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dgnet_keras.checks import check_preprocessed, warn_of_raw_pixels
from dgnet_keras.layers.composite import NO_CONFIG, config_of
from dgnet_keras.layers.gate import gate_dtype
from dgnet_keras.layers.graph import GraphStage

# By model, so that Keras traces it once: its config, and what `connectivity_model` made of it.
_made: weakref.WeakKeyDictionary[keras.Model, tuple[dict[str, Any], keras.Model]] = (
    weakref.WeakKeyDictionary()
)


def adjacency(
    model: keras.Model, images: ArrayLike, *, batch_size: int = 32
) -> dict[str, np.ndarray]:
    """The connectivity that each image takes: weights of its open edges.

    Args:
        model: a backbone or a classifier of this package.
        images: what the model takes (preprocessed), (batch, height, width, channels).
        batch_size: images computed at a time.

    Returns:
        Dict of stage (or graph) name to a float32 array (batch, N + 1, N + 1); entry [b, j, i] is
        the weight of the edge from node j to node i for image b, 0 where it is closed. Empty for
        a model without edges.

    Raises:
        ValueError: if the model has no `adjacency_outputs`, or the images do not fit it.
    """
    connectivity = connectivity_model(model)
    if connectivity is None:
        return {}
    if np.ndim(images) != 4 or np.shape(images)[0] == 0:
        raise ValueError(
            "`images` must be an array (batch, height, width, channels) of at least 1. "
            f"Received: shape {np.shape(images)}, {type(images).__name__}"
        )
    images = np.asarray(images)
    check_preprocessed(images, model.input_shape[1:])
    warn_of_raw_pixels(images, model.preprocessing)
    found = connectivity.predict(images, batch_size=batch_size, verbose=0)
    return {name: found[name] for name in model.adjacency_outputs}


def connectivity_model(model: keras.Model) -> keras.Model | None:
    """The part of a model that gives adjacency, a `keras.Model` of images to a dict of arrays.

    None for a model without edges; `ValueError` for one that is not of this package.
    """
    check_network(model, "adjacency_outputs")
    if not model.adjacency_outputs:
        return None
    try:
        config = config_of(model)
    except NO_CONFIG:  # of a block of the user's
        return _connectivity_model(model)
    if model not in _made or _made[model][0] != config:
        _made[model] = config, _connectivity_model(model)
    return _made[model][1]


def _connectivity_model(model):
    return keras.Model(model.input, dict(model.adjacency_outputs))


def check_network(model: keras.Model, attribute: str) -> None:
    """Raises `ValueError` unless a model is of this package: has `attribute`.

    A model that holds such a one, as `with_preprocessing` makes, is told to be taken apart.
    """
    if not hasattr(model, attribute):
        kind = "classifier" if attribute == "num_classes" else "backbone or classifier"
        raise ValueError(
            f"`model` must be a {kind} of dgnet_keras. Received: {model}{_hint(model, attribute)}"
        )


def _hint(model, attribute):
    """What to do with a model of Keras that has our layers."""
    layers = getattr(model, "layers", [])
    inner = [layer.name for layer in layers if hasattr(layer, attribute)]
    if inner:
        return f". It holds one, which takes preprocessed images: `model.get_layer({inner[0]!r})`"
    if any(isinstance(layer, GraphStage) for layer in layers):
        return (
            ". It may be what `keras.models.clone_model` makes of one. The class is kept by "
            "`copy.deepcopy(model)` and by `type(model).from_config(model.get_config())`"
        )
    return ""


def with_adjacency(model: keras.Model) -> keras.Model:
    """The same network, layers shared, with its connectivity as an input: what if ...?

    Example: what a classifier answers if every image takes the mean of the edge weights.

        found = dg.adjacency(model, images)
        mean = {k: np.broadcast_to(v.mean(axis=0), v.shape) for k, v in found.items()}
        logits = dg.with_adjacency(model).predict({"images": images, **mean})

    Args:
        model: a backbone or a classifier of this package.

    Returns:
        A `keras.Model` of a dict: `images`, as the model takes them, and for each key of
        `model.adjacency_outputs` the adjacency to use, float32 (batch, N + 1, N + 1), entry
        [b, j, i] the weight of the edge j -> i; only entries above the diagonal are read. Its
        output is the model's.

    Raises:
        ValueError: if the model has no edges.
    """
    check_network(model, "adjacency_outputs")
    if not model.adjacency_outputs:
        raise ValueError(
            "`model` must be a backbone or classifier of dgnet_keras with at least one edge. "
            f"Received: {model}"
        )
    return _GivenConnectivity(model, name=f"{model.name}_with_adjacency")


class _GivenConnectivity(keras.Model):
    """See `with_adjacency`."""

    def __init__(self, model: keras.Model, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.steps = _steps(model)
        self._image_shape = model.input_shape[1:]

    def call(self, inputs: dict[str, tf.Tensor], training: bool | None = None) -> tf.Tensor:
        x = inputs["images"]
        check_preprocessed(x, self._image_shape)
        for layer in self.steps:
            if not isinstance(layer, GraphStage):
                x = layer(x, training=training)
                continue
            given = {g.key: inputs[g.key] for g in layer.graphs if g.key in inputs}
            adjacency = given if layer.graphs else None
            x = layer(x, adjacency=adjacency, training=training)["features"]
        return x


def _steps(model):
    """The layers of a model in order, each of which takes what the one before gives."""
    return [layer for layer in model.layers if not isinstance(layer, keras.layers.InputLayer)]


def answers_at(
    model: keras.Model, images: tf.Tensor, threshold: float | tf.Tensor
) -> tuple[tf.Tensor, dict[str, tf.Tensor]]:
    """What a model would answer if every gate had another threshold.

    It equals the answer of a model of the same weights that was created with that threshold;
    learned thresholds are replaced too. The `chain`, `random` and `complete` wirings have no
    gates: theirs does not change.

    Args:
        model: a backbone or a classifier of this package.
        images: what the model takes (preprocessed), a tensor (batch, height, width, channels).
        threshold: in units of edge weight, of paths in logits; a scalar, or (batch,) or (batch, 1)
            for one an image.

    Returns:
        The model's output, and its connectivity: a dict of stage (or graph) name to a float32
        tensor (batch, N + 1, N + 1), as `adjacency`.
    """
    found: dict[str, tf.Tensor] = {}
    x = images
    for layer in _steps(model):
        if isinstance(layer, GraphStage):
            limit = tf.cast(threshold, gate_dtype(layer.compute_dtype))
            limit = tf.reshape(limit, [-1, 1]) if limit.shape.rank == 1 else limit
            outputs = layer(x, threshold=limit, training=False)
            x = outputs["features"]
            found.update(outputs["adjacency"])
        else:
            x = layer(x, training=False)
    return x, found


def adjacency_at(
    model: keras.Model, images: tf.Tensor, threshold: float | tf.Tensor
) -> dict[str, tf.Tensor]:
    """The connectivity of `answers_at`, whose arguments it takes."""
    return answers_at(model, images, threshold)[1]
