import keras
import numpy as np
import pytest
import tensorflow as tf
from catalog import create, images, randomize

import dgnet_keras as dg
from dgnet_keras.budget import Pressure, apply_pressure, doubt_of
from dgnet_keras.distillation import divergence

LABELS = np.arange(8) % 3


def tiny(wiring="path", **options):
    sizes = {"depths": (2, 3), "widths": (4, 8), "input_shape": (16, 16, 3)}
    return create("resnet_cifar_path", wiring=wiring, **{**sizes, **options})


def compiled(model):
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    model.compile(dg.optimizers.SGD(0.1), loss)
    return model


def test_divergence_is_kullback_and_leiblers_times_the_squared_temperature(rng):
    wanted, given = rng.normal(size=(2, 4, 3)).astype("float32")
    for temperature in (1.0, 4.0):
        p, q = (np.exp(z / temperature) for z in (wanted, given))
        p, q = (x / x.sum(axis=1, keepdims=True) for x in (p, q))
        expected = temperature**2 * (p * np.log(p / q)).sum(axis=1)
        np.testing.assert_allclose(divergence(wanted, given, temperature), expected, rtol=1e-4)
    np.testing.assert_allclose(divergence(wanted, wanted, 2.0), np.zeros(4), atol=1e-6)


@pytest.mark.parametrize("wiring", ["path", "dynamic", "chain"])
def test_training_adds_the_weighted_divergence_from_the_teacher(wiring):
    student, teacher = randomize(tiny(wiring)), randomize(tiny("chain", seed=1))
    x = images(8)
    student.distill_from(teacher, weight=0.7, temperature=2.0)
    logits = student(x, training=True)
    (loss,) = student.losses
    expected = 0.7 * np.mean(divergence(teacher(x), logits, 2.0))
    np.testing.assert_allclose(loss, expected, rtol=1e-4)
    student(x, training=False)
    assert not student.losses
    student.distill_from(None)
    student(x, training=True)
    assert not student.losses


def test_the_doubt_is_the_teachers():
    student = randomize(tiny(macs_target=0.6, macs_weight=4.0, macs_spread=0.3), scale=0.5)
    teacher = randomize(tiny("chain", seed=1), scale=2.0)
    apply_pressure(student, Pressure(0.6, 0.0, 0.0))
    x = images(8)
    student.distill_from(teacher)
    student(x, training=True)
    budget, _ = student.losses
    doubt = doubt_of(teacher(x))
    _, expected, _ = student.call_with_budget(tf.constant(x), training=True, doubt=doubt)
    np.testing.assert_allclose(budget, expected, rtol=1e-5)


def test_it_reaches_a_model_with_preprocessing_that_has_been_trained():
    student, teacher = tiny("chain"), randomize(tiny("chain", seed=1), scale=2.0)
    whole = student.with_preprocessing()
    whole.compile("sgd", keras.losses.SparseCategoricalCrossentropy(from_logits=True))
    whole.optimizer.learning_rate = 0.0
    x = np.random.default_rng(0).integers(0, 256, (8, 16, 16, 3), "uint8")
    whole.fit(x, LABELS, verbose=0)
    student.distill_from(teacher, weight=1e4)
    (loss,) = whole.fit(x, LABELS, verbose=0).history["loss"]
    assert loss > 100
    student.distill_from(None)
    (loss,) = whole.fit(x, LABELS, verbose=0).history["loss"]
    assert loss < 100


def test_fit_learns_from_the_teacher_and_leaves_it_as_it_is():
    """Without labels that say anything, the student comes near to the teacher."""
    teacher = randomize(tiny("chain", seed=1), scale=2.0)
    before = teacher.get_weights()
    student = compiled(tiny("chain"))
    x = images(8)
    student.fit(x, LABELS, epochs=1, verbose=0)  # traces the step without a teacher
    student.distill_from(teacher)

    def distance():
        return float(np.mean(divergence(teacher(x), student(x), 1.0)))

    start = distance()
    student.fit(x, LABELS, sample_weight=np.zeros(8), epochs=40, verbose=0)
    assert distance() < 0.5 * start
    for value, now in zip(before, teacher.get_weights(), strict=True):
        np.testing.assert_array_equal(value, now)


