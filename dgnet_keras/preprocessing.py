"""Image preprocessing: one definition for training, prediction and the exported graph.

Imports nothing from the package; the backbones carry an instance, the rest calls it.
"""

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, Self

import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
ROUNDING = 1e-6  # pixels; more than the error of a size in float64


@dataclasses.dataclass(frozen=True)
class Preprocessing:
    """Resize, centre crop, normalise.

    The image is resized (bilinear, antialiased, aspect ratio kept) until the crop window of
    `image_size / crop` fits, and the centre `image_size` is cut out; pixels are divided by 255,
    less `mean`, over `std`.

    Attributes:
        image_size: (height, width) in pixels that the model is given; an int means a square.
        crop: in (0, 1]; the share of the resized image's shorter side that is kept.
        mean: per channel, of pixels in [0, 1]; one value serves every channel.
        std: per channel, likewise.

    Raises:
        ValueError: if a field is out of range.
    """

    image_size: tuple[int, int] = (224, 224)
    crop: float = 0.875
    mean: tuple[float, ...] = IMAGENET_MEAN
    std: tuple[float, ...] = IMAGENET_STD

    if TYPE_CHECKING:  # what is taken is more than what the fields then are

        def __init__(
            self,
            image_size: int | Sequence[int] = (224, 224),
            crop: float = 0.875,
            mean: Sequence[float] = IMAGENET_MEAN,
            std: Sequence[float] = IMAGENET_STD,
        ) -> None: ...

    def __post_init__(self) -> None:
        if isinstance(self.image_size, int):
            object.__setattr__(self, "image_size", (self.image_size,) * 2)
        for name in ("image_size", "mean", "std"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        sizes_ok = all(isinstance(s, int) and s > 0 for s in self.image_size)
        if len(self.image_size) != 2 or not sizes_ok:
            raise ValueError(
                "`image_size` must be (height, width), positive integers. "
                f"Received: {self.image_size}"
            )
        if len(self.mean) != len(self.std):
            raise ValueError(
                "`mean` and `std` must have the same length. "
                f"Received: mean={self.mean}, std={self.std}"
            )
        if not 0 < self.crop <= 1:
            raise ValueError(f"`crop` must be in (0, 1]. Received: {self.crop}")
        if not all(s > 0 for s in self.std):
            raise ValueError(f"`std` must be positive. Received: {self.std}")

    @classmethod
    def for_input(cls, input_shape: Sequence[int | None], *, crop: float = 0.875) -> Self:
        """The default for a model: ImageNet's statistics for 3 channels, 0.5 otherwise.

        Args:
            input_shape: (height or None, width or None, channels).
            crop: see the class.
        """
        height, width, channels = input_shape
        mean, std = (IMAGENET_MEAN, IMAGENET_STD) if channels == 3 else ((0.5,), (0.5,))
        return cls((height or 224, width or 224), crop, mean, std)

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
        return (tf.cast(images, tf.float32) - mean) * scale

    def denormalize(self, images: tf.Tensor | np.ndarray) -> tf.Tensor:
        """The inverse of `normalize`, rounded to uint8: the model's input as a picture."""
        pixels = images * (255.0 * tf.constant(self.std)) + 255.0 * tf.constant(self.mean)
        return tf.saturate_cast(tf.round(pixels), tf.uint8)

    def __call__(self, images: tf.Tensor | ArrayLike) -> tf.Tensor:
        """Raw pixels (..., height, width, channels) of 0 to 255 to the model's input, float32."""
        return self.normalize(self.resize_and_crop(images))

    def to_config(self) -> dict[str, Any]:
        """The fields as JSON-compatible values."""
        return {k: list(v) if isinstance(v, tuple) else v for k, v in vars(self).items()}
