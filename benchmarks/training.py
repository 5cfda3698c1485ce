"""The training engine against `model.fit`, and the input pipeline on its own.

python -m benchmarks.training engine [--output FILE]
python -m benchmarks.training input --cifar10 DIR --coco TAR [--output FILE]

`engine`: the same training steps of `resnet20_cifar` (dynamic, batch 128, float32, SGD with
Nesterov momentum, metrics on) from the same batches in memory, through the recipes' `Trainer` and
through `model.fit`, in turns in one process; medians of images/s and the ratio. Some rounds of
`fit` idle here (5.11 s of wall clock, whatever the round, for 3 s of computing): the ratio of the
fastest rounds leaves that out.

`input`: images/s of the training pipeline alone, on the class folders of CIFAR-10 and on 1,000
JPEGs of ImageNet's size (500 x 375, made here from COCO's), as class folders and as TFRecords; and
the share of a training step's time that is spent waiting for its batch.
"""

import argparse
import dataclasses
import io
import json
import os
import pathlib
import statistics
import tarfile
import tempfile
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

STEPS, ROUNDS = 10, 9
IMAGENET_SIZE = (500, 375)
JPEGS = 1000
RECORD_FILES = 8


def engine_and_fit():
    """The two ways of training `STEPS` steps: functions without arguments, and the batch size."""
    import keras
    import numpy as np
    import tensorflow as tf

    from train import strategies
    from train.classification import datasets, input_pipeline, optimizers, task
    from train.classification.model import create_model
    from train.classification.recipes import get_recipe

    augmented = get_recipe("cifar10_resnet20")
    recipe = dataclasses.replace(augmented, random_flip=False, random_shift=0, weight_decay=0.0)
    rng = np.random.default_rng(0)
    split = datasets.Split(
        rng.integers(0, 10, 1280), images=rng.integers(0, 256, (1280, 32, 32, 3), "uint8")
    )
    ours, theirs = (create_model(recipe, 10) for _ in range(2))
    ready = list(input_pipeline.train_batches(split, ours.preprocessing, recipe).take(STEPS))
    columns = {key: tf.stack([batch[key] for batch in ready]) for key in ready[0]}
    batches = tf.data.Dataset.from_tensor_slices(columns).repeat().prefetch(2)
    variables = list(ours.trainable_variables)
    trainer = task.Trainer(
        ours,
        variables,
        optimizers.create_optimizer(recipe, 100, variables),
        recipe,
        strategies.make_strategy("one_device"),
        batches,
        tf.Variable(0, dtype=tf.int64),
    )
    theirs.compile(
        optimizers.create_optimizer(recipe, 100, list(theirs.trainable_variables)),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        metrics=["accuracy"],
    )
    triples = batches.map(lambda b: (b["image"], b["label"], b["weight"]))

    # As a progress bar would: without any callback more rounds of `fit` idled (see above).
    watching = keras.callbacks.LambdaCallback(on_train_batch_end=lambda batch, logs: None)

    def through_engine():
        trainer.train(tf.constant(STEPS))

    def through_fit():
        theirs.fit(triples, steps_per_epoch=STEPS, epochs=1, verbose=0, callbacks=[watching])

    return {"engine": through_engine, "fit": through_fit}, recipe.batch_size


def measure_engine():
    """Images/s of both ways of training, and their ratio."""
    ways, batch_size = engine_and_fit()
    times = {name: [] for name in ways}
    for i in range(ROUNDS + 1):
        for name, run in ways.items():
            start = time.perf_counter()
            run()
            if i:  # the first traces
                times[name].append(time.perf_counter() - start)
    rates = {k: STEPS * batch_size / statistics.median(v) for k, v in times.items()}
    ratios = [f / e for e, f in zip(times["engine"], times["fit"], strict=True)]
    return {
        "engine_images_per_second": round(rates["engine"], 1),
        "fit_images_per_second": round(rates["fit"], 1),
        "ratio_of_medians": round(rates["engine"] / rates["fit"], 3),
        "ratio_of_fastest": round(min(times["fit"]) / min(times["engine"]), 3),
        "ratios": [round(r, 3) for r in ratios],
        "seconds": {k: [round(t, 2) for t in v] for k, v in times.items()},
    }


