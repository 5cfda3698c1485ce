"""Rows: features of some samples of a batch, and weighted sums of them that read open edges only.

A tensor of features has a row for each sample that it is of, in the batch's order. What a node
takes in is a sum over earlier nodes' rows; so is the gradient of a node's features, over the
gradients of what later nodes took in. Both are `weighted_sum`.
"""

import functools
from collections.abc import Sequence

import tensorflow as tf

# Terms that `tf.add_n` adds one after the other, as the sum of open edges does.
_IN_ORDER = 8
# From this share of open edges on, reading all of them is as fast: see docs/performance.md.
_DENSE = 0.5


class Rows:
    """Which samples of a batch a tensor of features has a row for.

    Args:
        is_on: boolean (batch,), the samples that have a row.
        at_least_one: where no sample is on, there is one row all the same that is no sample's,
            for operations that do not take an empty tensor.

    Attributes:
        is_on: as given.
        index: int64 (rows, 1), the samples in order.
        count: int32 scalar, the rows.
    """

    def __init__(self, is_on: tf.Tensor, *, at_least_one: bool = False) -> None:
        self.is_on = is_on
        self.index = tf.where(is_on)
        self.count = tf.size(self.index)
        self._is_real = None
        if at_least_one:
            extra = tf.cast(self.count == 0, tf.int32)
            self._is_real = tf.concat([self.index[:, 0] >= 0, tf.fill([extra], False)], axis=0)
            self.index = tf.pad(self.index, [[0, extra], [0, 0]])
            self.count += extra

    def positions(self) -> tf.Tensor:
        """int32 (batch,), the row of each sample that has one."""
        return _positions(self.is_on)

    def is_real(self) -> tf.Tensor:
        """Boolean (rows,), false of a row that is no sample's."""
        return self.index[:, 0] >= 0 if self._is_real is None else self._is_real

    def spread(self, pooled: tf.Tensor) -> tf.Tensor:
        """Values (rows, 1, 1, channels) as (batch, 1, 1, channels), 0 for samples without a row."""
        if self._is_real is not None:
            is_real = tf.reshape(self._is_real, [-1, 1, 1, 1])
            pooled = tf.where(is_real, pooled, tf.zeros([], pooled.dtype))
        shape = tf.stack([tf.size(self.is_on, tf.int64), *pooled.shape[1:]])
        return tf.scatter_nd(self.index, pooled, shape)


