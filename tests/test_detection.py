"""A Keras 3 backbone inside tf_keras and Model Garden, and as KerasCV's feature pyramid."""

import os
import pathlib
import subprocess
import sys

import catalog
import keras
import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from official.core import exp_factory
from official.vision.configs import backbones
from official.vision.configs.common import NormActivation
from official.vision.modeling.backbones import factory

import dgnet_keras as dg
from dgnet_keras import convert, detection

ROOT = pathlib.Path(__file__).parents[1]
L2 = tf_keras.regularizers.L2(1e-2)


def garden(row="resnet_basic", **kwargs):
    backbone = catalog.randomize(catalog.create(row, num_classes=None))
    return detection.GardenBackbone(backbone, input_shape=(16, 16, 3), **kwargs)


@pytest.fixture(
    scope="module",
    params=[pytest.param(r, marks=pytest.mark.xdist_group(f"garden_{r}")) for r in catalog.CORE],
)
def trained(request):
    """A row of the catalog's core, its layer after a training step, and the step's gradients."""
    layer = garden(request.param)
    return request.param, layer, gradient_step(layer, catalog.images())


def functional(layer):
    inputs = tf_keras.Input((16, 16, 3))
    return tf_keras.Model(inputs, layer(inputs))


def statistics(layer):
    return {p: v.numpy() for p, v in layer.variables_by_path.items() if "/moving_" in p}


def gradient_step(layer, images):
    with tf.GradientTape() as tape:
        features = layer(images, training=True)
        total = tf.add_n([tf.reduce_sum(x**2) for x in features.values()])
    return tape.gradient(total, layer.trainable_weights)


def test_features_are_those_of_the_backbone(trained):
    _, layer, gradients = trained
    images = catalog.images()
    features = layer(images)
    expected = dict(layer.backbone.pyramid_outputs)
    assert set(features) == {name.removeprefix("P") for name in expected}
    plain = keras.Model(layer.backbone.input, expected)(images)
    for level, x in features.items():
        np.testing.assert_allclose(x, plain[f"P{level}"], rtol=1e-5, atol=1e-5)
        assert layer.output_specs[level].as_list() == [None, *x.shape[1:]]
    assert all(g is not None for g in gradients)


def test_model_gardens_experiments_can_name_it():
    params = exp_factory.get_exp_config("fasterrcnn_resnetfpn_coco")
    small = {"depths": [1, 2, 1, 1], "widths": [4, 8, 8, 16]}
    chosen = {"name": "resnet18", "wiring": "learned", "overrides": small}
    params.override({"task": {"model": {"backbone": {"type": "dgnet", "dgnet": chosen}}}})
    config = params.task.model.backbone
    again = backbones.Backbone(config.as_dict())
    for backbone_config in (config, again):
        layer = factory.build_backbone(
            tf_keras.layers.InputSpec(shape=[None, 64, 96, 3]),
            backbone_config,
            NormActivation(norm_momentum=0.7, use_sync_bn=True),
        )
        assert list(layer.output_specs) == ["2", "3", "4", "5"]
        assert layer.output_specs["5"].as_list() == [None, 2, 3, 16]
        assert layer.backbone.wiring == "learned"
        norms = [x for x in layer.backbone._flatten_layers() if hasattr(x, "moving_mean")]
        assert {(x.momentum, x.synchronized) for x in norms} == {(0.7, True)}


def test_an_unknown_variant_is_named():
    config = detection.Backbone(type="dgnet", dgnet=detection.DGNet(name="resnet51"))
    with pytest.raises(ValueError, match="resnet50"):
        factory.build_backbone(
            tf_keras.layers.InputSpec(shape=[None, 64, 64, 3]), config, NormActivation()
        )


def test_statistics_move_in_training_alone():
    layer, images = garden(), catalog.images()
    before = statistics(layer)
    layer(images, training=False)
    layer(images)
    assert all(np.array_equal(before[p], v) for p, v in statistics(layer).items())
    tf.function(layer)(images, training=True)
    assert not any(np.array_equal(before[p], v) for p, v in statistics(layer).items())


