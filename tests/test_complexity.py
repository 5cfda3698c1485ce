import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create, images, randomize, weight
from conftest import SHARED

import dgnet_keras as dg
from dgnet_keras import complexity

STATIC = SHARED / "reference" / "static_models.json"


def test_a_small_network_by_hand():
    model = dg.create(
        "resnet20_cifar", depths=(2,), widths=(4,), num_classes=3, input_shape=(8, 8, 3)
    )
    counted = dg.count_macs(model)
    stem, block, pixels = 3 * 3 * 3 * 4, 2 * 3 * 3 * 4 * 4, 8 * 8
    assert counted["by_kind"] == {
        "convolution": pixels * (stem + 2 * block),
        "dense": 4 * 3,
        "router": 4 * (2 + 1),
        "aggregation": 3 * pixels * 4,
    }
    assert counted["macs"] == sum(item["macs"] for item in counted["items"])
    batch_norm, routers = 5 * 2 * 4, 4 * 3 + 3
    assert counted["parameters"] == stem + 2 * block + batch_norm + routers + 4 * 3 + 3


def test_cifar_resnet20_has_the_known_number_of_parameters():
    model = dg.create("resnet20_cifar", num_classes=10, input_shape=(32, 32, 3), wiring="chain")
    assert dg.count_macs(model)["parameters"] == 272_474


def test_stages_of_stock_layers_are_counted():
    blocks = [
        keras.Sequential(
            [
                keras.layers.DepthwiseConv2D(3, padding="same", use_bias=False),
                keras.layers.Conv2D(4, 1),
            ],
            name=f"block_{i}",
        )
        for i in range(2)
    ]
    inputs = keras.Input((8, 8, 4))
    stage = dg.layers.GraphStage(blocks, wiring="chain", name="stage1")
    model = keras.Model(inputs, stage(inputs)["features"])
    assert dg.count_macs(model)["macs"] == 2 * 8 * 8 * 4 * (3 * 3 + 4)


def test_a_layer_whose_multiplications_are_not_known_is_not_counted_as_nothing():
    @keras.saving.register_keras_serializable(package="tests")
    class Mine(keras.layers.Layer):
        def __init__(self, **kwargs):
            super().__init__(**kwargs)
            self.conv = keras.layers.Conv2D(4, 1, use_bias=False)

        def build(self, input_shape):
            self.conv.build(input_shape)

        def call(self, inputs):
            return self.conv(inputs)

    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, Mine(name="mine")(inputs))
    with pytest.raises(ValueError, match=r"'mine', a Mine, are not known.*register"):
        dg.count_macs(model)

    @complexity.count_layer.register
    def _(layer: Mine, shape, name, items):
        return complexity.count_layer(layer.conv, shape, f"{name}/conv", items)

    assert dg.count_macs(model)["macs"] == 8 * 8 * 4 * 4


def test_a_strided_network_counts_at_any_image_size():
    model = dg.create("resnet18", input_shape=(None, None, 3), wiring="chain")
    small, large = (dg.count_macs(model, image_size=s)["macs"] for s in ((224, 224), (448, 448)))
    assert large - 512_000 == 4 * (small - 512_000)


@pytest.mark.parametrize(
    "row",
    [
        *("resnet_basic", "resnet_bottleneck_static_init", "resnext", "mobilenet_v2", "regnety"),
        "regnetx_static_init",
    ],
)
def test_macs_are_half_of_what_the_tensorflow_profiler_counts(row):
    model = create(row, wiring="chain", init="open", input_shape=(64, 64, 3))
    graph = tf.function(model).get_concrete_function(tf.zeros((1, 64, 64, 3))).graph
    options = tf.compat.v1.profiler.ProfileOptionBuilder(
        tf.compat.v1.profiler.ProfileOptionBuilder.float_operation()
    )
    options = options.with_accounted_types(["Conv2D", "DepthwiseConv2dNative", "MatMul"])
    options = options.with_empty_output().build()
    profile = tf.compat.v1.profiler.profile(graph, cmd="op", options=options)
    wanted = {"Conv2D", "DepthwiseConv2dNative", "MatMul"}
    flops = _flops(profile, wanted)
    kinds = dg.count_macs(model)["by_kind"]
    assert flops / 2 == kinds["convolution"] + kinds["dense"]


def _flops(node, wanted):
    own = node.float_ops if node.name in wanted else 0
    return own + sum(_flops(child, wanted) for child in node.children)