def take(features: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
    """Rows of features at positions that do not fall; not copied where they are all rows."""
    count = tf.shape(features)[0]
    is_all = tf.size(positions) == count
    is_all &= tf.reduce_all(positions[:count] == tf.range(tf.size(positions))[:count])
    return tf.cond(is_all, lambda: features, lambda: tf.gather(features, positions))


def column_of(weights: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    """`weights`, (rows,), as (rows, 1, 1, 1) in the dtype of the features."""
    return tf.reshape(tf.cast(weights, features.dtype), [-1, 1, 1, 1])


def scale(weights: tf.Tensor, features: tf.Tensor) -> tf.Tensor:
    """`weights`, (rows,), times `features`, (rows, height, width, channels), in their dtype."""
    return column_of(weights, features) * features


def add_in_order(terms: Sequence[tf.Tensor]) -> tf.Tensor:
    """The sum of tensors, added one after the other: `tf.add_n` adds more than eight otherwise."""
    total = tf.add_n(terms[:_IN_ORDER])
    for start in range(_IN_ORDER, len(terms), _IN_ORDER - 1):
        total = tf.add_n([total, *terms[start : start + _IN_ORDER - 1]])
    return total


def dense_sum(weights: Sequence[tf.Tensor], features: Sequence[tf.Tensor]) -> tf.Tensor:
    """`sum_j weights[j] * features[j]` of features (rows, height, width, channels), in order."""
    return add_in_order([scale(w, x) for w, x in zip(weights, features, strict=True)])


class Bank:
    """Features of several nodes, each with its rows.

    TensorFlow's list holds references: nothing is copied.

    Args:
        features: of each node, (rows, height, width, channels) of equal height, width, channels
            and dtype.
        rows: of each node; None where it has a row for every sample.
        batch: int32 scalar, the samples.
    """

    def __init__(
        self, features: Sequence[tf.Tensor], rows: Sequence[Rows | None], batch: tf.Tensor
    ) -> None:
        self.shape, self.dtype = features[0].shape[1:], features[0].dtype
        self.batch = batch
        self._every = tf.fill([batch], True)
        self._counts: list[tf.Tensor] = []
        self._is_on: list[tf.Tensor] = []
        self.handle = tf.raw_ops.EmptyTensorList(
            element_shape=-1, max_num_elements=-1, element_dtype=self.dtype
        )
        for x, r in zip(features, rows, strict=True):
            self.add(x, r)

    def add(self, features: tf.Tensor, rows: Rows | None) -> None:
        """Adds the next node's features."""
        self.handle = tf.raw_ops.TensorListPushBack(input_handle=self.handle, tensor=features)
        self._counts.append(self.batch if rows is None else rows.count)
        self._is_on.append(self._every if rows is None else rows.is_on)

    def counts(self) -> tf.Tensor:
        """Rows of each node, int32 (nodes,)."""
        return tf.stack(self._counts)

    def is_on(self) -> tf.Tensor:
        """Boolean (nodes, batch), whether a node has a row of a sample."""
        return tf.stack(self._is_on)


def weighted_sum(
    weights: tf.Tensor, bank: Bank, target: Rows | None, *, has_gradient: bool = True
) -> tf.Tensor:
    """`sum_j weights[:, j] * x_j` over the features x_j in `bank`, for the samples of `target`.

    Reads open edges only, and equals `dense_sum` over features spread to the whole batch, to the
    last bit in float32.

    Args:
        weights: (batch, sources), 0 where an edge is closed: where the source or the target has
            no row, it must be.
        bank: the sources' features.
        target: rows of the sum; None for every sample.
        has_gradient: False where a custom gradient stands around it: TensorFlow would trace its
            own as well.

    Returns:
        Tensor (rows of `target`, height, width, channels).
    """
    signature = weights.shape[1], weights.dtype, bank.dtype, target is not None
    function = _sum_function(*signature, eager=tf.executing_eagerly())
    rows = [] if target is None else [target.index, target.is_on]
    num_rows = bank.batch if target is None else target.count
    handle = bank.handle
    if not has_gradient:
        weights, handle = tf.stop_gradient(weights), tf.stop_gradient(handle)
    total = function(weights, handle, bank.counts(), bank.is_on(), num_rows, *rows)
    total.set_shape([None, *bank.shape])
    return total


@functools.cache
def _sum_function(sources, weight_dtype, dtype, has_target, *, eager):
    """The function of `weighted_sum` for a number of sources; for graphs, traced once in a process.

    Its arguments are the weights, the bank's handle, counts and `is_on`, the number of the
    target's rows and, where it is not of all samples, their samples, and which they are.
    """
    signature = [
        tf.TensorSpec((None, sources), weight_dtype),
        tf.TensorSpec((), tf.variant),
        tf.TensorSpec((sources,), tf.int32),
        tf.TensorSpec((sources, None), tf.bool),
        tf.TensorSpec((), tf.int32),
    ]
    if has_target:
        signature += [tf.TensorSpec((None, 1), tf.int64), tf.TensorSpec((None,), tf.bool)]

    def feature(handle, index):
        return tf.raw_ops.TensorListGetItem(
            input_handle=handle, index=index, element_shape=-1, element_dtype=dtype
        )

    def weighted_sum(weights, handle, counts, is_on, num_rows, index=None, target_is_on=None):
        ones = tf.cast(weights != 0, tf.int32)
        by_source = tf.reduce_sum(ones, axis=0)
        only = tf.argmax(by_source, output_type=tf.int32)
        numbers = [tf.reduce_max(by_source), tf.reduce_sum(by_source), tf.gather(counts, only)]
        # One source gives all rows, and has no others.
        is_one = tf.reduce_all(tf.stack(numbers) == num_rows)
        is_unit = tf.reduce_all(weights == tf.cast(ones, weights.dtype))

        def none():
            return feature(handle, 0)[:0]

        def one():
            return feature(handle, only)

        def one_scaled():
            column = tf.gather(weights, only, axis=1)
            return scale(column if index is None else tf.gather_nd(column, index), one())

        def many():
            def pick(j):
                return feature(handle, j)

            return _sum_of_many(weights, pick, counts, is_on, num_rows, index, target_is_on)

        if not eager:
            # A function of its own, so that it is one operation where it is not called: an
            # executor walks through all operations of the branches that are not taken.
            many = tf.function(many, autograph=False, experimental_attributes={"_noinline": True})
        case = tf.where(num_rows == 0, 0, tf.where(is_one, tf.where(is_unit, 1, 2), 3))
        return tf.switch_case(case, [none, one, one_scaled, many])

    if eager:
        return weighted_sum
    # Traced outside of what is being built now: gradients would have it traced each time.
    with tf.init_scope():
        return tf.function(weighted_sum, autograph=False).get_concrete_function(*signature)


def _sum_of_many(weights, pick, counts, is_on, num_rows, index, target_is_on):
    """`weighted_sum` where rows come from several sources, or are some of a source's."""
    sources = weights.shape[1]
    features = [pick(j) for j in range(sources)]
    is_open = weights != 0
    by_sample = tf.reduce_sum(tf.cast(is_open, tf.int32), axis=1)
    by_source = tf.reduce_sum(tf.cast(is_open, tf.int32), axis=0)
    num_edges = tf.reduce_sum(by_sample)

    def edges():
        """(edges, 2): source and sample, source by source, samples in order."""
        return tf.cast(tf.where(tf.transpose(is_open)), tf.int32)

    def places(edges):
        """Row of each edge in the target."""
        if index is None:
            return edges[:, 1]
        return tf.gather(_positions(target_is_on), edges[:, 1])

    def terms(edges):
        """Features of each edge, source by source."""
        positions = tf.gather_nd(_positions(is_on), edges)
        positions = tf.dynamic_partition(positions, edges[:, 0], sources)
        return [tf.gather(x, p) for x, p in zip(features, positions, strict=True)]

    def dense():
        return dense_sum(tf.unstack(weights, axis=1), features)

    def padded():
        """As `dense`, over rows of the target; another sample's where a source has none."""
        every = tf.range(tf.shape(weights)[0])
        samples = every if index is None else tf.cast(index[:, 0], tf.int32)
        rows = tf.maximum(tf.gather(_positions(is_on), samples, axis=1), 0)
        columns = tf.unstack(tf.gather(weights, samples), axis=1)
        # Another sample's NaN times 0 must be 0.
        terms = [
            tf.math.multiply_no_nan(take(x, p), column_of(w, x))
            for x, p, w in zip(features, tf.unstack(rows), columns, strict=True)
        ]
        return add_in_order(terms)

    def picked():
        only = tf.argmax(by_source, output_type=tf.int32)
        samples = tf.where(by_sample > 0)[:, 0]
        positions = _positions(tf.gather(is_on, only))
        column = tf.gather(tf.gather(weights, only, axis=1), samples)
        return scale(column, tf.gather(pick(only), tf.gather(positions, samples)))

    def stitched():
        found = edges()
        parts = tf.dynamic_partition(places(found), found[:, 0], sources)
        column = tf.reduce_sum(weights, axis=1)
        column = column if index is None else tf.gather_nd(column, index)
        return scale(column, tf.dynamic_stitch(parts, terms(found)))

    def summed():
        found = edges()
        column = tf.gather_nd(tf.transpose(weights), found)
        scaled = scale(column, tf.concat(terms(found), axis=0))
        return tf.math.unsorted_segment_sum(scaled, places(found), num_rows)

    batch = tf.shape(weights)[0]
    most = tf.cast(num_edges, tf.float32) > _DENSE * tf.cast(num_rows * sources, tf.float32)
    is_single = (tf.reduce_max(by_sample) == 1) & (num_edges == num_rows)
    cases = [
        (dense, most & tf.reduce_all(counts == batch) & (num_rows == batch)),
        (picked, is_single & (tf.reduce_max(by_source) == num_edges)),
        (stitched, is_single),
        (padded, most & tf.reduce_all(counts > 0)),
        (summed, tf.constant(True)),
    ]
    case = tf.argmax(tf.stack([condition for _, condition in cases]), output_type=tf.int32)
    return tf.switch_case(case, [branch for branch, _ in cases])


def _positions(is_on):
    """int32 (..., batch), the row of each sample that is on."""
    return tf.cumsum(tf.cast(is_on, tf.int32), axis=-1) - 1
