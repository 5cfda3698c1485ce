"""What examples are: indexed (`Split`) or a sequence of records in files (`Records`)."""

import concurrent.futures
import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dgnet_keras.decoding import decode_image

SIZES_OF = 1000  # files: on a network drive each takes its time


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and labels of one split, by index.

    Attributes:
        labels: int64 (examples,).
        images: uint8 (examples, height, width, channels), or None where `paths` is given.
        paths: names of the images' files, (examples,), or None.
        encoded: what is in those files, bytes (examples,), or None to read them when needed.
    """

    labels: np.ndarray
    images: np.ndarray | None = None
    paths: np.ndarray | None = None
    encoded: np.ndarray | None = None

    def __len__(self):
        return len(self.labels)

    def take(self, indices):
        """The split of the examples at `indices`."""
        parts = {k: None if v is None else v[indices] for k, v in vars(self).items()}
        return Split(**parts)

    def fingerprint(self):
        """A hash that other images, labels or names of files give another: SHA-256.

        Of files it goes by their names, and by the sizes of a thousand of them.
        """
        digest = hashlib.sha256(np.ascontiguousarray(self.labels, "int64").tobytes())
        if self.paths is None:
            digest.update(np.ascontiguousarray(self.images).tobytes())
            return digest.hexdigest()
        names = list(map(os.fsencode, self.paths))
        # Without the folder that all are in, which may be moved, or called by another name.
        folders = list({os.path.dirname(name) for name in names})
        above = os.path.commonprefix(folders)  # noqa: RUF071 cut at a slash below
        start = above.rfind(b"/") + 1
        digest.update(b"\0".join(name[start:] for name in names))
        some = self.sample(SIZES_OF)
        sizes = map(_size, some.paths) if some.encoded is None else map(len, some.encoded)
        digest.update(repr(list(sizes)).encode())
        return digest.hexdigest()

    def in_memory(self):
        """The split with the content of its files read."""
        if self.paths is None or self.encoded is not None:
            return self
        with concurrent.futures.ThreadPoolExecutor(16) as pool:
            encoded = np.array(list(pool.map(_read_bytes, self.paths)), dtype=object)
        return dataclasses.replace(self, encoded=encoded)

    def decoded(self):
        """The split with its files decoded to pixels, RGB, for images of one size.

        Raises:
            ValueError: if they are of several sizes, or one cannot be decoded.
        """
        if self.images is not None:
            return self
        split = self.in_memory()

        def decode(encoded):
            return decode_image(encoded, 3).numpy()

        with concurrent.futures.ThreadPoolExecutor() as pool:
            try:
                images = np.stack(list(pool.map(decode, split.encoded)))
            except tf.errors.OpError as error:
                raise ValueError(f"An image cannot be decoded: {error.message}") from error
        return Split(split.labels, images=images)

    def sample(self, count):
        """Up to `count` examples, evenly spread over the split, as a `Split`."""
        return self.take(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))


def _size(path):
    """Of a file in bytes; 0 of one that cannot be read, which is skipped in training."""
    try:
        return os.stat(path).st_size
    except OSError:
        return 0


@dataclasses.dataclass(frozen=True)
class Records:
    """Encoded images in TFRecord files.

    Attributes:
        files: names of the files.
        counts: number of records in each.
        parse: function of a serialised record (string scalar) to a dict: `encoded` (string),
            `label` (int64, 0 is the first class), `name` (string, or empty).
    """

    files: tuple[str, ...]
    counts: tuple[int, ...]
    parse: Callable

    def __len__(self):
        return sum(self.counts)

    def fingerprint(self):
        """As of `Split`, of the files' names and numbers of records."""
        names = [os.path.basename(file) for file in self.files]
        return hashlib.sha256(repr((names, self.counts)).encode()).hexdigest()

    def in_memory(self):
        """All records read: a `Split`."""
        return self._read(self.ordered(self.files))

    def labels(self):
        """The labels of all records, int64 (records,); reads them, and decodes no image."""
        parsed = self.ordered(self.files).map(lambda record, _: self.parse(record)["label"])
        return np.array(list(parsed.as_numpy_iterator()), "int64")

    def sample(self, count):
        """The first `count` records, as a `Split`."""
        return self._read(self.ordered(self.files).take(count))

    def ordered(self, files):
        """The records of some files, in order: (serialised, name) as `numbered_records`."""
        return tf.data.Dataset.from_tensor_slices(list(files)).flat_map(numbered_records)

    def named(self, serialized, name):
        """As `parse`; a record without a name of its own has the one given."""
        parts = self.parse(serialized)
        return {**parts, "name": tf.where(parts["name"] == "", name, parts["name"])}

    def _read(self, numbered):
        rows = list(numbered.map(self.named, tf.data.AUTOTUNE).as_numpy_iterator())
        return Split(
            np.array([row["label"] for row in rows], "int64"),
            paths=np.array([row["name"].decode(errors="backslashreplace") for row in rows]),
            encoded=np.array([row["encoded"] for row in rows], dtype=object),
        )


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Training and test split with the names of the classes.

    Attributes:
        unused: names of files and folders that lie with the images, and are not used.
    """

    class_names: tuple[str, ...]
    train: Split | Records
    test: Split | Records
    unused: tuple[str, ...] = ()


def numbered_records(path):
    """The records of a file: (serialised, "<file> record <number>"), string scalars."""

    def name(number, serialized):
        return serialized, tf.strings.join([path, " record ", tf.strings.as_string(number)])

    return tf.data.TFRecordDataset(path).enumerate().map(name)


def _read_bytes(path):
    """The content of a file; nothing if it cannot be read: it is then skipped as broken."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError:
        return b""