@pytest.mark.skipif(not STATIC.exists(), reason=f"needs the reference table: {STATIC} is not there")
@pytest.mark.parametrize("family", ["mobilenet_v2", "resnet", "resnext", "regnet"])
def test_every_static_variant_equals_the_reference(family):
    rows = json.loads(STATIC.read_text())["models"]
    names = [name for name in dg.list_variants(family) if not name.endswith("_cifar")]
    assert names
    for name in names:
        with keras.StatelessScope(initialize_variables=False):  # shapes alone are counted
            counted = dg.count_macs(dg.create(name, wiring="chain"))
        macs = counted["by_kind"]["convolution"] + counted["by_kind"]["dense"]
        assert counted["parameters"] == rows[name]["params"], name
        assert macs == pytest.approx(rows[name]["conv_linear_macs_224"], rel=1e-3), name
        keras.backend.clear_session()


def test_each_image_has_its_own_count():
    model = create("resnet_cifar_learned", input_shape=(16, 16, 3), depths=(3,), widths=(4,))
    x = images(2)
    logits = weight(model, "stage1/edge_logits")
    total = dg.count_macs(model)
    block, edge, router = 16 * 16 * 2 * 9 * 4 * 4, 16 * 16 * 4, 0
    logits.assign([3, 3, 3, 3, 3, 3])  # 0->1, 0->2, 0->3, 1->2, 1->3, 2->3: every edge open
    counted = dg.count_macs(model, x)
    assert counted["macs"] == total["macs"]
    np.testing.assert_array_equal(counted["per_instance"]["macs"], [total["macs"]] * 2)
    logits.assign([-9, 3, 3, 3, 3, 3])  # node 1 is off, and with it both of its edges
    counted = dg.count_macs(model, x)["per_instance"]
    np.testing.assert_array_equal(counted["macs"], [total["macs"] - block - 3 * edge - router] * 2)
    np.testing.assert_array_equal(counted["open_edges"]["stage1"].sum(axis=(1, 2)), [3, 3])


def test_a_node_that_is_off_saves_its_router_too():
    model = create("resnet_cifar_split", input_shape=(16, 16, 3), depths=(3,), widths=(4,))
    weight(model, "stage1/router_0/bias").assign([-9, 3, 3])
    block, edge, router = 16 * 16 * 2 * 9 * 4 * 4, 16 * 16 * 4, 2 * 4
    counted = dg.count_macs(model, images(1))
    assert counted["per_instance"]["macs"] == counted["macs"] - block - 3 * edge - router


def test_images_may_be_a_list():
    model, x = randomize(create("resnet_cifar_path")), images(3)
    found = dg.count_macs(model, list(x))["per_instance"]["macs"]
    np.testing.assert_array_equal(found, dg.count_macs(model, x)["per_instance"]["macs"])


def test_images_and_an_image_size_are_not_both_taken():
    with pytest.raises(ValueError, match="not both"):
        dg.count_macs(create("resnet_basic"), images(), image_size=(16, 16))


def test_the_costs_of_a_graph_are_those_of_its_parts_by_hand():
    model = create("resnet_basic", input_shape=(32, 32, 3), depths=(2,), widths=(4,))
    ((name, graph),) = complexity.model_costs(model).graphs.items()
    block, channels, pixels = 2 * 9 * 4 * 4 * 8 * 8, 4, 8 * 8
    assert name == "stage1"
    assert graph.nodes.tolist() == [9 * 64 * 4 * pixels + block // 2 + 64 * 4 * pixels, block]
    assert graph.routers.tolist() == [2 * channels, channels]
    np.testing.assert_array_equal(graph.edges, np.triu(np.full((3, 3), channels * pixels), k=1))


def test_costs_have_a_gradient_with_regard_to_open_edges():
    graph = complexity.GraphCosts(
        nodes=np.array([100, 20]), routers=np.array([3, 1]), edges=np.triu(np.full((3, 3), 7), k=1)
    )
    is_open = tf.constant([np.triu(np.ones((3, 3)), k=1), [[0, 0, 1], [0, 0, 0], [0, 0, 0]]])
    with tf.GradientTape() as tape:
        tape.watch(is_open)
        macs = graph.macs(is_open)
    np.testing.assert_array_equal(macs, [100 + 20 + 3 + 1 + 3 * 7, 100 + 3 + 7])
    # Edge 0 -> 1 alone leads into node 1: opening it turns the node on, and its router.
    np.testing.assert_array_equal(tape.gradient(macs, is_open)[0, :2, 1:], [[28, 7], [0, 7]])


def test_a_model_is_counted_once_for_a_size():
    model = create("resnet_basic", input_shape=(None, None, 3))
    costs = complexity.model_costs(model, (32, 32))
    assert complexity.model_costs(model, (32, 32)) is costs
    assert (
        complexity.model_costs(model, (64, 64)).total
        > costs.total
        == sum(item["macs"] for item in dg.count_macs(model, image_size=(32, 32))["items"])
    )
