"""Images by index, and batches from them on tf.data.

Every example has a fixed place in the stream: the order of an epoch and an image's augmentation
depend on (seed, epoch, index) alone, so that a run resumes at any step with the same batches.
An image that cannot be decoded keeps its place with weight 0 (another image of the batch is shown
to batch normalisation); it is named and counted.
"""

import dataclasses
import os
import pathlib
import sys

import numpy as np
import tensorflow as tf

IMAGE_SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")
TEST_FOLDERS = ("test", "val", "validation")
HELD_OUT = 0.2


@dataclasses.dataclass(frozen=True)
class Split:
    """Images and labels of one split.

    Attributes:
        labels: int64 (examples,).
        images: uint8 (examples, height, width, channels), or None where `paths` is given.
        paths: file names, (examples,), or None.
    """

    labels: np.ndarray
    images: np.ndarray | None = None
    paths: np.ndarray | None = None

    def __len__(self):
        return len(self.labels)

    def take(self, indices):
        """The split of the examples at `indices`."""
        parts = {k: None if v is None else v[indices] for k, v in vars(self).items()}
        return Split(**parts)


@dataclasses.dataclass(frozen=True)
class ImageData:
    """Training and test split with the names of the classes."""

    class_names: tuple[str, ...]
    train: Split
    test: Split


def load_data(dataset, data_dir=None):
    """Loads the data of a recipe.

    Args:
        dataset: `"digits"` or `"folder"`.
        data_dir: folder of the images; for `"folder"` only. It holds `train/<class>/*.jpg` and
            `test/<class>/*.jpg` (or `val`), or just `<class>/*.jpg`, of which a fifth is then
            held out as the test split.

    Raises:
        FileNotFoundError: if the folder is missing.
        ValueError: for an unknown data set, a class folder without images, or a test class that
            is not in the training split.
    """
    if dataset == "digits":
        return _load_digits()
    if dataset == "folder":
        return _load_folder(data_dir)
    raise ValueError(f"`dataset` must be 'digits' or 'folder'. Received: {dataset!r}")


def _load_digits():
    """scikit-learn's digits: 1,797 real images of 8x8, as uint8 RGB, a fifth held out."""
    from sklearn.datasets import load_digits

    digits = load_digits()
    gray = np.round(digits.images * (255 / 16)).astype("uint8")
    everything = Split(digits.target.astype("int64"), images=np.repeat(gray[..., None], 3, axis=3))
    return ImageData(tuple(map(str, digits.target_names)), *_hold_out(everything))


def _hold_out(split):
    """Splits into training and test, stratified, the same on every call."""
    from sklearn.model_selection import train_test_split

    indices = np.arange(len(split))
    train, test = train_test_split(
        indices, test_size=HELD_OUT, random_state=0, stratify=split.labels
    )
    return split.take(np.sort(train)), split.take(np.sort(test))


def _load_folder(data_dir):
    if data_dir is None:
        raise ValueError("This recipe reads a folder of images: give it with --data-dir DIR.")
    root = pathlib.Path(data_dir)
    if not root.is_dir():
        raise FileNotFoundError(
            f"No data folder at {root}. Expected {root}/train/<class>/*.jpg and "
            f"{root}/test/<class>/*.jpg, or {root}/<class>/*.jpg"
        )
    if not (root / "train").is_dir():
        names = _class_names(root)
        return ImageData(names, *_hold_out(_read_split(root, names)))
    test = next((root / name for name in TEST_FOLDERS if (root / name).is_dir()), None)
    if test is None:
        raise FileNotFoundError(f"{root} has train/ but none of: {', '.join(TEST_FOLDERS)}")
    names = _class_names(root / "train")
    unknown = sorted(set(_class_names(test)) - set(names))
    if unknown:
        raise ValueError(f"Classes of {test} that {root / 'train'} does not have: {unknown}")
    return ImageData(names, _read_split(root / "train", names), _read_split(test, names))


def _class_names(folder):
    names = tuple(sorted(p.name for p in folder.iterdir() if p.is_dir() and p.name[0] != "."))
    if not names:
        raise ValueError(f"{folder} has no class folders. Expected {folder}/<class>/*.jpg")
    return names


def _read_split(folder, class_names):
    paths, labels = [], []
    for label, name in enumerate(class_names):
        if not (folder / name).is_dir():
            continue
        with os.scandir(folder / name) as entries:
            found = [
                entry.path
                for entry in entries
                if entry.name.lower().endswith(IMAGE_SUFFIXES) and not entry.is_dir()
            ]
        if not found:
            raise ValueError(
                f"The class folder {folder / name} has no images. Expected files that end in "
                f"{', '.join(IMAGE_SUFFIXES)}"
            )
        paths += sorted(found)
        labels += [label] * len(found)
    return Split(np.array(labels, "int64"), paths=np.array(paths))


class SkippedImages:
    """Names of the images that could not be decoded, collected while a pipeline runs."""

    def __init__(self):
        self.names = set()

    def __len__(self):
        return len(self.names)

    def __call__(self, path):
        """Records `path`, a bytes string; says its name the first time that it is met."""
        name = path.decode()
        if name not in self.names:
            self.names.add(name)
            print(f"Skipped: {name} cannot be decoded", file=sys.stderr)
        return np.int64(len(self.names))


