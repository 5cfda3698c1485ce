"""Paths: a sample's features go through the nodes that it takes, and pass the others by.

There is one state, (batch, height, width, channels). A node that is taken puts its features in
the place of what it took in; nothing is summed and nothing is scaled.
"""

from collections.abc import Callable, Sequence

import keras
import tensorflow as tf

from dgnet_keras.layers.aggregation import inner_product, only
from dgnet_keras.layers.devices import has_accelerator
from dgnet_keras.layers.gate import gate_dtype
from dgnet_keras.layers.normalization import statistics_of
from dgnet_keras.layers.options import GraphOptions
from dgnet_keras.layers.rows import Rows, take
from dgnet_keras.layers.skipping import Form, form_of, shapes_are_static, without_losses

# A node: features in, features out.
Block = Callable[[tf.Tensor], tf.Tensor]


def run_path(
    blocks: Sequence[keras.layers.Layer],
    state: tf.Tensor,
    take_node: Callable[[int, tf.Tensor], tf.Tensor],
    options: GraphOptions,
    training: bool | None,
) -> tuple[tf.Tensor, tf.Tensor]:
    """Runs the nodes after the first on the samples that take them.

    Args:
        blocks: the graph's, the first one included, which has made the state.
        state: features of node 0, (batch, height, width, channels).
        take_node: function of a node's number and the state that gives which samples take it,
            (batch,): boolean, in training 1 or 0 with a gradient that reaches the routers.
        options: the stage's.
        training: whether statistics are the batch's.

    Returns:
        The last state, and the adjacency, (batch, N + 1, N + 1).
    """
    if training and options.path_gradient == "all":
        step = _all_training
    else:
        step = _STEPS[form_of(blocks, options, training)]
    taken = []
    for i, block in enumerate(blocks[1:], start=1):
        taken.append(take_node(i, state))
        state = step(block, state, taken[-1])
    taken = tf.cast(tf.stack(taken, axis=1), gate_dtype(state.dtype))
    return state, path_adjacency(taken)


def path_adjacency(taken: tf.Tensor) -> tf.Tensor:
    """The edges of paths: 1 from each node that is taken to the next one, or to the output.

    Args:
        taken: (batch, N - 1), 1 or 0, of nodes 1 to N - 1; node 0 is always taken.

    Returns:
        (batch, N + 1, N + 1). A column's sum is as `taken`, its gradient too; which node an edge
        comes from is a constant to the gradient.
    """
    ones = tf.ones_like(taken[:, :1])
    into = tf.concat([tf.zeros_like(ones), taken, ones], axis=1)
    is_on = tf.stop_gradient(tf.concat([ones, taken], axis=1))  # of the sources, 0 to N - 1
    size = is_on.shape[1] + 1
    number = is_on * tf.range(size - 1, dtype=taken.dtype)
    before = tf.linalg.band_part(tf.ones([size - 1, size], taken.dtype), 0, -1)
    before -= tf.eye(size - 1, size, dtype=taken.dtype)  # source j < target i
    last = tf.reduce_max(number[:, :, None] * before, axis=1)
    return tf.one_hot(tf.cast(last, tf.int32), size, axis=1, dtype=taken.dtype) * into[:, None]


def _dense(block, state, is_on):
    """For shapes that must be static: computed for all samples."""
    return tf.where(_column(is_on), block(state), state)


def _branching(block, state, is_on):
    """By `If` alone: computed for all samples where any takes it."""

    def on():
        return tf.where(_column(is_on), without_losses(block, state), state)

    return tf.cond(tf.reduce_any(is_on), on, lambda: state)


def _skipping(block, state, is_on):
    """Computed for the samples that take it."""

    def some():
        index = tf.where(is_on)
        rows = without_losses(block, tf.gather(state, index[:, 0]))
        return tf.tensor_scatter_nd_update(state, index, rows)

    # As few operations as can be: a single image waits for each of them.
    any_on = tf.reduce_any(is_on)
    case = tf.cast(any_on, tf.int32) + tf.cast(any_on & tf.reduce_all(is_on), tf.int32)
    return tf.switch_case(case, [lambda: state, some, lambda: without_losses(block, state)])


