"""Augmentation of training images, and of batches of them.

What is keyed by (seed, epoch, position) repeats bit for bit and resumes; keras-cv's RandAugment
does not (a recipe refuses it together with `deterministic`).
"""

import functools

import keras
import tensorflow as tf

ASPECT_RATIOS = (3 / 4, 4 / 3)
ERASED_AREA = (0.02, 1 / 3)


def crop_box(shape, recipe, seed):
    """A random part of an image, of random area and aspect ratio ("Inception crop").

    Args:
        shape: int32 (3,): height, width, channels of the image in pixels.
        recipe: a `Recipe`; `random_resized_crop` is the least share of the image's area.
        seed: int64 (2,).

    Returns:
        int32 (4,): top, left, height, width in pixels.
    """
    begin, size, _ = tf.image.stateless_sample_distorted_bounding_box(
        shape,
        tf.zeros((1, 0, 4)),
        tf.random.experimental.stateless_fold_in(seed, 2),  # not the bits that mirroring draws
        min_object_covered=0.0,
        aspect_ratio_range=ASPECT_RATIOS,
        area_range=(recipe.random_resized_crop, 1.0),
        max_attempts=10,
        use_image_if_no_bounding_boxes=True,
    )
    return tf.concat([begin[:2], size[:2]], axis=0)


def augment(image, recipe, seed):
    """Random shift and mirroring, as the recipe says; the same for the same seed.

    Args:
        image: float32 (height, width, channels), 0 to 255.
        recipe: a `Recipe`.
        seed: int64 (2,).

    Returns:
        Tensor like `image`.
    """
    if recipe.random_shift:
        pad = recipe.random_shift
        padded = tf.pad(image, [[pad, pad], [pad, pad], [0, 0]])
        image = tf.image.stateless_random_crop(padded, tf.shape(image), seed)
    if recipe.random_flip:
        image = tf.image.stateless_random_flip_left_right(image, seed)
    return image


def erase(image, probability, seed):
    """A random rectangle becomes noise (Zhong et al., arXiv 1708.04896), or the image stays.

    Args:
        image: float32 (height, width, channels), 0 to 255.
        probability: of erasing, in [0, 1].
        seed: int64 (2,).

    Returns:
        Tensor like `image`. The rectangle covers 2 to 33 % of the area, in an aspect ratio of 0.3
        to 3.3; its pixels are uniform in 0 to 255.
    """
    key = tf.random.experimental.stateless_fold_in(seed, 1)
    height, width = tf.unstack(tf.cast(tf.shape(image)[:2], tf.float32))
    chance, area, ratio, y, x = tf.unstack(tf.random.stateless_uniform([5], key))
    area = height * width * (ERASED_AREA[0] + area * (ERASED_AREA[1] - ERASED_AREA[0]))
    ratio = tf.exp((2 * ratio - 1) * tf.math.log(1 / 0.3))
    h = tf.minimum(tf.sqrt(area * ratio), height)
    w = tf.minimum(tf.sqrt(area / ratio), width)
    top, left = y * (height - h), x * (width - w)
    rows, columns = tf.range(height)[:, None, None], tf.range(width)[None, :, None]
    inside = (rows >= top) & (rows < top + h) & (columns >= left) & (columns < left + w)
    noise = tf.random.stateless_uniform(tf.shape(image), key, 0, 255)
    return tf.where(inside & (chance < probability), noise, image)


def rand_augment(recipe, start_step):
    """keras-cv's RandAugment: a function of a float32 image (height, width, 3), 0 to 255.

    Where it is off the function gives back what it is given.
    Keras's own is another: at the default magnitude it turns images by up to half a circle, and
    takes 16 times as long (68 ms against 4 an image of 224 x 224).
    """
    if not recipe.rand_augment_layers:
        return lambda image: image
    import keras_cv

    layer = keras_cv.layers.RandAugment(
        value_range=(0, 255),
        augmentations_per_image=recipe.rand_augment_layers,
        magnitude=recipe.rand_augment_magnitude,
        seed=recipe.seed + start_step,  # a resumed run does not repeat its beginning
    )
    return lambda image: tf.ensure_shape(
        tf.cast(layer(image, training=True), tf.float32), image.shape
    )


class _Seeds(keras.random.SeedGenerator):
    """Seeds from a key, int64 (2,), in place of a variable: the same draws for the same key."""

    def __init__(self, key):  # without super's, which makes the variable
        self._key, self._drawn = key, 0

    def next(self, ordered=True):
        self._drawn += 1
        return tf.random.experimental.stateless_fold_in(self._key, self._drawn)


def mix(recipe, num_classes):
    """Keras's MixUp and CutMix as a function of a batch, or None where both are off.

    The function takes and gives a dict with `image` (batch, height, width, channels) and `label`
    (batch,). It takes away `seed`, int64 (batch, 2), of which the first is the batch's, and adds
    `target`, float32 (batch, classes), the share of each class in each image.
    """
    layers, options = [], {"data_format": "channels_last", "dtype": "float32"}
    if recipe.mixup_alpha:
        layers.append(keras.layers.MixUp(recipe.mixup_alpha, **options))
    if recipe.cutmix_alpha:
        layers.append(keras.layers.CutMix(**options))
        layers[-1].factor = (recipe.cutmix_alpha,) * 2  # the constructor takes no alpha above 1
    if not layers:
        return None

    def apply(batch):
        key = tf.random.experimental.stateless_fold_in(batch["seed"][0], 3)
        images, labels = batch["image"], tf.one_hot(batch["label"], num_classes)

        def mixed(layer):
            drawn = layer.get_random_transformation(images, seed=_Seeds(key))
            return layer.transform_images(images, drawn), layer.transform_labels(labels, drawn)

        which = tf.random.stateless_uniform((), key, 0, len(layers), tf.int32)
        branches = [functools.partial(mixed, layer) for layer in layers]
        image, target = tf.switch_case(which, branches)
        rest = {k: v for k, v in batch.items() if k != "seed"}
        return {**rest, "image": tf.ensure_shape(image, images.shape), "target": target}

    return apply
