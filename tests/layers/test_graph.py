"""GraphStage against a slow loop over samples and edges that shares no code with it."""

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import weight

from dgnet_keras.layers import GraphStage, register_wiring
from dgnet_keras.layers import wiring as wirings
from dgnet_keras.layers.blocks import BasicBlock

WIRINGS = ["dynamic", "chain", "learned", "random", "complete"]


def make_blocks(count, channels=3, dtype=None):
    """Smooth blocks, so that finite differences apply; the first one strides."""
    return [
        keras.layers.Conv2D(
            channels,
            3,
            strides=2 if i == 0 else 1,
            padding="same",
            activation="tanh",
            bias_initializer="random_normal",
            dtype=dtype,
            name=f"block_{i}",
        )
        for i in range(count)
    ]


def make_stage(count=4, wiring="dynamic", dtype=None, seed=0, spread=1.0, **kwargs):
    """A stage whose edges are open and closed at random, different for each sample."""
    blocks = make_blocks(count, dtype=dtype)
    stage = GraphStage(blocks, wiring=wiring, dtype=dtype, name="stage1", **kwargs)
    stage.build((None, 8, 8, 2))
    rng = np.random.default_rng(seed)
    for variable in stage.weights:
        if "router" in variable.path or variable.name.startswith("edge_logits"):
            variable.assign(
                rng.normal(0, 8 if "kernel" in variable.path else spread, variable.shape)
            )
    return stage


def images(batch=6, dtype="float32", seed=1):
    return np.random.default_rng(seed).normal(size=(batch, 8, 8, 2)).astype(dtype)


def sigmoid(z):
    return 1 / (1 + np.exp(-z))


def router_logits(stage, source, x):
    """Logits of one sample's edges out of `source`, in float32 as the definition says."""
    count = len(stage.blocks)
    if stage.wiring == "learned":
        start = sum(count - j for j in range(source))
        z = weight(stage, "edge_logits").numpy()[start : start + count - source]
    else:
        kernel, bias = (weight(stage, f"router_{source}/{n}") for n in ("kernel", "bias"))
        z = x.mean(axis=(0, 1)) @ kernel.numpy() + bias.numpy()
    return np.clip(z, -12, 12)


def slow_stage(stage, image):
    """Features and adjacency of one sample, edge by edge."""
    count = len(stage.blocks)
    adjacency = np.zeros((count + 1, count + 1))

    def run(block, h):
        return stage.blocks[block](h[None].astype(stage.compute_dtype)).numpy()[0]

    x = {0: run(0, image)}
    if count == 1:
        return x[0], None
    logits, on = {}, {0: True}
    for target in range(1, count + 1):
        source = target - 1
        if stage.wiring in ("dynamic", "learned"):
            for k, z in enumerate(router_logits(stage, source, x[source])):
                logits[source, source + 1 + k] = z
            best = None
            for j in range(target):
                if not on[j]:
                    continue
                alpha = np.float32(stage.edge_scale) * sigmoid(logits[j, target])
                if alpha > stage.threshold:
                    adjacency[j, target] = alpha
                if best is None or logits[j, target] >= logits[best, target]:
                    best = j
            if target == count:
                adjacency[best, target] = stage.edge_scale * sigmoid(logits[best, target])
            on[target] = adjacency[:, target].any()
        elif stage.wiring == "chain":
            adjacency[target - 1, target] = 1
        elif stage.wiring == "complete":
            adjacency[:target, target] = 1 / target
        else:
            adjacency[:, target] = weight(stage, "adjacency").numpy()[:, target]
        h = sum(adjacency[j, target] * x[j] for j in range(target))
        x[target] = run(target, h) if target < count else h
    return x[count], adjacency


def check_against_loop(stage, x):
    outputs = stage(x)
    found = outputs["adjacency"].get("stage1")
    for b, image in enumerate(x):
        features, adjacency = slow_stage(stage, image)
        np.testing.assert_allclose(outputs["features"][b], features, rtol=1e-5, atol=1e-5)
        if adjacency is not None:
            np.testing.assert_allclose(found[b], adjacency, rtol=1e-5, atol=1e-6)
    return None if found is None else found.numpy()


@pytest.mark.parametrize("wiring", WIRINGS)
@pytest.mark.parametrize("batch", [1, 6])
def test_equals_a_loop_over_edges(wiring, batch):
    check_against_loop(make_stage(wiring=wiring, threshold=0.3), images(batch))


def test_samples_differ_and_nodes_that_are_off_occur_in_these_tests():
    adjacency = check_against_loop(make_stage(threshold=0.4, seed=2), images(16))
    inner_in = (adjacency[:, :, 1:-1] > 0).any(axis=1)
    assert not inner_in.all(), "no node is off"
    assert len({row.tobytes() for row in adjacency > 0}) > 3


