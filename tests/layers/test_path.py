import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create

from dgnet_keras.layers import BatchNormalization, GraphStage
from dgnet_keras.layers.path import path_adjacency
from dgnet_keras.layers.path_router import PathGate, PathRouter, hard

CHANNELS = 3


def plain_blocks(count):
    """Blocks that treat each sample for itself: no normalisation."""
    return [
        keras.layers.Conv2D(CHANNELS, 3, padding="same", activation="tanh", name=f"block_{i}")
        for i in range(count)
    ]


def stage_of(count, **options):
    """A built stage of paths, whose routers differ by image; without noise."""
    stage = GraphStage(plain_blocks(count), name="stage1", **{"wiring": "path", **options})
    stage(np.zeros((1, 4, 4, CHANNELS), "float32"))
    rng = np.random.default_rng(0)
    for router in stage.routers().values():
        for weight in router.trainable_weights:
            weight.assign(rng.normal(size=weight.shape))
    for gate in stage.gates():
        gate.noise.assign(0.0)
    return stage


def loop(stage, x, threshold=0.0):
    """Output and nodes taken of one sample, (1, height, width, channels), in plain words."""
    state, path = stage.blocks[0](x), [0]
    for i, block in enumerate(stage.blocks[1:], start=1):
        if float(stage.routers()[i](state)[0]) > threshold:
            state = block(state)
            path.append(i)
    return state, path


@pytest.fixture
def x():
    return np.random.default_rng(1).normal(size=(16, 4, 4, CHANNELS)).astype("float32")


@pytest.mark.parametrize("threshold", [None, 0.4, -np.inf, np.inf])
def test_each_sample_takes_the_path_of_a_plain_loop(x, threshold):
    stage = stage_of(5)
    found = stage(x, threshold=threshold)
    lengths = set()
    for b in range(len(x)):
        features, path = loop(stage, x[b : b + 1], 0.0 if threshold is None else threshold)
        np.testing.assert_allclose(found["features"][b], features[0], atol=1e-6)
        edges = np.zeros((6, 6))
        for source, target in zip(path, [*path[1:], 5], strict=True):
            edges[source, target] = 1
        np.testing.assert_array_equal(found["adjacency"]["stage1"][b], edges)
        lengths.add(len(path))
    expected = {-np.inf: {5}, np.inf: {1}}.get(threshold)
    assert len(lengths) > 1 if expected is None else lengths == expected


def test_one_threshold_a_sample_is_taken(x):
    stage = stage_of(4)
    limits = np.linspace(-2, 2, len(x)).astype("float32")
    found = stage(x, threshold=limits[:, None])["features"]
    for b in range(len(x)):
        np.testing.assert_allclose(found[b], loop(stage, x[b : b + 1], limits[b])[0][0], atol=1e-6)


@pytest.mark.parametrize(
    ("which", "skip"), [("all", "auto"), ("taken", "auto"), ("taken", "never")]
)
def test_the_choice_has_the_gradient_of_the_sigmoid(x, which, skip):
    """Against finite differences of what the output is if a sample takes a node a little less."""
    keras.config.set_dtype_policy("float64")
    stage = stage_of(4, path_gradient=which, skip_in_training=skip)
    weights = np.random.default_rng(2).normal(size=(len(x), 4, 4, CHANNELS))
    with tf.GradientTape() as tape:
        loss = tf.reduce_sum(weights * stage(x, training=True)["features"])
    biases = [stage.routers()[i].bias for i in (1, 2, 3)]
    found = tape.gradient(loss, [b.value for b in biases])

    def loss_with(taken):
        state = stage.blocks[0](x)
        for i, block in enumerate(stage.blocks[1:]):
            share = taken[:, i, None, None, None]
            state = share * block(state) + (1 - share) * state
        return float(tf.reduce_sum(weights * state))

    state, taken, slopes = stage.blocks[0](x), [], []
    for i, block in enumerate(stage.blocks[1:], start=1):
        z = stage.routers()[i](state, training=True).numpy()
        taken.append((z > 0).astype("float64"))
        slopes.append(1 / (1 + np.exp(-z)) * (1 - 1 / (1 + np.exp(-z))))
        state = tf.where(taken[-1][:, None, None, None] > 0, block(state), state)
    taken = np.stack(taken, axis=1)
    assert 0 < taken.mean() < 1
    for i in range(3):
        expected = 0.0
        for b in range(len(x)) if which == "all" else np.flatnonzero(taken[:, i]):
            less, step = taken.copy(), 1e-6
            less[b, i] -= step
            expected += (loss_with(taken) - loss_with(less)) / step * slopes[i][b]
        np.testing.assert_allclose(found[i].numpy()[0], expected, rtol=1e-4)