def test_the_teacher_is_no_part_of_the_student(tmp_path):
    student, teacher = tiny(), tiny("chain", seed=1)
    names = [v.path for v in student.weights]
    student.distill_from(teacher)
    assert [v.path for v in student.weights] == names
    student.save(tmp_path / "student.keras")
    again = keras.models.load_model(tmp_path / "student.keras")
    x = images(4)
    np.testing.assert_array_equal(again(x), student(x))
    again(x, training=True)
    assert not again.losses


class Attending(keras.Model):
    """A subclass that ends in a dense layer, and has a softmax inside."""

    def __init__(self):
        super().__init__()
        self.dense = keras.layers.Dense(3)
        self.softmax = keras.layers.Softmax()

    input_shape, output_shape = (None, 16, 16, 3), (None, 3)

    def call(self, images):
        return self.dense(self.softmax(keras.ops.mean(images, axis=(1, 2))))


def log_of_softmax():
    probabilities = ending("softmax")
    return keras.Model(probabilities.inputs, keras.ops.log(probabilities.outputs[0]))


@pytest.mark.parametrize("make", [lambda: ending(None), log_of_softmax, Attending])
def test_any_keras_model_of_the_images_may_teach(make):
    student = compiled(tiny())
    student.distill_from(make())
    student(images(8), training=True)
    assert np.isfinite(student.losses).all() and len(student.losses) == 1
    if make is Attending:
        found = student.fit(images(8), LABELS, epochs=1, verbose=0)
        assert np.isfinite(found.history["loss"][0])


def ending(activation):
    layers = [
        keras.layers.GlobalAveragePooling2D(),
        keras.layers.Dense(3, activation, name="answer"),
    ]
    return keras.Sequential([keras.Input((16, 16, 3)), *layers])


def behind_preprocessing():
    teacher = tiny("chain", input_shape=(None, None, 3))
    return teacher.with_preprocessing()


def other_mean():
    teacher = tiny("chain")
    teacher.preprocessing = dg.Preprocessing((16, 16), mean=(0.1, 0.2, 0.3))
    return teacher


@pytest.mark.parametrize(
    ("teacher", "options", "message"),
    [
        (lambda: tiny("chain", num_classes=5), {}, "the logits of 3 classes"),
        (lambda: tiny("chain", input_shape=(32, 32, 3)), {}, r"images of the shape \(16, 16, 3\)"),
        (other_mean, {}, "same mean and standard deviation"),
        (lambda: ending("softmax"), {}, r"must answer with logits.*ends in a softmax"),
        (lambda: behind_preprocessing(), {}, r"must take preprocessed images.*get_layer\('resnet"),
        (lambda: "static.keras", {}, r"must be a `keras.Model`. Received: 'static.keras'"),
        (lambda: tiny("chain"), {"temperature": 0.0}, "`temperature` must be a number above 0"),
        (lambda: tiny("chain"), {"weight": -1.0}, "`weight` must be a number of at least 0"),
    ],
)
def test_teachers_that_cannot_teach_are_refused(teacher, options, message):
    student = tiny("chain", seed=2)
    student.distill_from(tiny("chain"), weight=2.0)
    x = images(4)
    student(x, training=True)
    before = student.losses
    with pytest.raises(ValueError, match=message):
        student.distill_from(teacher(), **options)
    student(x, training=True)
    np.testing.assert_allclose(student.losses, before, rtol=1e-5)


def test_one_class_cannot_be_distilled():
    student = tiny(num_classes=1)
    with pytest.raises(ValueError, match="at least two classes"):
        student.distill_from(tiny("chain", num_classes=1))


def test_a_model_is_not_its_own_teacher():
    student = tiny()
    with pytest.raises(ValueError, match="must be another model"):
        student.distill_from(student)
