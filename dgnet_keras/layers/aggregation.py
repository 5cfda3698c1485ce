"""Aggregation: what a node takes in, the sum of the earlier nodes' features by edge weight.

It moves bytes and computes little, so what counts is how often a feature map is read and
written. `docs/performance.md` has the measurements behind each choice here.
"""

import functools
from collections.abc import Callable, Sequence
from typing import Protocol

import tensorflow as tf

from dgnet_keras.layers.devices import has_accelerator
from dgnet_keras.layers.normalization import statistics_of
from dgnet_keras.layers.rebuild import mark_rebuildable
from dgnet_keras.layers.router import pool
from dgnet_keras.layers.rows import Bank, Rows, dense_sum, scale, take, weighted_sum

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
            rows = [None] * len(features)
            return column_gradient(upstream, None, features, rows, column.dtype), *(
                scale(weight, upstream) for weight in weights
            )

        return dense_sum(weights, features), gradient

    return apply(column, *features)


# From pooled features, (batch, 1, 1, channels), to a router's logits, (batch, edges).
Route = Callable[[tf.Tensor], tf.Tensor]


class Sources(Protocol):
    """Runs a graph's nodes one after the other, on sums of the earlier ones' features.

    The constructor takes `num_nodes`, N, the number of nodes.
    """

    def __init__(self, num_nodes: int) -> None: ...

    def add(self, features: tf.Tensor, route: Route | None) -> tf.Tensor | None:
        """Adds node 0, whose features are (batch, height, width, channels).

        Returns:
            What `route` makes of their mean over height and width, (batch, 1, 1, channels),
            float32 (float64 for float64 features); None without `route`.
        """

    def run(
        self,
        block: Callable[[tf.Tensor], tf.Tensor],
        column: tf.Tensor,
        is_on: tf.Tensor | None,
        route: Route | None,
    ) -> tf.Tensor | None:
        """Runs the next node, and adds it.

        Args:
            block: the node.
            column: its column of the adjacency, (batch, sources).
            is_on: boolean (batch,), the samples that take it; None where all do.
            route: as in `add`; pooled features of the samples that pass the node by are 0.

        Returns:
            What `route` returns.
        """

    def output(self, column: tf.Tensor) -> tf.Tensor:
        """What the output takes in, (batch, height, width, channels), by its column."""


