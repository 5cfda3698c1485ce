"""Against Model Garden's own ResNet-50: the same weights give the same features and gradients.

Model Garden pads as TensorFlow's "same" does, which on even sizes means one row more at the end
than at the beginning; timm, and so this package, pads both sides alike. That is the whole
difference: on sizes where both pad alike the features agree, and so does a training step of Faster
R-CNN when Model Garden's layers are made to pad both sides alike.
"""

import types

import numpy as np
import pytest
import tensorflow as tf
import tf_keras
from garden_losses import losses_of
from official.vision.configs import backbones, common, decoders, maskrcnn
from official.vision.modeling.backbones import factory
from official.vision.tasks import maskrcnn as maskrcnn_task

from dgnet_keras import detection

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("detection_parity")]  # a fixture, once
EPSILON = 1e-5
NORM = common.NormActivation(norm_epsilon=EPSILON, norm_momentum=0.9, use_sync_bn=False)
OURS = detection.Backbone(type="dgnet", dgnet=detection.DGNet(name="resnet50", wiring="chain"))
THEIRS = backbones.Backbone(type="resnet", resnet=backbones.ResNet(model_id=50))


def unit(prefix, norm_prefix=None):
    """Paths of a convolution and its normalisation, as Model Garden orders their weights."""
    names = ("gamma", "beta", "moving_mean", "moving_variance")
    return [f"{prefix}/conv/kernel", *(f"{prefix}/norm/{name}" for name in names)]


def paths_in_model_gardens_order():
    paths = [unit("stem")]
    for stage, depth in enumerate((3, 4, 6, 3), start=1):
        for block in range(depth):
            units = ["shortcut"] * (block == 0) + ["conv1", "conv2", "conv3"]
            paths += [unit(f"stage{stage}/block_{block}/{name}") for name in units]
    return [path for group in paths for path in group]


def layers_of(model):
    return [x for x in model._flatten_layers() if isinstance(x, tf_keras.layers.Layer)]


def garden_variables(backbone):
    """Model Garden's weights in the order in which a block uses them."""
    variables = []
    for layer in backbone.layers:
        if isinstance(layer, tf_keras.layers.Conv2D | tf_keras.layers.BatchNormalization):
            variables += layer.weights
        elif hasattr(layer, "_conv3"):
            units = [("_shortcut", "_norm0")] if layer._use_projection else []
            units += [(f"_conv{k}", f"_norm{k}") for k in (1, 2, 3)]
            for names in units:
                variables += [w for name in names for w in getattr(layer, name).weights]
    return variables


def copy_backbone(theirs, ours, rng):
    """Random statistics, and all of Model Garden's weights in ours."""
    variables = garden_variables(theirs)
    paths = paths_in_model_gardens_order()
    assert len(variables) == len(paths) == len(ours.variables_by_path) == len(theirs.weights)
    for path, source in zip(paths, variables, strict=True):
        if "/norm/" in path:
            low = 0.5 if path.endswith(("gamma", "variance")) else -0.2
            source.assign(rng.uniform(low, low + 0.7, source.shape))
        ours.variables_by_path[path].assign(source)


def pad_alike(backbone, monkeypatch):
    """Makes Model Garden's layers of stride 2 pad both sides alike."""

    def convolve(self, inputs, kernel):
        pad = kernel.shape[0] // 2
        padding = [[0, 0], [pad, pad], [pad, pad], [0, 0]]
        return tf.nn.conv2d(inputs, kernel, self.strides, padding)

    def pool(self, inputs):
        padded = tf.pad(inputs, [[0, 0], [1, 1], [1, 1], [0, 0]], constant_values=-np.inf)
        return tf.nn.max_pool2d(padded, 3, 2, "VALID")

    changed = 0
    for layer in layers_of(backbone):
        if isinstance(layer, tf_keras.layers.Conv2D) and layer.strides == (2, 2):
            monkeypatch.setattr(layer, "convolution_op", types.MethodType(convolve, layer))
            changed += 1
        elif isinstance(layer, tf_keras.layers.MaxPool2D):
            monkeypatch.setattr(layer, "call", types.MethodType(pool, layer))
            changed += 1
    assert changed == 1 + 1 + 3 * 2


@pytest.fixture(scope="module")
def both():
    """Model Garden's backbone and ours, for images of any size."""
    specs = tf_keras.layers.InputSpec(shape=[None, None, None, 3])
    return [factory.build_backbone(specs, config, NORM) for config in (THEIRS, OURS)]