def test_a_frozen_backbone_is_constant():
    layer, images = garden(kernel_regularizer=L2), catalog.images()
    model = functional(layer)
    expected, before = layer(images, training=False), statistics(layer)
    for owner in (layer, model):
        owner.trainable = False
        assert model.trainable_weights == [] == layer.trainable_weights
        assert len(layer.non_trainable_weights) == len(layer.variables_by_path)
        features = layer(images, training=True)
        for level, x in features.items():
            np.testing.assert_array_equal(x, expected[level])
        assert all(np.array_equal(before[p], v) for p, v in statistics(layer).items())
        owner.trainable = True
    assert len(model.trainable_weights) > 0


def test_a_stage_can_be_frozen_on_its_own():
    layer = garden()
    whole = len(layer.trainable_weights)
    layer.backbone.stages[0].trainable = False
    assert 0 < len(layer.trainable_weights) < whole
    assert len(layer.weights) == len(layer.variables_by_path)


def test_regularization_reaches_the_model_that_holds_it():
    layer = garden(kernel_regularizer=L2)
    model = functional(layer)
    kernels = [
        v
        for p, v in layer.variables_by_path.items()
        if p.endswith("/kernel") and not convert.is_wiring_weight(p)
    ]
    assert len(kernels) > 5
    expected = 1e-2 * sum(float(np.sum(np.square(k))) for k in kernels)
    np.testing.assert_allclose(tf.add_n(model.losses), expected, rtol=1e-5)
    assert garden().losses == []
    layer.backbone.trainable = False
    np.testing.assert_allclose(tf.add_n(model.losses), expected, rtol=1e-5)


def test_a_budget_is_a_loss_of_training():
    config = detection.DGNet(
        name="resnet18",
        wiring="path",
        macs_target=0.9,
        macs_weight=3.0,
        overrides=detection.hyperparams.Config({"depths": [1, 3], "widths": [16, 32]}),
    )
    backbone = config.create((64, 64, 3))
    for gate in backbone.stages[1].gates():
        gate.noise.assign(0.0)
    layer = detection.GardenBackbone(backbone, input_shape=(64, 64, 3))
    inputs = tf_keras.Input((64, 64, 3))
    model = tf_keras.Model(inputs, layer(inputs))
    images = catalog.images(4, 64)
    model(images, training=False)
    assert model.losses == []
    # Every block is taken at the start, so the share is that of the static network and routers.
    counted = dg.count_macs(backbone)
    static = counted["macs"] - counted["by_kind"]["router"]
    with tf.GradientTape() as tape:
        model(images, training=True)
        (loss,) = model.losses
    np.testing.assert_allclose(loss, 3 * (counted["macs"] / static - 0.9) ** 2, rtol=1e-4)
    by_path = layer.variables_by_path
    gradients = zip(by_path, tape.gradient(loss, list(by_path.values())), strict=True)
    reached = {path for path, gradient in gradients if gradient is not None and np.any(gradient)}
    assert len(reached) == 4 and all(map(convert.is_wiring_weight, reached))
    again = detection.GardenBackbone.from_config(layer.get_config())
    assert (again.backbone.macs_target, again.backbone.macs_weight) == (0.9, 3.0)
    layer.trainable = False
    model(images, training=True)
    assert model.losses == []


def test_a_checkpoint_holds_every_weight(trained, tmp_path):
    row, layer, _ = trained
    path = tf.train.Checkpoint(backbone=layer).write(str(tmp_path / "ckpt"))
    fresh = detection.GardenBackbone(
        catalog.create(row, num_classes=None, seed=1), input_shape=(16, 16, 3)
    )
    status = tf.train.Checkpoint(backbone=fresh).read(path)
    status.assert_consumed()
    for name, value in layer.variables_by_path.items():
        np.testing.assert_array_equal(fresh.variables_by_path[name], value)


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "mixed_float16"])
def test_it_follows_the_policy_of_tf_keras(policy):
    tf_keras.mixed_precision.set_global_policy(policy)
    try:
        config = detection.Backbone(
            type="dgnet", dgnet=detection.DGNet(name="resnet18", overrides={"widths": [4] * 4})
        )
        layer = factory.build_backbone(
            tf_keras.layers.InputSpec(shape=[None, 32, 32, 3]), config, NormActivation()
        )
        features = layer(catalog.images(size=32), training=True)
    finally:
        tf_keras.mixed_precision.set_global_policy("float32")
    assert {x.dtype.name for x in features.values()} == {policy.removeprefix("mixed_")}
    assert {v.dtype.base_dtype.name for v in layer.weights} == {"float32"}


