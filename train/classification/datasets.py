"""Where images come from: class folders, TFRecords, TensorFlow Datasets, scikit-learn's digits.

A data set is either indexed (`Split`: every example can be had by its number) or a sequence of
records in files (`Records`). `input_pipeline` makes batches of both.
"""

import concurrent.futures
import contextlib
import dataclasses
import json
import math
import os
import pathlib
import re
import warnings
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from dgnet_keras.checks import closest

KINDS = ("digits", "folder", "tfrecord", "tfds:NAME")
IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
TEST_FOLDERS = ("test", "val", "validation")
TEST_RECORDS = ("validation", "val", "test")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")
HELD_OUT = 0.2


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
            return tf.io.decode_image(encoded, 3, expand_animations=False).numpy()

        with concurrent.futures.ThreadPoolExecutor() as pool:
            try:
                images = np.stack(list(pool.map(decode, split.encoded)))
            except tf.errors.OpError as error:
                raise ValueError(f"An image cannot be decoded: {error.message}") from error
        return Split(split.labels, images=images)

    def sample(self, count):
        """Up to `count` examples, evenly spread over the split, as a `Split`."""
        return self.take(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int))


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

    def in_memory(self):
        """All records read: a `Split`."""
        return self._read(self.ordered(self.files))

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
            paths=np.array([row["name"].decode(errors="replace") for row in rows]),
            encoded=np.array([row["encoded"] for row in rows], dtype=object),
        )


def numbered_records(path):
    """The records of a file: (serialised, "<file> record <number>"), string scalars."""

    def name(number, serialized):
        return serialized, tf.strings.join([path, " record ", tf.strings.as_string(number)])

    return tf.data.TFRecordDataset(path).enumerate().map(name)


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Training and test split with the names of the classes."""

    class_names: tuple[str, ...]
    train: Split | Records
    test: Split | Records


def load_data(recipe, data_dir=None):
    """Loads the data of a recipe.

    Args:
        recipe: a `Recipe`; its `dataset` says what is loaded (see there), `cache` whether the
            images' bytes are read into memory.
        data_dir: for `"folder"`, `train/<class>/*.jpg` and `test/<class>/*.jpg` (or `val`), or
            just `<class>/*.jpg`, of which a fifth is then held out as the test split; for
            `"tfrecord"`, `train*-of-*` and `validation*-of-*`, and `labels.txt` with the classes'
            names if there is one; for `"tfds:NAME"`, where TensorFlow Datasets keeps its data
            (None: its default).

    Raises:
        FileNotFoundError: if a folder or some shards are missing.
        ValueError: for an unknown data set, a class folder without images, a test class that is
            not in the training split, or a file that is not whole.
    """
    kind, _, name = recipe.dataset.partition(":")
    if kind == "digits" and not name:
        data = _load_digits()
    elif kind == "folder" and not name:
        data = _load_folder(data_dir)
    elif kind == "tfrecord" and not name:
        data = _load_tfrecords(data_dir, recipe.num_classes, recipe.first_label)
    elif kind == "tfds" and name:
        data = _load_tfds(name, data_dir)
    else:
        raise ValueError(
            f"`dataset` must be one of {', '.join(KINDS)}.{closest(recipe.dataset, KINDS)} "
            f"Received: {recipe.dataset!r}"
        )
    classes = len(data.class_names)
    if recipe.num_classes not in (None, classes):
        raise ValueError(
            f"The data has {classes} classes. Received: num_classes={recipe.num_classes}"
        )
    data = with_validation(data, recipe)
    if recipe.cache:
        data = dataclasses.replace(data, train=data.train.in_memory(), test=data.test.in_memory())
    return data


def with_validation(data, recipe):
    """The data with `recipe.validation` of the training images in place of the test images.

    Raises:
        ValueError: if the images are in TFRecords, or too few.
    """
    if not recipe.validation:
        return data
    if isinstance(data.train, Records):
        raise ValueError(
            "`validation` holds out images of class folders and digits only; of TFRecords, name "
            "the shards to evaluate `validation-*`. "
            f"Received: validation={recipe.validation}, dataset={recipe.dataset!r}"
        )
    return ImageData(data.class_names, *_hold_out(data.train, recipe.validation, "validation"))


def _load_digits():
    """scikit-learn's digits: 1,797 real images of 8x8, as uint8 RGB, a fifth held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = np.round(digits.images * (255 / 16)).astype("uint8")
    everything = Split(digits.target.astype("int64"), images=np.repeat(gray[..., None], 3, axis=3))
    return ImageData(tuple(map(str, digits.target_names)), *_hold_out(everything))