@pytest.mark.parametrize("size", [65, 129])
def test_features_agree_where_both_pad_alike(size, both, rng):
    theirs, ours = both
    copy_backbone(theirs, ours, rng)
    images = rng.normal(size=(2, size, size, 3)).astype("float32")
    for training in (False, True):
        expected, found = (backbone(images, training=training) for backbone in (theirs, ours))
        assert set(expected) == set(found) == {"2", "3", "4", "5"}
        for level, x in expected.items():
            scale = np.abs(x).max()
            np.testing.assert_allclose(found[level] / scale, x / scale, atol=1e-4)


def test_features_differ_by_the_padding_alone(both, rng, monkeypatch):
    theirs, ours = both
    copy_backbone(theirs, ours, rng)
    images = rng.normal(size=(2, 64, 64, 3)).astype("float32")
    found, before = ours(images), theirs(images)
    pad_alike(theirs, monkeypatch)
    after = theirs(images)
    for level, x in after.items():
        scale = np.abs(x).max()
        np.testing.assert_allclose(found[level] / scale, x / scale, atol=1e-4)
        assert np.abs(before[level] - x).max() > 0.01 * scale


def build_task(backbone):
    model = maskrcnn.MaskRCNN(
        num_classes=5,
        input_size=[64, 64, 3],
        include_mask=False,
        mask_head=None,
        mask_sampler=None,
        mask_roi_aligner=None,
        backbone=backbone,
        decoder=decoders.Decoder(type="fpn", fpn=decoders.FPN(num_filters=16)),
        rpn_head=maskrcnn.RPNHead(num_filters=16),
        detection_head=maskrcnn.DetectionHead(num_convs=1, num_filters=16, fc_dims=32),
        roi_generator=maskrcnn.ROIGenerator(pre_nms_top_k=64, num_proposals=32),
        roi_sampler=maskrcnn.ROISampler(num_sampled_rois=16),
        norm_activation=NORM,
    )
    losses = maskrcnn.Losses(l2_weight_decay=1e-3)
    return maskrcnn_task.MaskRCNNTask(maskrcnn.MaskRCNNTask(model=model, losses=losses))


def batch(rng, count=8, size=64):
    from official.vision.dataloaders import maskrcnn_input

    parser = maskrcnn_input.Parser((size, size), 2, 6, 1, [0.5, 1.0, 2.0], 8.0)
    examples = []
    for _ in range(count):
        corner = rng.uniform(0, 0.4, (3, 2))
        boxes = np.concatenate([corner, corner + rng.uniform(0.3, 0.6, (3, 2))], axis=1)
        data = {
            "image": tf.constant(rng.integers(0, 256, (size, size, 3), "uint8")),
            "groundtruth_boxes": tf.constant(boxes, tf.float32),
            "groundtruth_classes": tf.constant([1, 2, 3], tf.int64),
            "groundtruth_is_crowd": tf.zeros(3, tf.bool),
        }
        examples.append(parser._parse_train_data(data))
    return tf.nest.map_structure(lambda *x: tf.stack(x), *examples)


def loss_and_gradients(task, model, inputs):
    with tf.GradientTape() as tape:
        losses = losses_of(task, model, *inputs, seed=3)
    gradients = tape.gradient(losses["total_loss"], model.trainable_weights)
    return losses, gradients


def test_a_training_step_of_faster_rcnn_agrees(rng, monkeypatch):
    tasks = [build_task(config) for config in (THEIRS, OURS)]
    theirs, ours = (task.build_model() for task in tasks)
    copy_backbone(theirs.backbone, ours.backbone, rng)
    for name in ("decoder", "rpn_head", "detection_head"):
        parts = [getattr(model, name) for model in (theirs, ours)]
        source, target = (part[0] if isinstance(part, list) else part for part in parts)
        target.set_weights(source.get_weights())
    pad_alike(theirs.backbone, monkeypatch)
    inputs = batch(rng)
    found = [
        loss_and_gradients(task, model, inputs)
        for task, model in zip(tasks, (theirs, ours), strict=True)
    ]
    for name, expected in found[0][0].items():
        np.testing.assert_allclose(found[1][0][name], expected, rtol=1e-4, err_msg=name)
    norms = [tf.linalg.global_norm(gradients).numpy() for _, gradients in found]
    assert norms[0] > 0.1
    np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)
    print("losses", {k: (float(found[0][0][k]), float(found[1][0][k])) for k in found[0][0]})
    print("gradient norms", norms)
