"""From a trained static network to one that computes less: paths from it, and a table of both."""

import dataclasses
import math
import os
import pathlib
import shutil
import statistics

import keras
import numpy as np
import tensorflow as tf
from rich.console import Console

import dgnet_keras as dg
from dgnet_keras.weights import HEAD
from train.classification import input_pipeline
from train.classification.adapted import picture, table, verdict
from train.classification.datasets import load_data
from train.classification.model import create_model
from train.classification.recipes import RECIPES, get_recipe
from train.classification.run import configure, train
from train.classification.sources import check_static, find_source
from train.turns import in_turns
from train.weights import load_initial_weights
from train.workdir import atomic_file, read_json, write_json

# The settings that were measured.
RECIPE = RECIPES["cifar10_resnet56_path"]
SMALL = 64  # pixels: images up to this are shifted, larger ones cropped
FEWEST_STEPS, SMALLEST_BATCH = 50, 16  # of an epoch; in images
FEWEST_EPOCHS, FEWEST_UPDATES = 10, 1500  # of the paths; see docs/paths.md for what fewer gave
BY_CHANCE = 1.2  # times the accuracy of guessing
TIMED = (1, 32)  # images a call
TURNS, SECONDS = 60, 30
# What `overrides` cannot say.
_OWN = {
    "macs_target": "The share of multiply-adds is said by `macs` (--macs)",
    "model": "The variant is said by `model` (--model), where the network does not say it",
    "distill_from": "The paths learn from the network that they are made of",
    "distill_model": "The paths learn from the network that they are made of",
}
AGAIN = 0.1  # of the images, which the static network is asked about too


def adapt(
    source,
    data_dir,
    workdir,
    *,
    macs=0.6,
    model=None,
    epochs=None,
    fit_epochs=None,
    overrides=(),
    strategy="one_device",
):
    """Makes paths of a trained static network, which compute a share of its multiply-adds.

    The paths learn from the network and from labels. Where the data has other classes than the
    network, or where `fit_epochs` says so, the static network itself is fitted to the data first.
    The same call goes on with what was stopped.

    Args:
        source: the trained network, see `sources.find_source`.
        data_dir: folder of images, see `datasets.load_data`.
        workdir: folder for the runs, `paths` and, where the static network is fitted, `static`;
            and for `adapt.json` and `adapt.png`.
        macs: share of the static network's multiply-adds to compute, in (0, 1].
        model: the network's variant, where it does not say so itself.
        epochs: of the paths; None means 10, or more where the images are so few that these would
            be under 1,500 updates.
        fit_epochs: of the static network; None means none, or `epochs` where classes differ.
        overrides: `key=value` strings, changes to the recipe.
        strategy: see `train.strategies.make_strategy`.

    Returns:
        Dict, the content of `adapt.json`: of `"static"`, of `"paths"` and of both as a `"cascade"`
        (see `dgnet_keras.cascade`) a dict of `test_accuracy`, `share_of_macs`, and
        `milliseconds`, the median time of a call, by its number of images; of `"cascade"` also
        `again`, the share of the held-out images that the static network is asked about, for which
        their labels are not used; of `"paths"` also `threshold`, and `dial`, what other
        thresholds give, a list of dicts of `threshold`, `share_of_macs` and `accuracy`.

    Raises:
        ValueError: also if the network knows no more of the data than one that guesses.
    """
    workdir, console = pathlib.Path(workdir), Console()
    found = find_source(source, model)
    check_static(found, source)
    data, recipe = _prepared(found, data_dir, macs, epochs, overrides)
    create_model(recipe, len(data.class_names))  # what cannot be is said before anything is trained
    configure(recipe)
    tf.get_logger().setLevel("ERROR")  # it takes functions of several models for one traced anew
    options = {"data_dir": data_dir, "strategy": strategy, "summary": False}
    static = _static(found, source, recipe, data, workdir / "static", fit_epochs, console, options)
    network, weights, accuracy = static
    console.rule(f"Paths at {macs} of its multiply-adds")
    recipe = dataclasses.replace(recipe, distill_from=weights)
    folder = workdir / "paths"
    results = train(recipe, folder, init_from=weights, **options)
    if not results:  # of a worker that is not the chief
        return {}
    paths = keras.models.load_model(folder / "model.keras", compile=False)
    both, again = _cascade(paths, network, data.test)
    _write_cascade(both, workdir / "cascade", data.class_names)
    times = milliseconds({"static": network, "paths": paths, "cascade": both}, data.test)
    dial = results["calibration"]["curve"]
    share = results["share_of_macs"]
    rows = {
        "static": {"test_accuracy": accuracy, "share_of_macs": 1.0},
        "paths": {"test_accuracy": results["test_accuracy"], "share_of_macs": share},
        "cascade": {"test_accuracy": evaluate(both, data.test), "share_of_macs": share + again},
    }
    rows = {name: {**row, "milliseconds": times[name]} for name, row in rows.items()}
    rows["cascade"] |= {"again": again}
    rows["paths"] |= {"threshold": results["calibration"]["threshold"], "dial": dial}
    write_json(workdir / "adapt.json", rows)
    picture(rows).savefig(workdir / "adapt.png", dpi=130)
    console.print(table(rows, len(data.test)))
    console.print(
        f"{verdict(rows, len(data.test))}\nSavedModel of the paths: {folder / 'export'}\n"
        "Cascade, the paths and the static network "
        f"for the {again:.0%} of these images that they are least sure of: "
        f"{workdir / 'cascade' / 'export'}",
        markup=False,
        highlight=False,
    )
    return rows


