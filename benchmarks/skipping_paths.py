"""Routers that send each image along a path of its own, of a given share of multiply-adds.

A graph's path starts at its first node. Every node on it has one open edge out, of length k or
k + 1 with mean 1 / share_on, which ends at the output where it would go beyond. Which of the two an
image takes is the sign of its pooled features along a random direction.
"""

import math

THRESHOLD = 1 - 1e-6  # edge weights of 2 * sigmoid(logit) lie above it where the logit is positive
EDGE_SCALE = 2.0
LIMIT = 0.1  # of the logits that choose
OPEN, CLOSED = 0.0, -3.0  # biases; an edge of bias 0 has weight 1


def lengths(share_on, num_blocks, source):
    """(length of an edge, share of the images that take it) of a node's one or two open edges."""
    mean = min(1 / share_on, num_blocks)
    whole = math.floor(mean + 1e-9)
    end = num_blocks - source
    if whole >= end or mean - whole < 1e-9:
        return [(min(whole, end), 1.0)]
    return [(whole, whole + 1 - mean), (whole + 1, mean - whole)]


def expected_share(costs, base, share_on):
    """Mean multiply-adds of the images whose paths `set_paths` sets, over those of the static twin.

    Args:
        costs: `ModelCosts` of the dynamic network.
        base: multiply-adds of the static twin.
        share_on: 1 over the mean length of an edge, in (0, 1].
    """
    total = costs.total - sum(graph.total for graph in costs.graphs.values())
    for graph in costs.graphs.values():
        n = len(graph.nodes)
        is_on = [1.0] + [0.0] * n
        for j in range(n):
            total += is_on[j] * (graph.nodes[j] + graph.routers[j])
            for length, share in lengths(share_on, n, j):
                is_on[j + length] += is_on[j] * share
                total += is_on[j] * share * graph.edges[j, j + length]
    return float(total) / base


def solve_share_on(costs, base, share):
    """The `share_on` that gives a share of the static twin's multiply-adds, and whether it can.

    Returns:
        Tuple of `share_on` and True if the share is not below the least reachable one.
    """
    deepest = max(len(graph.nodes) for graph in costs.graphs.values())
    low, high = 1 / deepest, 1.0
    if expected_share(costs, base, low) > share:
        return low, False
    if expected_share(costs, base, high) <= share + 0.02 and share >= 1:
        return high, True
    for _ in range(40):
        middle = (low + high) / 2
        if expected_share(costs, base, middle) > share:
            high = middle
        else:
            low = middle
    return low, True


def set_paths(model, images, share_on, training=False, batch=None):
    """Sets the routers of a network, source by source, in one pass of images.

    Args:
        model: a classifier with `wiring="dynamic"`, `edge_scale=EDGE_SCALE`, `threshold=THRESHOLD`.
        images: preprocessed, (count, height, width, channels); more make the shares more exact.
        share_on: 1 over the mean length of an edge, in (0, 1].
        training: whether to normalise as in training: by the images of a batch that get there.
        batch: images of a batch then; None means all.

    Raises:
        ValueError: if features are not finite.
    """
    import numpy as np

    from dgnet_keras.layers.graph import GraphStage

    random = np.random.default_rng(0)
    batch_of = np.arange(len(images)) // (batch or len(images))
    x = images
    for layer in model.layers[1:]:
        if not isinstance(layer, GraphStage):
            x = layer(x, training=training)
        elif not layer.graphs:
            x = layer(x, training=training)["features"]
        else:
            x = _set_stage(layer, x, share_on, random, training, batch_of)


