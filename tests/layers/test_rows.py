"""Sums over open edges against a loop over samples and edges."""

import numpy as np
import pytest
import tensorflow as tf

from dgnet_keras.layers.rows import Bank, Rows, dense_sum, weighted_sum

BATCH = 6
SHAPE = (3, 2, 4)


def one(source, weight):
    weights = np.zeros((BATCH, 3), "float32")
    weights[:, source] = weight
    return weights


def edges(*sources):
    """Weights of one open edge a sample, by its source; None: no edge."""
    weights = np.zeros((BATCH, 3), "float32")
    for b, j in enumerate(sources):
        if j is not None:
            weights[b, j] = 0.5 + 0.1 * b
    return weights


ALL_ON = np.ones((3, BATCH), bool)
SOME_ON = np.array([[1, 1, 1, 1, 1, 1], [1, 0, 1, 0, 1, 0], [0, 0, 0, 0, 1, 1]], bool)
NONE_ON = np.array([[1, 1, 1, 1, 1, 1], [0, 0, 0, 0, 0, 0], [0, 0, 1, 1, 1, 1]], bool)
RNG = np.random.default_rng(0)
CASES = {
    "no row": (np.zeros((BATCH, 3), "float32"), ALL_ON),
    "one source, weight 1": (one(1, 1.0), ALL_ON),
    "one source, weighted": (one(2, 0.3), ALL_ON),
    "some of one source": (edges(0, None, 0, 0, None, None), SOME_ON),
    "an edge a sample": (edges(0, 0, 1, 0, 2, 2), SOME_ON),
    "most edges of all": (RNG.uniform(size=(BATCH, 3)).astype("float32"), ALL_ON),
    "most edges of some": (RNG.uniform(size=(BATCH, 3)).astype("float32") * SOME_ON.T, SOME_ON),
    "few edges": (edges(0, 0, 1, None, 2, None) + edges(None, None, 0, None, 0, None), SOME_ON),
    "a source without rows": (edges(0, 0, 2, 2, 0, 2) + edges(None, None, 0, 0), NONE_ON),
}


def rows_of(is_on, *, fill=False):
    return None if is_on.all() and not fill else Rows(tf.constant(is_on), at_least_one=fill)


@pytest.mark.parametrize("mode", ["eager", "graph"])
@pytest.mark.parametrize("all_samples", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_it_is_the_sum_over_open_edges(case, all_samples, mode, rng):
    weights, is_on = CASES[case]
    target_is_on = np.ones(BATCH, bool) if all_samples else weights.any(axis=1)
    maps = rng.normal(size=(3, BATCH, *SHAPE)).astype("float32")
    maps[~is_on] = np.nan  # rows that there are not

    def run(weights):
        features = [tf.constant(m[on]) for m, on in zip(maps, is_on, strict=True)]
        bank = Bank(features, [rows_of(on) for on in is_on], tf.constant(BATCH))
        return weighted_sum(weights, bank, rows_of(target_is_on))

    found = (run if mode == "eager" else tf.function(run))(tf.constant(weights))
    expected = np.zeros((BATCH, *SHAPE), "float32")
    for b in range(BATCH):
        for j in range(3):
            if weights[b, j]:
                expected[b] += weights[b, j] * maps[j, b]
    np.testing.assert_array_equal(found, expected[target_is_on])


@pytest.mark.parametrize("case", ["an edge a sample", "most edges of some", "few edges"])
def test_closed_edges_bring_nothing_that_is_not_finite(case, rng):
    weights, is_on = CASES[case]
    maps = rng.normal(size=(3, BATCH, *SHAPE)).astype("float32")
    maps[(weights == 0).T] = np.inf
    features = [tf.constant(m[on]) for m, on in zip(maps, is_on, strict=True)]
    bank = Bank(features, [rows_of(on) for on in is_on], tf.constant(BATCH))
    assert np.isfinite(weighted_sum(tf.constant(weights), bank, None)).all()


def test_sums_of_many_sources_are_added_in_their_order(rng):
    maps = [tf.constant(rng.normal(size=(2, *SHAPE)), tf.float32) for _ in range(20)]
    weights = tf.constant(rng.uniform(size=(2, 20)), tf.float32)
    expected = 0.0
    for j, x in enumerate(maps):
        expected += weights[:, j, None, None, None] * x
    np.testing.assert_array_equal(dense_sum(tf.unstack(weights, axis=1), maps), expected)


def test_rows_without_a_sample_have_one_that_is_none():
    rows = Rows(tf.constant([False, False]), at_least_one=True)
    assert int(rows.count) == 1
    np.testing.assert_array_equal(rows.is_real(), [False])
    nothing = rows.spread(tf.fill((1, 1, 1, 3), np.nan))
    np.testing.assert_array_equal(nothing, np.zeros((2, 1, 1, 3)))