def _hold_out(split, share=HELD_OUT, name="test"):
    """Splits into training and held-out images, stratified, the same on every call."""
    from sklearn.model_selection import train_test_split

    counts = np.bincount(split.labels)
    rarest, classes = counts[counts > 0].min(), np.count_nonzero(counts)
    held_out = math.ceil(len(split) * share)
    if rarest < 2 or min(held_out, len(split) - held_out) < classes:
        needed = math.ceil(classes / min(share, 1 - share))
        hint = ". Give a test/ folder instead" if name == "test" else ""
        raise ValueError(
            f"Too few images to hold out {100 * share:g}% of them as the {name} split: it takes "
            f"2 of each class, and {needed} in all for {classes} classes. Received: "
            f"{len(split)} images, {rarest} of the rarest class{hint}"
        )
    indices = np.arange(len(split))
    train, test = train_test_split(
        indices, test_size=held_out, random_state=0, stratify=split.labels
    )
    return split.take(np.sort(train)), split.take(np.sort(test))


def _load_folder(data_dir):
    if data_dir is None:
        raise ValueError("This recipe reads a folder of images: give it with --data-dir DIR.")
    root = pathlib.Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(
            f"No data folder at {root}. Expected {root}/train/<class>/*.jpg and "
            f"{root}/test/<class>/*.jpg, or {root}/<class>/*.jpg"
        )
    if not (root / "train").is_dir():
        names = _class_names(root)
        return ImageData(names, *_hold_out(_read_split(root, names)))
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if test is None:
        raise FileNotFoundError(f"{root} has train/ but none of: {', '.join(TEST_FOLDERS)}")
    names = _class_names(root / "train")
    tested = _class_names(test)
    unknown = sorted(set(tested) - set(names))
    if unknown:
        raise ValueError(f"Classes of {test} that {root / 'train'} does not have: {unknown}")
    untested = sorted(set(names) - set(tested))
    if untested:
        warnings.warn(f"{test} has no images of the classes {untested}", stacklevel=2)
    return ImageData(names, _read_split(root / "train", names), _read_split(test, names))


def _class_names(folder):
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))
    if not names:
        records = any(SHARD.search(p.name) for p in folder.iterdir())
        hint = " It holds TFRecords: --set dataset=tfrecord reads them." if records else ""
        raise ValueError(f"{folder} has no class folders. Expected {folder}/<class>/*.jpg{hint}")
    return names