@pytest.mark.parametrize("wiring", ["dynamic", "learned"])
def test_an_edge_weight_exactly_at_the_threshold_is_closed(wiring):
    threshold = float(tf.sigmoid(tf.constant(-1.0)))
    stage = make_stage(wiring=wiring, threshold=threshold)
    for variable in stage.weights:
        if "router" in variable.path or variable.name.startswith("edge_logits"):
            variable.assign(np.full(variable.shape, 0.0 if "kernel" in variable.path else -1.0))
    adjacency = stage(images())["adjacency"]["stage1"].numpy()
    expected = np.zeros_like(adjacency)
    expected[:, 0, -1] = threshold  # only node 0 is on, and the output keeps its edge
    np.testing.assert_allclose(adjacency, expected, rtol=1e-6)


def test_with_all_edges_into_the_output_closed_the_strongest_is_kept():
    stage = make_stage(threshold=0.3)
    for source in range(4):
        kernel, bias = (weight(stage, f"router_{source}/{n}") for n in ("kernel", "bias"))
        kernel.assign(np.zeros(kernel.shape))
        bias.assign([3.0] * (3 - source) + [-5.0 + 0.1 * source])
    adjacency = check_against_loop(stage, images())
    into_output = adjacency[:, :, -1] > 0
    np.testing.assert_array_equal(into_output.sum(axis=1), 1)
    assert into_output[:, 3].all()


def test_of_equal_logits_into_the_output_the_latest_source_is_kept():
    stage = make_stage(wiring="learned", threshold=0.3)
    weight(stage, "edge_logits").assign([3, 3, 3, -5, 3, 3, -5, -9, -5, -5])
    adjacency = stage(images())["adjacency"]["stage1"].numpy()
    # Node 3 has an incoming edge of weight sigmoid(3) from node 0: all are on, the latest wins.
    np.testing.assert_array_equal(np.argmax(adjacency[:, :, -1], axis=1), 3)
    np.testing.assert_array_equal((adjacency[:, :, -1] > 0).sum(axis=1), 1)


def test_the_strongest_edge_of_a_node_that_is_off_is_not_kept():
    stage = make_stage(count=2, wiring="learned", threshold=0.3)
    weight(stage, "edge_logits").assign([-5, -5, 9])
    adjacency = stage(images())["adjacency"]["stage1"].numpy()
    assert (adjacency[:, 1] == 0).all(), "node 1 is off, its open edge must not count"
    assert (adjacency[:, 0, 2] > 0).all()


def test_a_stage_of_one_block_is_the_block():
    stage = make_stage(count=1)
    outputs = stage(images())
    assert outputs["adjacency"] == {}
    assert not [v for v in stage.weights if "router" in v.path]
    np.testing.assert_array_equal(outputs["features"], stage.blocks[0](images()))


def test_chain_equals_the_blocks_one_after_the_other():
    stage = GraphStage([BasicBlock(4, name=f"block_{i}") for i in range(3)], wiring="chain")
    stage.build((None, 8, 8, 2))
    plain = keras.Sequential([BasicBlock(4, name=f"block_{i}") for i in range(3)])
    plain.build((None, 8, 8, 2))
    plain.set_weights(stage.get_weights())
    for training in (True, False):
        outputs = stage(images(), training=training)
        expected = plain(images(), training=training)
        np.testing.assert_allclose(outputs["features"], expected, atol=1e-6)


@pytest.mark.parametrize("wiring", WIRINGS[1:])
def test_chain_variables_are_a_subset_of_those_of_every_wiring(wiring):
    chain = {v.path for v in make_stage(wiring="chain").weights}
    assert chain <= {v.path for v in make_stage(wiring=wiring).weights}


@pytest.mark.parametrize("wiring", ["dynamic", "learned"])
def test_static_init_opens_exactly_the_chain_with_weight_one(wiring):
    blocks = make_blocks(4)
    stage = GraphStage(blocks, wiring=wiring, init="static", name="stage1")
    adjacency = stage(images())["adjacency"]["stage1"].numpy()
    np.testing.assert_array_equal(adjacency, np.tile(np.eye(5, k=1), (6, 1, 1)))


@pytest.mark.parametrize("seed", range(5))
def test_random_wiring_is_seeded_and_reaches_every_node(seed):
    first, second = (
        GraphStage(make_blocks(6), wiring="random", seed=seed, name="stage1") for _ in range(2)
    )
    a, b = (s(images())["adjacency"]["stage1"].numpy() for s in (first, second))
    np.testing.assert_array_equal(a, b)
    np.testing.assert_allclose(a.sum(axis=1)[:, 1:], 1, rtol=1e-6)
    assert not [v for v in first.trainable_variables if "adjacency" in v.path]


