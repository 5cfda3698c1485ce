"""What Keras is set to, globally, does not change a network."""

import importlib

import keras
import numpy as np
import pytest
from catalog import create, images

import dgnet_keras as dg
from train.classification import augmentation
from train.classification.recipes import get_recipe


@pytest.fixture
def channels_first():
    keras.config.set_image_data_format("channels_first")
    yield
    keras.config.set_image_data_format("channels_last")


@pytest.fixture(scope="module")
def expected():
    """Models and their answers, made while Keras is set as usual."""
    rows = ("resnet_basic", "resnet_cifar_chain", "mobilenet_v2", "regnety")
    models = {row: create(row, input_shape=(16, 16, 3)) for row in rows}
    return {row: (model, model(images())) for row, model in models.items()}


@pytest.mark.parametrize("row", ["resnet_basic", "resnet_cifar_chain", "mobilenet_v2", "regnety"])
def test_channels_first_makes_the_same_network(row, expected, channels_first):
    model, answers = expected[row]
    again = create(row, input_shape=(16, 16, 3))
    assert [(v.path, tuple(v.shape)) for v in again.weights] == [
        (v.path, tuple(v.shape)) for v in model.weights
    ]
    np.testing.assert_array_equal(again(images()), answers)


def test_channels_first_loads_the_same_network(expected, channels_first, tmp_path):
    model, answers = expected["resnet_basic"]
    model.save(tmp_path / "model.keras")
    loaded = keras.saving.load_model(tmp_path / "model.keras")
    np.testing.assert_array_equal(loaded(images()), answers)
    assert dg.count_macs(loaded) == dg.count_macs(model)


@pytest.mark.parametrize("name", ["mixup_alpha", "cutmix_alpha"])
def test_channels_first_mixes_the_same_images(name, rng, request):
    recipe = get_recipe("cifar10_resnet20", [f"{name}=1.0"])
    batch = {
        "image": np.float32(rng.uniform(0, 255, (4, 8, 6, 3))),
        "label": np.arange(4),
        "seed": np.arange(8).reshape(4, 2),
    }
    expected = augmentation.mix(recipe, 4)(batch)
    request.getfixturevalue("channels_first")
    mixed = augmentation.mix(recipe, 4)(batch)
    for key in expected:
        np.testing.assert_array_equal(mixed[key], expected[key])


def test_a_network_of_float16_alone_trains():
    keras.config.set_dtype_policy("float16")
    model = create("resnet_basic", input_shape=(16, 16, 3))
    assert model.get_layer("stem").norm.gamma.dtype == "float16"
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile("sgd", loss, run_eagerly=True)
    (loss,) = model.fit(images(), np.arange(4) % 3, verbose=0).history["loss"]
    assert loss == pytest.approx(np.log(3), abs=0.2)


def test_another_backend_is_refused_when_the_package_is_imported(monkeypatch):
    monkeypatch.setattr(keras.config, "backend", lambda: "jax")
    with pytest.raises(ImportError, match=r"KERAS_BACKEND=tensorflow.*Received: the backend 'jax'"):
        importlib.reload(dg)
