"""What a finished run leaves in its workdir, and what it shows on the terminal."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import tensorflow as tf
from rich.markup import escape
from rich.table import Table

import dgnet_keras as dg
from dgnet_keras.decoding import JPEG_HEADER, PNG_HEADER, decode_image
from dgnet_keras.serving.cards import training_record
from dgnet_keras.serving.export import write_saved_model
from dgnet_keras.visualize import plot_adjacency_by_class
from train.classification import input_pipeline
from train.classification.calibration import calibrate_run
from train.loop import orbit_log
from train.weights import weights_sha256
from train.workdir import atomic_file, read_json, write_json

NUM_SAMPLES = 5
CANDIDATES = 25
MAX_FIGURE_IMAGES = 1000


def write_results(run, workdir, findings=()):
    """Writes model, export, figures and, last, `results.json`; returns what is in that file.

    Args:
        run: a `ClassificationRun` that has ended.
        workdir: its folder.
        findings: sentences about its data.
    """
    model, metrics = run.model, run.history[-1]
    calibration = {}
    if run.recipe.macs_target is not None:
        with orbit_log(workdir / "train.log"):
            calibration = calibrate_run(run)
        metrics = {**metrics, **calibration.pop("metrics")}
    best = max(run.history, key=lambda row: row["accuracy"])
    with atomic_file(workdir / "model.keras") as scratch:
        model.save(scratch)
    if model.adjacency_outputs:
        plot_test_adjacency(run, workdir / "adjacency.png")
    split = "validation" if run.recipe.validation else "test"
    plot_history(run.history, workdir / "history.png", split)
    counted = dg.count_macs(model)
    results = {
        "test_accuracy": metrics["accuracy"],
        "test_loss": metrics["loss"],
        "test_images": int(metrics["examples"]),
        "split": split,
        "best_accuracy": best["accuracy"],
        "best_epoch": best["epoch"],
        "skipped_images": sorted(run.skipped.names),
        "unused_files": len(run.data.unused),
        "data_findings": list(findings),
        "steps": run.step,
        "epochs": run.recipe.epochs,
        "parameters": counted["parameters"],
        "macs": counted["macs"],
        "preprocessing": model.preprocessing.to_config(),
        "seconds": round(float(run.train_seconds.numpy()), 1),
        "weights_sha256": weights_sha256(model),
    }
    if "share_of_macs" in metrics:
        results["share_of_macs"] = metrics["share_of_macs"]
    if calibration:
        results["calibration"] = calibration
    if "router_health" in metrics:
        results["router_health"] = list(metrics["router_health"].values())
    if not (workdir / "export" / "1").exists():
        config = read_json(workdir / "config.json")
        write_saved_model(
            model,
            workdir / "export",
            version=1,
            labels=list(run.data.class_names),
            training=training_record(config, results),
        )
    write_json(workdir / "unused_files.json", run.data.unused, indent=None)
    write_json(workdir / "results.json", results)
    return results


def plot_test_adjacency(run, path):
    """Draws mean edge weight and open rate by class, over images of the test split."""
    model, split = run.model, run.data.test
    batches = input_pipeline.test_batches(
        split.sample(MAX_FIGURE_IMAGES), model.preprocessing, 100, skipped=run.skipped
    )
    images, labels = [], []
    for batch in batches:
        kept = batch["weight"].numpy() > 0
        images.append(batch["image"].numpy()[kept])
        labels.append(batch["label"].numpy()[kept])
    adjacency = dg.adjacency(model, np.concatenate(images))
    figure = plot_adjacency_by_class(
        adjacency, np.concatenate(labels), class_names=run.data.class_names
    )
    figure.savefig(path, dpi=130)


def plot_history(history, path, split="test"):
    """Draws loss, accuracy and, for networks with edges, open edges or multiply-adds by epoch."""
    from matplotlib.figure import Figure

    stages = [key for key in history[-1] if key.startswith("open_rate/")]
    title = "open edges (share)"
    if "share_of_macs" in history[-1]:  # with a budget that is what training is about
        stages, title = ["share_of_macs"], "share of multiply-adds"
    figure = Figure(figsize=(9 + 3 * bool(stages), 3), layout="constrained")
    axes = figure.subplots(1, 2 + bool(stages))
    epochs = [row["epoch"] for row in history]
    for axis, name in zip(axes, ("loss", "accuracy"), strict=False):
        axis.plot(epochs, [row.get(f"train_{name}") for row in history], "--", label="training")
        axis.plot(epochs, [row[name] for row in history], marker=".", label=split)
        axis.set(xlabel="epoch", title=name)
        axis.legend()
    for key in stages:
        label = key.partition("/")[2] or split
        axes[2].plot(epochs, [row.get(key) for row in history], marker=".", label=label)
    if stages:
        axes[2].set(xlabel="epoch", title=title, ylim=(-0.05, 1.05))
        axes[2].legend()
    for axis in axes:
        axis.xaxis.get_major_locator().set_params(integer=True)
    figure.savefig(path, dpi=130)


def predict_samples(data, workdir):
    """Predicts a few held-out images with the SavedModel, in a process without Keras.

    The images are left in `samples/`, to try other tools on.

    Args:
        data: `ImageData`.
        workdir: of a run that has left its export.

    Returns:
        List of dicts: `file`, `true`, `label` (predicted), `probability`.
    """
    folder = workdir / "samples"
    folder.mkdir(exist_ok=True)
    names, files = [], []
    split = data.test.sample(CANDIDATES)
    content = _decodable(split)
    chosen = list(content)[:: max(1, len(content) // NUM_SAMPLES)][:NUM_SAMPLES]
    for k, i in enumerate(chosen):
        names.append(data.class_names[split.labels[i]])
        suffix = ".jpg" if content[i].startswith(JPEG_HEADER) else ".png"
        files.append(folder / f"{k}_{names[-1].replace('/', '_')}{suffix}")
        files[-1].write_bytes(content[i])
    if not files:
        return []
    script = pathlib.Path(__file__).with_name("predict_saved_model.py")
    answer = subprocess.run(
        [sys.executable, script, workdir / "export" / "1", *files],
        env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "3"},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    rows = [json.loads(line) for line in answer.stdout.splitlines()]
    return [{"true": name, **row} for name, row in zip(names, rows, strict=True)]


def _decodable(split):
    """Dict of index to JPEG or PNG, of those images of a `Split` that can be decoded."""
    found = {}
    split = split.in_memory()
    for i in range(len(split)):
        if split.paths is None:
            found[i] = tf.io.encode_png(split.images[i]).numpy()
            continue
        try:
            pixels = decode_image(split.encoded[i], 3)
        except tf.errors.OpError:
            continue
        content = split.encoded[i]
        if not content.startswith((JPEG_HEADER, PNG_HEADER)):
            content = tf.io.encode_png(pixels).numpy()
        found[i] = content
    return found


def samples_table(rows):
    """A table of `predict_samples`; long names are wrapped, not cut."""
    table = Table(title="Held-out images in samples/, predicted from the SavedModel without Keras")
    for column in ("image", "true", "predicted"):
        table.add_column(column, overflow="fold")
    table.add_column("probability", justify="right")
    for row in rows:
        name = pathlib.Path(row["file"]).name  # all are in one folder
        shown = map(escape, (name, row["true"], row["label"]))
        table.add_row(*shown, f"{row['probability']:.3f}")
    return table