def make_imagenet_like(coco_tar, folder):
    """1,000 JPEGs of 500 x 375 from COCO's images, in class folders and in TFRecords."""
    import tensorflow as tf
    from PIL import Image

    with tarfile.open(coco_tar) as archive:
        sources = [
            Image.open(io.BytesIO(archive.extractfile(m).read())).convert("RGB")
            for m in archive
            if m.name.endswith(".jpg") and not pathlib.PurePath(m.name).name.startswith(".")
        ]
    contents = []
    for k in range(JPEGS):
        image = sources[k % len(sources)]
        width, height = image.size
        inset = 4 * (k // len(sources))  # another part of it each time
        image = image.crop((inset, inset, width - inset, height - inset)).resize(IMAGENET_SIZE)
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=92)
        contents.append(buffer.getvalue())
    for part in ("train", "validation"):
        (folder / "folder" / part / "a").mkdir(parents=True)
        for k, content in enumerate(contents):
            (folder / "folder" / part / "a" / f"{k}.jpg").write_bytes(content)
        (folder / "tfrecord").mkdir(exist_ok=True)
        for shard in range(RECORD_FILES):
            name = folder / "tfrecord" / f"{part}-{shard:05d}-of-{RECORD_FILES:05d}"
            with tf.io.TFRecordWriter(str(name)) as writer:
                for content in contents[shard::RECORD_FILES]:
                    features = {
                        "image/encoded": tf.train.Feature(
                            bytes_list=tf.train.BytesList(value=[content])
                        ),
                        "image/class/label": tf.train.Feature(
                            int64_list=tf.train.Int64List(value=[1])
                        ),
                    }
                    example = tf.train.Example(features=tf.train.Features(feature=features))
                    writer.write(example.SerializeToString())
    return sum(map(len, contents)) / JPEGS / 1024


def images_per_second(recipe, data_dir, images, rounds=3):
    """Median over rounds of the training pipeline alone, after a first batch."""
    from train.classification import datasets, input_pipeline
    from train.classification.model import preprocessing_of

    data = datasets.load_data(recipe, data_dir)
    preprocessing = preprocessing_of(recipe)
    iterator = iter(input_pipeline.train_batches(data.train, preprocessing, recipe))
    next(iterator)
    rates = []
    for _ in range(rounds):
        start = time.perf_counter()
        for _ in range(images // recipe.batch_size):
            next(iterator)
        count = images // recipe.batch_size * recipe.batch_size
        rates.append(count / (time.perf_counter() - start))
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


def measure_input(cifar10, coco_tar):
    """Rows of the table: pipeline, images/s, and the share of a training step spent waiting."""
    from train.classification.recipes import get_recipe

    rows = []
    for options in ((), ("cache=true",)):
        recipe = get_recipe("cifar10_resnet20", options)
        rows.append(
            {
                "data": "CIFAR-10, folder" + ", cached" * bool(options),
                "model": recipe.model,
                "pipeline_images_per_second": images_per_second(recipe, cifar10, 12_800),
                **{f"step_{k}": v for k, v in waiting_share(recipe, cifar10, 30).items()},
            }
        )
        print(json.dumps(rows[-1]), flush=True)
    with tempfile.TemporaryDirectory() as scratch:
        scratch = pathlib.Path(scratch)
        kib = make_imagenet_like(coco_tar, scratch)
        for kind, model in (("folder", "resnet18"), ("tfrecord", "resnet18")):
            common = [f"dataset={kind}", f"model={model}", "batch_size=32", "num_classes=1"]
            recipe = get_recipe("imagenet_resnet50", [*common, "dtype=float32"])
            rows.append(
                {
                    "data": f"1,000 JPEGs of 500 x 375, {kib:.0f} KiB each, {kind}",
                    "model": model,
                    "pipeline_images_per_second": images_per_second(recipe, scratch / kind, 992),
                    **{f"step_{k}": v for k, v in waiting_share(recipe, scratch / kind, 8).items()},
                }
            )
            print(json.dumps(rows[-1]), flush=True)
    return rows


def main(argv=None):
    """Prints the table as JSON, and writes it where `--output` says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("what", choices=["engine", "input"])
    parser.add_argument("--cifar10", help="folder with train/<class>/*.jpg and test/<class>/*.jpg")
    parser.add_argument("--coco", help="tar file with JPEGs of COCO")
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    if args.what == "engine":
        result = measure_engine()
        print(json.dumps(result))
    else:
        if not args.cifar10 or not args.coco:
            parser.error("input needs --cifar10 and --coco")
        result = measure_input(args.cifar10, args.coco)
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
