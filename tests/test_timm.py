"""Features and logits equal timm's, from timm's own weights, for a model of each family."""

import json
import re
import types

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

pytestmark = pytest.mark.skipif(
    not FOLDER.exists(), reason=f"needs timm's numbers: {FOLDER} is not there"
)


def make(name, **kwargs):
    row = dict(json.loads((FOLDER / "index.json").read_text())["models"][name])
    family, classes = row.pop("family"), row.pop("num_classes")
    del row["params"]
    variant = row.pop("variant", NAMES.get(family))
    if family == "resnext":
        del row["block"]
    options = {"num_classes": classes, "input_shape": (None, None, 3), **row, **kwargs}
    return dg.create(variant, **options)


@pytest.fixture(
    scope="module",
    params=[pytest.param(n, marks=pytest.mark.xdist_group(f"timm_{n}")) for n in MODELS],
)
def loaded(request):
    """A model's `name`, its `file`, timm's `answers`, and with its weights `static`, `dynamic`."""
    name = request.param
    found = types.SimpleNamespace(
        name=name,
        file=FOLDER / f"{name}.safetensors",
        answers=np.load(FOLDER / f"{name}.npz"),
        static=make(name, wiring="chain"),
        dynamic=make(name, init="static"),
    )
    for model in (found.static, found.dynamic):
        dg.load_timm(model, found.file)
    return found


def check_close(found, expected):
    scale = np.abs(expected).max()
    np.testing.assert_allclose(found / scale, expected / scale, atol=1e-4)


def test_features_and_logits_equal_timms(loaded):
    images = loaded.answers["images"]
    check_close(loaded.static.backbone(images), loaded.answers["features"])
    check_close(loaded.static(images), loaded.answers["logits"])


def test_a_dynamic_network_starts_as_timms(loaded):
    images = loaded.answers["images"]
    np.testing.assert_array_equal(loaded.static(images), loaded.dynamic(images))


def test_an_export_answers_as_timms(tmp_path):
    """That exports compute what their models do is in `serving/test_runtimes.py`."""
    name = "resnet_basic"
    model, answers = make(name, init="static"), np.load(FOLDER / f"{name}.npz")
    dg.load_timm(model, FOLDER / f"{name}.safetensors")
    model.preprocessing = dg.Preprocessing((96, 96), 1.0, mean=(0.0,), std=(1 / 255,))
    exported = dg.export_saved_model(model, tmp_path)
    served = tf.saved_model.load(str(exported)).signatures["predict_float"]
    check_close(served(tf.constant(answers["images"]))["logits"], answers["logits"])


def test_the_backbone_loads_alone(loaded):
    images = loaded.answers["images"]
    features = loaded.static.backbone(images)
    backbone = make(loaded.name, num_classes=None, wiring="chain")
    dg.load_timm(backbone, loaded.file)
    np.testing.assert_array_equal(backbone(images), features)
    other = make(loaded.name, num_classes=7, wiring="chain", seed=3)
    head = other.get_layer("logits").get_weights()
    with pytest.warns(UserWarning, match="has 10 classes, the model 7") as caught:
        dg.load_timm(other, loaded.file)
    assert {w.filename for w in caught if w.category is UserWarning} == {__file__}
    np.testing.assert_array_equal(other.backbone(images), features)
    np.testing.assert_array_equal(other.get_layer("logits").get_weights()[0], head[0])


def test_weights_of_another_architecture_change_nothing(loaded):
    other = MODELS[(MODELS.index(loaded.name) + 1) % len(MODELS)]
    before = loaded.dynamic.get_weights()
    with pytest.raises(ValueError, match=r"left as it was:\n  .*(only in the|expected)"):
        dg.load_timm(loaded.dynamic, FOLDER / f"{other}.safetensors")
    for a, b in zip(before, loaded.dynamic.get_weights(), strict=True):
        np.testing.assert_array_equal(a, b)


def test_a_tensor_that_is_missing_is_called_what_the_file_calls_it(loaded, tmp_path):
    from safetensors.numpy import load_file, save_file

    arrays = load_file(loaded.file)
    missing = next(key for key, array in arrays.items() if array.ndim == 4)
    save_file({k: v for k, v in arrays.items() if k != missing}, tmp_path / "part.safetensors")
    with pytest.raises(ValueError, match=rf"\({re.escape(missing)}\): .* only in the model"):
        dg.load_timm(loaded.dynamic, tmp_path / "part.safetensors")


def test_the_catalog_covers_the_family(loaded):
    variants = {row["name"] for row in CATALOG.values()}
    assert variants & set(dg.list_variants(loaded.static.backbone.family))
