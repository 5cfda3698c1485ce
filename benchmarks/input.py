"""The input pipeline on its own, against Keras's, and beside a training step.

python -m benchmarks.input [--coco TAR] [--cifar10 DIR] [--output FILE]

On 1,000 JPEGs of 500 x 375 pixels, cut out of COCO's images where `--coco` names them, else drawn:

- Images/s of the training pipeline of the recipe `imagenet_resnet50` (random resized crop, flip,
  normalisation, batches of 32), over those of `image_dataset_from_directory` followed by the same
  augmentation: as it gives images, resized to 256 pixels, and with its list of files alone. And
  over decoding whole images and nothing else. Medians and quartiles of ratios turn by turn.
- The pipeline from class folders and from TFRecords, and the share of a training step's time that
  is spent waiting for its batch. With `--cifar10` on its class folders, too.
"""

import argparse
import io
import json
import os
import pathlib
import statistics
import tarfile
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks import measure
from benchmarks.accuracy_table import fill_in
from benchmarks.speed_markdown import ratio_cell

IMAGENET_SIZE = (500, 375)
JPEGS = 1000
RECORD_FILES = 8
TURNS, TURN_IMAGES, SETTLE = 9, 992, 8


def coco_photographs(coco_tar):
    """The images of a tar file of COCO, as PIL images."""
    from PIL import Image

    with tarfile.open(coco_tar) as archive:
        return [
            Image.open(io.BytesIO(archive.extractfile(m).read())).convert("RGB")
            for m in archive
            if m.name.endswith(".jpg") and not pathlib.PurePath(m.name).name.startswith(".")
        ]


def drawn_photographs(count=32):
    """Images of coarse and fine noise, which take about as many bytes as photographs."""
    import numpy as np
    from PIL import Image

    rng = np.random.default_rng(0)
    images = []
    for _ in range(count):
        layers = [
            np.asarray(
                Image.fromarray(rng.integers(0, 256, (side, side, 3), "uint8")).resize(
                    IMAGENET_SIZE, Image.Resampling.BICUBIC
                ),
                "float32",
            )
            for side in (4, 16, 64, 200)
        ]
        images.append(Image.fromarray(np.uint8(sum(layers) / len(layers))))
    return images


def encode(sources, count=JPEGS):
    """JPEGs of `IMAGENET_SIZE` cut out of images: a list of bytes."""
    contents = []
    for k in range(count):
        image = sources[k % len(sources)]
        width, height = image.size
        inset = 4 * (k // len(sources)) % 64  # another part of it each time
        image = image.crop((inset, inset, width - inset, height - inset)).resize(IMAGENET_SIZE)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=92)
        contents.append(buffer.getvalue())
    return contents


def write_folders(contents, folder):
    """JPEGs as `folder/{train,validation}/a/*.jpg`."""
    for part in ("train", "validation"):
        (folder / part / "a").mkdir(parents=True)
        for k, content in enumerate(contents):
            (folder / part / "a" / f"{k}.jpg").write_bytes(content)


