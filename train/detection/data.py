"""The data of a detection recipe: both splits, checked, and their TFRecords."""

import os
import pathlib

from dgnet_keras.paths import usable_path
from train.detection import annotations, scenes
from train.detection.records import write_records

PATTERN = ",*?[]{}"  # a name with these matches other files than itself, or several


class Data:
    """Checked annotations and TFRecords of both splits.

    Attributes:
        train: `CocoSplit` that is learned from.
        validation: `CocoSplit` that is evaluated.
        train_records: `records.Records`.
        validation_records: likewise.
        findings: sentences about what was mended or left out.
    """

    def __init__(self, train, validation, directory, *, masks):
        self.train = train
        self.validation = validation
        self.train_records = write_records(train, directory, training=True, masks=masks)
        self.validation_records = write_records(validation, directory, training=False, masks=masks)
        found = (train, validation, self.train_records, self.validation_records)
        self.findings = list(dict.fromkeys(line for part in found for line in part.findings))


def load_data(recipe, workdir, data_dir=None):
    """The recipe's data, checked, as TFRecords; see `train`.

    TFRecords are kept in `data_dir`, or in the workdir where that cannot be written to.

    Raises:
        FileNotFoundError: if something is missing.
        ValueError: if the annotations are broken, the splits' categories differ, or TFRecords
            cannot be named in such a folder.
    """
    data_dir = None if data_dir is None else pathlib.Path(usable_path("--data-dir", data_dir))
    directory = _records_folder(workdir, data_dir)
    if data_dir is None:
        data_dir = workdir / "data"
        scenes.make_digit_scenes(data_dir)
    splits = annotations.find_splits(data_dir)
    masks = recipe.detector == "maskrcnn"
    loaded = []
    for wanted, prefixes, limit in (
        (recipe.train_split, ("train",), recipe.train_images),
        (recipe.validation_split, ("val", "test"), recipe.validation_images),
    ):
        name = annotations.choose_split(splits, wanted, prefixes)
        loaded.append(annotations.load_split(*splits[name], limit=limit, masks=masks))
    categories = [
        {i: n for i, n in zip(s.category_ids, s.class_names, strict=True) if i is not None}
        for s in loaded
    ]
    if categories[0] != categories[1]:
        differ = dict(sorted(categories[0].items() ^ categories[1].items()))
        raise ValueError(
            "Both splits must list the same categories, under the same ids. They differ in "
            f"{str(differ)[:200]}"
        )
    return Data(*loaded, directory, masks=masks)


def _records_folder(workdir, data_dir):
    """Where TFRecords are kept; `ValueError` if TensorFlow would take its name for a pattern."""
    flag, place = ("--workdir", workdir) if data_dir is None else ("--data-dir", data_dir)
    folder = (workdir / "data" if data_dir is None else pathlib.Path(data_dir)) / "tfrecords"
    existing = folder if folder.exists() else folder.parent
    if existing.exists() and not os.access(existing, os.W_OK):
        flag, place, folder = "--workdir", workdir, workdir / "tfrecords"
    if set(PATTERN) & set(str(folder.absolute())):
        raise ValueError(
            f"TensorFlow takes {' '.join(PATTERN)} in names of files for patterns: "
            f"{flag} must not contain any. Received: {place}"
        )
    return folder
