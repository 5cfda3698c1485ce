"""Features and logits equal timm's, from timm's own weights, for a model of each family."""

import json
import re

import numpy as np
import pytest
import tensorflow as tf
from catalog import CATALOG
from conftest import SHARED

import dgnet_keras as dg

FOLDER = SHARED / "reference" / "timm"
NAMES = {"resnet": "resnet50", "resnext": "resnext50_32x4d"}
MODELS = [
    "resnet_basic",
    "resnet_bottleneck",
    "resnext",
    "mobilenetv2_035",
    "regnetx_002",
    "regnety_002",
]

pytestmark = [
    pytest.mark.skipif(not FOLDER.exists(), reason=f"needs timm's numbers: {FOLDER} is not there"),
    pytest.mark.parametrize("name", MODELS),
]


def make(name, **kwargs):
    row = dict(json.loads((FOLDER / "index.json").read_text())["models"][name])
    family, classes = row.pop("family"), row.pop("num_classes")
    del row["params"]
    variant = row.pop("variant", NAMES.get(family))
    if family == "resnext":
        del row["block"]
    options = {"num_classes": classes, "input_shape": (None, None, 3), **row, **kwargs}
    return dg.create(variant, **options)


def reference(name):
    return np.load(FOLDER / f"{name}.npz")


def check_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


def test_features_and_logits_equal_timms(name):
    model = make(name, wiring="chain")
    dg.load_timm(model, FOLDER / f"{name}.safetensors")
    expected = reference(name)
    check_close(model.backbone(expected["images"]), expected["features"])
    check_close(model(expected["images"]), expected["logits"])


def test_a_dynamic_network_starts_as_timms(name, tmp_path):
    static, dynamic = make(name, wiring="chain"), make(name, init="static")
    for model in (static, dynamic):
        dg.load_timm(model, FOLDER / f"{name}.safetensors")
    images = reference(name)["images"]
    logits = dynamic(images)
    np.testing.assert_array_equal(static(images), logits)
    dynamic.preprocessing = dg.Preprocessing((96, 96), 1.0, mean=(0.0,), std=(1 / 255,))
    exported = dg.export_saved_model(dynamic, tmp_path)
    served = tf.saved_model.load(str(exported)).signatures["predict_float"]
    scale = np.abs(logits).max()
    np.testing.assert_allclose(
        served(tf.constant(images))["logits"] / scale, logits / scale, atol=1e-5
    )


def test_the_backbone_loads_alone(name):
    path = FOLDER / f"{name}.safetensors"
    whole = make(name, wiring="chain")
    dg.load_timm(whole, path)
    images = reference(name)["images"]
    backbone = make(name, num_classes=None, wiring="chain")
    dg.load_timm(backbone, path)
    np.testing.assert_array_equal(backbone(images), whole.backbone(images))
    other = make(name, num_classes=7, wiring="chain", seed=3)
    head = other.get_layer("logits").get_weights()
    with pytest.warns(UserWarning, match="has 10 classes, the model 7"):
        dg.load_timm(other, path)
    np.testing.assert_array_equal(other.backbone(images), whole.backbone(images))
    np.testing.assert_array_equal(other.get_layer("logits").get_weights()[0], head[0])


def test_weights_of_another_architecture_change_nothing(name):
    other = MODELS[(MODELS.index(name) + 1) % len(MODELS)]
    model = make(name)
    before = model.get_weights()
    with pytest.raises(ValueError, match=r"left as it was:\n  .*(only in the|expected)"):
        dg.load_timm(model, FOLDER / f"{other}.safetensors")
    for a, b in zip(before, model.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tensor_that_is_missing_is_called_what_the_file_calls_it(name, tmp_path):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(FOLDER / f"{name}.safetensors")
    missing = next(key for key, array in arrays.items() if array.ndim == 4)
    save_file({k: v for k, v in arrays.items() if k != missing}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=rf"\({re.escape(missing)}\): .* only in the model"):
        dg.load_timm(make(name), tmp_path / "part.safetensors")


def test_the_catalog_covers_the_family(name):
    family = make(name, num_classes=None).family
    variants = {row["name"] for row in CATALOG.values()}
    assert variants & set(dg.list_variants(family))
