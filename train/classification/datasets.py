"""The data of a recipe: digits, class folders, TFRecords, TensorFlow Datasets; holding out."""

import dataclasses
import math

import numpy as np
import tensorflow as tf

from dgnet_keras.paths import usable_path
from train.classification.examples import ImageData, Records, Split
from train.classification.folders import read_folder
from train.classification.tfrecords import TEST_RECORDS, load_tfrecords

HELD_OUT = 0.2


def load_data(recipe, data_dir=None):
    """Loads the data of a recipe.

    Args:
        recipe: a `Recipe`; its `dataset` says what is loaded (see there), `cache` whether the
            images' bytes are read into memory.
        data_dir: for `"folder"`, `train/<class>/` and `test/<class>/` (or `val`), or just
            `<class>/`, of which a fifth is then held out as the test split; for
            `"tfrecord"`, `train*-of-*` and `validation*-of-*`, and `labels.txt` with the classes'
            names if there is one; for `"tfds:NAME"`, where TensorFlow Datasets keeps its data
            (None: its default).

    Raises:
        FileNotFoundError: if a folder or some shards are missing.
        ValueError: for a class folder without images, a test class that is
            not in the training split, or a file that is not whole.
    """
    kind, _, name = recipe.dataset.partition(":")
    data_dir = data_dir and usable_path("--data-dir", data_dir, any_bytes=kind == "folder")
    if kind == "digits":
        if data_dir is not None:
            raise ValueError(
                "The digits come with scikit-learn: leave out --data-dir, or read that folder with "
                f"--set dataset=folder. Received: {data_dir}"
            )
        data = _load_digits()
    elif kind == "folder":
        data = _load_folder(data_dir)
    elif kind == "tfrecord":
        data = load_tfrecords(data_dir, recipe.num_classes, recipe.first_label)
    else:
        data = _load_tfds(name, data_dir)
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
    train, test = _hold_out(data.train, recipe.validation, "validation")
    return dataclasses.replace(data, train=train, test=test)


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
    names, train, test, unused = read_folder(data_dir)
    splits = _hold_out(train) if test is None else (train, test)
    return ImageData(names, *splits, unused)


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
