import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create, images, randomize

import dgnet_keras as dg


def network(wiring="chain", seed=0, **options):
    return randomize(create("resnet_cifar_path", wiring=wiring, **options), seed, scale=2.0)


@pytest.fixture(scope="module")
def pair():
    options = {"input_shape": (16, 16, 3)}
    return network("path", **options), network("chain", 1, **options)


def softmax(model, x):
    return tf.nn.softmax(model(x)).numpy()


@pytest.mark.parametrize("again", [0.0, 0.25, 1.0])
def test_the_least_sure_get_the_mean_of_both(pair, again):
    x = images(12)
    model = dg.cascade(*pair, x, again)
    first, second = (softmax(m, x) for m in pair)
    doubted = np.argsort(first.max(axis=1))[: round(12 * again)]
    expected = first.copy()
    expected[doubted] = (first[doubted] + second[doubted]) / 2
    np.testing.assert_allclose(softmax(model, x), expected, atol=1e-6)
    if again == 0.25:
        np.testing.assert_allclose(np.exp(model.predict(x, verbose=0)), expected, atol=1e-6)
    _, asked = model.probabilities(x)
    assert sorted(np.flatnonzero(asked)) == sorted(doubted)


def test_the_confidence_is_no_images_own(pair):
    # Another runtime, or another batch, rounds otherwise.
    x = images(12)
    model = dg.cascade(*pair, x, 0.25)
    sure = np.sort(softmax(pair[0], x).max(axis=1))
    np.testing.assert_allclose(model.confidence.numpy(), sure[2:4].mean(), rtol=1e-5)


def test_the_second_network_computes_for_these_images_alone(pair):
    class Counting(keras.layers.Layer):
        rows = tf.Variable(0)

        def call(self, x):
            self.rows.assign_add(tf.shape(x)[0])
            return x

    given = keras.Input((16, 16, 3))
    second = keras.Model(given, pair[1](Counting()(given)))
    x = images(12)
    model = dg.cascade(pair[0], second, x, 0.25)
    Counting.rows.assign(0)
    model.predict(x, verbose=0)
    assert Counting.rows.numpy() == 3


def test_saved_loaded_and_exported(pair, tmp_path):
    x = images(12)
    model = dg.cascade(*pair, x, 0.25)
    expected = softmax(model, x)
    model.save(tmp_path / "cascade.keras")
    again = keras.models.load_model(tmp_path / "cascade.keras")
    np.testing.assert_allclose(softmax(again, x), expected, atol=1e-6)
    again.set_confidence(0.0)
    np.testing.assert_allclose(softmax(again, x), softmax(pair[0], x), atol=1e-6)
    model.export(tmp_path / "export", verbose=False)
    served = tf.saved_model.load(str(tmp_path / "export"))
    for count in (1, 12):
        found = tf.nn.softmax(served.serve(x[:count]))
        np.testing.assert_allclose(found, expected[:count], atol=1e-5)


def test_mistakes_are_named(pair):
    x = images(4)
    for arguments, message in (
        ((*pair, x, 1.5), r"`again` must be a share, in \[0, 1\]"),
        ((*pair, x[0]), "at least 1"),
        ((*pair, (255 * np.abs(x)).astype("uint8")), "preprocessed"),
        ((pair[0], pair[0], x), "two networks of the same images and classes"),
        ((pair[0], network(num_classes=5, input_shape=(16, 16, 3)), x), "same images and classes"),
        ((*pair, np.full_like(x, np.nan)), "must be finite"),
        ((pair[0], "static.keras", x), "`second` must be a `keras.Model`"),
    ):
        with pytest.raises(ValueError, match=message):
            dg.cascade(*arguments)
    other = network(input_shape=(16, 16, 3))
    other.preprocessing = dg.Preprocessing((16, 16), mean=(0.1, 0.2, 0.3))
    with pytest.raises(ValueError, match="same mean and standard deviation"):
        dg.cascade(pair[0], other, x)
    model = dg.cascade(*pair, x)
    with pytest.raises(ValueError, match="is not trained"):
        model(x, training=True)
    with pytest.raises(ValueError, match="must be a probability"):
        model.set_confidence(1.5)


def test_one_class_has_no_most_probable():
    options = {"num_classes": 1, "input_shape": (16, 16, 3)}
    with pytest.raises(ValueError, match="at least two classes"):
        dg.cascade(network(**options), network(seed=1, **options), images(4))


def test_a_share_that_equally_sure_images_miss_is_warned_of(pair):
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3, use_bias=False)]
    first = keras.Sequential([keras.Input((16, 16, 3)), *layers])
    first.set_weights([np.zeros((3, 3))])
    with pytest.warns(UserWarning, match=r"0\.000 are asked about twice, and not 0\.3"):
        dg.cascade(first, pair[1], images(10), 0.3)


def test_a_share_of_less_than_one_image_is_warned_of(pair):
    with pytest.warns(UserWarning, match=r"None of these images.*0\.1 of 4 is less than one"):
        model = dg.cascade(*pair, images(4), 0.1)
    assert model.confidence.numpy() == 0


def test_networks_of_other_images_or_answers_are_refused(pair):
    free = [network(w, input_shape=(None, None, 3)) for w in ("path", "chain")]
    with pytest.raises(ValueError, match="`second` must take preprocessed images"):
        dg.Cascade(free[0], free[1].with_preprocessing())
    layers = [keras.layers.GlobalAveragePooling2D(), keras.layers.Dense(3), keras.layers.Softmax()]
    with pytest.raises(ValueError, match=r"`first` must answer with logits"):
        dg.Cascade(keras.Sequential([keras.Input((16, 16, 3)), *layers]), pair[1])


def test_raw_pixels_as_floats_are_warned_of(pair):
    x = images(12)
    with pytest.warns(UserWarning, match=r"values of up to 2\d\d.*are they raw"):
        dg.cascade(*pair, 255 * np.abs(x) / np.abs(x).max(), 0.25)


def test_a_threshold_that_is_set_later_is_in_force_in_predict():
    options = {"input_shape": (16, 16, 3)}
    first = randomize(create("resnet_cifar_path", wiring="dynamic", **options), scale=0.3)
    model = dg.Cascade(first, network("chain", 1, **options), 0.0)
    x = images(8)
    before = model.predict(x, verbose=0)
    first.set_threshold(0.6)
    after = model.predict(x, verbose=0)
    assert np.abs(after - before).max() > 1e-3
    np.testing.assert_allclose(after, model(x), atol=1e-5)


def test_answers_in_sixteen_bits_are_taken(pair):
    given = keras.Input((16, 16, 3))
    half = [keras.Model(given, keras.ops.cast(m(given), "float16")) for m in pair]
    x = images(12)
    expected = softmax(dg.cascade(*pair, x, 0.25), x)
    np.testing.assert_allclose(softmax(dg.cascade(*half, x, 0.25), x), expected, atol=1e-2)
