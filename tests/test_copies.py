"""What a user changes on layers is there in every copy: saved, loaded, cloned, deep-copied."""

import copy
import random
import threading

import keras
import numpy as np
import pytest
from catalog import CATALOG, CORE, create

import dgnet_keras as dg
from dgnet_keras.layers.blocks import BasicBlock
from dgnet_keras.layers.composite import changed, config_of, difference

COPIES = {
    "load": lambda model, path: _saved_and_loaded(model, path),
    "from_config": lambda model, path: type(model).from_config(model.get_config()),
    "deepcopy": lambda model, path: copy.deepcopy(model),
    "clone_model": lambda model, path: keras.models.clone_model(model),
}


def _saved_and_loaded(model, path):
    model.save(path / "model.keras")
    return keras.saving.load_model(path / "model.keras")


def images(count=4, size=32):
    return np.random.default_rng(0).normal(size=(count, size, size, 3)).astype("float32")


def change_everything(model):
    """Changes of every kind, on the stem, on stages and blocks, and on the classifier."""
    model.backbone.trainable = False
    model.get_layer("stem").conv.trainable = True
    stage = model.get_layer("stage2")
    stage.blocks[-1].trainable = True
    for layer in stage.blocks[-1]._flatten_layers():
        if isinstance(layer, keras.layers.Conv2D):
            layer.kernel_regularizer = keras.regularizers.L2(1e-3)
            layer.kernel_initializer = keras.initializers.Orthogonal(seed=3)
    norm = stage.blocks[0].steps[0].norm
    norm.momentum, norm.epsilon = 0.5, 1e-3
    stage.blocks[0].steps[-1].dtype_policy = "mixed_bfloat16"
    stage.blocks[0].steps[-1].conv.kernel_constraint = keras.constraints.MaxNorm(2.0)
    logits = model.get_layer("logits")
    logits.bias_regularizer = keras.regularizers.L1(0.1)
    logits.name = "classes"


def state(model):
    """Config of every layer, in order, and which variables train; models hold no flags alone."""
    layers = [layer for layer in model._flatten_layers() if not isinstance(layer, keras.Model)]
    seen = {id(layer): layer for layer in layers}.values()
    trained = [v.path.replace("classes", "logits") for v in model.trainable_variables]
    return [config_of(layer) for layer in seen], trained


@pytest.mark.parametrize("row", CORE)
def test_a_copy_has_what_was_changed(row, tmp_path):
    model = create(row, input_shape=(32, 32, 3))
    fresh = state(model)
    change_everything(model)
    wanted, answers = state(model), model(images())
    assert wanted != fresh
    copies = {way: make(model, tmp_path) for way, make in COPIES.items()}
    losses = len(copies["load"].losses)
    assert losses > 1
    for way, made in copies.items():
        assert state(made) == wanted, way
        assert len(made.losses) == losses, way
        if way in ("load", "deepcopy"):
            np.testing.assert_array_equal(made(images()), answers)
        if way != "clone_model":
            assert type(made) is type(model)
            assert made.preprocessing == model.preprocessing
            assert config_of(made) == config_of(model)


@pytest.mark.parametrize(
    ("row", "mode"),
    [("regnety", "int8"), ("regnety", "int4"), ("regnety", "float8"), ("mobilenet_v2", "int8")],
)
def test_a_quantized_model_is_saved_and_loaded(row, mode, tmp_path):
    model = create(row, input_shape=(32, 32, 3))
    before = model(images())
    model.quantize(mode, filters=lambda layer: isinstance(layer, keras.layers.Dense))
    assert np.abs(model(images()) - before).max() < 0.1 * np.abs(before).max()
    for way in ("load", "deepcopy"):
        again = COPIES[way](model, tmp_path)
        assert {v.path for v in again.variables} == {v.path for v in model.variables}
        np.testing.assert_array_equal(again(images()), model(images()))


@pytest.mark.filterwarnings("ignore:Layer .* does not have a `quantize")
@pytest.mark.parametrize("row", CATALOG)
def test_every_model_can_be_quantized_whole(row):
    create(row, num_classes=2, input_shape=(32, 32, 3)).quantize("int8")


def test_a_copy_trains_on_as_its_model_would(tmp_path):
    model = create("resnet_basic", input_shape=(32, 32, 3))
    model.backbone.trainable = False
    model.backbone.stages[-1].blocks[-1].trainable = True
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(keras.optimizers.Adam(0.01), loss, run_eagerly=True)
    labels = np.arange(4) % 3
    model.fit(images(), labels, epochs=2, verbose=0)
    copies = [COPIES[way](model, tmp_path) for way in ("load", "deepcopy")]
    model.fit(images(), labels, epochs=2, verbose=0)
    for again in copies:
        before = [v.numpy() for v in again.trainable_variables]
        again.fit(images(), labels, epochs=2, verbose=0)
        assert all(
            (v.numpy() != b).any() for v, b in zip(again.trainable_variables, before, strict=True)
        )
        for ours, theirs in zip(again.weights, model.weights, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-6)


