"""Skipping: in inference, a node runs on the samples that take it, and on no others.

Features are kept as rows, see `rows`: nothing is computed, read or written for a sample that
passes a node by. Training's form is in `aggregation.Features`, which needs no branches.
"""

from collections.abc import Callable, Sequence
from typing import Literal

import keras
import tensorflow as tf
from tensorflow.python.ops import control_flow_util

from dgnet_keras.layers import exports
from dgnet_keras.layers.aggregation import (
    Features,
    ForwardFeatures,
    Route,
    Sources,
    column_gradient,
    only,
)
from dgnet_keras.layers.gate import gate_dtype
from dgnet_keras.layers.normalization import BatchNormalization
from dgnet_keras.layers.options import GraphOptions
from dgnet_keras.layers.router import pool
from dgnet_keras.layers.rows import Bank, Rows, weighted_sum
from dgnet_keras.user_warnings import warn

# How the nodes that are off are treated: computed and left out (`dense`, for shapes that must be
# static), left out by batch (`branching`) or by sample (`skipping`; `rows_training`).
Form = Literal["dense", "branching", "skipping", "dense_training", "rows_training"]


def form_of(
    blocks: Sequence[keras.layers.Layer], options: GraphOptions, training: bool | None
) -> Form:
    """How a graph's nodes are run: with skipping where the options ask for it, and it can be."""
    asked = options.skip_in_training if training else options.skip
    skip = asked == "auto" and not shapes_are_static()
    if training:
        is_plain = not any(map(_other_normalization, blocks[1:]))
        return "rows_training" if skip and is_plain else "dense_training"
    if not skip or exports.reader() == "onnx" or any(map(_adds_losses, blocks)):
        return "dense"
    return "branching" if exports.reader() == "if" else "skipping"


def make_sources(
    blocks: Sequence[keras.layers.Layer], options: GraphOptions, training: bool | None
) -> Sources:
    """What runs a graph's nodes on sums of earlier features, in the form of `form_of`."""
    form = form_of(blocks, options, training)
    if training:
        # The gate "masked" gives closed edges no gradient.
        closed_learn = options.gate != "masked"
        return Features(len(blocks), skip=form == "rows_training", closed_learn=closed_learn)
    makers = {"branching": BranchingFeatures, "skipping": SkippingFeatures}
    return makers.get(form, ForwardFeatures)(len(blocks))


def check_normalization(blocks: Sequence[keras.layers.Layer], name: str) -> None:
    """Warns of batch normalisation whose statistics would be of the samples that are off, too."""
    if others := [layer.path for block in blocks[1:] for layer in _other_normalization(block)]:
        warn(
            f"Stage {name!r} has batch normalisation of Keras's own, with `renorm`, or over an "
            f"axis that is not the last: {', '.join(others)}. It takes its statistics from all "
            "samples, also from those that do not take the node, and training computes the node "
            "for them. `dgnet_keras.layers.BatchNormalization` does not."
        )


def shapes_are_static() -> bool:
    """Whether what is being traced is for XLA, which needs to know how many rows there are.

    So it is on a TPU, and under `jit_compile=True`.
    """
    graph = tf.compat.v1.get_default_graph()
    return bool(control_flow_util.GraphOrParentsInXlaContext(graph))


def _adds_losses(block):
    """Whether a call of the block adds to the model's losses, which it cannot inside a branch."""
    return any(layer.activity_regularizer is not None for layer in block._flatten_layers())


def _other_normalization(block):
    return [
        layer
        for layer in block._flatten_layers()
        if isinstance(layer, keras.layers.BatchNormalization)
        and not (isinstance(layer, BatchNormalization) and layer.counts_samples())
    ]


def without_losses(block: Callable[[tf.Tensor], tf.Tensor], inputs: tf.Tensor) -> tf.Tensor:
    """`block(inputs)` inside a branch, which losses of its own cannot leave.

    Raises:
        ValueError: if the block, or a layer in it, adds a loss in its `call`.
    """
    layers = block._flatten_layers() if isinstance(block, keras.layers.Layer) else []
    before = [len(layer._losses) for layer in layers]
    features = block(inputs)
    for layer, count in zip(layers, before, strict=True):
        if len(layer._losses) > count:
            raise ValueError(
                f"{layer.path!r} adds a loss in its `call`. In inference a node runs in a branch, "
                "which a loss cannot leave: create the model with skip='never', or give the layer "
                "an `activity_regularizer`."
            )
    return features


