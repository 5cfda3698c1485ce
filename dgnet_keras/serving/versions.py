"""The versions in a served folder, and whether a new one answers as they do."""

import contextlib
import json
import os
import pathlib
from collections.abc import Sequence
from typing import Any

LABELS = "labels.txt"
CARD = "model_card.json"
CLASSIFIER, OTHER = "a classifier of dgnet_keras", "another kind of model"
NAMED = 3  # at most so many labels are named


def version_numbers(directory: str | os.PathLike[str]) -> list[int]:
    """Names of folders in `directory` that are numbers, rising; their folders may be empty."""
    names = [path.name for path in pathlib.Path(directory).glob("[0-9]*")]
    return sorted(int(name) for name in names if name.isdecimal())


def version_changes(
    directory: str | os.PathLike[str],
    labels: Sequence[str],
    *,
    image_size: Sequence[int] | None = None,
    channels: int | None = None,
) -> str:
    """What clients of the newest version in a folder would find changed by an export.

    Args:
        directory: the model's folder, which need not exist.
        labels: of the export.
        image_size: (height, width) in pixels that a classifier computes at; None for detectors.
        channels: of a classifier's images; None for detectors.

    Returns:
        A sentence that names the version and what differs: the kind of model, the labels and
        their order, image size and channels. Empty if nothing does, or there is no version.
    """
    folders = [pathlib.Path(directory) / str(number) for number in version_numbers(directory)]
    folders = [folder for folder in folders if (folder / "saved_model.pb").exists()]
    if not folders:
        return ""
    there = _read(folders[-1])
    here: dict[str, Any] = {
        "kind": OTHER if image_size is None else CLASSIFIER,
        "labels": list(labels),
    }
    if image_size is not None:
        here |= {"image_size": list(image_size), "channels": channels}
    differ = [key for key in here if key in there and here[key] != there[key]]
    if not differ:
        return ""
    said = {key: (str(there[key]), str(here[key])) for key in differ}
    if "labels" in differ:
        said["labels"] = _differing_labels(there["labels"], here["labels"])
    found = "; ".join(f"{key}: {old} there, {new} here" for key, (old, new) in said.items())
    return (
        f"This export does not answer as {folders[-1]} does, the newest version there. {found}. "
        "Clients of the folder would notice: choose another one, unless they are meant to "
        "(`export` has --allow-changes)."
    )


def _read(folder):
    """What is known of an exported version."""
    found: dict[str, Any] = {"kind": OTHER}
    labels = folder / "assets" / LABELS
    if labels.exists():
        text = labels.read_text(encoding="utf-8", errors="replace")
        found["labels"] = text.removesuffix("\n").split("\n")
    if (folder / CARD).exists():
        found["kind"] = CLASSIFIER
        with contextlib.suppress(ValueError, KeyError, TypeError):  # somebody wrote another card
            card = json.loads((folder / CARD).read_text())
            found["channels"] = card["signatures"]["serving_default"][0]["shape"][-1]
            found["image_size"] = list(card["preprocessing"]["image_size"])
    return found


def _differing_labels(there, here):
    """A pair of texts: how many there are, and the first that differ."""
    first = next(
        (k for k, pair in enumerate(zip(there, here, strict=False)) if pair[0] != pair[1]),
        min(len(there), len(here)),
    )
    return tuple(
        f"{len(labels)} ({', '.join(labels[first : first + NAMED]) or 'no more'} from {first} on)"
        for labels in (there, here)
    )
