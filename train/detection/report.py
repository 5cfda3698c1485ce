"""What a finished detection run leaves in its workdir, and what it shows."""

import numpy as np
from rich.markup import escape
from rich.table import Table

import dgnet_keras as dg
from train.weights import variables_sha256
from train.workdir import write_json

# How the figures of an evaluation begin that are results.
FIGURES = ("AP", "AR", "mask_A", "share_of_macs")


def write_results(run, workdir):
    """Writes the figures' picture and, last, `results.json`; returns what is in that file."""
    plot_history(run.history, workdir / "history.png")
    last = run.history[-1]
    height, width = run.recipe.image_size
    counted = dg.count_macs(run.backbone.backbone, image_size=(height, width))
    results = {
        **{name: last[name] for name in last if name.startswith(FIGURES)},
        "validation_images": len(run.data.validation.images),
        "steps": run.step,
        "epochs": run.recipe.epochs,
        "parameters": int(sum(np.prod(v.shape) for v in run.model.trainable_weights)),
        "backbone_parameters": counted["parameters"],
        "backbone_macs": counted["macs"],
        "seconds": round(float(run.train_seconds.numpy()), 1),
        "weights_sha256": variables_sha256(run.weights_by_name),
        "classes": last.get("classes", []),
    }
    write_json(workdir / "results.json", results)
    return results


def plot_history(history, path):
    """Draws the loss and the average precisions over the epochs."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 3), layout="constrained")
    left, right = figure.subplots(1, 2)
    epochs = [row["epoch"] for row in history]
    left.plot(epochs, [row.get("train_training_loss") for row in history], marker=".")
    left.set(xlabel="epoch", title="training loss")
    for name in [n for n in ("AP", "AP50", "AP75", "mask_AP", "mask_AP50") if n in history[-1]]:
        right.plot(epochs, [row[name] for row in history], marker=".", label=name)
    right.set(xlabel="epoch", title="validation", ylim=(0, None))
    right.legend()
    figure.savefig(path, dpi=130)


def classes_table(classes):
    """A table of the figures of each class, the best first; see `evaluator.class_figures`."""
    table = Table(title="Classes of the validation images")
    table.add_column("class", overflow="fold")
    figures = [name for name in ("AP", "AP50", "mask_AP", "mask_AP50") if name in classes[0]]
    for column in ("objects", *figures):
        table.add_column(column, justify="right")
    for row in sorted(classes, key=lambda row: -row["AP"]):
        shown = [f"{row[name]:.4f}" if row[name] >= 0 else "-" for name in figures]
        table.add_row(escape(row["name"]), f"{row['objects']:,}", *shown)
    return table
