"""COCO-format detection data: annotations checked, TFRecords made once.

TFRecords are written by Model Garden's converter; what it would trip over, or drop in silence, is
checked before. Imports nothing from `train`.
"""

import collections
import dataclasses
import hashlib
import json
import logging
import math
import pathlib

import numpy as np
from PIL import Image

from dgnet_keras.serving.export import atomic_directory

FORMAT = 1  # of the TFRecords; a higher one makes them anew
FLOAT_MAX = float(np.finfo("float32").max)
FARTHEST = 1e6  # pixels; pycocotools ends the process at polygons that reach 1e9
NAMED = 5  # at most so many culprits are named in a message


@dataclasses.dataclass(frozen=True)
class CocoSplit:
    """Images and boxes of one split, checked.

    Attributes:
        images_dir: folder of the images.
        images: list of COCO's image entries, by id.
        ground_truth: COCO dict for evaluation: all boxes as given, defaults filled in.
        annotations: COCO annotations for training: boxes clipped to their image, those without
            area dropped, `category_id` replaced by the model's label.
        category_ids: tuple of the data's category ids; the model's label k is entry k - 1 (label
            0 is the background). None marks labels that no category has.
        class_names: tuple of names, by label - 1.
        findings: list of sentences about what was mended or left out.
    """

    images_dir: pathlib.Path
    images: list
    ground_truth: dict
    annotations: list
    category_ids: tuple
    class_names: tuple
    findings: list

    @property
    def sha256(self):
        """Of what is learned and evaluated, but for the pixels."""
        content = [self.images, self.annotations, self.ground_truth]
        return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def find_splits(data_dir):
    """Annotation files in COCO's layout: `annotations/instances_<split>.json`.

    Args:
        data_dir: folder with `annotations/` and, for each split, a folder of images.

    Returns:
        Dict of split name to (annotation file, image folder), in order of names. That a split's
        images are there is checked when it is loaded.

    Raises:
        FileNotFoundError: if there are no such files.
    """
    data_dir = pathlib.Path(data_dir)
    files = sorted((data_dir / "annotations").glob("instances_*.json"))
    if not files:
        raise FileNotFoundError(
            f"{data_dir} must hold annotations/instances_<split>.json and the images in <split>/, "
            "as COCO does. Received: no such file"
        )
    names = [file.stem.removeprefix("instances_") for file in files]
    return {name: (file, data_dir / name) for name, file in zip(names, files, strict=True)}


def choose_split(splits, wanted, prefixes):
    """The name of a split: `wanted`, or else the first whose name starts with a prefix."""
    if wanted:
        if wanted not in splits:
            raise ValueError(f"There is no split {wanted!r}. Found: {', '.join(splits)}")
        return wanted
    for prefix in prefixes:
        for name in splits:
            if name.startswith(prefix):
                return name
    raise ValueError(
        f"None of the splits {', '.join(splits)} starts with {' or '.join(prefixes)}: "
        "name one with --set train_split=... or --set validation_split=..."
    )


