"""COCO's masks, polygons and run lengths, checked and converted."""

import numpy as np

FLOAT_MAX = float(np.finfo("float32").max)
FARTHEST = 1e6  # pixels; pycocotools ends the process at polygons that reach 1e9


def is_number(value, under=FLOAT_MAX):
    """Whether a value of a JSON is a number, and nearer to 0 than `under`."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < under  # false for NaN


def convert_mask(annotation, width, height, name):
    """The segmentation of an annotation as Model Garden's converter takes it.

    COCO's tools also take run lengths for single objects, compressed ones, and polygons for
    crowds; the converter takes polygons for objects, and for crowds uncompressed run lengths.

    Raises:
        ValueError: if it is no mask of the image, with the annotation's name.
    """
    from pycocotools import mask

    segmentation = annotation.get("segmentation")
    crowd = bool(annotation["iscrowd"])
    polygons = isinstance(segmentation, list) and len(segmentation) > 0
    if polygons and all(_is_polygon(part) for part in segmentation):
        if not crowd:
            return segmentation
        merged = mask.merge(mask.frPyObjects(segmentation, height, width))
        counts = _decompressed(merged["counts"].decode())
    else:
        counts = _run_lengths(segmentation, width, height)
    if counts is None:
        raise ValueError(
            "A mask must be a list of polygons [x1, y1, x2, y2, x3, y3, ...] or run lengths "
            f'{{"size": [{height}, {width}], "counts": ...}}. '
            f"Received: {str(segmentation)[:60]} ({name})"
        )
    runs = {"size": [height, width], "counts": counts}
    return runs if crowd else [runs]


def _is_polygon(part):
    return (
        isinstance(part, list)
        and len(part) >= 6
        and len(part) % 2 == 0
        and all(is_number(x, FARTHEST) for x in part)
    )


def _run_lengths(segmentation, width, height):
    """Those of a mask of such an image, as a list; None if it is none."""
    if not isinstance(segmentation, dict) or segmentation.get("size") != [height, width]:
        return None
    counts = segmentation.get("counts")
    if isinstance(counts, str):
        counts = _decompressed(counts)
    integers = isinstance(counts, list) and all(type(n) is int and n >= 0 for n in counts)
    return counts if integers and sum(counts) == height * width else None


def _decompressed(text):
    """Run lengths from COCO's compressed string; pycocotools does not check that they are some.

    Five bits a character, the lowest first; 32 says that another follows. From the fourth on they
    are differences to the length before the last.
    """
    counts, value, shift = [], 0, 0
    for character in text:
        bits = ord(character) - 48
        value |= (bits & 31) << shift
        shift += 5
        if not bits & 32:
            value -= (1 << shift) * bool(bits & 16)
            counts.append(value + (counts[-2] if len(counts) > 2 else 0))
            value = shift = 0
    return counts
