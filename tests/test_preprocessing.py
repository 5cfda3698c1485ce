import copy
import dataclasses
import pickle

import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create, randomize

import dgnet_keras as dg

RAW = np.random.default_rng(0).integers(0, 256, (4, 20, 30, 3), "uint8")
FITTING = RAW[:, :16, :16]
LABELS = np.arange(4) % 3


@pytest.fixture(scope="module")
def model():
    """A model of images of 16 x 16 pixels that crops, resizes and normalises."""
    model = randomize(create("resnet_basic", input_shape=(16, 16, 3)))
    model.preprocessing = dg.Preprocessing(16, 0.8, std=(0.2, 0.3, 0.4))
    return model


@pytest.fixture(scope="module")
def answers(model):
    return model(model.preprocessing(RAW)).numpy()


def test_pixels_become_centred_and_scaled():
    preprocessing = dg.Preprocessing((2, 2), 1.0, mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25))
    x = preprocessing(np.array([[[[0] * 3, [255] * 3]] * 2], "uint8"))
    np.testing.assert_allclose(x[0, 0, :, 0], [-2, 2], rtol=1e-6)


def test_images_of_any_width_are_scaled_to_the_same_bits(rng):
    preprocessing = dg.Preprocessing((8, 8), 1.0, mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    images = rng.uniform(0, 255, (2, 8, 8, 3)).astype("float32")
    any_width = tf.function(
        preprocessing.normalize, input_signature=[tf.TensorSpec((None, None, None, 3))]
    )
    known = preprocessing.normalize(images)
    np.testing.assert_array_equal(any_width(images), known)
    np.testing.assert_array_equal(preprocessing.normalize(images[0]), known[0])
    expected = (images - 255 * np.float32([0.1, 0.2, 0.3])) / (255 * np.float32([0.4, 0.5, 0.6]))
    np.testing.assert_allclose(known, expected, rtol=1e-5, atol=1e-6)


def test_an_image_of_the_right_size_is_not_resampled(rng):
    images = rng.integers(0, 256, (2, 32, 32, 3), "uint8")
    same = dg.Preprocessing((32, 32), 1.0).resize_and_crop(images)
    np.testing.assert_array_equal(same, images)


@pytest.mark.parametrize("shape", [(50, 100), (100, 50), (20, 33), (224, 224)])
def test_the_centre_of_an_image_of_any_shape_is_kept(shape):
    ramp = np.linspace(-1, 1, shape[1])[None, :, None] * np.ones((*shape, 3))
    image = (ramp + 1) * 127.5
    found = dg.Preprocessing((32, 32), crop=0.8).resize_and_crop(image).numpy()
    assert found.shape == (32, 32, 3)
    np.testing.assert_allclose(found + found[:, ::-1], 255, atol=1.5)
    share = 0.8 * min(shape) / shape[1]
    assert np.ptp(found[16]) == pytest.approx(255 * share, rel=0.1)


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (3, 30_000)])
def test_a_strip_of_pixels_stays_small(shape):
    found = dg.Preprocessing().resize_and_crop(np.full((*shape, 3), 9, "uint8"))
    np.testing.assert_allclose(found, np.full((224, 224, 3), 9), atol=1e-3)


def test_denormalize_is_the_inverse(rng):
    images = rng.integers(0, 256, (2, 8, 8, 3), "uint8")
    preprocessing = dg.Preprocessing((8, 8), 1.0)
    np.testing.assert_array_equal(preprocessing.denormalize(preprocessing(images)), images)


@pytest.mark.parametrize(
    "again",
    [
        lambda p: dg.Preprocessing(**p.to_config()),
        lambda p: dg.Preprocessing.from_config(p.get_config()),
        lambda p: keras.layers.deserialize(keras.layers.serialize(p)),
        lambda p: pickle.loads(pickle.dumps(p)),
        copy.copy,
        copy.deepcopy,
        dataclasses.replace,
    ],
)
def test_a_copy_is_equal(again):
    preprocessing = dg.Preprocessing((8, 9), 0.5, (0.1,), (0.2,))
    assert again(preprocessing) == preprocessing
    assert hash(again(preprocessing)) == hash(preprocessing)
    assert again(preprocessing) is not preprocessing