def _static(found, source, recipe, data, folder, fit_epochs, console, options):
    """The static network, where its weights lie, and its accuracy; fitted to the data if asked."""
    weights = found.weights
    static = dataclasses.replace(recipe, wiring="chain", macs_target=None)
    network, is_fitted = _load(static, found, weights, data)
    if fit_epochs is None:
        fit_epochs = 0 if is_fitted else recipe.epochs
    if not fit_epochs and not is_fitted:
        raise ValueError(
            f"The network must be fitted to the classes of {options['data_dir']}, which are others "
            f"than those of {source}. Received: fit_epochs={fit_epochs}"
        )
    if fit_epochs:
        paths = read_json(folder.parent / "paths" / "config.json", {})
        if paths and os.path.realpath(str(paths.get("init_from"))) != os.path.realpath(folder):
            raise ValueError(
                f"{folder.parent} holds paths of a network that was not fitted to these images: "
                f"choose another workdir. Received: fit_epochs={fit_epochs}"
            )
        console.rule(f"The static network, fitted to these images in {fit_epochs} epochs")
        static = dataclasses.replace(
            static,
            epochs=fit_epochs,
            warmup_epochs=recipe.warmup_epochs * fit_epochs / recipe.epochs,
        )
        train(static, folder, init_from=weights, **options)
        weights = str(folder)
        network, _ = _load(static, found, weights, data)
    accuracy = evaluate(network, data.test)
    if not fit_epochs and accuracy < BY_CHANCE / len(data.class_names):
        raise ValueError(
            f"{source} is right for {100 * accuracy:.1f} % of the held-out images, which is no "
            "more than by guessing. Its classes must be those of the folders, in the order of "
            f"their names: {', '.join(data.class_names[:5])}, ... A network of other classes is "
            "fitted to these first with fit_epochs"
        )
    return network, weights, accuracy