def make_part(stage, first, count):
    """A stage of one graph that holds the blocks and routers of a longer one, from `first` on."""
    blocks = [type(b).from_config(b.get_config()) for b in stage.blocks[first : first + count]]
    part = GraphStage(blocks)
    part.build((None, 8, 8, 2 if first == 0 else 3))
    for i in range(count):
        part.blocks[i].set_weights(stage.blocks[first + i].get_weights())
        for name in ("kernel", "bias"):
            weight(part, f"router_{i}/{name}").assign(weight(stage, f"router_{first + i}/{name}"))
    return part


def test_max_nodes_splits_a_stage_into_consecutive_graphs():
    stage = make_stage(count=7, max_nodes=3)
    adjacency = stage(images())["adjacency"]
    assert {k: v.shape[1] for k, v in adjacency.items()} == {
        "stage1_graph0": 4,
        "stage1_graph1": 3,
        "stage1_graph2": 3,
    }
    parts = [make_part(stage, first, n) for first, n in ((0, 3), (3, 2), (5, 2))]
    x = images()
    for part in parts:
        x = part(x)["features"]
    np.testing.assert_allclose(stage(images())["features"], x, rtol=1e-5, atol=1e-6)


def stage_gradients(stage, x, upstream):
    x = tf.constant(x)
    with tf.GradientTape() as tape:
        tape.watch(x)
        value = tf.reduce_sum(stage(x)["features"] * upstream)
    variables = [v.value for v in stage.trainable_variables]
    return tape.gradient(value, [x, *variables])


def frozen_loss(stage, x, upstream, base):
    """The loss in which each closed entry of an on row is alpha - (its value), masks fixed."""
    count = len(stage.blocks)
    is_on, is_open, closed_values = base["on"], base["open"], base["closed"]
    features = [stage.blocks[0](x).numpy()]
    for target in range(1, count + 1):
        h = 0
        for j in range(target):
            if stage.wiring == "learned":
                z = np.stack([router_logits(stage, j, None)[target - 1 - j]] * len(x))
            else:
                z = np.stack([router_logits(stage, j, f)[target - 1 - j] for f in features[j]])
            alpha = stage.edge_scale * sigmoid(z)
            entry = np.where(is_open[:, j, target], alpha, alpha - closed_values[:, j, target])
            if base["gate"] == "masked":
                entry = np.where(is_open[:, j, target], alpha, 0)
            h = h + (entry * is_on[:, j])[:, None, None, None] * features[j]
        features.append(stage.blocks[target](h).numpy() if target < count else h)
    return float(np.sum(features[-1] * upstream))


@pytest.mark.parametrize("gate", ["straight_through", "masked"])
@pytest.mark.parametrize("wiring", ["dynamic", "learned"])
def test_gradients_equal_finite_differences_with_the_masks_held_fixed(gate, wiring):
    stage = make_stage(count=3, wiring=wiring, dtype="float64", gate=gate, threshold=0.49, seed=8)
    x = images(4, "float64")
    upstream = np.random.default_rng(3).normal(size=(4, 4, 4, 3))
    adjacency = stage(x)["adjacency"]["stage1"].numpy()
    on = (adjacency > 0).any(axis=1)
    on[:, 0] = True
    assert wiring == "learned" or not on[:, :-1].all(), "no node is off in this test"
    base = {"on": on, "open": adjacency > 0, "closed": np.zeros_like(adjacency), "gate": gate}
    features = [stage.blocks[0](x).numpy()]
    for target in range(1, 4):
        for j in range(target):
            zs = [router_logits(stage, j, f)[target - 1 - j] for f in features[j]]
            base["closed"][:, j, target] = stage.edge_scale * sigmoid(np.array(zs))
        h = sum(adjacency[:, j, target, None, None, None] * features[j] for j in range(target))
        features.append(stage.blocks[target](h).numpy() if target < 3 else h)
    d_x, *d_variables = stage_gradients(stage, x, upstream)
    rng = np.random.default_rng(0)
    for variable, gradient in zip(stage.trainable_variables, d_variables, strict=True):
        value = variable.numpy()
        direction = rng.normal(size=value.shape)
        eps = 1e-6
        variable.assign(value + eps * direction)
        plus = frozen_loss(stage, x, upstream, base)
        variable.assign(value - eps * direction)
        minus = frozen_loss(stage, x, upstream, base)
        variable.assign(value)
        expected = (plus - minus) / (2 * eps)
        found = 0.0 if gradient is None else np.sum(gradient.numpy() * direction)
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-7, err_msg=variable.path)
    direction = rng.normal(size=x.shape)
    plus = frozen_loss(stage, x + 1e-6 * direction, upstream, base)
    minus = frozen_loss(stage, x - 1e-6 * direction, upstream, base)
    np.testing.assert_allclose(np.sum(d_x * direction), (plus - minus) / 2e-6, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16"])
def test_adjacency_is_float32_and_features_are_not_under_mixed_precision(policy):
    stage = make_stage(dtype=policy)
    outputs = stage(images())
    assert outputs["adjacency"]["stage1"].dtype == tf.float32
    assert outputs["features"].dtype == stage.compute_dtype


@pytest.mark.parametrize("wiring", WIRINGS)
def test_the_symbolic_output_has_the_shape_and_dtype_of_the_real_one(wiring):
    stage = make_stage(wiring=wiring, dtype="mixed_bfloat16")
    spec, real = stage(keras.Input((8, 8, 2))), stage(images())
    assert spec["features"].shape == (None, *real["features"].shape[1:])
    assert spec["features"].dtype == real["features"].dtype.name
    assert spec["adjacency"]["stage1"].shape == (None, 5, 5)
    assert spec["adjacency"]["stage1"].dtype == "float32"


def test_it_works_in_a_model_of_any_keras_layers_and_survives_saving(tmp_path):
    inputs = keras.Input((None, None, 2))
    x = GraphStage(make_blocks(3), wiring="dynamic", name="stage1")(inputs)["features"]
    model = keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x))
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(images()), loaded(images()))


