"""Image preprocessing: one definition for training, prediction and the exported graph.

The backbones carry an instance, the rest calls it.
"""

import dataclasses
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, Self

import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dgnet_keras.checks import is_integer, is_number

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ROUNDING = 1e-6  # pixels; more than the error of a size in float64


@keras.saving.register_keras_serializable(package="dgnet_keras")
@dataclasses.dataclass(init=False, eq=False)
class Preprocessing(keras.layers.Layer):
    """Resize, centre crop, normalise: a layer without weights, which stands before a model.

    The image is resized (bilinear, antialiased, aspect ratio kept) until the crop window of
    `image_size / crop` fits, and the centre `image_size` is cut out; pixels are divided by 255,
    less `mean`, over `std`.

    It takes NumPy arrays and tensors, in `tf.data` pipelines too, and is a layer of
    `keras.Sequential([model.preprocessing, model])` and of functional models.

    Args:
        image_size: (height, width) in pixels that the model is given; an int means a square.
        crop: in (0, 1]; the share of the resized image's shorter side that is kept.
        mean: per channel, of pixels in [0, 1]; one value serves every channel.
        std: per channel, likewise.
        name: of the layer.

    Call arguments:
        images: pixels of 0 to 255, any dtype of numbers, (batch, height, width, channels) or
            (height, width, channels). Where `mean` has several values, an image of one channel
            is repeated for them.

    Returns:
        The model's input, float32 of the same rank, under every dtype policy.

    Attributes:
        image_size: tuple of two ints.
        crop: float.
        mean: tuple of floats.
        std: tuple of floats, as many as of `mean`. None of the four can be set: make a new one,
            or `dataclasses.replace`.

    Raises:
        ValueError: if an argument is out of range, or the images are of another shape.
    """

    image_size: tuple[int, int]
    crop: float
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __init__(
        self,
        image_size: int | Sequence[int] = (224, 224),
        crop: float = 0.875,
        mean: float | Sequence[float] = IMAGENET_MEAN,
        std: float | Sequence[float] = IMAGENET_STD,
        *,
        name: str = "preprocessing",
    ) -> None:
        if not is_number(crop) or not 0 < crop <= 1:
            raise ValueError(f"`crop` must be in (0, 1]. Received: {crop!r}")
        fields = {
            "image_size": _check_size(image_size),
            "crop": float(crop),
            "mean": _check_numbers("mean", mean, lambda m: 0 <= m <= 1, "be of pixels in [0, 1]"),
            "std": _check_numbers("std", std, lambda s: 0 < s < math.inf, "be positive"),
        }
        if len(fields["mean"]) != len(fields["std"]):
            raise ValueError(
                f"`mean` and `std` must have the same length. Received: mean={mean}, std={std}"
            )
        for field, value in fields.items():
            object.__setattr__(self, field, value)
        # Float32 under every policy. XLA, which needs to know sizes, could not compile it.
        super().__init__(name=name, dtype="float32", autocast=False)
        self.supports_jit = False
        self.built = True

    def __setattr__(self, name: str, value: Any) -> None:
        if name in ("image_size", "crop", "mean", "std"):
            raise dataclasses.FrozenInstanceError(f"cannot assign to field {name!r}")
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        # By name too: Keras looks layers up in dicts, and must find two of a model apart.
        return type(other) is type(self) and other.get_config() == self.get_config()

    def __hash__(self) -> int:
        return hash((self.image_size, self.crop, self.mean, self.std))

    def __reduce__(self) -> tuple[Callable[[], Self], tuple[()]]:
        return functools.partial(type(self), **self.get_config()), ()

    @classmethod
    def for_input(
        cls, input_shape: Sequence[int | None], *, crop: float = 0.875, image_size: int = 224
    ) -> Self:
        """The default for a model: ImageNet's statistics for 3 channels, 0.5 otherwise.

        Args:
            input_shape: (height or None, width or None, channels).
            crop: see the class.
            image_size: height and width in pixels where the input's are None.
        """
        height, width, channels = input_shape
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
        return cls((height or image_size, width or image_size), crop, mean, std)

    def resize_and_crop(
        self, images: tf.Tensor | ArrayLike, *, skip_if_fits: bool = True
    ) -> tf.Tensor:
        """Resizes and cuts out the centre.

        Args:
            images: (batch, height, width, channels) or (height, width, channels), 0 to 255.
            skip_if_fits: whether to branch where images may have the size already. The result is
                the same; False makes a graph without a branch.

        Returns:
            float32 of the same rank, `image_size` high and wide, 0 to 255.
        """
        images = tf.convert_to_tensor(images)
        if self.crop < 1 or not skip_if_fits:
            return self._resize_and_crop(images)
        if tuple(images.shape[-3:-1]) == self.image_size:
            return tf.cast(images, tf.float32)
        # Resizing to the size that an image has changes nothing, and takes most of the time of
        # reading a small one.
        fits = tf.reduce_all(tf.shape(images)[-3:-1] == self.image_size)
        return tf.cond(
            fits, lambda: tf.cast(images, tf.float32), lambda: self._resize_and_crop(images)
        )

    def _resize_and_crop(self, images):
        # Sizes that end in .5 must be rounded alike in every graph, whatever its optimiser makes of
        # the division: in float32 some images came out a pixel larger in an export.
        target = tf.constant(self.image_size, tf.float64)
        size = tf.cast(tf.shape(images)[-3:-1], tf.float64)
        scale = tf.reduce_max(target / size) / self.crop
        # Of a very long image only the middle is resized: the rest would be cut off anyway, and a
        # strip of pixels would become gigabytes.
        whole = tf.shape(images)[-3:-1]
        limit = tf.math.ceil(8 * target / scale - ROUNDING)
        kept = tf.minimum(whole, tf.cast(limit, tf.int32) + 2)
        y, x = tf.unstack((whole - kept) // 2)
        images = images[..., y : y + kept[0], x : x + kept[1], :]
        resized = tf.floor(tf.cast(kept, tf.float64) * scale + 0.5 + ROUNDING)
        resized = tf.maximum(tf.cast(resized, tf.int32), self.image_size)
        # Of bytes as they are: a copy as float32 would take four times the memory, and most of the
        # time of a large image.
        images = tf.image.resize(images, resized, antialias=True)
        return tf.image.resize_with_crop_or_pad(images, *self.image_size)

    def normalize(self, images: tf.Tensor | ArrayLike) -> tf.Tensor:
        """Pixels of 0 to 255 to the model's input: (pixel / 255 - mean) / std, float32."""
        mean = 255.0 * tf.constant(self.mean, tf.float32)
        scale = 1 / (255.0 * tf.constant(self.std, tf.float32))
        images = tf.cast(images, tf.float32)
        width, channels = images.shape[-2:] if (images.shape.rank or 0) >= 2 else (None, None)
        if width is None or channels != len(self.mean):
            return (images - mean) * scale
        # Rows of pixels as vectors: processors are slow at operations on three numbers.
        shape = tf.shape(images)
        rows = tf.reshape(images, tf.concat([shape[:-2], [width * len(self.mean)]], axis=0))
        rows = (rows - tf.tile(mean, [width])) * tf.tile(scale, [width])
        return tf.ensure_shape(tf.reshape(rows, shape), images.shape)

    def denormalize(self, images: tf.Tensor | np.ndarray) -> tf.Tensor:
        """The inverse of `normalize`, rounded to uint8: the model's input as a picture."""
        pixels = images * (255.0 * tf.constant(self.std)) + 255.0 * tf.constant(self.mean)
        return tf.saturate_cast(tf.round(pixels), tf.uint8)

    def __call__(self, images: Any, **kwargs: Any) -> Any:
        """Raw pixels (..., height, width, channels) of 0 to 255 to the model's input, float32."""
        if isinstance(images, keras.KerasTensor):
            return super().__call__(images)
        return self.call(images)  # without Keras's casts; `training` makes no difference

    def call(self, images: tf.Tensor | ArrayLike) -> tf.Tensor:
        """See the class."""
        images = tf.convert_to_tensor(images)
        self._check(images)
        return self.normalize(self.resize_and_crop(images))

    def compute_output_spec(self, images: keras.KerasTensor) -> keras.KerasTensor:
        """Float32 of the same rank, `image_size` high and wide."""
        self._check(images)
        channels = images.shape[-1] if len(self.mean) == 1 else len(self.mean)
        return keras.KerasTensor((*images.shape[:-3], *self.image_size, channels), "float32")

    def _check(self, images):
        known = {None, 1, len(self.mean)}
        rank = len(images.shape)
        if rank not in (3, 4) or (len(self.mean) > 1 and images.shape[-1] not in known):
            channels = len(self.mean) if len(self.mean) > 1 else "channels"
            raise ValueError(
                f"`images` must be (batch, height, width, {channels}), or without the batch. "
                f"Received: shape {tuple(images.shape)}"
            )

    def check_fits(self, input_shape: Sequence[int | None]) -> None:
        """Raises `ValueError` unless a model of `input_shape` takes what this gives.

        Args:
            input_shape: (height or None, width or None, channels).
        """
        *size, channels = input_shape
        fits = all(s in (None, given) for s, given in zip(size, self.image_size, strict=True))
        if not fits or len(self.mean) not in (1, channels):
            raise ValueError(
                f"`preprocessing` must fit the model's input, {tuple(input_shape)} (height, width, "
                f"channels). Received: {self}"
            )

    def to_config(self) -> dict[str, Any]:
        """The fields as JSON-compatible values: arguments that make an equal one."""
        fields = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {k: list(v) if isinstance(v, tuple) else v for k, v in fields.items()}

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**self.to_config(), "name": self.name}


def _check_size(image_size):
    size = (image_size,) * 2 if is_integer(image_size) else image_size
    is_size = isinstance(size, Sequence | np.ndarray) and len(size) == 2
    if not is_size or not all(is_integer(s) and s > 0 for s in size):
        raise ValueError(
            f"`image_size` must be (height, width), positive integers. Received: {image_size!r}"
        )
    return tuple(int(s) for s in size)


def _check_numbers(name, values, is_right, expected):
    """Values as a tuple of floats; `ValueError` unless all are right."""
    found = (values,) if is_number(values) else values
    is_tuple = isinstance(found, Sequence | np.ndarray) and len(found) > 0
    if not is_tuple or not all(is_number(v) and is_right(v) for v in found):
        raise ValueError(f"`{name}` must {expected}. Received: {values!r}")
    return tuple(float(v) for v in found)
