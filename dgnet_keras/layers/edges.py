"""Edges of a graph while its nodes run: known before, or routed sample by sample."""

from collections.abc import Callable, Sequence
from typing import Protocol

import tensorflow as tf

from dgnet_keras.layers.exports import times
from dgnet_keras.layers.gate import ThresholdGate
from dgnet_keras.layers.router import LOGIT_LIMIT, edge_weights_from_logits


def strongest_edge(logits: tf.Tensor, is_on: tf.Tensor) -> tf.Tensor:
    """One-hot mask of each sample's strongest edge among the sources that are on.

    Args:
        logits: (batch, sources), the edges' logits into one node.
        is_on: boolean (batch, sources); at least one source of each sample is on.

    Returns:
        Boolean (batch, sources); of equal logits the latest source wins.
    """
    candidates = tf.where(is_on, logits, tf.fill(tf.shape(logits), logits.dtype.min))
    sources = logits.shape[1]
    latest = sources - 1 - tf.argmax(tf.reverse(candidates, axis=[1]), axis=1)
    return tf.one_hot(latest, sources, on_value=True, off_value=False)


@tf.custom_gradient
def _masked(
    weights: tf.Tensor, mask: tf.Tensor
) -> tuple[tf.Tensor, Callable[[tf.Tensor], tuple[tf.Tensor, None]]]:
    """`weights * mask`, of NaN too where the mask is 0, with the gradient of `weights`."""
    return times(weights, mask), lambda upstream: (upstream, None)


class Edges(Protocol):
    """What a graph asks for while its nodes run, one after the other."""

    def route(self, source: int) -> Callable[[tf.Tensor], tf.Tensor] | None:
        """What makes a node's logits of its pooled features, (batch, 1, 1, channels).

        None where features are not asked for.
        """

    def add_source(self, logits: tf.Tensor | None) -> None:
        """The next node is done, and these are the logits that `route` gave."""

    def column(self, target: int) -> tf.Tensor:
        """Weights of the edges into node `target`, (batch, target), 0 where they are closed."""

    def is_on(self, node: int) -> tf.Tensor | None:
        """The samples that take a node, boolean (batch,), once its column has been asked for.

        None where all take it whatever the weights are.
        """

    def adjacency(self) -> tf.Tensor:
        """(batch, N + 1, N + 1), once all columns have been asked for."""


class FixedEdges:
    """Columns of an adjacency, (batch, N + 1, N + 1), that is known before the nodes run.

    Args:
        adjacency: the matrix.
        all_on: whether every node is to be computed for every sample; if not, those with an
            edge out of them are.
    """

    def __init__(self, adjacency: tf.Tensor, *, all_on: bool) -> None:
        self._adjacency = adjacency
        self._all_on = all_on

    def route(self, source: int) -> None:
        """There is nothing to route."""

    def add_source(self, logits: tf.Tensor | None) -> None:
        """The next node is done."""

    def column(self, target: int) -> tf.Tensor:
        """Weights of the edges into node `target`, (batch, target); of one that is off, 0."""
        column = self._adjacency[:, :target, target]
        if self._all_on or target == self._adjacency.shape[2] - 1:
            return column
        return column * tf.cast(self.is_on(target), column.dtype)[:, None]

    def is_on(self, node: int) -> tf.Tensor | None:
        """The samples for which the node's features are read, boolean (batch,), or None."""
        if self._all_on:
            return None
        return tf.reduce_any(self._adjacency[:, node, node + 1 :] != 0, axis=1)

    def adjacency(self) -> tf.Tensor:
        """(batch, N + 1, N + 1)."""
        return self._adjacency


class RoutedEdges:
    """Columns of an adjacency that is computed while the nodes run, under both path rules.

    Source j adds its logits when it is done (`add_source`); when node i starts, column i is
    complete: gated, with the rows of the nodes that are off set to zero, and, into the output,
    with the strongest edge kept. The masks are constants to the gradient of a column; that of the
    adjacency passes that of the target, so that a loss of it, a budget say, can turn on a node
    that is off.

    Args:
        gates: the gates of nodes 1 to N, see `register_gate`.
        edge_scale: the largest edge weight.
        routers: of nodes 0 to N - 1: functions of pooled features that give logits in
            [-12, 12], (batch, N - source), which `add_source` is called with; or None.
        logits: without routers: of nodes 0 to N - 1, (batch, N - source).
        threshold: taken in place of the gates' own; scalar or (batch, 1), or None.
        training: handed on to the gates.
    """

    def __init__(
        self,
        gates: Sequence[Callable[..., tf.Tensor]],
        *,
        edge_scale: float,
        routers: Sequence[Callable[[tf.Tensor], tf.Tensor]] | None = None,
        logits: Sequence[tf.Tensor] = (),
        threshold: float | tf.Tensor | None = None,
        training: bool | None = None,
    ) -> None:
        self._gates = gates
        self._edge_scale = edge_scale
        self._routers = routers
        self._known = logits
        self._threshold = threshold
        self._training = training
        self._logits: list[list[tf.Tensor]] = []
        self._is_on: list[tf.Tensor] = []
        self._columns: list[tf.Tensor] = []

    def route(self, source: int) -> Callable[[tf.Tensor], tf.Tensor] | None:
        """The node's router, if the wiring has any."""
        return self._routers[source] if self._routers else None

    def add_source(self, logits: tf.Tensor | None) -> None:
        """The next node is done; `logits`, (batch, N - source), where it has a router."""
        logits = self._known[len(self._logits)] if logits is None else logits
        self._logits.append(tf.unstack(logits, axis=1))
        if not self._is_on:
            self._is_on.append(tf.ones_like(self._logits[0][0], tf.bool))

    def column(self, target: int) -> tf.Tensor:
        """Gated weights of the edges into node `target`, (batch, target)."""
        into_target = [row[target - 1 - j] for j, row in enumerate(self._logits[:target])]
        logits = tf.stack(into_target, axis=1)
        is_on = tf.stack(self._is_on, axis=1)
        if not isinstance(self._gates[target - 1], ThresholdGate):
            # A registered gate may compare edges: a source that is off has the weakest.
            logits = tf.where(is_on, logits, tf.constant(-LOGIT_LIMIT, logits.dtype))
        edges = edge_weights_from_logits(logits, self._edge_scale)
        is_output = target == len(self._gates)
        gated = self._gates[target - 1](
            edges["edge_weights"],
            keep=strongest_edge(edges["logits"], is_on) if is_output else None,
            threshold=self._threshold,
            logits=edges["logits"],
            training=self._training,
        )
        # NaN times 0 must be 0: a sample that is off has no features to multiply.
        column = times(gated, tf.cast(is_on, gated.dtype))
        if is_output:
            self._columns.append(column)
            return column
        target_is_on = tf.reduce_any(column > 0, axis=1)
        self._is_on.append(target_is_on)
        mask = tf.cast(target_is_on, gated.dtype)[:, None]
        self._columns.append(_masked(column, mask))
        return times(column, mask)

    def is_on(self, node: int) -> tf.Tensor:
        """The samples that take a node, boolean (batch,), once its column has been asked for."""
        return self._is_on[node]

    def adjacency(self) -> tf.Tensor:
        """(batch, N + 1, N + 1), of all columns asked for."""
        size = len(self._columns) + 1
        padded = [tf.pad(c, [[0, 0], [0, size - c.shape[1]]]) for c in self._columns]
        return tf.stack([tf.zeros_like(padded[0]), *padded], axis=2)