def test_its_config_makes_the_same_architecture():
    layer = garden(kernel_regularizer=L2)
    again = detection.GardenBackbone.from_config(layer.get_config())
    shapes = [{p: v.shape for p, v in x.variables_by_path.items()} for x in (layer, again)]
    assert shapes[0] == shapes[1]
    assert len(again.losses) == 1


def test_a_saved_model_needs_no_keras(tmp_path):
    layer, images = garden(), catalog.images()
    module = tf.Module()
    module.layer = layer
    serve = tf.function(layer.call, input_signature=[tf.TensorSpec((None, None, None, 3))])
    tf.saved_model.save(module, str(tmp_path / "saved"), signatures=serve)
    found = tf.saved_model.load(str(tmp_path / "saved")).signatures["serving_default"]
    for level, x in layer(images).items():
        answers = found(tf.constant(images))
        np.testing.assert_allclose(answers[level], x, rtol=1e-5, atol=1e-5)


def test_two_devices_compute_what_one_does(tmp_path):
    subprocess.run(
        [sys.executable, ROOT / "tests" / "garden_mirrored.py", tmp_path],
        check=True,
        env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}"},
    )
    values = []
    for devices in (1, 2):
        with np.load(tmp_path / f"{devices}.npz") as file:
            values.append(dict(file))
    assert len(values[0]) > 50
    assert set(values[0]) == set(values[1])
    for name, value in values[0].items():
        scale = max(np.abs(value).max(), 1.0)
        np.testing.assert_allclose(values[1][name] / scale, value / scale, atol=1e-4, err_msg=name)


def test_tf_keras_set_to_channels_first_is_refused(monkeypatch):
    monkeypatch.setattr(tf_keras.backend, "image_data_format", lambda: "channels_first")
    with pytest.raises(ValueError, match=r"must be 'channels_last'.*Received: 'channels_first'"):
        garden()


def test_a_missing_level_is_named():
    with pytest.raises(ValueError, match=r"has the levels P2, P3.*P5"):
        detection.feature_pyramid(catalog.create("resnet_basic", num_classes=None))


@pytest.mark.slow
def test_keras_cv_trains_a_retinanet_on_it():
    import dgnet_keras as dg

    os.environ.setdefault("KERAS_BACKEND", "tensorflow")
    import keras_cv

    backbone = dg.create(
        "resnet18", num_classes=None, input_shape=(64, 64, 3), widths=(4, 8, 16, 16)
    )
    pyramid = detection.feature_pyramid(backbone)
    model = keras_cv.models.RetinaNet(backbone=pyramid, num_classes=3, bounding_box_format="xyxy")
    model.compile(
        classification_loss="focal",
        box_loss="smoothl1",
        optimizer=dg.optimizers.SGD(0.01, global_clipnorm=10.0),
        jit_compile=False,
        run_eagerly=True,
    )
    boxes = {
        "boxes": np.array([[[4, 4, 40, 40]], [[8, 16, 60, 60]]], "float32"),
        "classes": np.array([[0], [2]], "float32"),
    }
    before = [v.numpy() for v in backbone.trainable_variables]
    history = model.fit(catalog.images(batch=2, size=64), boxes, epochs=2, batch_size=2, verbose=0)
    assert np.isfinite(history.history["loss"]).all()
    moved = [
        not np.array_equal(v, b) for v, b in zip(backbone.trainable_variables, before, strict=True)
    ]
    assert sum(moved) > 0.9 * len(moved)
