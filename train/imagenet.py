"""Trains an image classifier: flags in, `train` does the rest.

python -m train.imagenet --config digits_resnet20 --workdir runs/digits
python -m train.imagenet --config cifar10_resnet20 --data-dir DIR --workdir runs/cifar10 \
    --set wiring=chain --set epochs=2
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if not __package__:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from train.configs import RECIPES, get_recipe


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.imagenet",
        description="Trains an image classifier with instance-aware connectivity. The same "
        "command again resumes a run that was stopped.",
        epilog="Example: python -m train.imagenet --config digits_resnet20 --workdir runs/digits",
    )
    parser.add_argument("--config", required=True, help=f"recipe: {', '.join(RECIPES)}")
    parser.add_argument("--workdir", required=True, help="folder that the run writes into")
    parser.add_argument("--data-dir", help="folder with train/<class>/*.jpg and test/<class>/*.jpg")
    parser.add_argument(
        "--strategy",
        default="one_device",
        help="one_device (default), mirrored (all GPUs of this host) or multi_worker (TF_CONFIG)",
    )
    parser.add_argument(
        "--init-from",
        metavar="FILE",
        help="weights to start from: .weights.h5, .keras, or timm's .safetensors; with another "
        "number of classes, those of the backbone",
    )
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="changes one key of the recipe, such as --set wiring=chain; may be repeated",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the command line; a mistake in it ends with one clear sentence."""
    args = parse_args(argv)
    try:
        recipe = get_recipe(args.config, args.overrides)
        from train.runner import train

        train(
            recipe,
            args.workdir,
            data_dir=args.data_dir,
            strategy=args.strategy,
            init_from=args.init_from,
        )
    except (ValueError, FileNotFoundError, FloatingPointError) as error:
        sys.exit(f"train.imagenet: {error}")


if __name__ == "__main__":
    main()
