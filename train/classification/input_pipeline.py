"""Batches on tf.data, from the data sets of `examples`.

Every example has a fixed place in the stream: the order of an epoch and an image's augmentation
depend on (seed, epoch, position) alone, so that a run resumes at any step with the same batches.
An image that cannot be decoded keeps its place with weight 0 (another image of the batch is shown
to batch normalisation); it is named and counted.
"""

import sys

import numpy as np
import tensorflow as tf

from train.classification import augmentation
from train.classification.decoding import make_decoder, make_fetcher
from train.classification.examples import Records, numbered_records

PARALLEL_FILES = 16


class SkippedImages:
    """Names of the images that could not be decoded, collected while a pipeline runs."""

    def __init__(self):
        self.names = set()

    def __len__(self):
        return len(self.names)

    def __call__(self, names):
        """Records names, bytes (count,); says each the first time that it is met."""
        for name in (n.decode(errors="backslashreplace") for n in names):
            if name not in self.names:
                self.names.add(name)
                print(f"Skipped: {name} cannot be decoded", file=sys.stderr)
        return np.int64(len(self.names))


def train_batches(
    split, preprocessing, recipe, *, num_classes=None, start_step=0, context=None, skipped=None
):
    """Endless batches of shuffled, augmented training examples.

    Of a `Split`, the last examples of an epoch that do not fill a batch are left out of it;
    another epoch, in its other order, leaves out others. Of `Records`, every worker goes through
    the shards of its own, all records of an epoch before the next.

    Args:
        split: the training `Split` or `Records`.
        preprocessing: the model's `Preprocessing`.
        recipe: a `Recipe`.
        num_classes: needed for MixUp and CutMix alone.
        start_step: number of (global) batches to leave out.
        context: a `tf.distribute.InputContext`, or None for the whole global batch.
        skipped: a `SkippedImages` that undecodable images are recorded in.

    Returns:
        `tf.data.Dataset` of dicts: `image`, float32 (batch, height, width, channels), normalised;
        `label`, int64 (batch,); `weight`, float32 (batch,), 0 for an undecodable image; with MixUp
        or CutMix also `target`, float32 (batch, classes).

    Raises:
        ValueError: if the split has fewer examples than a batch.
    """
    make_stream = _shuffled_records if isinstance(split, Records) else _shuffled_indices
    stream = make_stream(split, recipe, start_step, context or tf.distribute.InputContext())
    fetch, decode = make_fetcher(split), make_decoder(preprocessing, recipe)
    rand_augment = augmentation.rand_augment(recipe, start_step)
    mix = augmentation.mix(recipe, num_classes)

    def raw(element):
        seed = [recipe.seed, element["epoch"]]
        seed = tf.random.experimental.stateless_fold_in(seed, element["position"])
        return {**fetch(element), "seed": seed}

    def augmented(pixels, raw):
        pixels = rand_augment(augmentation.augment(pixels, recipe, raw["seed"]))
        if recipe.random_erasing:
            pixels = augmentation.erase(pixels, recipe.random_erasing, raw["seed"])
        return preprocessing.normalize(pixels)

    steps = raw, lambda raw: decode(raw, raw["seed"]), augmented
    return _batches(stream, *steps, recipe.batch_size, context, skipped, mix)


def test_batches(split, preprocessing, batch_size, *, context=None, skipped=None):
    """Batches that hold each example of a split once, in order.

    The last global batches are filled up with examples of weight 0, so that every replica of every
    worker takes the same number of steps.

    Args:
        split: the `Split` or `Records` to evaluate.
        preprocessing: the model's `Preprocessing`.
        batch_size: global.
        context: a `tf.distribute.InputContext`, or None for the whole global batch.
        skipped: a `SkippedImages` that undecodable images are recorded in.

    Returns:
        `tf.data.Dataset` of dicts, see `train_batches`.
    """
    make_stream = _ordered_records if isinstance(split, Records) else _ordered_indices
    stream = make_stream(split, batch_size, context or tf.distribute.InputContext())
    fetch, decode = make_fetcher(split), make_decoder(preprocessing)

    def raw(element):
        return {**fetch(element), "counted": element["weight"]}

    def normalized(pixels, raw):
        return preprocessing.normalize(pixels)

    return _batches(stream, raw, decode, normalized, batch_size, context, skipped)