def load_split(file, images_dir, *, limit=0, masks=False):
    """Reads and checks a COCO-format annotation file.

    As COCO's own tools and torchvision's reference do: boxes are clipped to their image, and
    dropped for training where nothing is left; annotations of a category or an image that is not
    listed are left out; images without boxes take part in evaluation. What was left out is named
    in `findings`.

    Args:
        file: the JSON file.
        images_dir: folder of the images.
        limit: only the first so many images, by id; 0 means all.
        masks: whether segmentations are needed.

    Returns:
        A `CocoSplit`.

    Raises:
        FileNotFoundError: if the folder or an image that the file lists is missing; names them.
        ValueError: if the file is not JSON in COCO's format, lists no images, categories or
            boxes, lists an id twice, or has a box, area, crowd flag or mask that is none.
    """
    file, images_dir = pathlib.Path(file), pathlib.Path(images_dir)
    if not images_dir.is_dir():
        raise FileNotFoundError(f"{file.name} needs the images in {images_dir}")
    content = _read(file)
    images = sorted(content["images"], key=lambda image: image["id"])[: limit or None]
    _check_files(file, images, images_dir)
    images = [_with_size(image, images_dir) for image in images]
    categories = content["categories"]
    labels = _labels([category["id"] for category in categories])
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    left_out = {image["id"] for image in content["images"]} - set(sizes)
    problems = {}
    truth, training = [], []
    for k, annotation in enumerate(content["annotations"]):
        annotation = {key: value for key, value in annotation.items() if value is not None}
        name = annotation.get("id", k)
        image_id, category_id = (_id(annotation, key) for key in ("image_id", "category_id"))
        if image_id in left_out:
            continue
        if image_id not in sizes:
            problems.setdefault("of an image that is not listed: left out", []).append(name)
            continue
        if category_id not in labels:
            problems.setdefault("of a category that is not listed: left out", []).append(name)
            continue
        box = _box(annotation, name, file)
        _check_numbers(annotation, name, file)
        # COCO's evaluation reads 0 as "no match".
        whole = {"iscrowd": 0, "area": box[2] * box[3], **annotation, "id": len(truth) + 1}
        truth.append(whole)
        width, height = sizes[image_id]
        mask = {}
        if masks:  # those of boxes that are left out too: they are evaluated
            mask["segmentation"] = _mask(whole, width, height, f"annotation {name} of {file}")
        clipped = clip_box(box, width, height)
        if clipped is None:
            problems.setdefault("with a box of no area in its image: left out", []).append(name)
            continue
        if clipped != box:
            problems.setdefault("with a box beyond its image: clipped", []).append(name)
        label = labels[category_id]
        training.append({**whole, **mask, "bbox": list(clipped), "category_id": label})
    if not training:
        raise ValueError(f"{file} has no box inside a listed image. Nothing can be learned from it")
    by_id = {category["id"]: str(category.get("name") or category["id"]) for category in categories}
    ids = {label: category_id for category_id, label in labels.items()}
    category_ids = tuple(ids.get(label) for label in range(1, max(ids) + 1))
    empty = len(sizes) - len({annotation["image_id"] for annotation in training})
    findings = [_finding(file, what, names) for what, names in problems.items()]
    if empty:
        findings.append(f"{file.name}: {empty} images without boxes: evaluated, not trained on")
    return CocoSplit(
        images_dir,
        images,
        {"images": images, "annotations": truth, "categories": categories},
        training,
        category_ids,
        tuple(by_id.get(i, f"(no category {k})") for k, i in enumerate(category_ids, 1)),
        findings,
    )


def clip_box(box, width, height):
    """(x, y, width, height) within an image of so many pixels; None if nothing is left."""
    x, y, w, h = box
    left, top = min(max(x, 0.0), width), min(max(y, 0.0), height)
    right, bottom = min(max(x + w, 0.0), width), min(max(y + h, 0.0), height)
    if right <= left or bottom <= top or w <= 0 or h <= 0:
        return None
    if x >= 0 and y >= 0 and x + w <= width and y + h <= height:
        return box
    w, h = right - left, bottom - top
    # So that start + length, rounded, is not beyond the image: Model Garden drops such boxes.
    w = w if left + w <= width else math.nextafter(w, 0)
    h = h if top + h <= height else math.nextafter(h, 0)
    return left, top, w, h


def _read(file):
    """The JSON of a file, with the lists that COCO's format has."""
    try:
        content = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    for key in ("images", "annotations", "categories"):
        entries = content.get(key) if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(e, dict) for e in entries):
            raise ValueError(
                f"{file} must be COCO's JSON, with a list {key!r}. Received: {str(entries)[:80]}"
            )
    for key in ("images", "categories"):
        entries = content[key]
        if not entries:
            raise ValueError(f"{file} lists no {key}")
        ids = [entry.get("id") for entry in entries]
        if None in ids:
            raise ValueError(f"{file}: entry {ids.index(None)} of {key!r} has no 'id'")
        if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
            raise ValueError(f"{file}: every 'id' of {key!r} must be an integer")
        if twice := sorted(i for i, count in collections.Counter(ids).items() if count > 1):
            raise ValueError(f"{file} lists {key} twice: {twice[:NAMED]}")
    return content


def _check_files(file, images, images_dir):
    nameless = [image["id"] for image in images if not isinstance(image.get("file_name"), str)]
    if nameless:
        raise ValueError(f"{file}: images without 'file_name': {nameless[:NAMED]}")
    missing = [i["file_name"] for i in images if not (images_dir / i["file_name"]).is_file()]
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise FileNotFoundError(
            f"{file} lists images that are not in {images_dir}: {', '.join(missing[:NAMED])}{more}"
        )


def image_size(path):
    """(width, height) of an image file in pixels; `ValueError` if it is not an image."""
    try:
        with Image.open(path) as image:
            return image.size
    except OSError as error:
        raise ValueError(f"{path} is not an image: {error}") from error


def read_image(path):
    """An image file as uint8 RGB, (height, width, 3), decoded as in training and in exports.

    Raises:
        ValueError: if TensorFlow cannot decode it, or it is an animation.
    """
    import tensorflow as tf

    try:
        image = tf.io.decode_image(path.read_bytes(), channels=3)
    except tf.errors.InvalidArgumentError as error:
        raise ValueError(f"{path} is not an image: {error.message.splitlines()[0]}") from error
    if image.shape.rank != 3:
        raise ValueError(f"{path} must be one image: JPEG, PNG, BMP or WebP. Received: a GIF")
    return image.numpy()


