"""Writes a picture of augmented training images, to look at before a long run.

python -m train.preview --config cifar10_resnet20 --data-dir DIR --output augmented.png
"""

import dataclasses
import os
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

if __name__ == "__main__":  # mistakes in the flags are told before TensorFlow is imported
    from train.postponed import postpone

    postpone()

from dgnet_keras.user_warnings import on_one_line
from train import postponed
from train.classification.recipes import RECIPES, get_recipe
from train.command_line import make_parser


def draw(recipe, data, path, *, rows=4, columns=8):
    """Draws the first training images of a recipe as the network would see them.

    Args:
        recipe: a `Recipe`.
        data: `ImageData`.
        path: of the picture to write.
        rows: of the grid.
        columns: of the grid.
    """
    from matplotlib.figure import Figure

    from train.classification import input_pipeline
    from train.classification.model import preprocessing_of

    preprocessing = preprocessing_of(recipe)
    count = min(rows * columns, len(data.train))
    batch = next(
        iter(
            input_pipeline.train_batches(
                data.train,
                preprocessing,
                dataclasses.replace(recipe, batch_size=count),
                num_classes=len(data.class_names),
            )
        )
    )
    images = preprocessing.denormalize(batch["image"]).numpy()
    figure = Figure(figsize=(1.5 * columns, 1.7 * rows), layout="constrained")
    for axis, k in zip(figure.subplots(rows, columns).flat, range(count), strict=False):
        axis.imshow(images[k].squeeze(), cmap="gray", vmin=0, vmax=255)
        axis.set_title(_title(batch, k, data.class_names), fontsize=7)
    for axis in figure.axes:
        axis.set_axis_off()
    figure.savefig(path, dpi=110)


def _title(batch, k, names):
    """The class of an image, or its classes with their shares."""
    if "target" not in batch:
        return names[int(batch["label"][k])]
    shares = batch["target"][k].numpy()
    present = [i for i in shares.argsort()[::-1] if shares[i] > 0.005]
    return ", ".join(f"{names[i]} {shares[i]:.0%}" for i in present)


def main(argv=None):
    """Runs the command line; a mistake in it ends with one clear sentence."""
    parser = make_parser(
        "train.preview",
        RECIPES,
        description="Writes a picture of augmented training images.",
        example="--config digits_resnet20 --output grid.png",
    )
    parser.add_argument("--data-dir", help="where the data lies, as for train.imagenet")
    parser.add_argument("--output", required=True, help="picture to write, such as grid.png")
    args = parser.parse_args(argv)
    try:
        recipe = get_recipe(args.config, args.overrides)
        postponed.load()
        from train.classification import datasets

        with on_one_line("train.preview"):
            draw(recipe, datasets.load_data(recipe, args.data_dir), args.output)
    except (ValueError, OSError) as error:
        sys.exit(f"train.preview: {error}")


if __name__ == "__main__":
    main()