def steps_per_epoch(split, recipe):
    """Full batches in an epoch; `ValueError` if the split does not fill one."""
    steps = len(split) // recipe.batch_size
    if not steps:
        raise ValueError(
            "The training split must have at least one batch of images. Received: "
            f"{len(split)} images, batch_size={recipe.batch_size}. Lower it: "
            f"--set batch_size={max(1, len(split) // 4)}"
        )
    return steps


def _shuffled_indices(split, recipe, start_step, context):
    """This worker's share of the indices of a `Split`, epoch after epoch."""
    size, batch_size = len(split), recipe.batch_size
    steps = steps_per_epoch(split, recipe)

    def epoch(number):
        order = tf.random.experimental.stateless_shuffle(
            tf.range(size, dtype=tf.int64), seed=[recipe.seed, number]
        )
        order = order[: steps * batch_size]
        return tf.data.Dataset.from_tensor_slices(
            {"index": order, "position": order, "epoch": tf.fill(tf.shape(order), number)}
        )

    stream = tf.data.Dataset.range(start_step // steps, tf.int64.max).flat_map(epoch)
    stream = stream.skip(start_step % steps * batch_size)
    return stream.shard(context.num_input_pipelines, context.input_pipeline_id)


def _ordered_indices(split, batch_size, context):
    size = len(split)

    def element(index):
        inside = tf.cast(index < size, tf.float32)
        return {"index": tf.minimum(index, size - 1), "weight": inside}

    stream = tf.data.Dataset.range(-(-size // batch_size) * batch_size).map(element)
    return stream.shard(context.num_input_pipelines, context.input_pipeline_id)


def _shares(records, context):
    """How the workers share records: by files, or by records where files do not go round.

    Returns:
        Tuple of the files that this worker reads, whether it takes all their records, and the
        number of records of every worker.
    """
    workers, worker = context.num_input_pipelines, context.input_pipeline_id
    counts = [sum(records.counts[w::workers]) for w in range(workers)]
    if all(counts):
        return records.files[worker::workers], True, counts
    counts = [len(range(w, len(records), workers)) for w in range(workers)]
    return records.files, False, counts


def _shuffled_records(records, recipe, start_step, context):
    """This worker's records, epoch after epoch: files shuffled, then records in blocks."""
    steps_per_epoch(records, recipe)
    workers, worker = context.num_input_pipelines, context.input_pipeline_id
    files, whole, counts = _shares(records, context)
    start = start_step * (recipe.batch_size // workers)

    def epoch(number):
        order = tf.constant(files)
        if whole:  # otherwise a worker's share would be of other records in each epoch
            order = tf.random.experimental.stateless_shuffle(order, seed=[recipe.seed, number])
        serialized = tf.data.Dataset.from_tensor_slices(order).interleave(
            numbered_records,
            cycle_length=min(PARALLEL_FILES, len(files)),
            num_parallel_calls=tf.data.AUTOTUNE,
            deterministic=True,
        )
        if not whole:
            serialized = serialized.shard(workers, worker)

        def element(position, record):
            return {
                "serialized": record[0],
                "name": record[1],
                "position": position * workers + worker,
                "epoch": number,
            }

        def shuffled(block, elements):
            seed = tf.random.experimental.stateless_fold_in([recipe.seed, number], block)
            order = tf.random.experimental.stateless_shuffle(
                tf.range(tf.size(elements["serialized"])), seed
            )
            return {key: tf.gather(column, order) for key, column in elements.items()}

        # Blocks, and not `shuffle`, whose seed cannot depend on the epoch.
        blocks = serialized.enumerate().map(element).batch(recipe.shuffle_buffer)
        return blocks.enumerate().map(shuffled).prefetch(1).unbatch()

    stream = tf.data.Dataset.range(start // counts[worker], tf.int64.max).flat_map(epoch)
    return stream.skip(start % counts[worker])


def _ordered_records(records, batch_size, context):
    workers, worker = context.num_input_pipelines, context.input_pipeline_id
    files, whole, counts = _shares(records, context)
    serialized = records.ordered(files)
    if not whole:
        serialized = serialized.shard(workers, worker)
    share = batch_size // workers
    padding = -(-max(counts) // share) * share - counts[worker]
    filling = records.ordered(files).take(1).repeat(padding)
    own = counts[worker]

    def element(position, record):
        return {
            "serialized": record[0],
            "name": record[1],
            "weight": tf.cast(position < own, tf.float32),
        }

    return serialized.concatenate(filling).enumerate().map(element)


def _batches(stream, raw, decode, image, batch_size, context, skipped, mix=None):
    """Batches of `image(decode(r), r)` of each `r = raw(element)`, with its label and a weight.

    Of these steps `decode` alone may fail.
    """
    if context is not None:
        batch_size //= context.num_replicas_in_sync
    options = tf.data.Options()
    options.deterministic = True
    skipped = SkippedImages() if skipped is None else skipped

    def finish(batch):
        batch = _report(batch, skipped)
        counted = batch.pop("counted", None)
        if counted is not None:
            batch["weight"] *= counted
        seed = batch.pop("seed", None)
        return mix({**batch, "seed": seed}) if mix else batch

    stream = stream.map(raw, num_parallel_calls=tf.data.AUTOTUNE)
    if "pixels" in stream.element_spec:
        examples = stream.map(
            lambda r: _without_sources({**r, "image": image(decode(r), r), "weight": tf.ones(())}),
            num_parallel_calls=tf.data.AUTOTUNE,
        )
        batches = examples.batch(batch_size, drop_remainder=True)
    else:
        batches = _tried(stream.batch(batch_size, drop_remainder=True), decode, image, batch_size)
    batches = batches.map(finish, num_parallel_calls=2 if mix else None)
    return batches.with_options(options).prefetch(tf.data.AUTOTUNE)


def _without_sources(example):
    return {key: value for key, value in example.items() if key not in ("pixels", "encoded")}


def _tried(raws, decode, image, batch_size):
    """Batches of images, with weight 0 where `decode` fails: the first that did not is there, too.

    A data set of its own is the only place where TensorFlow lets a graph go on after an operation
    failed. One for each batch, and not for each image, costs next to nothing.

    Args:
        raws: data set of batches of what `decode` takes, dicts.
        decode: function of one of these to pixels.
        image: function of pixels and of what they were decoded from to an image.
        batch_size: of `raws`.

    Returns:
        Data set of the batches without what was decoded, with `image` and `weight`.
    """

    def decoded(place, raw):
        return place, decode(raw), _without_sources(raw)

    def finished(place, pixels, raw):
        return place, image(pixels, raw)

    def batch_of_images(batch):
        ones = tf.data.Dataset.from_tensor_slices(batch).enumerate()
        ones = ones.map(decoded, num_parallel_calls=tf.data.AUTOTUNE).ignore_errors()
        ones = ones.map(finished, num_parallel_calls=tf.data.AUTOTUNE)
        places, images = ones.element_spec
        none = (tf.zeros([0], places.dtype), tf.zeros([0, *images.shape], images.dtype))
        found = ones.batch(batch_size).concatenate(tf.data.Dataset.from_tensors(none)).take(1)
        return found.map(lambda places, images: placed(batch, places, images))

    def placed(batch, places, images):
        weight = tf.scatter_nd(places[:, None], tf.ones_like(places, tf.float32), [batch_size])
        first = tf.concat([places, [0]], axis=0)[0]
        source = tf.where(weight > 0, tf.range(batch_size, dtype=places.dtype), first)

        def filled():
            # Row 0 is the first, or zeros where there is none.
            some = tf.concat([images, tf.zeros([1, *images.shape[1:]], images.dtype)], axis=0)
            rows = tf.scatter_nd(places[:, None], tf.range(tf.size(places)), [batch_size])
            return tf.gather(some, rows)

        is_whole = tf.size(places) == batch_size
        images = tf.ensure_shape(
            tf.cond(is_whole, lambda: images, filled), [batch_size, *images.shape[1:]]
        )
        label = tf.gather(batch["label"], source)
        return _without_sources({**batch, "image": images, "label": label, "weight": weight})

    return raws.interleave(
        batch_of_images, cycle_length=2, num_parallel_calls=2, deterministic=True
    )


def _report(batch, skipped):
    """The batch without names; `skipped` is told those of the images that were not decoded."""
    batch = dict(batch)
    if "name" not in batch:
        return batch
    broken = batch["weight"] < 0.5
    if "counted" in batch:  # not the images that only fill up the last batch
        broken &= batch["counted"] > 0.5
    names = tf.boolean_mask(batch.pop("name"), broken)

    def report():
        return tf.numpy_function(skipped, [names], tf.int64)

    total = tf.cond(tf.size(names) > 0, report, lambda: tf.zeros((), tf.int64))
    with tf.control_dependencies([total]):
        return {**batch, "weight": tf.identity(batch["weight"])}
