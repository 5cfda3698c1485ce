"""Freezing: the nodes that most images take, as a smaller static network."""

import dataclasses
import re

import keras
import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras.adjacencies import adjacency, check_network
from dgnet_keras.budget import stages_of
from dgnet_keras.classifier import Classifier
from dgnet_keras.complexity import model_costs
from dgnet_keras.layers.wiring import PATHS
from dgnet_keras.weights import assign_weights, is_wiring_weight

_BLOCK = re.compile(r"^(stage\d+)/block_(\d+)/")


def freeze(
    model: keras.Model, images: ArrayLike, *, batch_size: int = 128, verbose: bool = True
) -> keras.Model:
    """The nodes that most images take, as a static network of fewer blocks.

    Where all images take the same path it answers as the model does, at the threshold that the
    model has now. It is a `chain` to go on training, or to export where nothing may branch.

    Args:
        model: a backbone or classifier of this package with `wiring="path"` or `"learned_path"`.
        images: what the model takes (preprocessed), (count, height, width, channels): some
            hundreds of all kinds.
        batch_size: images computed at a time.
        verbose: whether to say how many blocks and multiply-adds are left and, of a classifier,
            for how many of these images the most probable class is the same.

    Returns:
        A new model of the same class and family, `wiring="chain"`, with copies of the weights.
        What was changed on single layers, such as which are frozen, is not taken over.

    Raises:
        ValueError: for another wiring (a chain is static already; where features are summed, no
            chain computes the same), or images that do not fit.
    """
    check_network(model, "adjacency_outputs")
    if model.wiring not in PATHS:
        raise ValueError(
            f"`model` must have a wiring of paths, {' or '.join(map(repr, PATHS))}: a chain is "
            "static as it is, and of sums of features there is no chain that computes the same. "
            f"Received: wiring={model.wiring!r}"
        )
    kept = _kept_blocks(model, adjacency(model, images, batch_size=batch_size))
    frozen = _with_blocks(model, kept)
    if verbose:
        _tell(model, frozen, np.asarray(images), batch_size)
    return frozen


def _kept_blocks(model, found):
    """By stage, the numbers of the blocks that more than half of the images take."""
    kept = {}
    for stage in stages_of(model):
        kept[stage.name] = list(range(len(stage.blocks)))
        for graph in stage.graphs:
            rates = (found[graph.key] > 0).any(axis=1).mean(axis=0)
            passed = {graph.first + i for i in range(1, graph.num_blocks) if rates[i] <= 0.5}
            kept[stage.name] = [i for i in kept[stage.name] if i not in passed]
    return kept


def _with_blocks(model, kept):
    """A static model of these blocks, with the weights of `model`."""
    backbone = getattr(model, "backbone", model)
    config = backbone.get_config()
    config["spec"]["depths"] = [len(blocks) for blocks in kept.values()]
    chain = {f.name: f.default for f in dataclasses.fields(backbone.graph_options)}
    config |= {**chain, "wiring": "chain", "macs_target": None, "changes": None}
    frozen = type(backbone).from_config(config)
    if isinstance(model, Classifier):
        frozen = type(model)(frozen, model.num_classes, dropout=model.dropout, name=model.name)
    places = {
        f"{stage}/block_{old}/": f"{stage}/block_{new}/"
        for stage, blocks in kept.items()
        for new, old in enumerate(blocks)
    }
    values = {}
    for variable in model.weights:
        path, match = variable.path, _BLOCK.match(variable.path)
        if is_wiring_weight(path) or (match and match.group() not in places):
            continue
        if match:
            path = places[match.group()] + path[match.end() :]
        values[path] = variable.numpy()
    assign_weights(frozen, values, f"the model {model.name!r}")
    return frozen


def _tell(model, frozen, images, batch_size):
    before, after = (sum(len(s.blocks) for s in stages_of(m)) for m in (model, frozen))
    size = images.shape[1:3]
    share = model_costs(frozen, size).total / model_costs(model, size).static
    said = f"{after} of {before} blocks, {share:.3f} of the static twin's multiply-adds"
    if isinstance(model, Classifier):
        logits = [m.predict(images, batch_size=batch_size, verbose=0) for m in (model, frozen)]
        answers = [z > 0 if z.shape[-1] == 1 else np.argmax(z, axis=-1) for z in logits]
        same = np.mean(answers[0] == answers[1])
        said += f"; {same:.1%} of the predictions for these {len(images)} images are the same"
    print(said)