def test_bad_options_are_refused():  # each of them in test_options.py
    with pytest.raises(ValueError, match=r"threshold.*\[0, edge_scale\)"):
        GraphStage(make_blocks(2), threshold=1.0)


def test_blocks_without_distinct_names_are_refused():
    with pytest.raises(ValueError, match=r"distinct names.*block_0.*block_0"):
        GraphStage([make_blocks(1)[0], make_blocks(1)[0]])
    with pytest.raises(ValueError, match="distinct names"):
        GraphStage([])


def test_blocks_of_unequal_shape_in_one_stage_are_refused():
    blocks = [*make_blocks(2), keras.layers.Conv2D(9, 1, name="wide")]
    with pytest.raises(ValueError, match=r"one shape.*'block_0'.*3\).*'wide'.*9\)"):
        GraphStage(blocks, name="stage1")(images())


def test_a_wrong_input_rank_or_number_of_channels_is_refused():
    stage = make_stage()
    with pytest.raises(ValueError, match=r"ndim=4.*ndim=3"):
        stage(images()[0])
    with pytest.raises(ValueError, match=r"axis -1.*value 2"):
        stage(np.zeros((1, 8, 8, 5), "float32"))


@pytest.fixture
def two_back(monkeypatch):
    """A registered wiring: edges from the last two nodes, of weights 1/4 and 3/4."""
    monkeypatch.setattr(wirings, "_fixed", dict(wirings._fixed))

    def adjacency(num_blocks, seed):
        size = num_blocks + 1
        return 0.25 * np.eye(size, k=2) + 0.75 * np.eye(size, k=1)

    register_wiring("two_back", adjacency)


def test_a_registered_wiring_wires_the_stage(two_back):
    stage = make_stage(wiring="two_back")
    outputs, x = stage(images()), [stage.blocks[0](images())]
    for i, block in enumerate(stage.blocks[1:], start=1):
        x.append(block(0.75 * x[i - 1] + (0.25 * x[i - 2] if i > 1 else 0)))
    np.testing.assert_allclose(outputs["features"], 0.75 * x[-1] + 0.25 * x[-2], rtol=1e-5)
    found = outputs["adjacency"]["stage1"]
    np.testing.assert_array_equal(found[0], 0.25 * np.eye(5, k=2) + 0.75 * np.eye(5, k=1))


def test_a_saved_registered_wiring_stays_as_it_was(two_back, tmp_path):
    inputs = keras.Input((None, None, 2))
    model = keras.Model(inputs, make_stage(wiring="two_back")(inputs)["features"])
    model.save(tmp_path / "model.keras")
    register_wiring("two_back", wirings.chain_adjacency)
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(model(images()), loaded(images()))


@pytest.mark.parametrize(
    ("matrix", "message"),
    [
        (np.eye(3, k=1), r"array \(5, 5\).*shape \(3, 3\)"),
        (np.eye(5), "under the diagonal"),
        (np.eye(5, k=2), "no edge into node 1$"),
        (-np.eye(5, k=1), "negative"),
        (np.where(np.eye(5, k=1), np.inf, 0), "not finite"),
    ],
)
def test_a_registered_wiring_that_cannot_wire_is_refused(two_back, matrix, message):
    register_wiring("two_back", lambda num_blocks, seed: matrix)
    with pytest.raises(ValueError, match=message):
        make_stage(wiring="two_back")(images())


@pytest.mark.parametrize("name", ["chain", "dynamic", "", 3])
def test_only_new_names_can_be_registered(name):
    with pytest.raises(ValueError, match="new wiring"):
        register_wiring(name, wirings.chain_adjacency)
