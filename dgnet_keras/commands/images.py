"""Image files that a command is given."""

import sys

from dgnet_keras.commands.paths import existing
from dgnet_keras.paths import readable

SPLITS = {"train", "test", "val", "validation"}
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".bmp", ".gif", ".webp")


def labelled_files(folder, limit):
    """Files and class names of up to `limit` images of a folder, evenly from all; or of one file.

    Returns:
        Tuple of paths, labels (int, or None where there are no class folders) and class names.
    """
    folder = existing(folder)
    if limit < 1:
        raise ValueError(f"`--limit` must be positive. Received: {limit}")
    if folder.is_file():
        return [folder], None, None
    classes = sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != ".")
    if classes and set(classes) <= SPLITS:
        raise ValueError(
            f"Images must be those of one split. Received: {folder}, which has "
            f"{', '.join(classes)}: give {folder / classes[0]}, say"
        )
    found = [
        (path, label)
        for label, name in enumerate(classes or [""])
        for path in sorted((folder / name).rglob("*"))
        if _is_image(path)
    ]
    if not found:
        raise ValueError(
            f"{folder} has no images. Expected {folder}/*.jpg or {folder}/<class>/*.jpg "
            f"({', '.join(IMAGE_SUFFIXES)})"
        )
    count = min(limit, len(found))
    chosen = [found[k * len(found) // count] for k in range(count)]
    paths, labels = zip(*chosen, strict=True)
    names = [readable(name) for name in classes]
    return list(paths), list(labels) if classes else None, names or None


def check_channels(channels):
    """Raises `ValueError` if no image file has so many channels."""
    from dgnet_keras.serving.signatures import FILE_FORMATS

    if channels not in FILE_FORMATS:
        raise ValueError(
            f"Image files have 1, 3 or 4 channels. Received: a model that takes {channels}"
        )


def read_images(paths, preprocessing, channels):
    """Images as a model takes them, and which of the files could be decoded.

    Returns:
        Tuple of float32 (images, height, width, channels) and indices into `paths`.
    """
    import numpy as np
    import tensorflow as tf

    from dgnet_keras.decoding import decode_image

    check_channels(channels)
    images, kept = [], []
    for k, path in enumerate(paths):
        try:
            pixels = decode_image(path.read_bytes(), channels)
        except tf.errors.OpError:
            print(f"Skipped: {path} cannot be decoded", file=sys.stderr)
            continue
        images.append(preprocessing(pixels).numpy())
        kept.append(k)
    if not images:
        raise ValueError("None of the images could be decoded.")
    return np.stack(images), kept


def named_files(arguments):
    """Yields (name, path, or None for standard input) of each image.

    Args:
        arguments: files, folders, which are searched to the bottom, or "-".
    """
    for argument in arguments:
        if argument == "-":
            yield "-", None
            continue
        path = existing(argument)
        if path.is_dir():
            found = sorted(filter(_is_image, path.rglob("*")))
            if not found:
                raise ValueError(f"{path} has no images ({', '.join(IMAGE_SUFFIXES)})")
            yield from ((readable(p), p) for p in found)
        else:
            yield readable(argument), path


def read_encoded(files, channels):
    """Images as an export takes them: names and contents, JPEG or PNG.

    Those that cannot be classified are named on standard error, and left out.

    Args:
        files: list of (name, path), see `named_files`.
        channels: of the images.

    Returns:
        Tuple of two lists.
    """
    import tensorflow as tf
    from PIL import Image

    names, contents = [], []
    for name, path in files:
        try:
            content = _served_content(path, channels)
        except (OSError, tf.errors.OpError, Image.DecompressionBombError) as error:
            reason = str(error).splitlines()[0] if isinstance(error, FileNotFoundError) else ""
            print(f"Skipped: {name} cannot be decoded {reason}".rstrip(), file=sys.stderr)
            continue
        names.append(name)
        contents.append(content)
    return names, contents


def two_columns(names, labels):
    """A format of the names of images and labels, as wide as the longest, to be led by a header."""
    widths = [max(map(len, column)) for column in (["image", *names], ["label", *labels])]
    return f"{{:<{widths[0]}}}  {{:<{widths[1]}}}"


def _is_image(path):
    return path.suffix.lower() in IMAGE_SUFFIXES and not path.is_dir()


def _served_content(path, channels):
    """An image's content as an export takes it: within its limits, JPEG or PNG."""
    import tensorflow as tf

    from dgnet_keras.decoding import JPEG_HEADER, PNG_HEADER, decode_image
    from dgnet_keras.serving.signatures import check_encoded

    content = sys.stdin.buffer.read() if path is None else path.read_bytes()
    if not content.startswith(PNG_HEADER if channels == 4 else (JPEG_HEADER, PNG_HEADER)):
        content = tf.io.encode_png(decode_image(content, 3)).numpy()
    tf.io.decode_image(check_encoded(0, content, channels), channels, expand_animations=False)
    return content