def _set_stage(stage, inputs, share_on, random, training, batch_of):
    """Sets a stage's routers; returns its features. No stage of the benchmark is split."""
    import numpy as np
    import tensorflow as tf

    (graph,) = stage.graphs
    n, count = graph.num_blocks, len(batch_of)
    at = np.zeros(count, int)  # the node that each image gets to next
    x = inputs
    for j, block in enumerate(stage.blocks):
        is_on = at == j
        if not is_on.any():
            _set_router(stage, j, lengths(1.0, n, j), None, None)
            continue
        here, outputs = np.flatnonzero(is_on), []
        for b in np.unique(batch_of[here]):
            chosen = here[batch_of[here] == b]
            outputs.append(block(tf.gather(x, chosen), training=training))
        features = tf.concat(outputs, axis=0)
        pooled = tf.reduce_mean(tf.cast(features, tf.float64), axis=(1, 2)).numpy()
        if not np.isfinite(pooled).all():
            raise ValueError(f"Features of {stage.name}/{block.name} are not finite.")
        _set_router(stage, j, lengths(share_on, n, j), pooled, random)
        weights = stage._routers[str(j)](features)["edge_weights"].numpy()
        open_edges = weights > THRESHOLD
        if not (open_edges.sum(axis=1) == 1).all():
            raise ValueError(f"Node {j} of {stage.name} has not one open edge for each image.")
        at[here] = j + 1 + open_edges.argmax(axis=1)
        features *= weights[open_edges][:, None, None, None]
        if j == 0:  # its shape may be another
            x = features
        else:
            x = tf.tensor_scatter_nd_update(x, here[:, None], features)
    return x


def _set_router(stage, source, ways, pooled, random):
    """Sets a router so that `lengths` are taken by their shares of the pooled features."""
    import numpy as np

    router = stage._routers[str(source)]
    kernel = np.zeros(router.kernel.shape)
    bias = np.full(router.bias.shape, CLOSED)
    if len(ways) == 1:
        bias[ways[0][0] - 1] = OPEN
    else:
        (first, share), (second, _) = ways
        direction = random.standard_normal(pooled.shape[1])
        direction /= np.linalg.norm(direction)
        values = pooled @ direction
        # Rounded up or down by chance, so that few images at a node keep the mean share.
        cut, spread = _cut(values, int(share * len(values) + random.random()))
        spread = max(spread, 0.01 * np.linalg.norm(pooled.mean(axis=0)))
        for length, sign in ((first, 1), (second, -1)):
            kernel[:, length - 1] = sign * LIMIT / spread * direction
            bias[length - 1] = -sign * LIMIT / spread * cut
    router.kernel.assign(kernel)
    router.bias.assign(bias)


def _cut(values, count):
    """A number with `count` of the values above it, and how far the values are from it at most."""
    import numpy as np

    ordered = np.sort(values)
    margin = 0.05 * (ordered[-1] - ordered[0]) or 1e-3 * abs(ordered[0])
    ordered = np.concatenate([[ordered[0] - 2 * margin], ordered, [ordered[-1] + 2 * margin]])
    below = len(values) - count
    cut = (ordered[below] + ordered[below + 1]) / 2
    return cut, np.abs(values - cut).max()


def settle_statistics(model, images):
    """Sets the moving statistics of normalisation to those of some images, in one pass.

    Left at mean 0 and variance 1, features of random weights would grow from block to block.
    """
    import keras

    norms = [
        layer
        for layer in model._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
    ]
    known = [layer.momentum for layer in norms]
    for layer in norms:
        layer.momentum = 0.0
    model(images, training=True)
    for layer, momentum in zip(norms, known, strict=True):
        layer.momentum = momentum


def paths(model, batches, training):
    """The adjacency that a network takes batch by batch, put together: dict of name to array."""
    import numpy as np

    from dgnet_keras.adjacencies import connectivity_model

    connectivity = connectivity_model(model)
    found = [connectivity(batch, training=training) for batch in batches]
    return {name: np.concatenate([f[name] for f in found]) for name in found[0]}


def count_distinct(found):
    """Number of different paths among the images of `paths`."""
    import numpy as np

    flat = [np.reshape(matrix > 0, (len(matrix), -1)) for matrix in found.values()]
    return len(np.unique(np.concatenate(flat, axis=1), axis=0))