def _with_size(image, images_dir):
    """An image entry with width and height, read from the file where they are not given."""
    sizes = [image.get(key) for key in ("width", "height")]
    if not all(isinstance(s, int) and s > 0 for s in sizes):
        sizes = image_size(images_dir / image["file_name"])
    return {**image, "width": sizes[0], "height": sizes[1]}


def _labels(category_ids):
    """Category id to the model's label: the same where that leaves few labels unused."""
    ids = sorted(category_ids)
    if ids[0] >= 1 and ids[-1] <= 2 * len(ids):
        return {i: i for i in ids}
    return {i: label for label, i in enumerate(ids, start=1)}


def _id(annotation, key):
    """An id of an annotation; None if it is none, so that it is not listed."""
    value = annotation.get(key)
    return value if isinstance(value, int) else None


def _is_number(value):
    """Whether a value of a JSON is a number that a float can hold."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    return abs(value) < FLOAT_MAX  # false for NaN


def _box(annotation, name, file):
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(_is_number, box))):
        raise ValueError(
            f"{file}: 'bbox' must be [x, y, width, height] in pixels. "
            f"Received: {str(box)[:60]} (annotation {name})"
        )
    return tuple(float(x) for x in box)


def _check_numbers(annotation, name, file):
    area, crowd = annotation.get("area", 0), annotation.get("iscrowd", 0)
    if not _is_number(area) or area < 0 or crowd not in (0, 1):
        raise ValueError(
            f"{file}: 'area' must be a number of at least 0 and 'iscrowd' 0 or 1. Received: "
            f"area={str(area)[:60]!r}, iscrowd={str(crowd)[:60]!r} (annotation {name})"
        )


def _mask(annotation, width, height, name):
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
        and all(_is_number(x) and abs(x) < FARTHEST for x in part)
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


def _finding(file, what, names):
    more = ", ..." if len(names) > NAMED else ""
    listed = ", ".join(map(str, names[:NAMED]))
    return f"{file.name}: {len(names)} annotations {what} (id {listed}{more})"


def write_records(split, directory, *, training, masks=False):
    """TFRecords of a split, made by Model Garden's converter unless they are there.

    Args:
        split: a `CocoSplit`.
        directory: folder that a folder for these records is made in.
        training: whether images without boxes are left out.
        masks: whether masks are written.

    Returns:
        Tuple of the pattern of the files and the number of images in them.

    Raises:
        ValueError: if an image cannot be decoded, or has another size than the annotations say.
    """
    images = split.images
    if training:
        with_boxes = {annotation["image_id"] for annotation in split.annotations}
        images = [image for image in images if image["id"] in with_boxes]
    # An image that was replaced has another size or time.
    stats = [(split.images_dir / image["file_name"]).stat() for image in images]
    files = [(stat.st_size, stat.st_mtime_ns) for stat in stats]
    content = [FORMAT, masks, images, split.annotations, str(split.images_dir.resolve()), files]
    digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:12]
    folder = pathlib.Path(directory) / digest
    make_once(folder, lambda scratch: _convert(split, images, str(scratch / "records"), masks))
    return str(folder / "records*"), len(images)


def make_once(folder, fill):
    """Has `fill(scratch folder)` make a folder, whole or not at all, unless it is there."""
    if folder.exists():
        return
    try:
        with atomic_directory(folder) as scratch:
            fill(scratch)
    except OSError:
        if not folder.exists():  # else another process was faster
            raise


def _convert(split, images, prefix, masks):
    level = logging.getLogger("tensorflow").level
    from official.vision.data import create_coco_tf_record, tfrecord_lib

    logging.getLogger("tensorflow").setLevel(level)  # the converter makes it verbose
    annotations = {}
    for annotation in split.annotations:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    names = dict(enumerate(split.class_names, start=1))

    def example(image, *arguments):
        path = split.images_dir / image["file_name"]
        height, width, _ = read_image(path).shape
        if (width, height) != (image["width"], image["height"]):
            raise ValueError(
                f"{path} is {(width, height)} pixels (width, height), its annotations say "
                f"{(image['width'], image['height'])}"
            )
        record, dropped = create_coco_tf_record.create_tf_example(image, *arguments)
        assert not dropped, path  # boxes were clipped
        return record, dropped

    entries = create_coco_tf_record.generate_annotations(
        images,
        [str(split.images_dir)],
        img_to_obj_annotation=annotations,
        id_to_name_map=names,
        include_masks=masks,
    )
    shards = min(64, math.ceil(len(images) / 16))
    tfrecord_lib.write_tf_record_dataset(prefix, entries, example, shards, multiple_processes=0)
