import io
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from catalog import create
from PIL import Image

import dgnet_keras as dg


@pytest.fixture(scope="module")
def model():
    return create("resnet_cifar_split", input_shape=(16, 16, 3))


@pytest.fixture(scope="module")
def export(model, tmp_path_factory):
    return dg.export_saved_model(model, tmp_path_factory.mktemp("e"), labels=["a", "b", "c"])


def encode(array, file_format):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, file_format)
    return buffer.getvalue()


@pytest.fixture(scope="module")
def signatures(export):
    return tf.saved_model.load(str(export)).signatures


def test_answers_name_classes_probabilities_and_labels(signatures, rng):
    raw = tf.constant(rng.integers(0, 256, (4, 16, 16, 3), "uint8"))
    answer = signatures["serving_default"](raw)
    assert set(answer) == {"logits", "probabilities", "classes", "top_labels"}
    np.testing.assert_allclose(tf.reduce_sum(answer["probabilities"], axis=1), 1, rtol=1e-5)
    for classes, labels in zip(
        answer["classes"].numpy(), answer["top_labels"].numpy(), strict=True
    ):
        assert labels[0].decode() == "abc"[classes]
        assert sorted(labels) == [b"a", b"b", b"c"]
    floats = signatures["predict_float"](tf.cast(raw, tf.float32))
    np.testing.assert_array_equal(floats["logits"], answer["logits"])


def test_jpeg_and_png_of_unequal_sizes_in_one_request(signatures, model, rng):
    arrays = [rng.integers(0, 256, (h, w, 3), "uint8") for h, w in ((16, 16), (40, 30), (9, 20))]
    encoded = [encode(arrays[0], "PNG"), encode(arrays[1], "JPEG"), encode(arrays[2], "PNG")]
    answer = signatures["predict_jpeg"](tf.constant(encoded))
    for i in (0, 2):
        expected = model(model.preprocessing(arrays[i][None]))
        np.testing.assert_allclose(answer["logits"][i : i + 1], expected, rtol=1e-5, atol=1e-5)


def test_the_saved_model_needs_no_keras(export, tmp_path, rng):
    path = tmp_path / "image.png"
    path.write_bytes(encode(rng.integers(0, 256, (20, 20, 3), "uint8"), "PNG"))
    code = """
import sys
sys.modules["keras"] = sys.modules["tf_keras"] = None
import tensorflow as tf
predict = tf.saved_model.load(sys.argv[1]).signatures["predict_jpeg"]
print(predict(tf.constant([open(sys.argv[2], "rb").read()]))["logits"].numpy().tolist())
assert not [m for m in sys.modules if m.startswith(("keras.", "tf_keras."))]
"""
    done = subprocess.run(
        [sys.executable, "-c", code, export, path], capture_output=True, text=True, check=True
    )
    signature = tf.saved_model.load(str(export)).signatures["predict_jpeg"]
    expected = signature(tf.constant([path.read_bytes()]))["logits"].numpy().tolist()
    np.testing.assert_allclose(eval(done.stdout), expected, rtol=1e-5)
    assert "custom gradient" not in done.stderr


def test_labels_are_text_whatever_they_were(model, tmp_path):
    exported = dg.export_saved_model(model, tmp_path, labels=np.array([7, 8, 9]))
    served = tf.saved_model.load(str(exported)).signatures["serving_default"]
    labels = served(tf.zeros((1, 16, 16, 3), tf.uint8))["top_labels"].numpy()
    assert sorted(labels[0]) == [b"7", b"8", b"9"]


def test_an_existing_version_is_refused_and_left_alone(model, export):
    before = (export / "saved_model.pb").read_bytes()
    with pytest.raises(FileExistsError, match="Version 1 exists"):
        dg.export_saved_model(model, export.parent)
    assert (export / "saved_model.pb").read_bytes() == before


def test_a_failed_export_leaves_nothing(model, tmp_path, monkeypatch):
    def fail(module, path, **kwargs):
        (tf.io.gfile.makedirs(path + "/variables"), open(path + "/saved_model.pb", "w").close())
        raise OSError("disk full")

    monkeypatch.setattr(tf.saved_model, "save", fail)
    with pytest.raises(OSError, match="disk full"):
        dg.export_saved_model(model, tmp_path / "models")
    assert list((tmp_path / "models").iterdir()) == []


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"version": 0}, "version.*0"),
        ({"version": "1"}, "version.*'1'"),
        ({"labels": ["a"]}, "3 classes.*1 labels"),
        ({"image_size": (20, 20)}, r"\(16, 16\).*\(20, 20\).*None, None"),
    ],
)
def test_bad_arguments_are_named(model, tmp_path, kwargs, message):
    with pytest.raises(ValueError, match=message):
        dg.export_saved_model(model, tmp_path, **kwargs)
    assert not list(tmp_path.iterdir())


def test_a_backbone_is_not_exported(tmp_path):
    with pytest.raises(ValueError, match="must be a classifier"):
        dg.export_saved_model(create("resnet_basic", num_classes=None), tmp_path)