def train_batches(split, preprocessing, recipe, *, start_step=0, context=None, skipped=None):
    """Endless batches of shuffled, augmented training examples.

    The last examples of an epoch that do not fill a batch are left out of it; another epoch, in
    its other order, leaves out others.

    Args:
        split: the training `Split`.
        preprocessing: the model's `Preprocessing`.
        recipe: a `Recipe`.
        start_step: number of (global) batches to leave out.
        context: a `tf.distribute.InputContext`, or None for the whole global batch.
        skipped: a `SkippedImages` that undecodable images are recorded in.

    Returns:
        `tf.data.Dataset` of dicts: `image`, float32 (batch, height, width, channels), normalised;
        `label`, int64 (batch,); `weight`, float32 (batch,), 0 for an undecodable image.

    Raises:
        ValueError: if the split has fewer examples than a batch.
    """
    size, batch_size = len(split), recipe.batch_size
    steps = steps_per_epoch(split, recipe)
    read = _reader(split, preprocessing, skipped)

    def epoch(number):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(size, dtype=tf.int64), seed=[recipe.seed, number]
        )
        order = order[: steps * batch_size]
        return tf.data.Dataset.from_tensor_slices((order, tf.fill(tf.shape(order), number)))

    def example(index, number):
        parts = read(index)
        seed = tf.random.experimental.stateless_fold_in([recipe.seed, number], index)
        return {**parts, "image": augment(parts["image"], recipe, seed)}

    stream = tf.data.Dataset.range(start_step // steps, tf.int64.max).flat_map(epoch)
    stream = stream.skip(start_step % steps * batch_size)
    return _batches(stream, example, preprocessing, batch_size, context)


def test_batches(split, preprocessing, batch_size, *, context=None, skipped=None):
    """Batches that hold each example of a split once, in order.

    The last global batch is filled up with examples of weight 0, so that every replica of every
    worker takes the same number of steps.

    Args:
        split: the `Split` to evaluate.
        preprocessing: the model's `Preprocessing`.
        batch_size: global.
        context: a `tf.distribute.InputContext`, or None for the whole global batch.
        skipped: a `SkippedImages` that undecodable images are recorded in.

    Returns:
        `tf.data.Dataset` of dicts, see `train_batches`.
    """
    size = len(split)
    read = _reader(split, preprocessing, skipped)

    def example(index):
        parts = read(tf.minimum(index, size - 1))
        return {**parts, "weight": parts["weight"] * tf.cast(index < size, tf.float32)}

    stream = tf.data.Dataset.range(-(-size // batch_size) * batch_size)
    return _batches(stream, example, preprocessing, batch_size, context)


def steps_per_epoch(split, recipe):
    """Full batches in an epoch; `ValueError` if the split does not fill one."""
    steps = len(split) // recipe.batch_size
    if not steps:
        raise ValueError(
            "The training split must have at least one batch of images. Received: "
            f"{len(split)} images, batch_size={recipe.batch_size}"
        )
    return steps


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


def _batches(stream, example, preprocessing, batch_size, context):
    if context is not None:
        batch_size //= context.num_replicas_in_sync
        stream = stream.shard(context.num_input_pipelines, context.input_pipeline_id)
    options = tf.data.Options()
    options.deterministic = True
    examples = stream.map(example, num_parallel_calls=tf.data.AUTOTUNE)
    batches = examples.batch(batch_size, drop_remainder=True).map(
        lambda batch: {**batch, "image": preprocessing.normalize(_substitute(batch))}
    )
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


def _substitute(batch):
    """The images, one that could not be decoded replaced by the first that could.

    Its weight in the loss stays 0; batch normalisation sees a real image in its place.
    """
    weight = batch["weight"]
    first = tf.fill(tf.shape(weight), tf.argmax(weight, output_type=tf.int32))
    return tf.gather(batch["image"], tf.where(weight > 0, tf.range(tf.size(weight)), first))


def _reader(split, preprocessing, skipped):
    """A function from an index to `image` (float32, 0 to 255, resized), `label` and `weight`."""
    skipped = SkippedImages() if skipped is None else skipped
    labels = tf.constant(split.labels)
    channels = len(preprocessing.mean) if split.images is None else split.images.shape[-1]
    shape = (*preprocessing.image_size, channels)
    pixels = None if split.images is None else tf.constant(split.images)
    paths = None if split.paths is None else tf.constant(split.paths)

    def read(index):
        if pixels is not None:
            image, weight = preprocessing.resize_and_crop(pixels[index]), tf.constant(1.0)
        else:
            image, weight = _read_file(paths[index], preprocessing, channels, skipped)
        return {"image": tf.ensure_shape(image, shape), "label": labels[index], "weight": weight}

    return read


def _read_file(path, preprocessing, channels, skipped):
    """The resized image and weight 1; zeros and weight 0 where it cannot be decoded."""
    shape = (*preprocessing.image_size, channels)

    def decode(path):
        image = tf.io.decode_image(tf.io.read_file(path), channels, expand_animations=False)
        image.set_shape((None, None, channels))
        return preprocessing.resize_and_crop(image), 1.0

    # A data set of one element is the only place where TensorFlow lets a graph go on after an
    # operation failed.
    decoded = tf.data.Dataset.from_tensors(path).map(decode).ignore_errors()
    substitute = tf.data.Dataset.from_tensors((tf.zeros(shape), 0.0))
    image, weight = decoded.concatenate(substitute).take(1).get_single_element()

    def report():
        count = tf.numpy_function(skipped, [path], tf.int64)
        with tf.control_dependencies([count]):
            return tf.zeros(())

    return image, tf.cond(weight > 0, lambda: tf.ones(()), report)
