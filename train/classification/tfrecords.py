"""ImageNet's usual TFRecords: shards found, their records counted and parsed."""

import concurrent.futures
import contextlib
import json
import os
import re

import tensorflow as tf

from train.classification.examples import ImageData, Records

TEST_RECORDS = ("validation", "val", "test")
SHARD = re.compile(r"-(\d{5})-of-(\d{5})$")


def load_tfrecords(data_dir, num_classes, first_label):
    """`ImageData` of the shards in a folder; see `datasets.load_data`.

    Args:
        data_dir: folder with `train*-of-*` and `validation*-of-*`, or None.
        num_classes: where there is no `labels.txt`.
        first_label: number of the first class in the records.

    Raises:
        FileNotFoundError: if some shards are missing.
        ValueError: if there is no folder, or no number of classes, or a file is cut off.
    """
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
    found = "No TFRecords found" if tf.io.gfile.exists(str(root)) else f"{root} does not exist"
    raise FileNotFoundError(f"{found}. Expected {expected}")


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