@pytest.mark.parametrize("compiled", [False, True], ids=["", "xla"])
def test_training_has_the_gradients_of_a_plain_sum(x, compiled):
    """Of blocks, routers and images, first and second: some, all or no samples take a node."""
    keras.config.set_dtype_policy("float64")
    stage = stage_of(3)
    weights = np.random.default_rng(2).normal(size=(len(x), 4, 4, CHANNELS))
    variables = [v.value for v in stage.trainable_variables]

    def plain(x, threshold):
        state = stage.blocks[0](x)
        for i, block in enumerate(stage.blocks[1:], start=1):
            logits = stage.routers()[i](state, training=True)
            soft = tf.sigmoid(logits - threshold)
            hard_choice = tf.cast(logits > threshold, soft.dtype)
            share = tf.reshape(hard_choice + soft - tf.stop_gradient(soft), [-1, 1, 1, 1])
            state = share * block(state) + (1 - share) * state
        return state

    def gradients(run, x):
        with tf.GradientTape() as outer:
            outer.watch(x)
            with tf.GradientTape() as tape:
                tape.watch(x)
                loss = tf.reduce_sum(weights * tf.sin(run(x)))
            first = tape.gradient(loss, [x, *variables])
        return [*first, outer.gradient(first[0], x)]

    x = tf.constant(x, "float64")
    ours = tf.function(
        lambda x: gradients(lambda x: stage(x, training=True)["features"], x), jit_compile=compiled
    )
    for threshold in (0.0, -np.inf, np.inf):
        stage.set_threshold(threshold)
        theirs = gradients(lambda x, t=threshold: plain(x, t), x)
        for found, expected in zip(ours(x), theirs, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-8, atol=1e-10)


def test_nan_in_a_sample_reaches_no_other(x):
    stage = stage_of(4)
    clean = stage(x)["features"].numpy()
    broken = x.copy()
    broken[3] = np.nan
    found = stage(broken)["features"].numpy()
    others = np.arange(len(x)) != 3
    np.testing.assert_array_equal(found[others], clean[others])
    assert np.isnan(found[3]).any()


