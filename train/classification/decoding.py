"""From an element of a stream to pixels: fetched, decoded and cropped."""

import os

import tensorflow as tf

from dgnet_keras.decoding import decode_image, orientation, stored_box, turned, turned_shape
from train.classification import augmentation
from train.classification.examples import Records


def make_decoder(preprocessing, recipe=None):
    """A function of what `make_fetcher`'s gives, and in training of a seed, to an image.

    It fails where the file is gone or is no image.

    Returns:
        Function that gives float32 pixels of 0 to 255, of the model's size. With a recipe that
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

    def decode(raw, seed=(0, 0)):
        if "pixels" in raw:
            image = from_pixels(raw["pixels"], seed)
        else:
            encoded = raw["encoded"] if "encoded" in raw else tf.io.read_file(raw["name"])
            image = from_encoded(encoded, seed)
        return tf.ensure_shape(image, shape)

    return decode


def make_fetcher(split):
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
