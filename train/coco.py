r"""Trains an object detector on COCO-format data: flags in, `train` does the rest.

python -m train.coco --config coco_tiny_fasterrcnn --workdir runs/digits_boxes
python -m train.coco --config coco_fasterrcnn_dgresnet50_1x --data-dir COCO --workdir runs/coco \
    --init-backbone runs/imagenet
"""

import argparse
import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if not __package__:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

from train.coco_configs import RECIPES
from train.configs import get_recipe
from train.imagenet import STOPPED, explain


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m train.coco",
        description="Trains an object detector with a dynamic backbone. The same command again "
        "resumes a run that was stopped.",
        epilog="Example: python -m train.coco --config coco_tiny_retinanet --workdir runs/boxes",
    )
    parser.add_argument("--config", required=True, help=f"recipe: {', '.join(RECIPES)}")
    parser.add_argument("--workdir", required=True, help="folder that the run writes into")
    parser.add_argument(
        "--data-dir",
        help="folder in COCO's layout: annotations/instances_<split>.json and the images in "
        "<split>/; without it, scenes pasted from scikit-learn's digits",
    )
    parser.add_argument(
        "--strategy",
        default="one_device",
        help="one_device (default), mirrored (all GPUs of this host), multi_worker (the hosts of "
        "TF_CONFIG) or tpu",
    )
    parser.add_argument(
        "--init-backbone",
        metavar="FILE",
        help="weights that the backbone starts from: the folder of a run of train.imagenet, its "
        "checkpoints/ckpt-STEP, .weights.h5, .keras or timm's .safetensors",
    )
    parser.add_argument(
        "--visualize",
        metavar="N",
        type=int,
        default=0,
        help="draws the first N validation images with boxes and connectivity (also of a "
        "finished run)",
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
        recipe = get_recipe(args.config, args.overrides, RECIPES)
    except ValueError as error:
        sys.exit(f"train.coco: {error}")
    import tensorflow as tf

    from train import coco_runner
    from train.engine import RunStopped

    try:
        coco_runner.train(
            recipe,
            args.workdir,
            data_dir=args.data_dir,
            strategy=args.strategy,
            init_backbone=args.init_backbone,
            visualize=args.visualize,
        )
    except RunStopped:
        print(f"Stopped and saved in {args.workdir}: the same command goes on.", file=sys.stderr)
        sys.exit(STOPPED)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"train.coco: {error}")
    except tf.errors.OpError as error:
        sys.exit(f"train.coco: {explain(error)}")


if __name__ == "__main__":
    main()
