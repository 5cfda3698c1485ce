"""A cascade: a cheap network for every image, a dear one for those that it is in doubt about."""

from collections.abc import Mapping
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dgnet_keras.checks import check_images, check_preprocessed, is_number, warn_of_raw_pixels
from dgnet_keras.distillation import check_logits
from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.preprocessing import Preprocessing
from dgnet_keras.user_warnings import warn

_FAR = 0.01  # from the wanted share, worth a warning


@keras.saving.register_keras_serializable(package="dgnet_keras")
class Cascade(keras.Model):
    """Two classifiers: the second is asked about the images that the first is least sure of.

    An image whose largest probability is below `confidence` goes through both networks, and the
    mean of their probabilities counts. Any other goes through the first alone. Wang et al., "Wisdom
    of Committees" (arXiv 2012.01988), have cascades of this kind. For inference: the networks are
    trained by themselves.

    Args:
        first: a classifier of images to logits, such as paths.
        second: likewise, of the same images and classes, such as the static network that the paths
            started from.
        confidence: probability, in [0, 1]: the second network is asked about no image at 0, about
            all that have not that much at 1. A weight of the model; see `set_confidence`.
        name: of the model.

    Call arguments:
        images: preprocessed images, (batch, height, width, channels).

    Returns:
        float32 (batch, classes): logarithms of the probabilities, whose softmax these are.

    Raises:
        ValueError: for networks that do not fit together, or a confidence out of range; in
            training.
    """

    def __init__(
        self,
        first: keras.Model,
        second: keras.Model,
        confidence: float = 0.5,
        *,
        name: str | None = None,
    ) -> None:
        _check_pair(first, second)
        super().__init__(name=name or f"{first.name}_cascade")
        self.first, self.second = first, second
        self.confidence = self.add_weight(
            name="confidence", shape=(), initializer="zeros", trainable=False, autocast=False
        )
        self.set_confidence(confidence)
        self.supports_jit = False  # how many images are asked about twice is not known before
        self(keras.Input(batch_shape=first.input_shape))  # or Keras would not export it
        for layer in self._flatten_layers():
            if isinstance(layer, GraphStage):
                layer.models.add(self)

    def set_confidence(self, confidence: float) -> None:
        """Sets the probability under which the second network is asked; or raises `ValueError`."""
        if not is_number(confidence) or not 0 <= confidence <= 1:
            raise ValueError(
                "`confidence` must be a probability, in [0, 1]. "
                f"Received: confidence={confidence!r}"
            )
        self.confidence.assign(confidence)

    @property
    def preprocessing(self) -> Preprocessing:
        """Of the first network, and so of both."""
        return self.first.preprocessing

    @property
    def input_shape(self) -> tuple[int | None, ...]:
        """That of both networks: (None, height, width, channels)."""
        return self.first.input_shape

    @property
    def output_shape(self) -> tuple[int | None, int]:
        """(None, classes)."""
        return self.first.output_shape

    @property
    def num_classes(self) -> int:
        """Number of classes."""
        return self.output_shape[-1]

    def call(self, images: tf.Tensor, training: bool | None = None) -> tf.Tensor:
        """See the class."""
        if training:
            raise ValueError("A cascade is not trained: train its networks by themselves.")
        check_preprocessed(images)
        return logarithm(self.probabilities(images)[0])

    def probabilities(self, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """What `call` gives the logarithm of, and which images were asked about twice.

        Args:
            images: preprocessed, (batch, height, width, channels).

        Returns:
            float32 (batch, classes) and boolean (batch,).
        """
        return self.asked_again(self.first(images, training=False), images)

    def asked_again(self, logits: tf.Tensor, images: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """As `probabilities`, where the first network has answered.

        Args:
            logits: of the first network, (batch, classes).
            images: as there.
        """
        found = tf.nn.softmax(tf.cast(logits, tf.float32))
        doubted = tf.reduce_max(found, axis=-1) < self.confidence.value
        index = tf.where(doubted)

        def ask():
            answers = self.second(tf.gather_nd(images, index), training=False)
            again = tf.nn.softmax(tf.cast(answers, tf.float32))
            mean = (tf.gather_nd(found, index) + again) / 2
            return tf.tensor_scatter_nd_update(found, index, mean)

        return tf.cond(tf.reduce_any(doubted), ask, lambda: found), doubted

    def compute_output_spec(
        self, images: keras.KerasTensor, training: bool | None = None
    ) -> keras.KerasTensor:
        """float32 (batch, classes)."""
        return keras.KerasTensor((images.shape[0], self.num_classes), "float32")

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments, the networks serialised."""
        return {
            "first": keras.saving.serialize_keras_object(self.first),
            "second": keras.saving.serialize_keras_object(self.second),
            "confidence": float(self.confidence.numpy()),
            "name": self.name,
        }

    @classmethod
    def from_config(
        cls, config: dict[str, Any], custom_objects: Mapping[str, Any] | None = None
    ) -> Self:
        """Rebuilds the cascade with its networks."""
        networks = {
            key: keras.saving.deserialize_keras_object(config[key], custom_objects)
            for key in ("first", "second")
        }
        return cls(**{**config, **networks})


def logarithm(probabilities: tf.Tensor) -> tf.Tensor:
    """Of probabilities, finite also of 0."""
    return tf.math.log(tf.maximum(probabilities, 1e-30))


def cascade(
    first: keras.Model,
    second: keras.Model,
    images: ArrayLike,
    again: float = 0.1,
    *,
    batch_size: int = 128,
) -> Cascade:
    """A cascade that asks the second network about a share of images, those in doubt.

    No labels are needed. Some hundreds of images that neither network was trained on are: of
    training images a network is in doubt less often.

    Args:
        first: the cheap network, see `Cascade`.
        second: the dear one.
        images: what they take (preprocessed), (count, height, width, channels).
        again: share of the images to ask about twice, in [0, 1].
        batch_size: images computed at a time.

    Returns:
        A `Cascade`. Its weights are those of the two networks, not copies. A warning says so where
        the share of these images is more than 0.01 from `again`.

    Raises:
        ValueError: for a share outside [0, 1], or images or networks that do not fit.
    """
    if not is_number(again) or not 0 <= again <= 1:
        raise ValueError(f"`again` must be a share, in [0, 1]. Received: again={again!r}")
    model = Cascade(first, second)
    images = check_images(images, first.input_shape[1:])
    warn_of_raw_pixels(images, getattr(first, "preprocessing", None))
    logits = first.predict(images, batch_size=batch_size, verbose=0)
    sure = np.sort(tf.nn.softmax(tf.cast(logits, tf.float32)).numpy().max(axis=1))
    count = round(again * len(sure))
    model.set_confidence(_between(sure, count))
    asked = float(np.mean(sure < model.confidence.numpy()))
    if again and not count:
        warn(
            f"None of these images is asked about twice, and no other will be: {again} of "
            f"{len(sure)} is less than one. Give more images."
        )
    elif abs(asked - again) > max(_FAR, 1 / len(sure)):
        warn(
            f"Of these images {asked:.3f} are asked about twice, and not {again}: the first "
            "network is equally sure of the others."
        )
    return model


def _between(sure, count):
    """A probability below which the first `count` of sorted ones lie, at no image's own."""
    if count in (0, len(sure)):
        return float(count > 0)
    last, following = map(float, sure[count - 1 : count + 1])  # many may be as sure as these
    middle = float(np.float32((last + following) / 2))
    return middle if middle > last else following


def _check_pair(first, second):
    for name, network in (("first", first), ("second", second)):
        if not isinstance(network, keras.Model):
            raise ValueError(f"`{name}` must be a `keras.Model`. Received: {network!r}")
    shapes = [(m.input_shape, m.output_shape) for m in (first, second)]
    if shapes[0][1][-1] == 1:
        raise ValueError(
            "A cascade needs at least two classes: of one there is no most probable. "
            f"Received: {first.name!r}, which answers {shapes[0][1]}"
        )
    if first is second or shapes[0] != shapes[1]:
        raise ValueError(
            "`first` and `second` must be two networks of the same images and classes. Received: "
            f"{first.name!r}, {shapes[0]}, and {second.name!r}, {shapes[1]} (images, logits)"
        )
    pixels = [(p.mean, p.std) for m in (first, second) if (p := getattr(m, "preprocessing", None))]
    if len(set(pixels)) > 1:
        raise ValueError(
            "`first` and `second` must take images of the same mean and standard deviation. "
            f"Received: {pixels[0]} and {pixels[1]}"
        )
    for name, network in (("first", first), ("second", second)):
        check_logits(name, network)