def test_its_fields_are_values():
    preprocessing = dg.Preprocessing(np.int64(8), 1, mean=0.5, std=np.array([0.25]))
    assert preprocessing == dg.Preprocessing((8, 8), 1.0, (0.5,), (0.25,))
    larger = dataclasses.replace(preprocessing, image_size=(9, 8))
    assert larger.to_config() == {
        **{"image_size": [9, 8], "crop": 1.0},
        **{"mean": [0.5], "std": [0.25]},
    }
    assert larger != preprocessing
    with pytest.raises(dataclasses.FrozenInstanceError, match="crop"):
        preprocessing.crop = 0.5
    assert repr(preprocessing) == (
        "Preprocessing(image_size=(8, 8), crop=1.0, mean=(0.5,), std=(0.25,))"
    )


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"image_size": (0, 8)}, r"image_size.*\(0, 8\)"),
        ({"crop": 0}, "crop.*0"),
        ({"image_size": (16.0, 16.0)}, "image_size.*16.0"),
        ({"mean": (0.5,)}, "same length"),
        ({"std": (0.0,)}, "std.*0.0"),
        ({"std": (float("inf"),)}, "std.*inf"),
        ({"mean": (), "std": ()}, r"mean.*\(\)"),
        ({"mean": (float("nan"),), "std": 1}, "mean.*nan"),
        ({"mean": 123.7, "std": 58.4}, r"mean.*in \[0, 1\].*123.7"),
        ({"image_size": True}, "image_size.*True"),
        ({"crop": "1"}, "crop.*'1'"),
        ({"crop": (0.5, 0.7)}, r"crop.*\(0.5, 0.7\)"),
    ],
)
def test_bad_fields_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        dg.Preprocessing(**kwargs)


@pytest.mark.parametrize(
    "shape", [(16, 16), (4, 16, 16), (4, 16, 16, 4), (4, 3, 16, 16), (1, 4, 16, 16, 3)]
)
def test_images_of_another_shape_are_refused(shape):
    for images in (np.zeros(shape, "uint8"), keras.KerasTensor(shape)):
        with pytest.raises(ValueError, match=r"height, width, 3\).*Received: shape \("):
            dg.Preprocessing()(images)


def test_grey_images_are_repeated_for_each_channel():
    grey = RAW[..., :1]
    preprocessing = dg.Preprocessing(16)
    expected = preprocessing(np.repeat(grey, 3, axis=-1))
    np.testing.assert_allclose(preprocessing(grey), expected, rtol=1e-6)
    assert preprocessing(keras.KerasTensor((None, 20, 30, 1))).shape == (None, 16, 16, 3)


@pytest.mark.parametrize("policy", ["float32", "mixed_float16", "bfloat16", "float64"])
def test_it_gives_float32_under_every_policy(policy):
    expected = dg.Preprocessing(16)(RAW)
    keras.config.set_dtype_policy(policy)
    layer = dg.Preprocessing(16)
    assert layer(RAW).dtype == tf.float32
    assert layer(keras.KerasTensor((None, None, None, 3), "uint8")).dtype == "float32"
    np.testing.assert_array_equal(layer(RAW), expected)


def test_it_is_mapped_over_a_dataset(model):
    images = tf.data.Dataset.from_tensor_slices(RAW)
    one_by_one = next(iter(images.map(model.preprocessing).batch(4)))
    np.testing.assert_allclose(one_by_one, model.preprocessing(RAW), atol=1e-6)
    batches = images.batch(4).map(model.preprocessing)
    np.testing.assert_array_equal(next(iter(batches)), model.preprocessing(RAW))


def test_it_is_no_layer_of_its_model(model):
    assert "preprocessing" not in [layer.name for layer in model._flatten_layers()]
    assert model.preprocessing is model.backbone.preprocessing


def in_front(model):
    return keras.Sequential([model.preprocessing, model])


def in_front_of_any_size(model):
    return keras.Sequential([keras.Input((None, None, 3)), model.preprocessing, model])


def with_preprocessing(model):
    return model.with_preprocessing()


@pytest.mark.parametrize("build", [in_front, in_front_of_any_size, with_preprocessing])
def test_raw_images_are_answered_as_preprocessed_ones(build, model, answers, tmp_path):
    raw = build(model)
    fitting = model(model.preprocessing(FITTING))
    for images, expected in ((RAW, answers), (np.float32(RAW), answers), (FITTING, fitting)):
        np.testing.assert_array_equal(raw(images), expected)
    np.testing.assert_allclose(raw.predict(RAW, verbose=0), answers, rtol=1e-5, atol=1e-6)
    raw.save(tmp_path / "raw.keras")
    loaded = keras.saving.load_model(tmp_path / "raw.keras")
    np.testing.assert_array_equal(loaded(RAW), answers)
    assert loaded.get_layer("preprocessing") == model.preprocessing
    assert loaded.get_layer(model.name).preprocessing == model.preprocessing
    assert not raw.jit_compile, "sizes that change cannot be compiled"