class ForwardFeatures(Sources):
    """`Sources` for inference that computes every node for every sample.

    Gradients are TensorFlow's own, so that the graph of an export holds plain operations only.
    It is no faster than `Features`.
    """

    def __init__(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes
        self._features: list[tf.Tensor] = []

    def add(self, features: tf.Tensor, route: Route | None) -> tf.Tensor | None:
        """Adds node 0; see `Sources`."""
        self._features.append(features)
        return route(pool(features)) if route else None

    def run(
        self,
        block: Callable[[tf.Tensor], tf.Tensor],
        column: tf.Tensor,
        is_on: tf.Tensor | None,
        route: Route | None,
    ) -> tf.Tensor | None:
        """Runs the next node; see `Sources`."""
        self._features.append(block(self.output(column)))
        return route(only(is_on, pool(self._features[-1]))) if route else None

    def output(self, column: tf.Tensor) -> tf.Tensor:
        """What the output takes in; see `Sources`."""
        return dense_sum(tf.unstack(column, axis=1), self._features)


class Features(Sources):
    """`Sources` for training: values of `ForwardFeatures`, with less in the backward pass.

    Source j's gradient is `sum_i A[:, j, i] * g_i` over the gradients g_i of what its
    targets took in. TensorFlow adds up a tensor's gradients as they come, so with `aggregate`
    alone each edge's product waits in memory, for up to N (N + 1) / 2 maps a graph. Here a node
    gives each target a reference of its own, whose gradient is g_i itself, not yet scaled; when
    all have come, one sum over them is made with the cached adjacency. The gradient of the
    pooled features joins it.

    Batch normalisation takes its statistics from the samples that are on. With `skip` the others
    are not computed: features have rows, and so have their gradients.

    Args:
        num_nodes: N, the number of nodes.
        skip: whether samples that pass a node by are not computed.
        closed_learn: whether weights of closed edges have a gradient, for which the features on
            both sides of each of them are read.
    """

    def __init__(self, num_nodes: int, *, skip: bool = False, closed_learn: bool = True) -> None:
        self._num_nodes = num_nodes
        self._skip = skip
        self._closed_learn = closed_learn
        self._features: list[tf.Tensor] = []
        self._rows: list[Rows | None] = []
        self._references: list[list[tf.Tensor]] = []
        self._columns: list[tf.Tensor] = []

    def add(self, features: tf.Tensor, route: Route | None) -> tf.Tensor | None:
        """Adds node 0; see `Sources`."""
        pooled = self._add(features, None, pools=route is not None)
        return route(pooled) if route else None

    def run(
        self,
        block: Callable[[tf.Tensor], tf.Tensor],
        column: tf.Tensor,
        is_on: tf.Tensor | None,
        route: Route | None,
    ) -> tf.Tensor | None:
        """Runs the next node; see `Sources`."""
        rows = None
        if is_on is None:
            features = block(self._aggregate(column, None))
        elif self._skip:
            rows = Rows(is_on, at_least_one=True)
            inputs = self._aggregate(column, rows)
            with statistics_of(rows.is_real(), batch=tf.size(is_on), gathered=True):
                features = block(inputs)
        else:
            # Neither values nor gradients of the others reach anything: NaN would, times 0.
            inputs = only(is_on, self._aggregate(column, None))
            with statistics_of(is_on, batch=tf.size(is_on)):
                features = block(inputs)
        pooled = self._add(features, rows, pools=route is not None)
        if route is None:
            return None
        return route(rows.spread(pooled) if rows else only(is_on, pooled))

    def output(self, column: tf.Tensor) -> tf.Tensor:
        """What the output takes in; see `Sources`."""
        return self._aggregate(column, None)

    def _add(self, features, rows, *, pools):
        source = len(self._references)

        @tf.custom_gradient
        def refer(x):
            pooled = [pool(x)] if pools else []

            def gradient(*upstreams):
                weights = tf.stack([column[:, source] for column in self._columns[source:]], axis=1)
                targets = [*self._rows[source + 1 :], None]
                total = self._sum(weights, upstreams[: len(targets)], targets, rows)
                if pools:
                    shape = tf.shape(x)
                    area = tf.cast(shape[1] * shape[2], upstreams[-1].dtype)
                    total += tf.cast(upstreams[-1] / area, x.dtype)
                return total

            return [x] * (self._num_nodes - source) + pooled, gradient

        outputs = refer(features)
        self._features.append(features)
        self._rows.append(rows)
        self._references.append(outputs[: self._num_nodes - source])
        return outputs[-1] if pools else None

    def _sum(self, weights, features, rows, target, **kwargs):
        if self._skip:
            bank = Bank(features, rows, tf.shape(weights)[0])
            return weighted_sum(weights, bank, target, **kwargs)
        return dense_sum(tf.unstack(weights, axis=1), features)

    def _aggregate(self, column, target):
        """What a node, or the output, takes in, for the rows of `target`."""
        number = len(self._references)
        references = [r[number - 1 - j] for j, r in enumerate(self._references)]
        # The gradients below take the features themselves and weights from outside, not the
        # references: a reference's gradient is not scaled, which second derivatives must not see.
        features, rows = list(self._features), list(self._rows)
        self._columns.append(column)

        @tf.custom_gradient
        def apply(column_in, *references):
            def gradient(upstream):
                # The sources scale `upstream` for themselves, in the gradient of `_add`.
                which = column != 0 if self._skip and not self._closed_learn else None
                d_column = column_gradient(upstream, target, features, rows, column.dtype, which)
                return d_column, *(upstream for _ in features)

            total = self._sum(column_in, references, rows, target, has_gradient=False)
            return total, gradient

        total = apply(column, *references)
        if number <= REBUILT_SOURCES and not self._skip:
            weights = tf.unstack(column, axis=1)
            mark_rebuildable(total, lambda: _dense_sum_now(weights, features), like=features[0])
        return total


def only(is_on: tf.Tensor | None, features: tf.Tensor) -> tf.Tensor:
    """`features`, (batch, height, width, channels), 0 for the samples that are not on."""
    if is_on is None:
        return features
    return tf.where(tf.reshape(is_on, [-1, 1, 1, 1]), features, tf.zeros([], features.dtype))


def _dense_sum_now(weights, features):
    """`dense_sum` anew: equal operations on other tensors, which TensorFlow does not merge."""
    return dense_sum([tf.identity(w) for w in weights], features)


def column_gradient(
    upstream: tf.Tensor,
    target: Rows | None,
    features: Sequence[tf.Tensor],
    rows: Sequence[Rows | None],
    dtype: tf.DType,
    which: tf.Tensor | None = None,
) -> tf.Tensor:
    """A column's gradient, (batch, sources): inner products of `upstream` and the features.

    Args:
        upstream: gradient of the sum, (rows of `target`, height, width, channels).
        target: its rows; None for every sample.
        features: of each source.
        rows: of each source.
        dtype: of the column.
        which: boolean (batch, sources), the edges that have one; None for all.
    """
    columns = [None] * len(features) if which is None else tf.unstack(which, axis=1)
    products = [
        _products(upstream, target, x, r, dtype, w)
        for x, r, w in zip(features, rows, columns, strict=True)
    ]
    return tf.stack(products, axis=1)


def _products(a, rows_a, b, rows_b, dtype, which):
    """Inner product of each sample's features, (batch,): 0 for those without a row in both."""
    known = [m for m in (which, rows_a and rows_a.is_on, rows_b and rows_b.is_on) if m is not None]
    if not known:
        return inner_product(a, b, dtype)
    samples = tf.cast(tf.where(functools.reduce(tf.logical_and, known))[:, 0], tf.int32)
    a, b = (
        take(x, samples if rows is None else tf.gather(rows.positions(), samples))
        for x, rows in ((a, rows_a), (b, rows_b))
    )
    return tf.scatter_nd(samples[:, None], inner_product(a, b, dtype), tf.shape(known[0]))


def inner_product(a: tf.Tensor, b: tf.Tensor, dtype: str | tf.DType) -> tf.Tensor:
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