def _prepared(found, data_dir, macs, epochs, overrides):
    """The data, and the recipe of the paths for it."""
    for item in overrides:
        key = item.partition("=")[0].partition(".")[0]
        if key in _OWN:
            raise ValueError(f"{_OWN[key]}. Received: --set {item}")
    shape = found.settings.get("input_shape") or _usual_shape(found.model)
    large = min(shape[:2]) > SMALL
    changes = {
        **found.settings,
        "model": found.model,
        "model_overrides": found.model_overrides,
        "input_shape": shape,
        "macs_target": macs,
        "random_shift": 0 if large else max(1, min(shape[:2]) // 8),
        "random_resized_crop": 0.35 if large else 0.0,
        "cache": False,
    }
    base = dataclasses.replace(RECIPE, **changes)
    recipe = get_recipe("adapt", overrides, {"adapt": base})
    data = load_data(recipe, data_dir)
    keys = {item.partition("=")[0] for item in overrides}
    chosen = {key: getattr(recipe, key) for key in ("epochs", "batch_size") if key in keys}
    changes = schedule(base, len(data.train), **{"epochs": epochs, **chosen})
    base = dataclasses.replace(base, **changes)
    return data, get_recipe("adapt", overrides, {"adapt": base})


def schedule(recipe, images, epochs=None, batch_size=None):
    """Keys of a recipe that decide on its updates: smaller, and more of them, where images are few.

    Args:
        recipe: that is right for many images.
        images: to train on.
        epochs: number of them, or None.
        batch_size: one that was chosen, for the recipe's rate, or None.

    Returns:
        Dict.
    """
    changes = {"batch_size": batch_size or recipe.batch_size, "learning_rate": recipe.learning_rate}
    if batch_size is None:
        while (size := changes["batch_size"]) > SMALLEST_BATCH and images < FEWEST_STEPS * size:
            changes["batch_size"] //= 2
        changes["learning_rate"] *= changes["batch_size"] / recipe.batch_size
    steps = max(1, images // changes["batch_size"])
    are_few = FEWEST_EPOCHS * steps < FEWEST_UPDATES
    if epochs is None:
        epochs = math.ceil(FEWEST_UPDATES / steps) if are_few else FEWEST_EPOCHS
    if are_few:  # at the full rate the first updates ruin a network
        changes["warmup_epochs"] = epochs / 10
    every = max(1, epochs // 10)
    return {**changes, "epochs": epochs, "evaluation_epochs": every, "checkpoint_epochs": every}


def _usual_shape(model):
    from dgnet_keras.variants import family_of

    size = family_of(model).variants[model].default_image_size
    return size, size, 3


def _load(recipe, found, weights, data):
    """A static network with its weights, and whether its classes are those of the data."""
    network = create_model(recipe, len(data.class_names))
    loaded = load_initial_weights(network, weights, "SOURCE")
    names = found.class_names or data.class_names
    return network, HEAD[0] in loaded and tuple(names) == tuple(data.class_names)


def evaluate(model, split, batch_size=128):
    """Accuracy of a classifier on a split, of the images that can be decoded."""
    right = count = 0.0
    for batch in input_pipeline.test_batches(split, model.preprocessing, batch_size):
        found = model.predict_on_batch(batch["image"]).argmax(axis=1)
        weight = batch["weight"].numpy()
        right += (weight * (found == batch["label"].numpy())).sum()
        count += weight.sum()
    return float(right / count)


def _cascade(paths, static, split):
    """Both as a cascade, and the share of the images that goes through both."""
    batches = input_pipeline.test_batches(split, paths.preprocessing, 128)
    batches = [batch["image"].numpy()[batch["weight"].numpy() > 0] for batch in batches]
    model = dg.cascade(paths, static, np.concatenate(batches), AGAIN)
    doubted = [model.probabilities(batch)[1].numpy() for batch in batches if len(batch)]
    return model, float(np.concatenate(doubted).mean())


def _write_cascade(model, folder, class_names):
    """Leaves `model.keras` and a SavedModel, as a run does; in place of those of other paths."""
    folder.mkdir(exist_ok=True)
    with atomic_file(folder / "model.keras") as scratch:
        model.save(scratch)
    write_json(folder / "config.json", {"data": {"class_names": list(class_names)}})
    shutil.rmtree(folder / "export", ignore_errors=True)
    dg.export_saved_model(model, folder / "export", labels=list(class_names))


def milliseconds(models, split):
    """Median times of calls, in turns, of images of a split that no two calls in a row share.

    Args:
        models: dict of name to classifier, of equal preprocessing.
        split: whose images are taken, over and over.

    Returns:
        Dict of name to a dict of the number of images in a call, as a string, to milliseconds.
    """
    some = split.sample(256)
    (first, *_) = models.values()
    batches = input_pipeline.test_batches(some, first.preprocessing, 32)
    images = np.concatenate([batch["image"].numpy() for batch in batches])
    times = {name: {} for name in models}
    for size in TIMED:
        steps = {name: _calls(model, images, size) for name, model in models.items()}
        taken = in_turns(steps, dict.fromkeys(steps, TURNS), SECONDS)
        for name, seconds in taken.items():
            times[name][str(size)] = round(1000 * statistics.median(seconds), 3)
    return times


def _calls(model, images, size):
    """A function that classifies the next images, `size` of them."""
    spec = tf.TensorSpec((size, *images.shape[1:]), tf.float32)
    answer = tf.function(
        lambda x: model(x, training=False), input_signature=[spec], autograph=False
    )
    starts = iter(range(0, 10**9, size))

    def call():
        at = (next(starts) + np.arange(size)) % len(images)
        answer(images[at]).numpy()

    return call
