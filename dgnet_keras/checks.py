"""Checks of arguments, and the words of their errors: what was expected, what was received."""

import difflib
import numbers
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras.user_warnings import warn


def closest(name: object, names: Iterable[object]) -> str:
    """`" Did you mean 'a' or 'b'?"` for the names closest to `name`, or an empty string.

    Names that begin with `name` come first.
    """
    text, known = str(name), [str(n) for n in names]
    longer = [n for n in known if text and n.startswith(text)]
    close = difflib.get_close_matches(text, known, n=3, cutoff=0.5)
    matches = list(dict.fromkeys([*longer, *close]))[:3]
    return f" Did you mean {' or '.join(map(repr, matches))}?" if matches else ""


def check_choice(name: str, value: object, choices: Collection[object]) -> None:
    """Raises `ValueError` unless `value` is one of `choices`."""
    if value not in choices:
        raise ValueError(f"`{name}` must be one of {list(choices)}. Received: {name}={value!r}")


def check_positive(**values: object) -> None:
    """Raises `ValueError` unless every named value is an int of at least 1."""
    for name, value in values.items():
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise ValueError(f"`{name}` must be an integer of at least 1. Received: {value!r}")


def check_divides(divisor_name: str, divisor: int, **values: int) -> None:
    """Raises `ValueError` unless `divisor` divides every named value."""
    for name, value in values.items():
        if value % divisor:
            raise ValueError(
                f"`{divisor_name}` must divide `{name}`. Received: {divisor_name}={divisor}, "
                f"{name}={value}"
            )


def check_input_shape(input_shape: Sequence[int | None]) -> tuple[int | None, ...]:
    """Returns (height or None, width or None, channels); raises `ValueError` if it is not that."""
    shape = tuple(input_shape) if isinstance(input_shape, Iterable) else ()
    sizes_ok = len(shape) == 3 and all(s is None or (is_integer(s) and s > 0) for s in shape)
    if not sizes_ok or shape[2] is None:
        raise ValueError(
            "`input_shape` must be (height, width, channels); height and width may be None. "
            f"Received: input_shape={input_shape!r}"
        )
    height, width, channels = (None if s is None else int(s) for s in shape)
    if height == 3 and (channels or 0) > 4:
        warn(
            f"`input_shape` is (height, width, channels): {shape} makes a network for images of 3 "
            f"x {width} pixels and {channels} channels."
        )
    return height, width, channels


def check_seed(seed: int) -> int:
    """Returns a seed as `int`; raises `ValueError` unless it is an integer of at least 0."""
    if not is_integer(seed) or seed < 0:
        raise ValueError(f"`seed` must be an integer of at least 0. Received: seed={seed!r}")
    return int(seed)


def is_integer(value: object) -> bool:
    """Whether it is an integer, NumPy's included, and no bool."""
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def is_number(value: object) -> bool:
    """Whether it is a real number, NumPy's included, and no bool."""
    return isinstance(value, numbers.Real) and not isinstance(value, bool)


def check_preprocessed(images: Any, input_shape: Sequence[int | None] | None = None) -> None:
    """Raises `ValueError` unless an array or tensor can be what a network takes.

    Args:
        images: raw pixels are told by their dtype, which is not a floating point one.
        input_shape: (height or None, width or None, channels) of each, or None for any.
    """
    dtype = getattr(images.dtype, "name", str(images.dtype))
    if "float" not in dtype:
        raise ValueError(
            "The network takes preprocessed images, floating point. Give it `model.preprocessing("
            "images)`, or give raw images to `model.with_preprocessing()`. Received: "
            f"{dtype}, shape {tuple(images.shape)}"
        )
    if input_shape is None:
        return
    shape = tuple(images.shape)[1:]
    fits = len(shape) == len(input_shape) and all(
        None in (size, given) or size == given
        for size, given in zip(input_shape, shape, strict=True)
    )
    if not fits:
        raise ValueError(
            f"`images` must be what the model takes, {tuple(input_shape)} (height, width, "
            f"channels). Received: {shape}"
        )


def warn_of_raw_pixels(images: np.ndarray, preprocessing: Any) -> None:
    """Warns of images with values that preprocessing cannot give, by far: raw ones as floats.

    Args:
        images: array.
        preprocessing: has `mean` and `std`, of pixels in [0, 1]; or None, then there is no saying.
    """
    if preprocessing is None:
        return
    pairs = zip(preprocessing.mean, preprocessing.std, strict=True)
    most = max(max(mean, 1 - mean) / std for mean, std in pairs)
    largest = float(np.abs(images).max())
    if largest > 5 * most:
        warn(
            f"These images have values of up to {largest:.4g}, where `model.preprocessing` gives "
            f"up to {most:.3g}: are they raw? Give `model.preprocessing(images)`."
        )


def check_images(images: ArrayLike, input_shape: Sequence[int | None]) -> np.ndarray:
    """Preprocessed images as an array, (count, height, width, channels), all finite.

    Args:
        images: at least one.
        input_shape: (height or None, width or None, channels) that the network takes.

    Raises:
        ValueError: if they are something else.
    """
    kind, images = type(images).__name__, np.asarray(images)
    if images.ndim != 4 or not len(images):
        raise ValueError(
            "`images` must be an array (count, height, width, channels) of at least 1. "
            f"Received: shape {images.shape}, {kind}"
        )
    check_preprocessed(images, input_shape)
    if not np.isfinite(images).all():
        raise ValueError("`images` must be finite. Received: NaN or infinity among their pixels")
    return images
