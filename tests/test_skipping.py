"""Nodes that are off: models that skip them against models that compute everything."""

import pathlib
import pickle
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import CATALOG, adjacency, create, images, randomize

import dgnet_keras as dg
from dgnet_keras.layers import BatchNormalization, GraphStage, register_gate
from dgnet_keras.layers.blocks import BasicBlock
from dgnet_keras.layers.gates import gates
from dgnet_keras.layers.wiring import PATHS

LABELS = np.arange(7) % 3
ROWS = [row for row in CATALOG if CATALOG[row].get("wiring") != "chain"]  # where a node can be off


def pair(row, **kwargs):
    """A model that skips, and one that does not; equal weights."""
    skip = randomize(create(row, **kwargs), scale=1.0)
    never = create(row, skip="never", skip_in_training="never", **kwargs)
    never.set_weights(skip.get_weights())
    return skip, never


def set_edges(model, which):
    """Sets routers or edge logits: all nodes on, all off, or the first after node 0 alone on."""
    for stage in model.backbone.stages:
        if stage.wiring in PATHS:
            set_path(stage, which)
            continue
        for graph in stage.graphs:
            n = graph.num_blocks
            rows = [np.full(n - j, 3.0 if which == "all on" else -12.0) for j in range(n)]
            if which == "one on":
                rows[0][0] = 3.0
            found = [w for w in stage.weights if w.name.startswith("edge_logits")]
            suffix = graph.key.removeprefix(stage.name)
            for weight in found:
                if weight.name == f"edge_logits{suffix}":
                    weight.assign(np.concatenate(rows))
            for j, row in enumerate(rows):
                for weight in stage.weights:
                    if f"/router_{graph.first + j}/" in weight.path:
                        weight.assign(row if weight.name == "bias" else np.zeros(weight.shape))


def set_path(stage, which):
    """As `set_edges`, of a wiring of paths."""
    for graph in stage.graphs:
        logits = np.full(graph.num_blocks - 1, 3.0 if which == "all on" else -12.0)
        if which == "one on":
            logits[0] = 3.0
        for i, logit in enumerate(logits, start=graph.first + 1):
            for weight in stage.routers()[i].trainable_weights if stage.routers() else []:
                weight.assign(np.full(weight.shape, logit if weight.name == "bias" else 0.0))
        for weight in stage.weights:
            if weight.name == f"node_logits{graph.key.removeprefix(stage.name)}":
                weight.assign(logits)


def everything(model):
    """A function of images: logits and adjacency; batches of any size."""
    outputs = {"logits": model.output, **model.adjacency_outputs}
    functional = keras.Model(model.input, outputs)
    signature = [tf.TensorSpec((None, 16, 16, 3), tf.float32)]
    return tf.function(lambda x: functional(x, training=False), input_signature=signature)


def training_step(model):
    """A function of images and labels: loss and gradients."""

    @tf.function(
        input_signature=[
            tf.TensorSpec((None, 16, 16, 3), tf.float32),
            tf.TensorSpec((None,), tf.int64),
        ]
    )
    def step(images, labels):
        with tf.GradientTape() as tape:
            logits = model(images, training=True)
            losses = tf.nn.sparse_softmax_cross_entropy_with_logits(labels, logits)
            loss = tf.reduce_mean(losses)
        variables = [v.value for v in model.trainable_variables]
        return [loss, *tape.gradient(loss, variables, unconnected_gradients="zero")]

    return step


def assert_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_array_equal(found[name], value, err_msg=name)


@pytest.fixture
def sums_in_order():
    """TensorFlow's optimiser of graphs adds some sums of the dense form in another order."""
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": False})
    yield
    tf.config.optimizer.set_experimental_options({"arithmetic_optimization": True})


