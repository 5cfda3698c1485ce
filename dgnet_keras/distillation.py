"""Distillation: a loss by which a network learns from the answers of another."""

import dataclasses

import keras
import tensorflow as tf

from dgnet_keras.checks import is_number
from dgnet_keras.preprocessing import Preprocessing


@dataclasses.dataclass(frozen=True, eq=False)
class Distillation:
    """The loss `weight * mean over images of divergence(teacher's logits, logits)`.

    Args:
        teacher: a `keras.Model` of images to logits. It is not trained.
        weight: of the loss, at least 0.
        temperature: that both models' logits are divided by, above 0.

    Raises:
        ValueError: for a value out of range, or a teacher that is no model.
    """

    teacher: keras.Model
    weight: float = 1.0
    temperature: float = 1.0

    def __post_init__(self) -> None:
        if not isinstance(self.teacher, keras.Model):
            raise ValueError(f"`teacher` must be a `keras.Model`. Received: {self.teacher!r}")
        if not is_number(self.weight) or not 0 <= self.weight < float("inf"):
            raise ValueError(
                f"`weight` must be a number of at least 0. Received: weight={self.weight!r}"
            )
        if not is_number(self.temperature) or not 0 < self.temperature < float("inf"):
            raise ValueError(
                "`temperature` must be a number above 0. "
                f"Received: temperature={self.temperature!r}"
            )

    def check_fits(self, student: keras.Model) -> None:
        """Raises `ValueError` unless `student`, a classifier, can learn from the teacher."""
        teacher = self.teacher
        if teacher is student:
            raise ValueError("`teacher` must be another model. Received: this one")
        received, size = teacher.input_shape, tuple(student.input_shape[1:])
        fits = isinstance(received, tuple) and len(received) == 4
        fits = fits and all(a in (None, b) for a, b in zip(received[1:], size, strict=True))
        if not fits or teacher.output_shape != student.output_shape:
            raise ValueError(
                f"`teacher` must take images of the shape {size} and answer with the logits of "
                f"{student.output_shape[-1]} classes. Received: the model {teacher.name!r}, which "
                f"takes {received} and answers {teacher.output_shape}"
            )
        if student.output_shape[-1] == 1:
            raise ValueError(
                "Distillation needs at least two classes: the softmax of one says nothing. "
                f"Received: the model {student.name!r}, which answers {student.output_shape}"
            )
        own, other = (
            (p.mean, p.std) if (p := getattr(model, "preprocessing", None)) else None
            for model in (student, teacher)
        )
        if other not in (None, own):
            raise ValueError(
                "`teacher` must take images of the same mean and standard deviation, "
                f"{own}. Received: a model that takes {other}"
            )
        check_logits("teacher", teacher)

    def answers(self, images: tf.Tensor) -> tf.Tensor:
        """The teacher's logits in inference, (batch, classes), without a gradient."""
        return tf.stop_gradient(self.teacher(images, training=False))

    def loss(self, wanted: tf.Tensor, logits: tf.Tensor) -> tf.Tensor:
        """A float32 scalar.

        Args:
            wanted: the teacher's logits, (batch, classes).
            logits: likewise.
        """
        return self.weight * tf.reduce_mean(divergence(wanted, logits, self.temperature))


def divergence(
    teacher_logits: tf.Tensor, logits: tf.Tensor, temperature: float | tf.Tensor
) -> tf.Tensor:
    """Kullback-Leibler divergence from the teacher's probabilities, times the temperature's square.

    Hinton et al., "Distilling the Knowledge in a Neural Network" (arXiv 1503.02531), section 2.

    Args:
        teacher_logits: (batch, classes).
        logits: likewise.
        temperature: that both are divided by.

    Returns:
        float32 (batch,).
    """
    wanted, given = (
        tf.nn.log_softmax(tf.cast(z, tf.float32) / temperature) for z in (teacher_logits, logits)
    )
    return temperature**2 * tf.reduce_sum(tf.exp(wanted) * (wanted - given), axis=-1)


def check_logits(name: str, model: keras.Model) -> None:
    """Raises `ValueError` if a model plainly takes raw images, or answers with probabilities.

    Args:
        name: of the argument, for the message.
        model: to be one of preprocessed images to logits.
    """
    inner = model.layers
    if any(isinstance(layer, Preprocessing) for layer in inner):
        raise ValueError(
            f"`{name}` must take preprocessed images. Received: {model.name!r}, which preprocesses "
            f"its images: give the network in it, `model.get_layer({inner[-1].name!r})`"
        )
    last = _last_operation(model)
    is_softmax = getattr(last, "activation", None) is keras.activations.softmax
    if is_softmax or type(last).__name__ == "Softmax":  # the layer, and Keras's operation
        raise ValueError(
            f"`{name}` must answer with logits. Received: {model.name!r}, which ends in a softmax"
        )


def _last_operation(model):
    """What gives a model's output; None of a model that does not tell."""
    outputs = getattr(model, "outputs", None)
    if not outputs or not isinstance(outputs[0], keras.KerasTensor):
        return None
    operation = outputs[0]._keras_history.operation
    return _last_operation(operation) if isinstance(operation, keras.Model) else operation