def test_float16_scales_the_loss_also_when_it_is_loaded(tmp_path):
    keras.config.set_dtype_policy("mixed_float16")
    model = create("resnet_cifar_chain", input_shape=(32, 32, 3))
    keras.config.set_dtype_policy("float32")
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(dg.optimizers.SGD(0.01), loss)
    assert isinstance(model.optimizer, keras.optimizers.LossScaleOptimizer)
    model.fit(images(), np.arange(4) % 3, verbose=0)
    again = _saved_and_loaded(model, tmp_path)
    for ours, theirs in zip(model.optimizer.variables, again.optimizer.variables, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_a_backbone_in_a_sequential_keeps_its_flags(tmp_path):
    backbone = create("resnet_cifar_split", num_classes=None, input_shape=(32, 32, 3))
    backbone.trainable = False
    backbone.stages[-1].trainable = True
    pool, logits = keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3)
    model = keras.Sequential([keras.Input((32, 32, 3)), backbone, pool, logits])
    again = _saved_and_loaded(model, tmp_path)
    # Of the two layers after it, only the last parts of the paths: Keras adds the model's name.
    ours, theirs = (
        [v.path if "stage" in v.path else v.path.split("/")[-1] for v in m.trainable_variables]
        for m in (model, again)
    )
    assert ours == theirs
    assert len(ours) == len(backbone.stages[-1].trainable_variables) + 2


class Block(keras.layers.Layer):
    """A user's own block, whose config says nothing of the layer inside."""

    def __init__(self, filters, **kwargs):
        super().__init__(**kwargs)
        self.filters, self.strides = filters, 1
        self.conv = keras.layers.Conv2D(filters, 3, padding="same")

    def build(self, input_shape):
        self.conv.build(input_shape)

    def call(self, inputs):
        return self.conv(inputs)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.filters)


def test_a_stage_in_a_users_model_keeps_what_was_changed(tmp_path):
    blocks = [BasicBlock(4, name="a"), Block(4, name="b"), BasicBlock(4, name="c")]
    stage = dg.layers.GraphStage(blocks, threshold=0.2, name="stage")
    inputs = keras.Input((8, 8, 4))
    model = keras.Model(inputs, stage(inputs)["features"])
    stage.trainable = False
    blocks[0].steps[1].norm.trainable = True
    stage._gates["2"].sharpness = 3.0
    model.save(tmp_path / "model.keras")
    again = keras.saving.load_model(tmp_path / "model.keras", custom_objects={"Block": Block})
    assert [v.path for v in again.trainable_variables] == [
        v.path for v in model.trainable_variables
    ]
    assert again.get_layer("stage")._gates["2"].sharpness == 3.0
    x = np.ones((2, 8, 8, 4), "float32")
    np.testing.assert_array_equal(again(x), model(x))


class Unsaveable(Block):
    """A block that Keras cannot make again: it does not know what to make of a function."""

    def __init__(self, filters, function, **kwargs):
        super().__init__(filters, **kwargs)
        self.function = function


def test_a_block_without_config_runs_and_is_refused_when_it_is_saved(tmp_path):
    class Family(dg.DGResNet):
        @staticmethod
        def stage_blocks(spec):
            return [[Unsaveable(16, np.sin, name="a"), Unsaveable(16, np.sin, name="b")]]

    model = Family("resnet20_cifar", input_shape=(8, 8, 3))
    assert model(images(size=8)).shape == (4, 8, 8, 16)
    with pytest.raises(NotImplementedError, match="get_config"):
        model.save(tmp_path / "model.keras")


def test_a_stem_that_is_no_row_of_layers_is_refused():
    class Family(dg.DGResNet):
        @staticmethod
        def stem(spec, inputs):
            return keras.layers.Conv2D(16, 1)(inputs) + keras.layers.Conv2D(16, 3, padding="same")(
                inputs
            )

    with pytest.raises(ValueError, match="one after the other"):
        Family("resnet20_cifar", input_shape=(8, 8, 3))


