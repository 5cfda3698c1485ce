import json

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create, randomize

import dgnet_keras as dg
from dgnet_keras.__main__ import main
from dgnet_keras.complexity import model_costs

pytestmark = pytest.mark.xdist_group("cascades")  # what its fixtures make is made once
SHAPE = (16, 16, 3)


def network(wiring, seed):
    model = create("resnet_cifar_path", wiring=wiring, input_shape=SHAPE)
    return randomize(model, seed, scale=2.0)


@pytest.fixture(scope="module")
def raw():
    return np.random.default_rng(0).integers(0, 256, (12, 20, 30, 3), "uint8")


@pytest.fixture(scope="module", params=["chain", "path"])
def cascade(request, raw):
    first = network("path", 0)
    return dg.cascade(first, network(request.param, 1), first.preprocessing(raw).numpy(), 0.25)


@pytest.fixture(scope="module")
def exported(cascade, tmp_path_factory):
    return dg.export_saved_model(cascade, tmp_path_factory.mktemp("both"), labels=["a", "b", "c"])


@pytest.fixture(scope="module")
def signatures(exported):
    return tf.saved_model.load(str(exported)).signatures


def test_raw_images_get_the_answers_of_the_cascade(cascade, signatures, raw):
    x = cascade.preprocessing(raw)
    expected, again = cascade.probabilities(x)
    for count in (1, 12):
        answer = signatures["serving_default"](tf.constant(raw[:count]))
        np.testing.assert_allclose(answer["probabilities"], expected[:count], atol=1e-5)
    assert [b"abc"[k : k + 1] for k in np.argmax(expected, axis=1)] == [
        labels[0] for labels in answer["top_labels"].numpy()
    ]
    png = tf.io.encode_png(raw[0])
    encoded = signatures["predict_jpeg"](tf.reshape(png, [1]))
    np.testing.assert_allclose(encoded["probabilities"], expected[:1], atol=1e-5)
    assert 0 < int(np.sum(again)) < 12


def test_both_networks_multiply_for_the_images_in_doubt(cascade, signatures, raw):
    x = cascade.preprocessing(raw).numpy()
    again = cascade.probabilities(x)[1].numpy()
    paths = [dg.adjacency(model, x) for model in (cascade.first, cascade.second)]
    first, second = (
        model_costs(model).of_images(found, len(x)).numpy()
        for model, found in zip((cascade.first, cascade.second), paths, strict=True)
    )
    found = signatures["connectivity"](tf.constant(raw))
    np.testing.assert_array_equal(found["asked_again"], again)
    np.testing.assert_array_equal(found["macs"], first + np.where(again, second, 0))
    for stage, matrices in paths[0].items():
        np.testing.assert_allclose(found[stage], matrices, atol=1e-6)
    none = signatures["connectivity"](tf.constant(raw[~again]))
    np.testing.assert_array_equal(none["macs"], first[~again])


def test_signatures_without_a_threshold_and_a_card_of_both(cascade, exported, signatures):
    expected = {"serving_default", "predict_float", "predict_jpeg", "features", "connectivity"}
    assert set(signatures) == expected
    card = json.loads((exported / "model_card.json").read_text())
    assert card["model"]["wiring"] == "path"
    assert card["cascade"]["second"]["wiring"] == cascade.second.wiring
    np.testing.assert_allclose(card["cascade"]["confidence"], cascade.confidence.numpy())


@pytest.mark.parametrize("cascade", ["path"], indirect=True)
def test_the_commands_export_and_ask_a_saved_cascade(cascade, raw, tmp_path, capsys):
    cascade.save(tmp_path / "cascade.keras")
    (tmp_path / "labels.txt").write_text("a\nb\nc\n")
    labels = ["--labels", str(tmp_path / "labels.txt")]
    main(["export", str(tmp_path / "cascade.keras"), str(tmp_path / "served"), *labels])
    keras.utils.save_img(tmp_path / "photo.png", raw[0])
    capsys.readouterr()
    main(["predict", str(tmp_path / "served"), str(tmp_path / "photo.png"), "--json"])
    (best,) = json.loads(capsys.readouterr().out)["predictions"]
    expected = cascade.probabilities(cascade.preprocessing(raw[:1]))[0].numpy()[0]
    assert best["label"] == "abc"[np.argmax(expected)]
    np.testing.assert_allclose(best["probability"], expected.max(), atol=1e-5)


@pytest.mark.parametrize("cascade", ["path"], indirect=True)
def test_what_cannot_be_exported_is_refused(cascade, tmp_path):
    with pytest.raises(ValueError, match=r"A cascade is not portable.*portable=True"):
        dg.export_saved_model(cascade, tmp_path, portable=True)
    given = keras.Input(SHAPE)
    foreign = keras.Model(given, keras.layers.Dense(3)(keras.layers.Flatten()(given)))
    both = dg.Cascade(cascade.first, foreign)
    with pytest.raises(ValueError, match="`second` network of a cascade must be a classifier"):
        dg.export_saved_model(both, tmp_path)
    assert not list(tmp_path.iterdir())