@pytest.mark.usefixtures("sums_in_order")
@pytest.mark.parametrize("row", ROWS)
def test_answers_are_those_of_the_dense_form_bit_for_bit(row):
    skip, never = pair(row)
    functions = everything(skip), everything(never)
    for which in ("random", "all on", "all off", "one on"):
        if which != "random":
            for model in (skip, never):
                set_edges(model, which)
        for batch in (1, 2, 7):
            found, expected = (f(images(batch)) for f in functions)
            assert_equal(found, expected)


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_training_is_that_of_the_dense_form(row):
    of_paths = CATALOG[row].get("wiring") in PATHS  # which by default are dense in training
    models = pair(row, **({"path_gradient": "taken"} if of_paths else {}))
    steps = [training_step(model) for model in models]
    start = models[0].get_weights()
    for which in ("random", "one on", "all off"):
        for model in models:
            model.set_weights(start)
            if which != "random":
                set_edges(model, which)
        # One image of 16 x 16 has so few pixels in the last stage that rounding grows.
        found, expected = (step(images(7), LABELS) for step in steps)
        for a, b in zip(found, expected, strict=True):
            np.testing.assert_allclose(a, b, atol=2e-4 * max(1e-2, np.abs(b).max()), err_msg=which)
        for a, b in zip(models[0].weights, models[1].weights, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5, err_msg=f"{which} {a.path}")


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
@pytest.mark.parametrize("row", ["resnet_basic", "regnety", "mobilenet_v2"])
def test_less_precise_answers_differ_by_rounding(row, policy):
    keras.config.set_dtype_policy(policy)
    skip, never = pair(row)
    found, expected = skip(images(5)), never(images(5))
    np.testing.assert_allclose(found, expected, atol=0.02 * np.abs(expected).max())
    ours, theirs = adjacency(skip, images(5)), adjacency(never, images(5))
    for name, matrix in theirs.items():
        np.testing.assert_array_equal(ours[name] > 0, matrix > 0)


@pytest.mark.parametrize("row", ["resnet_cifar_learned_threshold", "regnety"])
def test_eagerly_and_under_xla(row):
    skip, never = pair(row)
    x = images(3)
    np.testing.assert_array_equal(skip(x), never(x))
    compiled = tf.function(lambda x: skip(x, training=False), jit_compile=True)
    np.testing.assert_allclose(compiled(x), never(x), rtol=1e-4, atol=1e-5)


def test_saved_loaded_and_exported(tmp_path):
    skip, never = pair("resnet_cifar_split", input_shape=(16, 16, 3))
    never.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    assert loaded.backbone.graph_options.skip == "never"
    config = skip.get_config()
    for options in (config, config.get("backbone", {}).get("config", {})):
        for name in ("skip", "skip_in_training"):
            options.pop(name, None)  # as in an older file
    assert type(skip).from_config(config).backbone.graph_options.skip == "auto"
    raw = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), "uint8")
    expected = never(skip.preprocessing(raw))
    path = dg.export_saved_model(skip, tmp_path / "export", portable=True)
    served = tf.saved_model.load(str(path)).signatures
    found = served["serving_default"](images=tf.constant(raw))["logits"]
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)
    connectivity = served["connectivity"](images=tf.constant(raw))
    for name, matrix in adjacency(never, skip.preprocessing(raw)).items():
        np.testing.assert_allclose(connectivity[name], matrix, atol=1e-6)


@pytest.mark.parametrize("row", ["resnet_basic", "resnet_cifar_complete"])
def test_given_adjacency(row):
    skip, never = pair(row)
    x = images(5)
    rng = np.random.default_rng(0)
    given = {
        # Also what no router gives: edges out of nodes that have none in, and nodes without any.
        name: np.triu(rng.uniform(-1, 1, m.shape) * (rng.random(m.shape) < 0.4), 1).astype("f4")
        for name, m in adjacency(never, x).items()
    }
    found, expected = (dg.with_adjacency(m)({"images": x, **given}) for m in (skip, never))
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-5)


class Counting(keras.layers.Layer):
    """Counts the rows that it gets; what has NaN in, has NaN out."""

    def build(self, input_shape):
        self.rows = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)
        self.calls = self.add_weight(shape=(), dtype="int32", initializer="zeros", trainable=False)

    def call(self, inputs):
        self.rows.assign_add(tf.shape(inputs)[0])
        self.calls.assign_add(1)
        return 1.0 * inputs


def counting_stage(count=4, **options):
    """A stage whose router of node 0 sends an image to node 1 or to node 2, by its sign."""
    options = {"edge_scale": 2.0, "threshold": 1.0 - 1e-6, "init": "static", **options}
    blocks = [Counting(name=f"block_{i}") for i in range(count)]
    stage = GraphStage(blocks, name="stage1", **options)
    stage.build((None, 4, 4, 2))
    for j in range(count):
        kernel, bias = (
            next(w for w in stage.weights if w.path.endswith(f"router_{j}/{name}"))
            for name in ("kernel", "bias")
        )
        kernel.assign(np.zeros(kernel.shape))
        bias.assign([0.0] + [-3.0] * (count - j - 1))
    kernel = next(w for w in stage.weights if w.path.endswith("router_0/kernel"))
    bias = next(w for w in stage.weights if w.path.endswith("router_0/bias"))
    kernel.assign([[0.1, -0.1] + [0.0] * (count - 2)] * 2)
    bias.assign([0.0, 0.0] + [-3.0] * (count - 2))
    return stage


