"""TFRecords of a split, made once by Model Garden's converter."""

import collections
import hashlib
import json
import logging
import math
import pathlib
import typing

from PIL import Image

from dgnet_keras.serving.export import atomic_directory
from train.detection.decoding import NAMED, decode_file

FINDINGS = "findings.json"
FORMAT = 2  # of the TFRecords; a higher one makes them anew


class Records(typing.NamedTuple):
    """TFRecords of a split.

    Attributes:
        pattern: of the files.
        images: number of images in them.
    """

    pattern: str
    images: int

    @property
    def findings(self):
        """Sentences about images that are turned, or should perhaps be."""
        return json.loads((pathlib.Path(self.pattern).parent / FINDINGS).read_text())


def write_records(split, directory, *, training, masks=False):
    """TFRecords of a split, made by Model Garden's converter unless they are there.

    Args:
        split: a `CocoSplit`.
        directory: folder that a folder for these records is made in.
        training: whether images without boxes are left out.
        masks: whether masks are written.

    Returns:
        Their `Records`.

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
    make_once(folder, lambda scratch: _convert(split, images, scratch, masks))
    return Records(str(folder / "records*"), len(images))


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


def _convert(split, images, folder, masks):
    level = logging.getLogger("tensorflow").level
    from official.vision.data import create_coco_tf_record, tfrecord_lib

    logging.getLogger("tensorflow").setLevel(level)  # the converter makes it verbose
    annotations = {}
    for annotation in split.annotations:
        annotations.setdefault(annotation["image_id"], []).append(annotation)
    names = dict(enumerate(split.class_names, start=1))
    kinds = collections.defaultdict(list)

    def example(image, folders, *arguments):
        path = split.images_dir / image["file_name"]
        size = (image["width"], image["height"])
        stored, shown, orientation = decode_file(path, size)
        height, width, _ = shown.shape
        if (width, height) != size:
            raise ValueError(
                f"{path} is {(width, height)} pixels (width, height), its annotations say {size}"
            )
        if orientation > 1:
            alike = stored.shape == shown.shape
            kind = "kept" if shown is stored else "unsure" if alike else "turned"
            kinds[kind].append(image["file_name"])
        if shown is stored:
            record, dropped = create_coco_tf_record.create_tf_example(image, folders, *arguments)
        else:  # Model Garden decodes without EXIF data and palettes
            copy = folder / "shown.png"
            Image.fromarray(shown).save(copy)
            image = {**image, "file_name": copy.name}
            record, dropped = create_coco_tf_record.create_tf_example(
                image, [str(folder)], *arguments
            )
            copy.unlink()
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
    prefix = str(folder / "records")
    tfrecord_lib.write_tf_record_dataset(prefix, entries, example, shards, multiple_processes=0)
    (folder / FINDINGS).write_text(json.dumps(_findings(split.images_dir, **kinds)))


def _findings(folder, turned=(), unsure=(), kept=()):
    """What is said of images whose EXIF data tells how to turn them.

    Args:
        folder: of the images.
        turned: names of those that were turned, to the size that their annotations give.
        unsure: of those that were turned, and have that size either way.
        kept: of those that have it only as they are stored.
    """
    findings = []
    if turned or unsure:
        findings.append(
            f"{folder}: {_named([*turned, *unsure])} turned as the EXIF data of their files says. "
            "Their boxes are taken to be those of the turned pictures"
        )
    if kept:
        findings.append(
            f"{folder}: {_named(kept)} not turned as the EXIF data of their files says, because "
            "the annotations give the size of the pictures as they are stored"
        )
    if kept and unsure:
        findings.append(
            f"{folder}: {_named(unsure)} turned, and would have the same size if not. If their "
            "boxes are those of the stored pictures too, remove the EXIF data of these files"
        )
    return findings


def _named(names):
    more = ", ..." if len(names) > NAMED else ""
    verb = "images were" if len(names) > 1 else "image was"
    return f"{len(names)} {verb} ({', '.join(names[:NAMED])}{more})"