def _read_split(folder, class_names):
    paths, labels = [], []
    for label, name in enumerate(class_names):
        if not (folder / name).is_dir():
            continue
        with os.scandir(folder / name) as entries:
            found = [
                entry.path
                for entry in entries
                if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir()
            ]
        if not found:
            raise ValueError(
                f"The class folder {folder / name} has no images. Expected files that end in "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        paths += sorted(found)
        labels += [label] * len(found)
    return Split(np.array(labels, "int64"), paths=np.array(paths))


def _read_bytes(path):
    """The content of a file; nothing if it cannot be read: it is then skipped as broken."""
    try:
        return pathlib.Path(path).read_bytes()
    except OSError:
        return b""


def _load_tfrecords(data_dir, num_classes, first_label):
    if data_dir is None:
        raise ValueError("This recipe reads TFRecords: give their folder with --data-dir DIR.")
    root = os.fspath(data_dir)
    train = _find_shards(root, ("train",))
    test = _find_shards(root, TEST_RECORDS)
    names = _class_names_file(os.path.join(root, "labels.txt"), num_classes)

    def parse(serialized):
        features = {
            "image/encoded": tf.io.FixedLenFeature([], tf.string),
            "image/class/label": tf.io.FixedLenFeature([], tf.int64),
            "image/filename": tf.io.FixedLenFeature([], tf.string, ""),
        }
        parts = tf.io.parse_single_example(serialized, features)
        label = parts["image/class/label"]
        check = tf.debugging.Assert(
            (label >= first_label) & (label < first_label + len(names)),
            [
                f"A TFRecord's image/class/label must be in [{first_label}, "
                f"{first_label + len(names)}) (see first_label, num_classes). Received:",
                label,
            ],
        )
        with tf.control_dependencies([check]):
            label = label - first_label
        return {
            "encoded": parts["image/encoded"],
            "label": label,
            "name": parts["image/filename"],
        }

    return ImageData(
        names, *(Records(files, count_records(files), parse) for files in (train, test))
    )


def _find_shards(root, prefixes):
    """Names of the shards of one split, sorted; in `root`, or in a folder of the split's name."""
    for prefix in prefixes:
        for pattern in (f"{root}/{prefix}*-of-*", f"{root}/{prefix}/*-of-*"):
            files = sorted(f for f in tf.io.gfile.glob(pattern) if SHARD.search(f))
            if not files:
                continue
            total = int(SHARD.search(files[0])[2])
            if len(files) != total:
                raise FileNotFoundError(
                    f"{pattern} must be {total} files, as their names say. Received: {len(files)}"
                )
            return tuple(files)
    expected = " or ".join(f"{root}/{prefix}-00000-of-*****" for prefix in prefixes)
    raise FileNotFoundError(f"No TFRecords found. Expected {expected}")


def _class_names_file(path, num_classes):
    if tf.io.gfile.exists(path):
        with tf.io.gfile.GFile(path) as file:
            return tuple(line.strip() for line in file.read().splitlines() if line.strip())
    if num_classes is None:
        raise ValueError(
            f"TFRecords do not say how many classes there are: write their names into {path}, "
            "a line each, or give --set num_classes=N."
        )
    return tuple(str(label) for label in range(num_classes))


def count_records(files):
    """Number of records in each TFRecord file, from the lengths that precede them.

    The counts are kept in `.record_counts.json` beside the files, where that can be written.

    Raises:
        ValueError: for a file that is cut off.
    """
    cache = os.path.join(os.path.dirname(files[0]), ".record_counts.json")
    known = {}
    if tf.io.gfile.exists(cache):
        with tf.io.gfile.GFile(cache) as file, contextlib.suppress(ValueError):
            known = dict(json.loads(file.read()))  # a broken one is made anew

    def count(path):
        size = tf.io.gfile.stat(path).length
        name = os.path.basename(path)
        if known.get(name, (None,))[0] == size:
            return size, known[name][1]
        return size, _count(path, size)

    with concurrent.futures.ThreadPoolExecutor(16) as pool:
        counted = list(pool.map(count, files))
    found = {os.path.basename(f): list(c) for f, c in zip(files, counted, strict=True)}
    if any(known.get(name) != entry for name, entry in found.items()):
        scratch = f"{cache}.{os.getpid()}"
        try:
            with tf.io.gfile.GFile(scratch, "w") as file:
                file.write(json.dumps({**known, **found}))
            tf.io.gfile.rename(scratch, cache, overwrite=True)
        except (OSError, tf.errors.OpError):
            pass  # a folder that may only be read: they are counted again next time
    return tuple(number for _, number in counted)


def _count(path, size):
    number = position = 0
    with tf.io.gfile.GFile(path, "rb") as file:
        while position < size:
            file.seek(position)
            # A record: its length, a checksum of 4 bytes, the data, a checksum of 4 bytes.
            position += int.from_bytes(file.read(8), "little") + 16
            number += 1
    if position != size:
        raise ValueError(f"{path} is cut off or not a TFRecord file ({size} bytes).")
    return number


def _load_tfds(name, data_dir):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
        if not builder.info.splits:
            builder.download_and_prepare()
    except Exception as error:  # of many kinds: unknown names, no network, missing archives
        message = str(error).strip().splitlines()
        raise ValueError(
            f"TensorFlow Datasets cannot provide {name!r} in {data_dir or 'its default folder'}: "
            f"{type(error).__name__}: {message[0] if message else ''}"
        ) from error
    if builder.info.file_format != tfds.core.FileFormat.TFRECORD:
        raise ValueError(
            f"The data set {name!r} must be kept in TFRecords. Received: "
            f"{builder.info.file_format.value}"
        )
    features = builder.info.features
    if not {"image", "label"} <= set(features):
        raise ValueError(
            f"The data set {name!r} must have the features 'image' and 'label'. "
            f"Received: {', '.join(features)}"
        )
    splits = builder.info.splits
    test = next((key for key in TEST_RECORDS if key in splits), None)
    if "train" not in splits or test is None:
        raise ValueError(
            f"The data set {name!r} must have a split 'train' and one of "
            f"{', '.join(TEST_RECORDS)}. Received: {', '.join(splits)}"
        )

    def parse(serialized):
        # Decodes all but the image, whose bytes are cropped while they are decoded.
        parts = features.deserialize_example(
            serialized, decoders={"image": tfds.decode.SkipDecoding()}
        )
        return {
            "encoded": parts["image"],
            "label": tf.cast(parts["label"], tf.int64),
            "name": parts.get("file_name", parts.get("id", tf.constant(""))),
        }

    def records(split):
        return Records(tuple(map(str, split.filepaths)), tuple(split.shard_lengths), parse)

    return ImageData(
        tuple(features["label"].names), records(splits["train"]), records(splits[test])
    )