def test_a_column_of_the_adjacency_has_the_gradient_of_its_choice():
    taken = tf.constant([[1.0, 0.0, 1.0], [0.0, 0.0, 0.0]])
    with tf.GradientTape() as tape:
        tape.watch(taken)
        into = tf.reduce_sum(path_adjacency(taken), axis=1)[:, 1:-1]
        total = tf.reduce_sum(into * [[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])
    np.testing.assert_array_equal(tape.gradient(total, taken), [[1, 2, 3], [4, 5, 6]])


def test_at_first_19_of_20_are_taken_with_noise_and_all_without():
    model = create("resnet_cifar_path", depths=(9,), widths=(4,))
    (stage,) = model.backbone.stages
    x = np.random.default_rng(0).normal(size=(400, 4, 4, 4)).astype("float32")
    taken = stage(x, training=True)["adjacency"]["stage1"].numpy().any(axis=1)[:, 1:-1]
    assert 0.93 < taken.mean() < 0.97
    assert (stage(x)["adjacency"]["stage1"].numpy() == np.eye(10, k=1)).all()
    twice = [stage(x, training=True)["adjacency"]["stage1"].numpy() for _ in range(2)]
    assert (twice[0] != twice[1]).any()


def test_the_gate_adds_logistic_noise():
    gate = PathGate(0.5, seed=3)
    logits = tf.fill([20000], 1.5)
    taken = gate(logits, training=True)
    assert abs(float(tf.reduce_mean(taken)) - 1 / (1 + np.exp(-1.0))) < 0.01
    gate.noise.assign(0.0)
    assert (gate(logits, training=True).numpy() == 1).all()
    assert gate(logits).dtype == tf.bool


def test_a_hard_choice_has_a_soft_gradient():
    margin = tf.constant([-1.0, 0.0, 2.0])
    with tf.GradientTape() as tape:
        tape.watch(margin)
        chosen = hard(margin)
    np.testing.assert_array_equal(chosen, [0, 0, 1])
    s = 1 / (1 + np.exp(-margin.numpy()))
    np.testing.assert_allclose(tape.gradient(chosen, margin), s * (1 - s), rtol=1e-6)


def test_the_router_normalises_over_the_batch_and_gives_features_no_gradient(x):
    router = PathRouter(seed=1, bias_initializer="ones")
    np.testing.assert_array_equal(router(x), np.ones(len(x)))  # its last kernel starts at 0
    router.kernel.assign(np.random.default_rng(0).normal(size=router.kernel.shape))
    variable = tf.Variable(x)
    with tf.GradientTape() as tape:
        z = router(variable, training=True)
    assert tape.gradient(z, variable) is None
    pooled = x.mean(axis=(1, 2))
    normal = (pooled - pooled.mean(0)) / np.sqrt(pooled.var(0) + 1e-5)
    hidden = np.maximum(normal @ router.hidden_kernel.numpy() + router.hidden_bias.numpy(), 0)
    expected = hidden @ router.kernel.numpy()[:, 0] + router.bias.numpy()
    np.testing.assert_allclose(z, expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(router.moving_mean, 0.1 * pooled.mean(0), rtol=1e-4, atol=1e-6)


def test_one_sample_leaves_the_routers_statistics_as_they_are(x):
    """Its spread is 0, and inference would divide by what became of it."""
    router = PathRouter()
    router(x, training=True)
    before = [v.numpy() for v in (router.moving_mean, router.moving_variance)]
    router.kernel.assign(np.ones(router.kernel.shape))
    for _ in range(3):
        found = router(x[:1], training=True)
    for variable, value in zip((router.moving_mean, router.moving_variance), before, strict=True):
        np.testing.assert_array_equal(variable, value)
    np.testing.assert_allclose(found, router(x[:1]), rtol=1e-6)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"threshold": float("nan")}, "finite number, in logits"),
        ({"threshold": float("-inf")}, "finite number, in logits"),
        ({"gate": "masked"}, "`gate` must be 'straight_through'"),
        ({"edge_scale": 2.0}, "`edge_scale` must be 1"),
        ({"learn_threshold": True}, "`learn_threshold` must be False"),
    ],
)
@pytest.mark.parametrize("wiring", ["path", "learned_path"])
def test_options_that_paths_do_not_have_are_refused(wiring, options, message):
    with pytest.raises(ValueError, match=message):
        create("resnet_cifar_path", wiring=wiring, **options)


def test_a_threshold_that_is_no_number_is_refused():
    stage = stage_of(3)
    with pytest.raises(ValueError, match=r"must be a number\. Received: nan"):
        stage.set_threshold(float("nan"))
    stage.set_threshold(float("inf"))
    assert stage.gates()[0].current_threshold() == np.inf


def test_all_samples_are_normalised_together_where_all_say_what_a_choice_is_worth(x):
    blocks = [keras.layers.Conv2D(CHANNELS, 3, padding="same", name="first")]
    blocks += [BatchNormalization(name=f"norm{i}") for i in range(2)]
    stage = GraphStage(blocks, wiring="path", name="stage1")
    stage(x)
    router = stage.routers()[1]
    router.kernel.assign(np.random.default_rng(3).normal(size=router.kernel.shape))
    (gate,) = stage.gates()
    gate.noise.assign(0.0)
    gate.set_threshold(3.0)
    state = blocks[0](x)
    taken = stage(x, training=True)["adjacency"]["stage1"].numpy()[:, 0, 1]
    assert 0 < taken.mean() < 1
    mean = (1 - blocks[1].momentum) * tf.reduce_mean(state, (0, 1, 2))  # from 0
    np.testing.assert_allclose(blocks[1].moving_mean, mean, atol=1e-6)


def test_the_gradient_of_paths_is_refused_elsewhere():
    with pytest.raises(ValueError, match=r"`path_gradient` is of paths.*wiring='dynamic'"):
        GraphStage(plain_blocks(2), name="stage1", path_gradient="taken")
    with pytest.raises(ValueError, match=r"`path_gradient` must be one of"):
        GraphStage(plain_blocks(2), name="stage1", wiring="path", path_gradient="some")
