"""Aggregation: what a node takes in, the sum of the earlier nodes' features by edge weight.

It moves bytes and computes little, so what counts is how often a feature map is read and
written. `docs/performance.md` has the measurements behind each choice here.
"""

from collections.abc import Sequence
from typing import Protocol

import tensorflow as tf

from dgnet_keras.layers.devices import has_accelerator
from dgnet_keras.layers.rebuild import mark_rebuildable
from dgnet_keras.layers.router import pool

# Sums of at most so many features are made again in the backward pass rather than kept.
REBUILT_SOURCES = 2


def aggregate(column: tf.Tensor, features: Sequence[tf.Tensor]) -> tf.Tensor:
    """`sum_j column[:, j] * features[j]`: what a node takes in.

    Equals `tf.einsum("bj,jbhwc->bhwc", column, tf.stack(features))`, forward and backward,
    without the stacked copy.

    Args:
        column: the node's column of the adjacency, (batch, sources), float32 or float64.
        features: the sources' outputs, a list of tensors (batch, height, width, channels).

    Returns:
        Tensor (batch, height, width, channels) of the features' dtype.
    """

    @tf.custom_gradient
    def apply(column, *features):
        weights = tf.unstack(column, axis=1)

        def gradient(upstream):
            return _column_gradient(upstream, features, column.dtype), *(
                _scale(weight, upstream) for weight in weights
            )

        return _weighted_sum(weights, features), gradient

    return apply(column, *features)


class Sources(Protocol):
    """The features of a graph's nodes, and the sums of them that later nodes take in.

    The constructor takes `num_nodes`, N, the number of nodes that are added, and `pool`, whether
    `add` gives pooled features.
    """

    def __init__(self, num_nodes: int, *, pool: bool) -> None: ...

    def add(self, features: tf.Tensor) -> tf.Tensor | None:
        """Adds the next node's features, (batch, height, width, channels).

        Returns:
            Their mean over height and width, (batch, 1, 1, channels), float32 (float64 for
            float64 features), or None without pooling.
        """

    def aggregate(self, column: tf.Tensor) -> tf.Tensor:
        """What the next node takes in, by its column of the adjacency, (batch, sources)."""


class ForwardFeatures(Sources):
    """`Sources` for inference: equals `aggregate` for each node.

    Gradients are TensorFlow's own, so that the graph of an export holds plain operations only.
    It is no faster than `Features`.
    """

    def __init__(self, num_nodes: int, *, pool: bool) -> None:
        self._pool = pool
        self._features: list[tf.Tensor] = []

    def add(self, features: tf.Tensor) -> tf.Tensor | None:
        """Adds the next node's features; see `Sources`."""
        self._features.append(features)
        return pool(features) if self._pool else None

    def aggregate(self, column: tf.Tensor) -> tf.Tensor:
        """What the next node takes in; see `Sources`."""
        return _weighted_sum(tf.unstack(column, axis=1), self._features)


class Features(Sources):
    """`Sources` for training: equals `ForwardFeatures`, with less in the backward pass.

    There, source j's gradient is `sum_i A[:, j, i] * g_i` over the gradients g_i of what its
    targets took in. TensorFlow adds up a tensor's gradients as they come, so with `aggregate`
    alone each edge's product waits in memory, for up to N (N + 1) / 2 maps a graph. Here `add`
    gives each target a reference of its own, whose gradient is g_i itself, not yet scaled; when
    all have come, one sum over them is made with the cached adjacency. The gradient of the
    pooled features joins it.
    """

    def __init__(self, num_nodes: int, *, pool: bool) -> None:
        self._num_nodes = num_nodes
        self._pool = pool
        self._features: list[tf.Tensor] = []
        self._references: list[list[tf.Tensor]] = []
        self._weights: list[list[tf.Tensor]] = []

    def add(self, features: tf.Tensor) -> tf.Tensor | None:
        """Adds the next node's features; see `Sources`."""
        source = len(self._references)

        @tf.custom_gradient
        def refer(x):
            pooled = [pool(x)] if self._pool else []

            def gradient(*upstreams):
                weights = [column[source] for column in self._weights[source:]]
                total = _weighted_sum(weights, upstreams[: len(weights)])
                if self._pool:
                    shape = tf.shape(x)
                    area = tf.cast(shape[1] * shape[2], upstreams[-1].dtype)
                    total += tf.cast(upstreams[-1] / area, x.dtype)
                return total

            return [x] * (self._num_nodes - source) + pooled, gradient

        outputs = refer(features)
        self._features.append(features)
        self._references.append(outputs[: self._num_nodes - source])
        return outputs[-1] if self._pool else None

    def aggregate(self, column: tf.Tensor) -> tf.Tensor:
        """What the next node takes in; see `Sources`."""
        target = len(self._references)
        references = [r[target - 1 - j] for j, r in enumerate(self._references)]
        # The gradients below take the features themselves and weights from outside, not the
        # references: a reference's gradient is not scaled, which second derivatives must not see.
        features = list(self._features)
        weights = tf.unstack(column, axis=1)
        self._weights.append(weights)

        @tf.custom_gradient
        def apply(*weights_and_references):
            def gradient(upstream):
                products = [_inner_product(upstream, x, column.dtype) for x in features]
                # The sources scale `upstream` for themselves, in the gradient of `add`.
                return *products, *(upstream for _ in features)

            return _weighted_sum(
                weights_and_references[:target], weights_and_references[target:]
            ), gradient

        total = apply(*weights, *references)
        if target <= REBUILT_SOURCES:
            mark_rebuildable(total, lambda: _weighted_sum_now(weights, features), like=features[0])
        return total


def _scale(weight, features):
    return tf.reshape(tf.cast(weight, features.dtype), [-1, 1, 1, 1]) * features


def _weighted_sum(weights, features):
    """`sum_j weights[j] * features[j]`; weights (batch,), features (batch, height, ...)."""
    return tf.add_n([_scale(w, x) for w, x in zip(weights, features, strict=True)])


def _weighted_sum_now(weights, features):
    """`_weighted_sum` anew: equal operations on other tensors, which TensorFlow does not merge."""
    return _weighted_sum([tf.identity(w) for w in weights], features)


def _column_gradient(upstream, features, dtype):
    """A column's gradient, (batch, sources): inner products of `upstream` and the features."""
    return tf.stack([_inner_product(upstream, x, dtype) for x in features], axis=1)


def _inner_product(a, b, dtype):
    """Inner product of each sample's features, (batch,), computed in `dtype`.

    On a CPU a matrix product, which reads each map once and writes none. On accelerators XLA
    fuses the product and the sum, which it would not do with a matrix product.
    """
    a, b = tf.cast(a, dtype), tf.cast(b, dtype)
    if has_accelerator():
        return tf.reduce_sum(a * b, axis=(1, 2, 3))
    shape = tf.shape(a)
    # Sizes in full: reshape cannot infer one of an empty batch.
    row = tf.stack([shape[0], 1, tf.reduce_prod(shape[1:])])
    # oneDNN has no kernel of this version of the operation;
    # on AVX-512 those it has are half as fast.
    products = tf.raw_ops.BatchMatMulV3(
        x=tf.reshape(a, row), y=tf.reshape(b, row), Tout=dtype, adj_y=True
    )
    return tf.reshape(products, shape[:1])