def write_records(contents, folder):
    """JPEGs as TFRecords, of which `RECORD_FILES` are a part."""
    import tensorflow as tf

    folder.mkdir()
    for part in ("train", "validation"):
        for shard in range(RECORD_FILES):
            name = folder / f"{part}-{shard:05d}-of-{RECORD_FILES:05d}"
            with tf.io.TFRecordWriter(str(name)) as writer:
                for content in contents[shard::RECORD_FILES]:
                    image = tf.train.BytesList(value=[content])
                    label = tf.train.Int64List(value=[1])
                    features = {
                        "image/encoded": tf.train.Feature(bytes_list=image),
                        "image/class/label": tf.train.Feature(int64_list=label),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    writer.write(example.SerializeToString())


def imagenet_recipe(kind, batch_size=32):
    """The recipe for images of a kind of data set, `"folder"` or `"tfrecord"`."""
    from train.classification.recipes import get_recipe

    options = [f"dataset={kind}", "model=resnet18", f"batch_size={batch_size}", "num_classes=1"]
    return get_recipe("imagenet_resnet50", [*options, "dtype=float32"])


def training_batches(recipe, data_dir):
    """The endless data set of a recipe's training batches."""
    from train.classification import datasets, input_pipeline
    from train.classification.model import preprocessing_of

    data = datasets.load_data(recipe, data_dir)
    return input_pipeline.train_batches(data.train, preprocessing_of(recipe), recipe)


def keras_batches(data_dir, recipe, resized=256):
    """The same from `image_dataset_from_directory`, or from its list of files: `resized` None."""
    import keras
    import tensorflow as tf

    from train.classification import augmentation
    from train.classification.model import preprocessing_of

    preprocessing = preprocessing_of(recipe)
    data = keras.utils.image_dataset_from_directory(
        data_dir / "train",
        image_size=(resized or 256,) * 2,
        crop_to_aspect_ratio=True,
        batch_size=None,
        verbose=False,
    )
    if resized is None:
        paths = tf.data.Dataset.from_tensor_slices(data.file_paths).shuffle(len(data.file_paths))
        data = paths.map(lambda path: (tf.io.decode_jpeg(tf.io.read_file(path), 3), 0))

    def augmented(number, example):
        seed = tf.stack([0, tf.cast(number, tf.int32)])
        image = example[0]
        top, left, height, width = tf.unstack(augmentation.crop_box(tf.shape(image), recipe, seed))
        image = image[top : top + height, left : left + width]
        image = tf.image.resize(image, preprocessing.image_size, antialias=True)
        return augmentation.augment(image, recipe, seed), example[1]

    def normalized(images, labels):
        return preprocessing.normalize(images), labels

    data = data.repeat().enumerate().map(augmented, num_parallel_calls=tf.data.AUTOTUNE)
    data = data.batch(recipe.batch_size, drop_remainder=True)
    return data.map(normalized, num_parallel_calls=tf.data.AUTOTUNE).prefetch(tf.data.AUTOTUNE)


def decoded(data_dir, batch_size):
    """Whole images, decoded and nothing else; a batch is as many numbers."""
    import tensorflow as tf

    def decode(path):
        return tf.reduce_max(tf.io.decode_jpeg(tf.io.read_file(path), 3))

    paths = sorted(str(path) for path in (data_dir / "train").rglob("*.jpg"))
    data = tf.data.Dataset.from_tensor_slices(paths).repeat()
    data = data.map(decode, num_parallel_calls=tf.data.AUTOTUNE).batch(batch_size)
    return data.prefetch(tf.data.AUTOTUNE)


def _rate(iterator, batches, batch_size):
    """Images/s of so many batches, after some in which a pipeline settles."""
    for _ in range(SETTLE):
        next(iterator)
    start = time.perf_counter()
    for _ in range(batches):
        next(iterator)
    return batches * batch_size / (time.perf_counter() - start)


def measure_peers(data_dir, turns=TURNS, images=TURN_IMAGES):
    """Images/s of each pipeline on class folders, and ours over the others' turn by turn."""
    recipe = imagenet_recipe("folder")
    pipelines = {
        "ours": training_batches(recipe, data_dir),
        "image_dataset_from_directory": keras_batches(data_dir, recipe),
        "its_files": keras_batches(data_dir, recipe, resized=None),
        "decoding": decoded(data_dir, recipe.batch_size),
    }
    names, rates = list(pipelines), {name: [] for name in pipelines}
    for turn in range(turns):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            # An iterator a turn: one that waits for its next turn fills its buffers meanwhile.
            iterator = iter(pipelines[name])
            rates[name].append(_rate(iterator, images // recipe.batch_size, recipe.batch_size))
            del iterator
    return {
        "images_per_second": {name: measure.spread(values) for name, values in rates.items()},
        "ratios": measure.paired_ratios(
            rates, [("ours", name) for name in rates if name != "ours"]
        ),
    }


def images_per_second(recipe, data_dir, images, rounds=3):
    """Median over rounds of the training pipeline alone."""
    iterator = iter(training_batches(recipe, data_dir))
    batches = images // recipe.batch_size
    rates = [_rate(iterator, batches, recipe.batch_size) for _ in range(rounds)]
    return round(statistics.median(rates), 1)


def waiting_share(recipe, data_dir, steps):
    """Share of the time of training steps that is spent waiting for the batch."""
    import tensorflow as tf

    from train import strategies
    from train.classification import datasets, input_pipeline, optimizers, task
    from train.classification.model import create_model

    data = datasets.load_data(recipe, data_dir)
    model = create_model(recipe, len(data.class_names))
    variables = list(model.trainable_variables)
    optimizer = optimizers.create_optimizer(recipe, 1000, variables)
    strategy = strategies.make_strategy("one_device")
    step = tf.Variable(0, dtype=tf.int64)
    batches = input_pipeline.train_batches(data.train, model.preprocessing, recipe)
    trainer = task.Trainer(model, variables, optimizer, recipe, strategy, batches, step)
    update = tf.function(trainer._update)
    iterator = iter(batches)
    update(next(iterator))
    waiting = total = 0.0
    for _ in range(steps):
        start = time.perf_counter()
        batch = next(iterator)
        got = time.perf_counter()
        float(update(batch)["loss"])
        waiting += got - start
        total += time.perf_counter() - start
    return {
        "images_per_second": round(steps * recipe.batch_size / total, 1),
        "waiting_share": round(waiting / total, 4),
    }


def measure_training(data_dir, recipe, title, images, steps):
    """Images/s of a recipe's pipeline, and the share of a training step spent waiting for it."""
    return {
        "data": title,
        "model": recipe.model,
        "pipeline_images_per_second": images_per_second(recipe, data_dir, images),
        **{f"step_{k}": v for k, v in waiting_share(recipe, data_dir, steps).items()},
    }


def table(found):
    """The lines of two Markdown tables: against Keras's pipelines, and beside a training step."""
    lines = ["| pipeline | images/s | ours over it |", "|---|---|---|"]
    names = {
        "ours": "ours",
        "image_dataset_from_directory": "`image_dataset_from_directory`, then the same",
        "its_files": "its list of files, then the same",
        "decoding": "decoding whole images, and nothing else",
    }
    for row in found:
        for name, title in names.items() if "ratios" in row else ():
            rate = row["images_per_second"][name]["median"]
            cells = [title, f"{rate:,.0f}", ratio_cell(row, f"ours/{name}")]
            lines.append("| " + " | ".join(cells) + " |")
    titles = "data | pipeline alone, images/s | training step, images/s | of it waiting for input"
    lines += ["", f"| {titles} |", "|---|---|---|---|"]
    for row in found:
        if "ratios" not in row:
            waiting = f"{100 * row['step_waiting_share']:.2f} %"
            step = f"{row['model']}, {row['step_images_per_second']:,.0f}"
            cells = [row["data"], f"{row['pipeline_images_per_second']:,.0f}", step, waiting]
            lines.append("| " + " | ".join(cells) + " |")
    return lines


def rows(coco, cifar10, scratch):
    """Yields the rows, each a dict."""
    from train.classification.recipes import get_recipe

    contents = encode(coco_photographs(coco) if coco else drawn_photographs())
    kib = sum(map(len, contents)) / len(contents) / 1024
    title = f"{len(contents):,} JPEGs of 500 x 375, {kib:.0f} KiB each"
    write_folders(contents, scratch / "folder")
    write_records(contents, scratch / "tfrecord")
    yield {"data": title, **measure_peers(scratch / "folder")}
    for kind in ("folder", "tfrecord"):
        recipe = imagenet_recipe(kind)
        yield measure_training(scratch / kind, recipe, f"{title}, {kind}", TURN_IMAGES, 8)
    for options in ((), ("cache=true",)) if cifar10 else ():
        recipe = get_recipe("cifar10_resnet20", options)
        title = "CIFAR-10, folder" + ", cached" * bool(options)
        yield measure_training(cifar10, recipe, title, 12_800, 30)


def main(argv=None):
    """Prints the rows as JSON lines, and writes them where `--output` says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.input",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--cifar10", help="folder with train/<class>/*.jpg and test/<class>/*.jpg")
    parser.add_argument("--coco", help="tar file with JPEGs of COCO")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    parser.add_argument("--document", type=pathlib.Path, help="Markdown file for the table")
    args = parser.parse_args(argv)
    found = []
    with tempfile.TemporaryDirectory() as scratch:
        for row in rows(args.coco, args.cifar10, pathlib.Path(scratch)):
            found.append({**row, "environment": measure.environment()})
            print(json.dumps(found[-1]), flush=True)
            if args.output:
                args.output.parent.mkdir(parents=True, exist_ok=True)
                args.output.write_text(json.dumps(found, indent=2) + "\n")
    if args.document:
        args.document.write_text(fill_in(args.document.read_text(), {"input": table(found)}))


if __name__ == "__main__":
    main()
