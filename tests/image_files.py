"""Small images in files, the recipes that read them, and what a pipeline makes of them."""

import dataclasses
import io

import numpy as np
import tensorflow as tf
from PIL import Image, ImageOps

import dgnet_keras as dg
from train.classification.recipes import Recipe

PREPROCESSING = dg.Preprocessing((8, 8), 1.0)
RECIPE = Recipe(
    model="resnet20_cifar",
    dataset="digits",
    input_shape=(8, 8, 3),
    epochs=1,
    batch_size=4,
    random_flip=True,
    random_shift=2,
)
FOLDER = dataclasses.replace(RECIPE, dataset="folder")
RECORDS = dataclasses.replace(
    RECIPE,
    dataset="tfrecord",
    num_classes=3,
    shuffle_buffer=16,
    random_flip=False,
    random_shift=0,
)


def write_images(folder, count=3, size=(10, 12)):
    folder.mkdir(parents=True)
    rng = np.random.default_rng(0)
    for i in range(count):
        Image.fromarray(rng.integers(0, 256, (*size, 3), "uint8")).save(folder / f"{i}.jpg")


def jpeg(value, size=(12, 12), mode="RGB", kind="JPEG"):
    buffer = io.BytesIO()
    Image.fromarray(np.full((*size, 3), value, "uint8")).convert(mode).save(
        buffer, kind, **({"quality": 100} if kind == "JPEG" else {})
    )
    return buffer.getvalue()


def write_shards(folder, prefix, counts, *, first_label=1, content=jpeg):
    """Shards in ImageNet's format; the image of example k is all of value 4 k, its class k % 3."""
    number = 0
    for shard, count in enumerate(counts):
        name = folder / f"{prefix}-{shard:05d}-of-{len(counts):05d}"
        with tf.io.TFRecordWriter(str(name)) as writer:
            for _ in range(count):
                features = {
                    "image/encoded": tf.train.Feature(
                        bytes_list=tf.train.BytesList(value=[content(4 * number)])
                    ),
                    "image/class/label": tf.train.Feature(
                        int64_list=tf.train.Int64List(value=[number % 3 + first_label])
                    ),
                }
                example = tf.train.Example(features=tf.train.Features(feature=features))
                writer.write(example.SerializeToString())
                number += 1


def take(dataset, count=None):
    batches = list(dataset if count is None else dataset.take(count))
    return {k: np.concatenate([b[k] for b in batches]) for k in batches[0]}


def examples(batches, count=None):
    """(number of the example, label) of each image of weight 1."""
    found = []
    for batch in batches if count is None else batches.take(count):
        pixels = PREPROCESSING.denormalize(batch["image"]).numpy()[:, 4, 4, 0]
        kept = batch["weight"].numpy() > 0
        numbers = np.round(pixels[kept] / 4).astype(int)
        found += list(zip(numbers.tolist(), batch["label"].numpy()[kept].tolist(), strict=True))
    return found


def encode(pixels, kind, **settings):
    """The content of an image file: pixels uint8 (height, width, 3), or a Pillow image."""
    picture = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    picture.save(buffer, kind, **settings)
    return buffer.getvalue()


def turned_jpeg(pixels, orientation):
    """A JPEG whose EXIF data says how to turn these pixels, or without EXIF data for None."""
    exif = Image.Exif()
    exif[0x010F] = "a camera"
    if orientation is not None:
        exif[0x0112] = orientation
    settings = {} if orientation is None else {"exif": exif}
    return encode(pixels, "JPEG", quality=100, subsampling=0, **settings)


def shown_png(content):
    """A PNG of what a viewer shows of a JPEG, of TensorFlow's own pixels."""
    stored = Image.fromarray(tf.io.decode_jpeg(content).numpy())
    stored.getexif().update(Image.open(io.BytesIO(content)).getexif())
    return encode(ImageOps.exif_transpose(stored), "PNG")
