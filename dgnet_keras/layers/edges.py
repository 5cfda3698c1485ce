"""Edges of a graph while its nodes run: known before, or routed sample by sample."""

from collections.abc import Callable, Sequence
from typing import Protocol

import tensorflow as tf


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


class Edges(Protocol):
    """What a graph asks for while its nodes run, one after the other."""

    needs_pooled: bool

    def add_source(self, pooled: tf.Tensor | None) -> None:
        """The features of the next node are done; `pooled`, (batch, 1, 1, channels), routes it."""

    def column(self, target: int) -> tf.Tensor:
        """Weights of the edges into node `target`, (batch, target), 0 where they are closed."""

    def adjacency(self) -> tf.Tensor:
        """(batch, N + 1, N + 1), once all columns have been asked for."""


class FixedEdges:
    """Columns of an adjacency, (batch, N + 1, N + 1), that is known before the nodes run."""

    needs_pooled = False

    def __init__(self, adjacency: tf.Tensor) -> None:
        self._adjacency = adjacency

    def add_source(self, pooled: tf.Tensor | None) -> None:
        """The features of the next node are done; their pooled form is not needed."""

    def column(self, target: int) -> tf.Tensor:
        """Weights of the edges into node `target`, (batch, target)."""
        return self._adjacency[:, :target, target]

    def adjacency(self) -> tf.Tensor:
        """(batch, N + 1, N + 1)."""
        return self._adjacency


class RoutedEdges:
    """Columns of an adjacency that is computed while the nodes run, under both path rules.

    Source j adds its logits and weights when it is done (`add_source`); when node i starts,
    column i is complete: gated, with the rows of the nodes that are off set to zero, and, into
    the output, with the strongest edge kept. The masks are constants to the gradient.

    Args:
        route: function of a source's number and pooled features, (batch, 1, 1, channels), that
            gives its `"logits"` and `"edge_weights"`, both (batch, N - source).
        gates: the gates of nodes 1 to N, see `register_gate`.
        needs_pooled: whether `route` reads the pooled features.
        threshold: taken in place of the gates' own; scalar or (batch, 1), or None.
        training: handed on to the gates.
    """

    def __init__(
        self,
        route: Callable[[int, tf.Tensor], dict[str, tf.Tensor]],
        gates: Sequence[Callable[..., tf.Tensor]],
        *,
        needs_pooled: bool,
        threshold: float | tf.Tensor | None = None,
        training: bool | None = None,
    ) -> None:
        self.needs_pooled = needs_pooled
        self._route = route
        self._gates = gates
        self._threshold = threshold
        self._training = training
        self._logits: list[list[tf.Tensor]] = []
        self._edge_weights: list[list[tf.Tensor]] = []
        self._is_on: list[tf.Tensor] = []
        self._columns: list[tf.Tensor] = []

    def add_source(self, pooled: tf.Tensor | None) -> None:
        """The features of the next node are done; `pooled`, (batch, 1, 1, channels), routes it."""
        edges = self._route(len(self._logits), pooled)
        self._logits.append(tf.unstack(edges["logits"], axis=1))
        self._edge_weights.append(tf.unstack(edges["edge_weights"], axis=1))
        if not self._is_on:
            self._is_on.append(tf.ones_like(self._logits[0][0], tf.bool))

    def column(self, target: int) -> tf.Tensor:
        """Gated weights of the edges into node `target`, (batch, target)."""

        def into_target(rows):
            return tf.stack([row[target - 1 - j] for j, row in enumerate(rows[:target])], axis=1)

        is_on = tf.stack(self._is_on, axis=1)
        logits = into_target(self._logits)
        is_output = target == len(self._gates)
        gated = self._gates[target - 1](
            into_target(self._edge_weights),
            keep=strongest_edge(logits, is_on) if is_output else None,
            threshold=self._threshold,
            logits=logits,
            training=self._training,
        )
        column = gated * tf.cast(is_on, gated.dtype)
        if not is_output:
            self._is_on.append(tf.reduce_any(column > 0, axis=1))
        self._columns.append(column)
        return column

    def adjacency(self) -> tf.Tensor:
        """(batch, N + 1, N + 1), of all columns asked for."""
        size = len(self._columns) + 1
        padded = [tf.pad(c, [[0, 0], [0, size - c.shape[1]]]) for c in self._columns]
        return tf.stack([tf.zeros_like(padded[0]), *padded], axis=2)
