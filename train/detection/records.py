"""TFRecords of a split, made once by Model Garden's converter."""

import hashlib
import json
import logging
import math
import pathlib
import typing

from dgnet_keras.serving.export import atomic_directory
from train.detection.annotations import read_image

FORMAT = 1  # of the TFRecords; a higher one makes them anew


class Records(typing.NamedTuple):
    """TFRecords of a split.

    Attributes:
        pattern: of the files.
        images: number of images in them.
    """

    pattern: str
    images: int


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
    make_once(folder, lambda scratch: _convert(split, images, str(scratch / "records"), masks))
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
