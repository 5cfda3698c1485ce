"""What paths are for, on scikit-learn's digits: a static network, then paths from it.

python -m train.demo --workdir runs/digits
"""

import argparse
import dataclasses
import os
import pathlib

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

import numpy as np
from rich.console import Console
from rich.table import Table

from train.command_line import ending_clearly

NAME = "train.demo"
FIGURE = "few_and_many_blocks.png"


def recipes(seed=0):
    """The static network's recipe, and that of the paths from it."""
    from train.classification.recipes import get_recipe

    static = get_recipe("digits_resnet20", ["wiring=chain", f"seed={seed}"])
    return static, get_recipe("digits_resnet20_path", [f"seed={seed}"])


def run(workdir, seed=0):
    """Trains both, and compares them.

    Args:
        workdir: folder that the runs `static` and `path` lie in.
        seed: of both.

    Returns:
        Dict of `"static"` and `"path"` to their `results.json`.
    """
    from train.classification.run import train

    workdir = pathlib.Path(workdir)
    first, second = recipes(seed)
    folder = workdir / "static"
    found = {"static": train(first, folder)}
    second = dataclasses.replace(second, distill_from=str(folder))
    found["path"] = train(second, workdir / "path", init_from=str(folder))
    return found


def compare(found, workdir, console):
    """Prints accuracy, share of MACs and the routers' health; draws cheap and dear images."""
    table = Table(title="scikit-learn's digits, 360 held-out images")
    for column in ("network", "accuracy", "share of MACs"):
        table.add_column(column, justify="left" if column == "network" else "right")
    for name, results in found.items():
        share = results.get("share_of_macs", 1.0)
        table.add_row(name, f"{results['test_accuracy']:.4f}", f"{share:.3f}")
    console.print(table)
    console.print(f"health of the routers: {' '.join(found['path']['router_health']) or 'good'}")
    path = pathlib.Path(workdir) / FIGURE
    draw(pathlib.Path(workdir) / "path", path)
    console.print(f"images with few blocks and with many: {path}")


def draw(folder, path):
    """Draws the test images that take fewest blocks, and those that take most."""
    import keras

    import dgnet_keras as dg
    from dgnet_keras.complexity import model_costs
    from dgnet_keras.visualize import plot_cheap_and_dear
    from train.classification.datasets import load_data

    model = keras.models.load_model(folder / "model.keras")
    data = load_data(recipes()[1])
    test = data.test.in_memory()
    images = np.asarray(test.images)
    adjacency = dg.adjacency(model, model.preprocessing(images).numpy(), batch_size=128)
    shares = model_costs(model).shares(adjacency, len(images))
    names = data.class_names
    figure = plot_cheap_and_dear(
        images, shares, test.labels, adjacency=adjacency, class_names=names
    )
    figure.savefig(path, dpi=130)


def main(argv=None):
    """Runs the command line; a mistake in it ends with one clear sentence."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}",
        description="Trains a static network on scikit-learn's digits, then paths from it that "
        "compute about half. The same command again resumes runs that were stopped.",
    )
    parser.add_argument("--workdir", default="runs/digits", help="folder that the runs lie in")
    parser.add_argument("--seed", type=int, default=0, help="of both networks")
    args = parser.parse_args(argv)
    with ending_clearly(NAME, args.workdir):
        compare(run(args.workdir, args.seed), args.workdir, Console())


if __name__ == "__main__":
    main()