def _all_training(block, state, taken):
    """Computed and normalised for all samples, which all say what their choice is worth."""
    is_on = taken > 0
    all_on = tf.reduce_all(is_on)  # then nothing is copied, in either direction
    plain = has_accelerator() or shapes_are_static()  # where a branch costs more than a copy

    def if_all(same, other):
        return other() if plain else tf.cond(all_on, same, other)

    # What passes by goes around the node as `kept`, whose gradient is the whole upstream: `split`
    # leaves out of it what did not pass by.
    @tf.custom_gradient
    def split(state):
        def gradient(d_inputs, d_kept):
            return if_all(lambda: d_inputs, lambda: d_inputs + only(~is_on, d_kept))

        return (tf.identity(state), tf.identity(state)), gradient

    inputs, kept = split(state)
    outputs = block(inputs)

    @tf.custom_gradient
    def merge(kept, outputs, taken):
        def gradient(upstream):
            own = if_all(lambda: upstream, lambda: only(is_on, upstream))
            return upstream, own, _d_taken(upstream, state, outputs, taken.dtype)

        merged = if_all(lambda: outputs, lambda: tf.where(_column(is_on), outputs, kept))
        return merged, gradient

    return merge(kept, outputs, taken)


def _dense_training(block, state, taken):
    """For static shapes: computed for all samples; only those that take it reach anything."""
    is_on = taken > 0
    inputs = only(is_on, state)
    with statistics_of(is_on, batch=tf.size(taken)):
        outputs = block(inputs)

    @tf.custom_gradient
    def merge(state, outputs, taken):
        def gradient(upstream):
            own = only(is_on, upstream)
            return only(~is_on, upstream), own, _d_taken(own, inputs, outputs, taken.dtype)

        return tf.where(_column(is_on), outputs, state), gradient

    return merge(state, outputs, taken)


def _rows_training(block, state, taken):
    """Computed for the samples that take it, or for one row that is no sample's if none does."""
    rows = Rows(taken > 0, at_least_one=True)
    real = rows.index[: tf.math.count_nonzero(rows.is_on, dtype=tf.int32)]
    count, batch = tf.shape(real)[0], tf.size(taken)
    positions = tf.cast(rows.index[:, 0], tf.int32)

    def put(state, values):
        """The state with the rows in it."""
        return tf.cond(
            count == batch,
            lambda: values,
            lambda: tf.tensor_scatter_nd_update(state, real, values[:count]),
        )

    # What passes by goes around the node as `kept`. Its gradient has the whole upstream, in which
    # `split` then puts the gradient of the rows in place of what was theirs.
    @tf.custom_gradient
    def split(state):
        def gradient(d_inputs, d_kept):
            return put(d_kept, d_inputs)

        return (take(state, positions), tf.identity(state)), gradient

    inputs, kept = split(state)
    with statistics_of(rows.is_real(), batch=batch, gathered=True):
        outputs = block(inputs)

    @tf.custom_gradient
    def merge(kept, outputs, taken):
        def gradient(upstream):
            own = only(rows.is_real(), take(upstream, positions))
            products = _d_taken(own, inputs, outputs, taken.dtype)
            return upstream, own, tf.scatter_nd(real, products[:count], tf.shape(taken, tf.int64))

        return put(kept, outputs), gradient

    return merge(kept, outputs, taken)


def _d_taken(upstream, inputs, outputs, dtype):
    """What taking a node is worth: inner products of `upstream` and what the node changes."""
    return inner_product(upstream, outputs, dtype) - inner_product(upstream, inputs, dtype)


def _column(is_on):
    return tf.reshape(is_on, [-1, 1, 1, 1])


_STEPS: dict[Form, Callable[[Block, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "dense": _dense,
    "branching": _branching,
    "skipping": _skipping,
    "dense_training": _dense_training,
    "rows_training": _rows_training,
}
