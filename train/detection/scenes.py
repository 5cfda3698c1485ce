"""Scenes pasted from scikit-learn's digits, in COCO's format: data for a fresh machine."""

import json
import pathlib

import numpy as np
from PIL import Image

from train.detection.records import make_once


def make_digit_scenes(directory, *, train=96, validation=32, size=128, seed=0):
    """Scenes pasted from scikit-learn's digits, in COCO's layout: data for a fresh machine.

    Each scene is a dark noisy square with 1 to 4 digits, 3 to 5 times enlarged, that do not
    overlap. Digits of the validation scenes are not used in training scenes.

    Args:
        directory: folder to make; nothing is done if it is there.
        train: number of training scenes.
        validation: number of validation scenes.
        size: height and width of a scene in pixels.
        seed: of all that is random.
    """
    counts = {"train": train, "val": validation}
    make_once(pathlib.Path(directory), lambda scratch: _write_scenes(scratch, counts, size, seed))


def _write_scenes(scratch, counts, size, seed):
    from sklearn.datasets import load_digits

    rng = np.random.default_rng(seed)
    digits = load_digits()
    held_out = np.arange(len(digits.target)) % 5 == 0
    for (name, count), mask in zip(counts.items(), (~held_out, held_out), strict=True):
        (scratch / name).mkdir(parents=True)
        images, annotations = [], []
        chosen = np.flatnonzero(mask)
        for k in range(count):
            pixels = rng.integers(0, 40, (size, size)).astype("float32")
            for x, y, zoom in _places(rng, size):
                index = rng.choice(chosen)
                digit = np.kron(digits.images[index], np.ones((zoom, zoom))) * 15
                patch = pixels[y : y + 8 * zoom, x : x + 8 * zoom]
                np.maximum(patch, digit, out=patch)
                annotations.append(
                    {
                        "id": len(annotations) + 1,
                        "image_id": k,
                        "category_id": int(digits.target[index]) + 1,
                        **_outline(digits.images[index] > 4, x, y, zoom),
                    }
                )
            file = f"{k:04d}.png"
            Image.fromarray(pixels.clip(0, 255).astype("uint8")).save(scratch / name / file)
            images.append({"id": k, "file_name": file, "width": size, "height": size})
        categories = [{"id": d + 1, "name": str(d)} for d in range(10)]
        content = {"images": images, "annotations": annotations, "categories": categories}
        (scratch / "annotations").mkdir(exist_ok=True)
        (scratch / "annotations" / f"instances_{name}.json").write_text(json.dumps(content))


def _places(rng, size):
    """1 to 4 squares (x, y, zoom) of 8 zoom pixels that do not overlap."""
    places = []
    for _ in range(rng.integers(1, 5)):
        zoom = int(rng.integers(3, 6))
        x, y = (int(v) for v in rng.integers(0, size - 8 * zoom, 2))
        apart = (
            abs(x + 4 * zoom - (u + 4 * z)) >= 4 * (zoom + z)
            or abs(y + 4 * zoom - (v + 4 * z)) >= 4 * (zoom + z)
            for u, v, z in places
        )
        if all(apart):
            places.append((x, y, zoom))
    return places


def _outline(ink, x, y, zoom):
    """Box, area and polygons (a rectangle a run of pixels in a row) of a digit's ink."""
    rows, columns = np.nonzero(ink)
    left, top = columns.min(), rows.min()
    polygons = []
    for row in np.unique(rows):
        edges = np.flatnonzero(np.diff(np.concatenate([[0], ink[row].astype(int), [0]])))
        for start, end in edges.reshape(-1, 2).tolist():
            a, b = x + start * zoom, x + end * zoom
            c, d = y + int(row) * zoom, y + (int(row) + 1) * zoom
            polygons.append([a, c, b, c, b, d, a, d])
    size = (int(columns.max() - left + 1) * zoom, int(rows.max() - top + 1) * zoom)
    return {
        "bbox": [int(x + left * zoom), int(y + top * zoom), *size],
        "area": int(ink.sum()) * zoom**2,
        "iscrowd": 0,
        "segmentation": polygons,
    }
