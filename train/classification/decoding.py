"""From an element of a stream to pixels: decoded and cropped; what is broken has weight 0."""

import os

import tensorflow as tf

from dgnet_keras.decoding import decode_image, orientation, stored_box, turned, turned_shape
from train.classification import augmentation
from train.classification.examples import Records


def make_reader(split, preprocessing, recipe=None):
    """A function from an element of a stream (and a seed, in training) to an example.

    Returns:
        Function that gives a dict: `image` (float32, 0 to 255, of the model's size), `label`,
        `weight` (0 if it cannot be decoded) and, for images in files, `name`. With a recipe that
        crops at random, that part of the image is taken.
    """
    channels = len(preprocessing.mean)
    shape = (*preprocessing.image_size, channels)
    cropping = recipe if recipe is not None and recipe.random_resized_crop else None

    def from_pixels(pixels, seed):
        if cropping is None:
            return preprocessing.resize_and_crop(pixels)
        top, left, height, width = tf.unstack(
            augmentation.crop_box(tf.shape(pixels), cropping, seed)
        )
        part = pixels[top : top + height, left : left + width]
        return tf.image.resize(part, preprocessing.image_size, antialias=True)

    def from_encoded(encoded, seed):
        def cropped_jpeg():
            way = orientation(encoded)
            size = turned_shape(tf.io.extract_jpeg_shape(encoded), way)
            box = stored_box(augmentation.crop_box(size, cropping, seed), size, way)
            part = turned(tf.image.decode_and_crop_jpeg(encoded, box, channels), way)
            return tf.image.resize(part, preprocessing.image_size, antialias=True)

        def any_image():
            return from_pixels(decode_image(encoded, channels), seed)

        if cropping is None:
            return any_image()
        return tf.cond(tf.io.is_jpeg(encoded), cropped_jpeg, any_image)

    def from_file(path, seed):
        return from_encoded(tf.io.read_file(path), seed)

    fetch = _fetcher(split)

    def read(element, seed=(0, 0)):
        raw = fetch(element)
        if "pixels" in raw:
            image, weight = from_pixels(raw["pixels"], seed), tf.ones(())
        elif "encoded" in raw:
            image, weight = _try(raw["encoded"], seed, from_encoded, shape)
        else:
            image, weight = _try(raw["name"], seed, from_file, shape)
        parts = {"image": tf.ensure_shape(image, shape), "label": raw["label"], "weight": weight}
        return {**parts, "name": raw["name"]} if "name" in raw else parts

    return read


def _try(source, seed, decode, shape):
    """The image of `decode(source, seed)` and weight 1; zeros and weight 0 where that fails.

    A data set of one element is the only place where TensorFlow lets a graph go on after an
    operation failed.
    """
    one = tf.data.Dataset.from_tensors((source, tf.convert_to_tensor(seed)))
    decoded = one.map(lambda source, seed: (decode(source, seed), 1.0)).ignore_errors()
    substitute = tf.data.Dataset.from_tensors((tf.zeros(shape), 0.0))
    return decoded.concatenate(substitute).take(1).get_single_element()


def _fetcher(split):
    """A function from an element of a stream to what there is of an example before decoding.

    Returns:
        Function that gives a dict with `label`, and `pixels`, or `name` and (unless the file of
        that name must still be read) `encoded`.
    """
    if isinstance(split, Records):
        return lambda element: split.named(element["serialized"], element["name"])
    # TensorFlow takes names that are not UTF-8 as bytes alone.
    names = None if split.paths is None else [os.fsencode(path) for path in split.paths]
    columns = {"pixels": split.images, "name": names, "encoded": split.encoded}
    columns = {k: tf.constant(v) for k, v in columns.items() if v is not None}
    columns["label"] = tf.constant(split.labels)
    return lambda element: {k: column[element["index"]] for k, column in columns.items()}