def test_a_changed_config_holds_for_layers_that_were_changed():
    model = create("resnet_cifar_split", num_classes=None)
    model.stages[0].trainable = False
    model.get_layer("stem").norm.momentum = 0.5
    config = {**model.get_config(), "wiring": "chain", "dtype": "mixed_bfloat16"}
    chain = type(model).from_config(config)
    assert chain.wiring == "chain"
    assert not chain.stages[0].blocks[1].trainable
    assert chain.stages[1].trainable
    assert chain.get_layer("stem").norm.momentum == 0.5
    convs = [la for la in chain._flatten_layers() if isinstance(la, keras.layers.Conv2D)]
    assert {conv.compute_dtype for conv in convs} == {"bfloat16"}


def test_a_model_made_untrainable_has_no_trainable_weights():
    backbone = dg.DGResNet("resnet20_cifar", input_shape=(32, 32, 3), trainable=False)
    assert not backbone.trainable_variables
    assert keras.Sequential([backbone, keras.layers.Dense(2)]).layers[0].trainable is False


def test_a_file_made_before_changes_were_kept_has_its_flags():
    model = create("resnet_cifar_chain")
    model.backbone.trainable = False
    wanted = [v.path for v in model.trainable_variables]
    config = model.get_config()
    backbone = config["backbone"]["config"]
    for old in (config, backbone):
        del old["changes"], old["trainable"]
        old["frozen"] = [layer.path for layer in model._flatten_layers() if not layer.trainable]
    again = dg.Classifier.from_config(config)
    assert [v.path for v in again.trainable_variables] == wanted == ["logits/kernel", "logits/bias"]


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_layer_made_untrainable_freezes_what_is_inside(is_copied):
    blocks = [BasicBlock(4, trainable=name != "a", name=name) for name in "abc"]
    stages = [
        dg.layers.GraphStage(blocks, name="one"),
        dg.layers.GraphStage([BasicBlock(8, strides=2, name="d")], trainable=False, name="two"),
    ]
    if is_copied:
        stages = [type(stage).from_config(stage.get_config()) for stage in stages]
    inputs = keras.Input((8, 8, 3))
    model = keras.Model(inputs, stages[1](stages[0](inputs)["features"])["features"])
    trained = {v.path.split("/")[1] for v in model.trainable_variables}
    assert trained == {"b", "c", "router_0", "router_1", "router_2"}


def test_changes_of_layers_that_there_are_not_are_refused():
    config = create("resnet_cifar_chain", num_classes=None).get_config()
    config["changes"] = {"stage7": {"trainable": ["=", False]}}
    with pytest.raises(ValueError, match="stage7"):
        dg.DGResNet.from_config(config)


@pytest.mark.parametrize(
    ("before", "after", "change"),
    [
        ({"a": 1, "b": [1, 2]}, {"a": 1, "b": [1, 2]}, {}),
        ({"a": 1, "b": [1, {"c": 2}]}, {"a": 3, "b": [1, {"c": 4}]},
         {"a": ["=", 3], "b": {"1": {"c": ["=", 4]}}}),
        ({"a": {"x": 1}}, {"a": {"y": 1}}, {"a": ["=", {"y": 1}]}),
        ({"a": None}, {"a": {"y": 1}, "b": 2}, {"a": ["=", {"y": 1}], "b": ["=", 2]}),
        ({"a": [1, 2]}, {"a": [1]}, {"a": ["=", [1]]}),
    ],
)  # fmt: skip
def test_a_difference_leads_from_one_config_to_the_other(before, after, change):
    assert difference(before, after) == change
    assert changed(before, change) == after


def test_a_seed_gives_the_same_weights_while_another_thread_draws_numbers():
    done = threading.Event()

    def draw():
        while not done.is_set():
            random.random()

    alone = create("regnety", seed=5)
    thread = threading.Thread(target=draw)
    thread.start()
    try:
        beside = create("regnety", seed=5)
    finally:
        done.set()
        thread.join()
    for ours, theirs in zip(alone.weights, beside.weights, strict=True):
        np.testing.assert_array_equal(ours, theirs)


def test_the_tools_say_how_to_copy_where_keras_clones_to_a_plain_model():
    clone = keras.models.clone_model(create("resnet_cifar_chain"))
    with pytest.raises(ValueError, match=r"copy\.deepcopy"):
        dg.adjacency(clone, images())


def test_a_stages_output_is_the_dict_that_a_call_gives():
    model = create("resnet_cifar_split", input_shape=(32, 32, 3))
    stage = model.get_layer("stage1")
    assert stage.output.keys() == {"features", "adjacency"}
    assert list(stage.output["adjacency"]) == ["stage1_graph0", "stage1_graph1"]
    # Grad-CAM: the features of a stage, and the logits that follow from them.
    both = keras.Model(model.input, [stage.output["features"], model.output])
    features, logits = both(images())
    x = model.get_layer("stem")(images())
    np.testing.assert_allclose(features, stage(x)["features"], atol=1e-6)
    np.testing.assert_array_equal(logits, model(images()))
