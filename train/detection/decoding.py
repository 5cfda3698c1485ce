"""The image files of a split: whether they are there, their size, their pixels."""

import os
import typing

import numpy as np
from PIL import Image

from dgnet_keras.commands.images import IMAGE_SUFFIXES
from dgnet_keras.paths import is_utf8, readable

NAMED = 5  # at most so many culprits are named in a message


def check_files(file, images, images_dir):
    """Checks that the files that COCO's image entries name are there, and can be read.

    Raises:
        ValueError: for an entry without a name, or names that are not UTF-8.
        FileNotFoundError: for files that are missing.
    """
    nameless = [image["id"] for image in images if not isinstance(image.get("file_name"), str)]
    if nameless:
        raise ValueError(f"{file}: images without 'file_name': {nameless[:NAMED]}")
    names = [image["file_name"] for image in images]
    if odd := [name for name in names if not is_utf8(images_dir / name)]:
        raise ValueError(
            f"{file}: names of folders and images must be UTF-8, or TensorFlow cannot read them. "
            f"Received: {', '.join(readable(images_dir / name) for name in odd[:NAMED])}"
        )
    missing = [name for name in names if not (images_dir / name).is_file()]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise FileNotFoundError(
            f"{file} lists images that are not in {images_dir}: {', '.join(missing[:NAMED])}{more}"
        )


def unlisted_files(images_dir, images):
    """Names of the image files in a folder, and below it, that no entry of COCO's names."""
    listed = {os.path.normpath(str(image.get("file_name"))) for image in images}
    found = (
        os.path.relpath(os.path.join(folder, name), images_dir)
        for folder, _, names in os.walk(images_dir)
        for name in names
        if name.lower().endswith(IMAGE_SUFFIXES)
    )
    return sorted(readable(name) for name in found if name not in listed)


def image_size(path):
    """(width, height) of an image file in pixels, upright; `ValueError` if it is not an image."""
    from dgnet_keras.decoding import orientation

    try:
        with Image.open(path) as image:
            size = image.size
    except OSError as error:
        raise ValueError(f"{path} is not an image: {error}") from error
    return size[::-1] if int(orientation(path.read_bytes())) >= 5 else size


def read_image(path, size=None):
    """An image file as uint8 RGB, (height, width, 3), decoded as in training and in exports.

    Args:
        path: of the file.
        size: (width, height) that the annotations give. An image whose EXIF data says how to turn
            it is upright, unless only the pixels as they are stored have this size.

    Raises:
        ValueError: if TensorFlow cannot decode it, or it is an animation.
    """
    return decode_file(path, size).shown


class Decoded(typing.NamedTuple):
    """What is in an image file.

    Attributes:
        stored: what TensorFlow decodes from it.
        shown: what `read_image` gives; the same object where nothing has to be changed.
        orientation: of its EXIF data, 1 to 8.
    """

    stored: np.ndarray
    shown: np.ndarray
    orientation: int


def decode_file(path, size=None):
    """The `Decoded` of an image file; see `read_image`."""
    import tensorflow as tf

    from dgnet_keras.decoding import decode_image, orientation

    content = path.read_bytes()
    try:
        image = tf.io.decode_image(content, channels=3)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{path} is not an image: {error.message.splitlines()[0]}") from error
    if image.shape.rank != 3:
        raise ValueError(f"{path} must be one image: JPEG, PNG, BMP or WebP. Received: a GIF")
    stored, way = image.numpy(), int(orientation(content))
    if way == 1 and not content.startswith(b"BM"):  # which may have a palette
        return Decoded(stored, stored, way)
    shown = decode_image(content, 3).numpy()
    as_stored = size is not None and shown.shape[1::-1] != size == stored.shape[1::-1]
    return Decoded(stored, stored if as_stored else shown, way)
