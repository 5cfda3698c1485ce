"""COCO-format annotations, checked for what a converter would trip over or drop in silence."""

import collections
import dataclasses
import hashlib
import json
import math
import pathlib

from train.detection.decoding import NAMED, check_files, image_size, unlisted_files
from train.detection.masks import convert_mask, is_number


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
    check_files(file, images, images_dir)
    images = [_with_size(image, images_dir) for image in images]
    categories = content["categories"]
    labels = _labels([category["id"] for category in categories])
    sizes = {image["id"]: (image["width"], image["height"]) for image in images}
    truth, training, problems = _checked(file, content, sizes, labels, masks)
    if not training:
        raise ValueError(f"{file} has no box inside a listed image. Nothing can be learned from it")
    by_id = {category["id"]: str(category.get("name") or category["id"]) for category in categories}
    ids = {label: category_id for category_id, label in labels.items()}
    category_ids = tuple(ids.get(label) for label in range(1, max(ids) + 1))
    empty = len(sizes) - len({annotation["image_id"] for annotation in training})
    findings = [_finding(file, what, names) for what, names in problems.items()]
    if empty:
        findings.append(f"{file.name}: {empty} images without boxes: evaluated, not trained on")
    if unlisted := unlisted_files(images_dir, content["images"]):
        more = ", ..." if len(unlisted) > NAMED else ""
        findings.append(
            f"{file.name}: {len(unlisted)} image files in {images_dir} are not listed, and not "
            f"used ({', '.join(unlisted[:NAMED])}{more})"
        )
    return CocoSplit(
        images_dir,
        images,
        {"images": images, "annotations": truth, "categories": categories},
        training,
        category_ids,
        tuple(by_id.get(i, f"(no category {k})") for k, i in enumerate(category_ids, 1)),
        findings,
    )


def _checked(file, content, sizes, labels, masks):
    """Annotations for evaluation, those for training, and the names of others, by problem."""
    beyond_limit = {image["id"] for image in content["images"]} - set(sizes)
    truth, training, problems = [], [], collections.defaultdict(list)
    for k, annotation in enumerate(content["annotations"]):
        annotation = {key: value for key, value in annotation.items() if value is not None}
        name = annotation.get("id", k)
        image_id, category_id = (_id(annotation, key) for key in ("image_id", "category_id"))
        if image_id in beyond_limit:
            continue
        if image_id not in sizes:
            problems["of an image that is not listed: left out"].append(name)
            continue
        if category_id not in labels:
            problems["of a category that is not listed: left out"].append(name)
            continue
        box = _box(annotation, name, file)
        _check_numbers(annotation, name, file)
        # COCO's evaluation reads 0 as "no match".
        whole = {"iscrowd": 0, "area": box[2] * box[3], **annotation, "id": len(truth) + 1}
        truth.append(whole)
        size = sizes[image_id]
        mask = {}
        if masks:  # those of boxes that are left out too: they are evaluated
            mask["segmentation"] = convert_mask(whole, *size, f"annotation {name} of {file}")
        clipped = clip_box(box, *size)
        if clipped is None:
            problems["with a box of no area in its image: left out"].append(name)
            continue
        if clipped != box:
            problems["with a box beyond its image: clipped"].append(name)
        label = labels[category_id]
        training.append({**whole, **mask, "bbox": list(clipped), "category_id": label})
    return truth, training, problems


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


def _box(annotation, name, file):
    box = annotation.get("bbox")
    if not (isinstance(box, list) and len(box) == 4 and all(map(is_number, box))):
        raise ValueError(
            f"{file}: 'bbox' must be [x, y, width, height] in pixels. "
            f"Received: {str(box)[:60]} (annotation {name})"
        )
    return tuple(float(x) for x in box)


def _check_numbers(annotation, name, file):
    area, crowd = annotation.get("area", 0), annotation.get("iscrowd", 0)
    if not is_number(area) or area < 0 or crowd not in (0, 1):
        raise ValueError(
            f"{file}: 'area' must be a number of at least 0 and 'iscrowd' 0 or 1. Received: "
            f"area={str(area)[:60]!r}, iscrowd={str(crowd)[:60]!r} (annotation {name})"
        )


def _finding(file, what, names):
    more = ", ..." if len(names) > NAMED else ""
    listed = ", ".join(map(str, names[:NAMED]))
    return f"{file.name}: {len(names)} annotations {what} (id {listed}{more})"
