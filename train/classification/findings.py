"""What data and recipe will not give, or did not; of every kind of data alike."""

import os

import numpy as np

from train.classification.examples import Records
from train.classification.folders import kind_of, kinds_of

NAMED = 5  # files and classes that a sentence names
SCANNED_RECORDS = 5000  # labels of more are not read: they lie between the images
FEW_UPDATES = 100
FEW_FOR_A_BUDGET = 400
LARGE_SHARE = 0.2  # of the images


def check_data(data, recipe, init_from=None):
    """Looks at the data of a run before it is trained on.

    Classes of records are counted where there are at most `SCANNED_RECORDS` of them.

    Args:
        data: `ImageData`.
        recipe: a `Recipe`.
        init_from: weights that the run starts from, or None.

    Returns:
        List of sentences about what is not used and what will not be learned.

    Raises:
        ValueError: if there are fewer than two classes to learn, or no test images.
    """
    names = data.class_names
    train, test = (_counts(split, len(names)) for split in (data.train, data.test))
    learned = names if train is None else [n for n, k in zip(names, train, strict=True) if k]
    if len(learned) < 2:
        raise ValueError(
            "There must be training images of at least two classes. Received: "
            f"{len(data.train)} images of {_listed(learned) or 'none'}. In a data folder, the "
            "folders train/ and test/ hold a folder for each class"
        )
    held_out = "validation" if recipe.validation else "test"
    if not len(data.test):
        raise ValueError(f"There must be {held_out} images. Received: none")
    findings = _unused(data.unused)
    if train is not None:
        findings += _of_classes(names, train, test, held_out)
    return findings + _of_length(len(data.train), recipe, init_from)


def check_decoded(data, recipe, skipped):
    """Looks for classes that a run has not seen at all, for none of their images can be read.

    Records are looked through where there are at most `SCANNED_RECORDS` of them.

    Args:
        data: `ImageData` of a run that has ended.
        recipe: its `Recipe`.
        skipped: names of the images that could not be decoded, as of `SkippedImages`.

    Returns:
        List of sentences, one for each split that has such classes.
    """
    if not skipped:
        return []
    held_out = "validation" if recipe.validation else "test"
    findings = []
    for split, kind in ((data.train, "training"), (data.test, held_out)):
        lost = _lost_classes(split, skipped)
        if len(lost):
            findings.append(
                f"None of the {kind} images of {len(lost)} of {len(data.class_names)} classes "
                f"could be decoded: {_listed([data.class_names[k] for k in lost])}"
            )
    return findings


def _lost_classes(split, skipped):
    """Indices of the classes that have images, all of which were skipped."""
    if isinstance(split, Records) and len(split) <= SCANNED_RECORDS:
        split = split.in_memory()
    if isinstance(split, Records) or split.paths is None:
        return []
    names = [os.fsencode(path).decode(errors="backslashreplace") for path in split.paths]
    seen = split.labels[[name not in skipped for name in names]]
    return np.setdiff1d(split.labels, seen)


def _counts(split, classes):
    """Images of each class, (classes,), or None where that takes too long to find out."""
    if isinstance(split, Records):
        if len(split) > SCANNED_RECORDS:
            return None
        return np.bincount(split.labels(), minlength=classes)
    return np.bincount(split.labels, minlength=classes)


def _unused(names):
    if not names:
        return []
    one_of_each_kind = {kind_of(name): name for name in reversed(names)}
    shown = list(dict.fromkeys([*one_of_each_kind.values(), *names]))
    return [f"Not used of the data folder: {kinds_of(names)} ({_listed(shown, len(names))})"]


def _of_classes(names, train, test, held_out):
    def chosen(which):
        return [name for name, is_one in zip(names, which, strict=True) if is_one]

    findings = []
    if absent := chosen(train == 0):
        findings.append(
            f"{len(absent)} of {len(names)} classes have no training images, and will not be "
            f"learned: {_listed(absent)}"
        )
    if single := chosen(train == 1):
        findings.append(
            f"{len(single)} of {len(names)} classes have a single training image, from which "
            f"little can be learned: {_listed(single)}"
        )
    if test is None:
        return findings
    if untested := chosen((train > 0) & (test == 0)):
        findings.append(
            f"{len(untested)} of {len(names)} classes have no {held_out} images, so that the "
            f"accuracy says nothing about them: {_listed(untested)}"
        )
    unknown = (train == 0) & (test > 0)
    if unknown.any():
        findings.append(
            f"{test[unknown].sum()} of {test.sum()} {held_out} images are of classes without "
            "training images, and will be counted as errors"
        )
    return findings


def _of_length(images, recipe, init_from):
    steps, rest = divmod(images, recipe.batch_size)
    if not steps:
        return []  # refused, with a batch size that will do
    findings = []
    updates = recipe.epochs * steps
    counted = f"{recipe.epochs} epochs of {steps} steps are {updates} updates"
    if updates < FEW_UPDATES and init_from is None:
        findings.append(
            f"{counted}, too few to learn from scratch: expect little more than the accuracy of "
            "naming always the largest class. Choose a smaller batch_size or more epochs"
        )
    elif updates < FEW_FOR_A_BUDGET and recipe.macs_target is not None:
        findings.append(
            f"{counted}, few to learn what to leave out: expect to lose accuracy. The recipe was "
            "measured with 3,120. Choose more epochs or images, or a higher macs_target"
        )
    if rest > LARGE_SHARE * images:
        findings.append(
            f"{rest} of {images} training images do not fill a batch of {recipe.batch_size}, and "
            "are left out of an epoch, others in each"
        )
    return findings


def _listed(names, count=None):
    more = ", ..." if (len(names) if count is None else count) > NAMED else ""
    return ", ".join(names[:NAMED]) + more