def signed(*signs):
    return np.stack([np.full((4, 4, 2), s, "float32") for s in signs])


@pytest.mark.parametrize("mode", ["eager", "graph"])
def test_a_node_runs_on_the_samples_that_take_it_alone(mode):
    stage = counting_stage()
    run = stage if mode == "eager" else tf.function(lambda x: stage(x))
    run(signed(1, -1, 1, -1, -1))
    assert [int(block.rows) for block in stage.blocks] == [5, 2, 5, 5]
    run(signed(-1))
    assert [int(block.rows) for block in stage.blocks] == [6, 2, 6, 6]
    assert [int(block.calls) for block in stage.blocks] == [2, 1, 2, 2]


def test_a_router_of_a_node_that_is_off_does_not_run():
    stage = counting_stage()
    calls = []
    router = stage._routers["1"]
    own = router.call
    router.call = lambda x: calls.append(1) or own(x)
    stage(signed(-1, -1))
    assert not calls
    stage(signed(-1, 1))
    assert calls


def test_never_runs_everything():
    stage = counting_stage(skip="never")
    stage(signed(1, -1, 1, -1, -1))
    assert [int(block.rows) for block in stage.blocks] == [5, 5, 5, 5]


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("skip", ["auto", "never"])
def test_what_is_not_finite_in_one_sample_reaches_no_other(skip, training, bad):
    stage = counting_stage(skip=skip, skip_in_training=skip)
    x = signed(1, -1, 1, -1, 1)
    x[1] = bad
    y = stage(x, training=training)["features"].numpy()
    assert np.isfinite(y[[0, 2, 3, 4]]).all()
    np.testing.assert_array_equal(y[[0, 2, 3, 4]], stage(x[[0, 2, 3, 4]])["features"])


@pytest.mark.parametrize("skip", ["auto", "never"])
def test_a_sample_that_passes_by_does_not_reach_the_statistics(skip):
    blocks = [BasicBlock(2, name=f"block_{i}") for i in range(3)]
    stage = GraphStage(blocks, wiring="learned", name="stage1", skip_in_training=skip)
    stage.build((None, 4, 4, 2))
    # Given: sample 1 passes node 1 by. Its features are not finite.
    adjacency = np.tile(np.eye(4, k=1, dtype="float32"), (3, 1, 1))
    adjacency[1] = 0
    adjacency[1, 0, 2] = adjacency[1, 2, 3] = 1
    x = np.random.default_rng(0).normal(size=(3, 4, 4, 2)).astype("float32")
    stage.blocks[0].call = lambda x: x  # or node 0's own statistics would see them
    stage.blocks[2].call = lambda x: x
    x[1] = np.nan
    norm = stage.blocks[1].steps[0].norm
    before = norm.moving_mean.numpy()
    y = stage(x, adjacency={"stage1": adjacency}, training=True)["features"].numpy()
    assert np.isfinite(y[[0, 2]]).all()
    assert np.isfinite(norm.moving_mean).all()
    assert not np.array_equal(norm.moving_mean, before)