class BranchingFeatures(ForwardFeatures):
    """`ForwardFeatures` that does not run a node, nor its router, which no sample of a batch takes.

    It needs no operation but `If`, and skips as much as `SkippingFeatures` where a batch is one
    sample.
    """

    def run(
        self,
        block: Callable[[tf.Tensor], tf.Tensor],
        column: tf.Tensor,
        is_on: tf.Tensor | None,
        route: Route | None,
    ) -> tf.Tensor | None:
        """Runs the next node; see `Sources`."""
        if is_on is None:
            return super().run(block, column, is_on, route)
        features, logits = _branch(
            tf.reduce_any(is_on),
            block,
            self.output(column),
            route and (lambda features: route(only(is_on, pool(features)))),
            [tf.size(is_on), self._num_nodes - len(self._features)],
        )
        self._features.append(features)
        return logits


class SkippingFeatures(Sources):
    """`Sources` for inference: equals `ForwardFeatures`, without the samples that pass by.

    In a batch of any size a node that no sample takes is not run, nor is its router.
    """

    def __init__(self, num_nodes: int) -> None:
        self._num_nodes = num_nodes

    def add(self, features: tf.Tensor, route: Route | None) -> tf.Tensor | None:
        """Adds node 0; see `Sources`."""
        self._features = [features]
        self._rows: list[Rows | None] = [None]
        self._bank = Bank([features], [None], tf.shape(features)[0])
        return route(pool(features)) if route else None

    def run(
        self,
        block: Callable[[tf.Tensor], tf.Tensor],
        column: tf.Tensor,
        is_on: tf.Tensor | None,
        route: Route | None,
    ) -> tf.Tensor | None:
        """Runs the next node; see `Sources`."""
        rows = None if is_on is None else Rows(is_on | _nearly_all(column, is_on))
        inputs = self._aggregate(column, rows)
        if rows is None:
            features = block(inputs)
            logits = route(pool(features)) if route else None
        else:
            features, logits = _branch(
                rows.count > 0,
                block,
                inputs,
                route and (lambda features: route(rows.spread(pool(features)))),
                [self._bank.batch, self._num_nodes - len(self._features)],
            )
        self._features.append(features)
        self._rows.append(rows)
        self._bank.add(features, rows)
        return logits

    def output(self, column: tf.Tensor) -> tf.Tensor:
        """What the output takes in; see `Sources`."""
        return self._aggregate(column, None)

    def _aggregate(self, column, target):
        """What a node, or the output, takes in.

        The weight of a closed edge has a gradient too, where both of its nodes are on; TensorFlow's
        own would give it none.
        """
        rows, bank = list(self._rows), self._bank
        if exports.reader():
            return weighted_sum(column, bank, target)

        @tf.custom_gradient
        def apply(column, *features):
            def gradient(upstream):
                upstreams = Bank([upstream], [target], bank.batch)
                return column_gradient(upstream, target, features, rows, column.dtype), *(
                    weighted_sum(column[:, j, None], upstreams, r) for j, r in enumerate(rows)
                )

            return weighted_sum(column, bank, target, has_gradient=False), gradient

        return apply(column, *self._features)


def _nearly_all(column, is_on):
    """Whether to compute a node for all samples, so that sums over its features are dense.

    It is where three quarters of the samples have two open edges or more into it; with one source,
    where 15 of 16 are on. See docs/performance.md.
    """
    if column.shape[1] == 1:
        return tf.reduce_mean(tf.cast(is_on, tf.float32)) > 15 / 16
    degrees = tf.reduce_sum(tf.cast(column != 0, tf.int32), axis=1)
    return tf.reduce_mean(tf.cast(degrees > 1, tf.float32)) > 3 / 4


def _branch(condition, block, inputs, route, shape):
    """Features and logits of a block if it is to be run, else `inputs` and zeros of `shape`.

    `route` makes logits of features; None: there are none.
    """

    def on():
        features = without_losses(block, inputs)
        return features, *([route(features)] if route else [])

    def off():
        return inputs, *([tf.zeros(shape, gate_dtype(inputs.dtype))] if route else [])

    features, *logits = tf.cond(condition, on, off)
    return features, logits[0] if route else None