def test_a_model_with_preprocessing_is_trained_and_exported(tmp_path):
    model = create("resnet_cifar_chain", input_shape=(16, 16, 3))
    raw = model.with_preprocessing()
    raw.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    before = model.get_layer("logits").kernel.numpy()
    raw.fit(RAW, LABELS, verbose=0)
    assert np.abs(model.get_layer("logits").kernel.numpy() - before).max() > 0
    raw.export(tmp_path / "export", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "export"))
    expected = model(model.preprocessing(RAW))
    np.testing.assert_allclose(served.serve(np.float32(RAW)), expected, rtol=1e-5, atol=1e-5)


def test_two_equal_layers_of_one_model_stay_two(model, answers, tmp_path):
    other = dg.Classifier(create("resnet_cifar_chain", num_classes=None), 2)
    again = dg.Preprocessing(**model.preprocessing.to_config(), name="again")
    images = keras.Input((None, None, 3))
    both = keras.Model(images, [model(model.preprocessing(images)), other(again(images))])
    both.save(tmp_path / "both.keras")
    for ensemble in (both, keras.saving.load_model(tmp_path / "both.keras")):
        ours, theirs = ensemble(RAW)
        np.testing.assert_array_equal(ours, answers)
        np.testing.assert_array_equal(theirs, other(again(RAW)))
        assert ensemble.get_layer("again") is not ensemble.get_layer("preprocessing")


LOSS = keras.losses.SparseCategoricalCrossentropy(from_logits=True)


@pytest.mark.parametrize(
    "use",
    [
        lambda m, x: m(x),
        lambda m, x: m.backbone(x),
        lambda m, x: m.predict(x, verbose=0),
        lambda m, x: m.predict(tf.data.Dataset.from_tensor_slices(x).batch(2), verbose=0),
        lambda m, x: m.fit(x, LABELS, verbose=0),
        lambda m, x: m.evaluate(x, LABELS, verbose=0),
        lambda m, x: dg.adjacency(m, x),
        lambda m, x: dg.count_macs(m, x),
        lambda m, x: dg.with_adjacency(m)(
            {"images": x, **dg.adjacency(m, m.preprocessing(FITTING))}
        ),
        lambda m, x: m.fit(
            m.preprocessing(x), LABELS, callbacks=[dg.ConnectivityMonitor(x)], verbose=0
        ),
    ],
)
def test_raw_images_are_refused_by_the_model_itself(use, model):
    model.compile("sgd", LOSS)
    with pytest.raises(ValueError, match=r"model.with_preprocessing\(\).*Received: uint8, shape"):
        use(model, FITTING)


def test_given_connectivity_takes_images_of_the_models_size(model):
    edges = dg.adjacency(model, model.preprocessing(RAW))
    given = dg.with_adjacency(model)
    with pytest.raises(ValueError, match=r"\(16, 16, 3\).*Received: \(20, 30, 3\)"):
        given({"images": np.float32(RAW), **edges})


@pytest.mark.parametrize(
    "use",
    [
        lambda m: dg.adjacency(m, RAW),
        dg.with_adjacency,
        dg.count_macs,
        lambda m: dg.count_macs(m, RAW),
        lambda m: dg.export_saved_model(m, "nowhere"),
    ],
)
def test_tools_name_the_network_within_a_model_of_raw_images(use, model):
    for raw in (model.with_preprocessing(), in_front_of_any_size(model)):
        with pytest.raises(ValueError, match=r"holds one.*model.get_layer\('resnet18'\)"):
            use(raw)


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("imagenet", "must be a `dg.Preprocessing`.*'imagenet'"),
        (dg.Preprocessing(20), r"\(16, 16, 3\).*image_size=\(20, 20\)"),
        (dg.Preprocessing(16, 1.0, (0.5, 0.5), (0.5, 0.5)), r"16, 3\).*mean=\(0.5, 0.5\)"),
    ],
)
def test_a_preprocessing_that_does_not_fit_the_model_is_refused(value, message, model):
    before = model.preprocessing
    for one in (model, model.backbone):
        with pytest.raises(ValueError, match=message):
            one.preprocessing = value
    assert model.preprocessing is before