@pytest.mark.parametrize("skip", ["auto", "never"])
def test_a_node_that_no_sample_takes_keeps_its_statistics(skip):
    model = randomize(create("resnet_basic", skip_in_training=skip))
    set_edges(model, "all off")
    node = model.backbone.stages[1].blocks[1]
    norms = [x for x in node._flatten_layers() if isinstance(x, BatchNormalization)]
    before = [w.numpy() for norm in norms for w in norm.non_trainable_variables]
    model(images(4), training=True)
    after = [w for norm in norms for w in norm.non_trainable_variables]
    for a, b in zip(after, before, strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_batch_of_no_sample():
    stage = counting_stage()
    y = stage(signed(1, -1)[:0])
    assert y["features"].shape == (0, 4, 4, 2)
    assert y["adjacency"]["stage1"].shape == (0, 5, 5)


@pytest.mark.parametrize("row", ["resnet_basic", "mobilenet_v2", "regnety"])
def test_a_network_and_a_batch_of_no_image(row):
    model = create(row)
    assert model(images(0)).shape == (0, 3)


def with_normalisation_of_keras(**options):
    norms = (keras.Sequential([keras.layers.BatchNormalization()], name=f"b{i}") for i in range(2))
    return GraphStage(list(norms), name="stage1", **options)


def test_normalisation_of_keras_is_no_matter_where_all_samples_count(recwarn):
    with_normalisation_of_keras(wiring="path").build((None, 4, 4, 2))
    assert not [w for w in recwarn if "normalisation" in str(w.message)]


@pytest.mark.parametrize("options", [{}, {"wiring": "path", "path_gradient": "taken"}])
def test_normalisation_of_keras_is_named(options):
    stage = with_normalisation_of_keras(**options)
    with pytest.warns(UserWarning, match="normalisation of Keras's own"):
        stage.build((None, 4, 4, 2))
    stage(signed(1, -1), training=True)


def test_a_block_with_losses_of_its_activity():
    blocks = [
        keras.layers.Conv2D(2, 3, padding="same", activity_regularizer="l2", name=f"block_{i}")
        for i in range(3)
    ]
    inputs = keras.Input((4, 4, 2))
    model = keras.Model(inputs, GraphStage(blocks, name="stage1")(inputs)["features"])
    model.compile("sgd", "mse", jit_compile=False)
    assert np.isfinite(model.evaluate(signed(1, -1), signed(1, -1), verbose=0))


def test_an_unknown_choice_is_refused():
    with pytest.raises(ValueError, match=r"skip_in_training.*auto"):
        create("resnet_basic", skip_in_training="sometimes")


@pytest.mark.slow
def test_two_replicas_with_unequal_counts(tmp_path):
    """Statistics over replicas are those of the whole batch, gathered and dense."""
    script = pathlib.Path(__file__).with_name("skipping_mirrored.py")
    line = [sys.executable, script, tmp_path / "found"]
    done = subprocess.run(line, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    found = pickle.loads((tmp_path / "found").read_bytes())
    expected = found["never", 1]
    for key, values in found.items():
        for name, value in expected.items():
            np.testing.assert_allclose(
                values[name], value, rtol=1e-3, atol=1e-4, err_msg=f"{key} {name}"
            )


def test_a_registered_gate_that_compares_edges_answers_whatever_else_is_in_the_batch():
    class Softmax(keras.layers.Layer):
        """Weighs the open edges by their shares among all edges into the node."""

        def call(self, weights, logits=None, keep=None, threshold=None, training=None):
            share = tf.nn.softmax(logits)
            is_open = weights > (0.5 if threshold is None else threshold)
            is_open = is_open if keep is None else is_open | keep
            return tf.where(is_open, share, 0.0)

    if "softmax_of_tests" not in gates():
        register_gate("softmax_of_tests", lambda options, **kwargs: Softmax(**kwargs))
    options = {"depths": (5,), "widths": (4,), "gate": "softmax_of_tests"}
    skip, never = (
        randomize(create("resnet_cifar_split", max_nodes=None, skip=s, **options), scale=1.0)
        for s in ("auto", "never")
    )
    x = images(16)
    found = adjacency(skip, x)["stage1"]
    is_on = found.any(axis=1)[:, 1:-1]
    assert 0 < is_on.mean() < 1
    np.testing.assert_allclose(found, adjacency(never, x)["stage1"], atol=1e-6)
    one_by_one = np.concatenate([skip(x[i : i + 1]) for i in range(16)])
    np.testing.assert_allclose(skip(x), one_by_one, atol=1e-5)


@pytest.mark.parametrize("wiring", ["dynamic", "path"])
def test_a_block_that_adds_a_loss_is_refused_in_inference_with_the_way_out(wiring):
    @keras.saving.register_keras_serializable(package="tests")
    class Costly(keras.layers.Conv2D):
        def call(self, inputs):
            outputs = super().call(inputs)
            self.add_loss(tf.reduce_mean(outputs**2))
            return outputs

    def stage(**options):
        blocks = [Costly(3, 3, padding="same", name=f"block_{i}") for i in range(3)]
        return GraphStage(blocks, name="stage1", wiring=wiring, **options)

    x = np.ones((2, 4, 4, 3), "float32")
    with pytest.raises(ValueError, match=r"adds a loss in its `call`.*skip='never'"):
        tf.function(stage())(x)
    assert tf.function(stage(skip="never"))(x)["features"].shape == (2, 4, 4, 3)
