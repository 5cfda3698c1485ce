"""What `adapt` found, for people: a table, a picture and a verdict."""

import math

from rich.table import Table

from dgnet_keras.visualize import plot_dial

MUCH = 3.0  # points of accuracy


def verdict(rows, images):
    """What the accuracies of `adapt` come to, in a sentence or two.

    Args:
        rows: what `adapt` returns.
        images: number of held-out images that both networks were evaluated on.
    """
    static, paths = (rows[name]["test_accuracy"] for name in ("static", "paths"))
    lost = 100 * (static - paths)
    # Of two shares of as many images, taken as independent, which is at most too much.
    unsure = 196 * math.sqrt((static * (1 - static) + paths * (1 - paths)) / images)
    share = rows["paths"]["share_of_macs"]
    said = f"The paths lose {lost:.1f} points at {share:.2f} of the multiply-adds"
    if lost <= 0:
        said = f"The paths lose nothing at {share:.2f} of the multiply-adds"
    said += f" (give or take {unsure:.1f} with {images} held-out images)."
    if lost > max(unsure, MUCH):
        said += " That is much: try more images, more --epochs, or a higher --macs."
    return said


def table(rows, images):
    """A table of what `adapt` returns."""
    shown = Table(
        title=f"{images} held-out images; times on this machine, in turns",
        caption="cascade: paths, and static where these are in doubt; at: other thresholds",
    )
    static, paths = rows["static"], rows["paths"]
    sizes = list(static["milliseconds"])
    shown.add_column("network")
    for column in ("accuracy", "share of MACs", *(f"ms, batch {size}" for size in sizes)):
        shown.add_column(column, justify="right")
    figures = {name: [f"{row['milliseconds'][s]:.1f}" for s in sizes] for name, row in rows.items()}
    for name in ("paths", "cascade"):
        for k, size in enumerate(sizes):
            ratio = rows[name]["milliseconds"][size] / static["milliseconds"][size]
            figures[name][k] += f" (x {ratio:.2f})"
    for name, row in rows.items():
        accuracy, share = f"{row['test_accuracy']:.4f}", f"{row['share_of_macs']:.3f}"
        shown.add_row(name, accuracy, share, *figures[name])
    for point in paths["dial"]:
        if point["threshold"] != paths["threshold"]:
            name = f"paths at {point['threshold']:.2f}"
            shown.add_row(name, f"{point['accuracy']:.4f}", f"{point['share_of_macs']:.3f}")
    return shown


def picture(rows):
    """A picture of what `adapt` returns, a `Figure`: accuracy against multiply-adds."""
    static, paths, cascade = (rows[name] for name in ("static", "paths", "cascade"))
    figure = plot_dial(
        [point["share_of_macs"] for point in paths["dial"]],
        [point["accuracy"] for point in paths["dial"]],
        chosen=(paths["share_of_macs"], paths["test_accuracy"]),
        static_accuracy=static["test_accuracy"],
    )
    (axis,) = figure.axes
    x, y = [cascade["share_of_macs"]], [100 * cascade["test_accuracy"]]
    axis.plot(x, y, "s", ms=8, color="C2", label="cascade")
    axis.autoscale(axis="y")
    axis.legend(fontsize=8)
    return figure
