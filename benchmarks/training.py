"""The training engine against `model.fit`.

python -m benchmarks.training [--output FILE]

The same training steps of `resnet20_cifar` (dynamic, batch 128, float32, SGD with
Nesterov momentum, metrics on) from the same batches in memory, through the recipes' `Trainer` and
through `model.fit`, in turns in one process; medians of images/s and the ratio. Some rounds of
`fit` idle here (5.11 s of wall clock, whatever the round, for 3 s of computing): the ratio of the
fastest rounds leaves that out.
"""

import argparse
import dataclasses
import json
import os
import pathlib
import statistics
import time

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

STEPS, ROUNDS = 10, 9


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


def main(argv=None):
    """Prints the figures as JSON, and writes them where `--output` says."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.training",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--output", type=pathlib.Path, help="JSON file to write")
    args = parser.parse_args(argv)
    result = measure_engine()
    print(json.dumps(result))
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
