"""Class folders of image files: what is read from them, and what is not."""

import collections
import os
import pathlib

import numpy as np

from dgnet_keras.commands.images import IMAGE_SUFFIXES
from dgnet_keras.paths import readable
from train.classification.examples import Split
from train.classification.tfrecords import SHARD

TEST_FOLDERS = ("test", "val", "validation", "valid")
SPLITS = {"train", "training", "testing", *TEST_FOLDERS}
LEFT_BEHIND = ("__MACOSX", "Thumbs.db", "desktop.ini")  # by systems, as hidden files are


def read_folder(root):
    """The splits of a data folder.

    The class of an image is the folder in the split's folder that it is in, however deep.

    Args:
        root: folder of `train/<class>/` and `test/<class>/` (or another of `TEST_FOLDERS`), or of
            `<class>/`.

    Returns:
        Tuple of the classes' names, the training `Split`, the test `Split` (None where there are
        only class folders), and the names of files and folders that are not used, relative to
        `root`; a folder's ends in a slash.

    Raises:
        FileNotFoundError: if there is no such folder, or no folder of test images.
        ValueError: if there are no class folders, one has no images, or the test images are of a
            class that the training images do not have.
    """
    root = pathlib.Path(root)
    if not root.is_dir():
        raise FileNotFoundError(
            f"No data folder at {root}. Expected {root}/train/<class>/*.jpg and "
            f"{root}/test/<class>/*.jpg, or {root}/<class>/*.jpg"
        )
    unused = []
    if not (root / "train").is_dir():
        names, train = _read_split(root, None, unused)
        found = sorted(name for name in names if name.lower() in SPLITS)
        if len(found) > 1:
            raise ValueError(
                f"{root} must have a folder train/ beside its test images. Received: "
                f"{', '.join(found)}"
            )
        test = None
    else:
        folder = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
        if folder is None:
            raise FileNotFoundError(f"{root} has train/ but none of: {', '.join(TEST_FOLDERS)}")
        for entry in _entries(root):
            if entry.name not in ("train", folder.name):
                unused.append(_named(entry))
        names, train = _read_split(root / "train", None, unused)
        _, test = _read_split(folder, names, unused)
    base = len(os.path.join(root, ""))
    return tuple(map(readable, names)), train, test, tuple(readable(n[base:]) for n in unused)


def _read_split(folder, names, unused):
    """Class names and `Split` of a folder of class folders; adds to `unused`.

    Args:
        folder: `pathlib.Path`.
        names: of the classes, in order, or None to take those that are there.
        unused: list of the files and folders that are not used.
    """
    there = []
    for entry in _entries(folder):
        if entry.is_dir() and entry.name[0] != ".":
            there.append(entry.name)
        else:
            unused.append(_named(entry))
    if not there:
        records = any(SHARD.search(name) for name in unused)
        hint = " It holds TFRecords: --set dataset=tfrecord reads them." if records else ""
        raise ValueError(f"{folder} has no class folders. Expected {folder}/<class>/*.jpg{hint}")
    names = tuple(sorted(there)) if names is None else names
    if unknown := sorted(set(there) - set(names)):
        raise ValueError(
            f"Classes of {folder} that {folder.parent / 'train'} does not have: "
            f"{list(map(readable, unknown))}"
        )
    paths, labels = [], []
    for label, name in enumerate(names):
        if name not in there:
            continue
        images, others = _walk(os.path.join(folder, name))
        if not images:
            raise ValueError(
                f"The class folder {folder / name} has no images. Expected files that end in "
                f"{', '.join(IMAGE_SUFFIXES)}. Received: {kinds_of(others) or 'an empty folder'}"
            )
        paths += sorted(images)
        labels += [label] * len(images)
        unused += sorted(others)
    return names, Split(np.array(labels, "int64"), paths=np.array(paths))


def _walk(folder):
    """Names of the images in a folder and below it, and of what else is there."""
    images, others, waiting, seen = [], [], [folder], set()
    while waiting:
        folder = waiting.pop()
        status = os.stat(folder)
        if (status.st_dev, status.st_ino) in seen:  # a link to a folder above it
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in _entries(folder):
            if entry.is_dir() and entry.name[0] != ".":
                waiting.append(entry.path)
            elif not entry.is_dir() and _has_image_suffix(entry.name):
                images.append(entry.path)
            else:
                others.append(_named(entry))
    return images, others


def _entries(folder):
    """`os.DirEntry` of what is in a folder, in order of names, without what systems leave there."""
    with os.scandir(folder) as entries:
        return sorted(
            (
                entry
                for entry in entries
                if entry.name not in LEFT_BEHIND
                and (entry.name[0] != "." or entry.is_dir() or _has_image_suffix(entry.name))
            ),
            key=lambda entry: entry.name,
        )


def _has_image_suffix(name):
    return name.lower().endswith(IMAGE_SUFFIXES)


def _named(entry):
    return entry.path + "/" * entry.is_dir()


def kind_of(name):
    """What a name says of a file, such as "*.tif"; or "folder", where it ends in a slash."""
    if name[-1] == "/":
        return "folder"
    return readable(f"*{suffix}" if (suffix := pathlib.PurePath(name).suffix) else "without suffix")


def kinds_of(names):
    """What files and folders there are, in words, such as "12 *.tif, 1 folder"."""
    counts = collections.Counter(map(kind_of, names)).most_common()
    return ", ".join(
        f"{count} {kind}" + "s" * (kind == "folder" and count > 1) for kind, count in counts
    )
