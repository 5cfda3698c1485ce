"""Exports of models for other images than of 3 channels: what they offer, they answer."""

import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create, randomize
from image_files import turned_jpeg
from serving_helpers import encode
from tensorflow_serving.apis import prediction_log_pb2

import dgnet_keras as dg
from dgnet_keras.__main__ import main
from dgnet_keras.commands.images import read_encoded
from dgnet_keras.decoding import decode_image
from dgnet_keras.serving.signatures import ServingModule

pytestmark = pytest.mark.xdist_group("channels")  # what its fixtures make is made once
PIXELS = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 4), "uint8")
WITHOUT_FILES = {
    "serving_default",
    "predict_at",
    "predict_float",
    "features",
    "connectivity",
    "connectivity_at",
}


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """By number of channels: the model, its `.keras` file and its export."""
    found = {}
    for channels, classes in ((2, 1), (4, 3)):
        folder = tmp_path_factory.mktemp(f"channels{channels}")
        model = create("resnet_basic", input_shape=(16, 16, channels), num_classes=classes)
        randomize(model).save(folder / "model.keras")
        found[channels] = model, folder / "model.keras", dg.export_saved_model(model, folder / "m")
    return found


@pytest.fixture(scope="module")
def signatures(models):
    return {n: tf.saved_model.load(str(export)).signatures for n, (*_, export) in models.items()}


@pytest.mark.parametrize(
    ("channels", "expected"), [(2, WITHOUT_FILES), (4, {*WITHOUT_FILES, "predict_jpeg"})]
)
def test_what_is_offered_and_warmed_up_is_answered(models, signatures, channels, expected):
    export = models[channels][-1]
    assert set(signatures[channels]) == expected
    card = json.loads((export / "model_card.json").read_text())
    assert set(card["signatures"]) == expected
    path = str(export / "assets.extra" / "tf_serving_warmup_requests")
    warmed = set()
    for record in tf.data.TFRecordDataset(path).as_numpy_iterator():
        request = prediction_log_pb2.PredictionLog.FromString(record).predict_log.request
        inputs = {k: tf.constant(tf.make_ndarray(v)) for k, v in request.inputs.items()}
        signatures[channels][request.model_spec.signature_name](**inputs)
        warmed.add(request.model_spec.signature_name)
    assert warmed == expected


def test_one_class_has_the_probability_of_its_logit(models, signatures):
    answer = signatures[2]["serving_default"](tf.constant(PIXELS[..., :2]))
    logits = models[2][0](models[2][0].preprocessing(PIXELS[..., :2])).numpy()
    np.testing.assert_allclose(answer["probabilities"], 1 / (1 + np.exp(-logits)), rtol=1e-4)
    assert answer["top_labels"].numpy().tolist() == [[b"0"], [b"0"]]


def test_four_channels_are_read_from_png_files_alone(models, signatures):
    model = models[4][0]
    png = [encode(image, "PNG") for image in PIXELS]
    answer = signatures[4]["predict_jpeg"](tf.constant(png))
    expected = model(model.preprocessing(PIXELS))
    np.testing.assert_allclose(answer["logits"], expected, rtol=1e-4, atol=1e-5)
    jpeg = encode(PIXELS[0, ..., :3], "JPEG")
    with pytest.raises(tf.errors.InvalidArgumentError, match="must be whole PNG files"):
        signatures[4]["predict_jpeg"](tf.constant([jpeg]))


def test_predict_takes_files_of_any_format_for_four_channels(models, tmp_path, capsys):
    for name in ("JPEG", "PNG"):
        pixels = np.full((16, 16, 3), 90, "uint8")
        (tmp_path / f"{name}.{name.lower().replace('e', '')}").write_bytes(encode(pixels, name))
    rows = []
    for model in models[4][1:]:
        main(["predict", str(model), str(tmp_path), "--json", "--top", "3"])
        found = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
        assert len(found) == 2
        rows += [{p["label"]: p["probability"] for p in row["predictions"]} for row in found]
    for row in rows[1:]:
        assert row == pytest.approx(rows[0], abs=1e-5)


def test_predict_turns_pictures_for_four_channels(tmp_path):
    pixels = np.arange(12 * 16 * 3, dtype="uint8").reshape(12, 16, 3)
    (tmp_path / "a.jpg").write_bytes(turned_jpeg(pixels, 6))
    _, (content,) = read_encoded([("a.jpg", tmp_path / "a.jpg")], 4)
    upright = decode_image((tmp_path / "a.jpg").read_bytes(), 3)
    assert upright.shape == (16, 12, 3)
    np.testing.assert_array_equal(tf.io.decode_png(content, 3), upright)


def test_commands_say_that_no_image_file_has_two_channels(models, tmp_path):
    (tmp_path / "a.png").write_bytes(encode(PIXELS[0, ..., :3], "PNG"))
    message = "have 1, 3 or 4 channels. Received: a model that takes 2"
    for model in models[2][1:]:
        with pytest.raises(SystemExit, match=message):
            main(["predict", str(model), str(tmp_path)])
    with pytest.raises(SystemExit, match=message):
        images = str(tmp_path / "a.png")
        main(["plot", str(models[2][1]), images, "--output", str(tmp_path / "out")])


@pytest.mark.parametrize("policy", ["mixed_bfloat16", "float64"])
def test_answers_are_float32_under_every_policy(policy):
    keras.config.set_dtype_policy(policy)
    model = create("resnet_cifar_learned", input_shape=(16, 16, 3), init="open")
    signatures = ServingModule(model, model.preprocessing, ["a", "b", "c"]).signatures()
    pixels = tf.constant(PIXELS[..., :3])
    features = signatures["features"](pixels)["features"]
    found = signatures["connectivity_at"](images=pixels, threshold=tf.constant(0.3))
    assert {features.dtype, found["stage2"].dtype} == {tf.float32}
    expected = model.backbone(model.preprocessing(pixels))
    np.testing.assert_allclose(features, tf.cast(expected, tf.float32), rtol=0.02, atol=0.02)
    closed = signatures["connectivity_at"](images=pixels, threshold=tf.constant(0.7))
    assert np.count_nonzero(found["stage2"]) > np.count_nonzero(closed["stage2"])
