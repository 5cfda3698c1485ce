r"""Trains an object detector on COCO-format data: flags in, `train` does the rest.

python -m train.coco --config coco_tiny_fasterrcnn --workdir runs/digits_boxes
python -m train.coco --config coco_fasterrcnn_dgresnet50_1x --data-dir COCO --workdir runs/coco \
    --init-backbone runs/imagenet
"""

import os
import pathlib
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
if not __package__:
    sys.path.insert(0, str(pathlib.Path(__file__).resolve().parents[1]))

if __name__ == "__main__":  # mistakes in the flags are told before TensorFlow is imported
    from train.postponed import postpone

    postpone()

from train.command_line import add_run_flags, ending_clearly, make_parser
from train.detection.recipes import RECIPES
from train.recipes import get_recipe

NAME = "train.coco"


def parse_args(argv=None):
    """The command line."""
    parser = make_parser(
        NAME,
        RECIPES,
        description="Trains an object detector with a dynamic backbone. The same command again "
        "resumes a run that was stopped.",
        example="--config coco_tiny_retinanet --workdir runs/boxes",
    )
    add_run_flags(
        parser,
        data="folder in COCO's layout: annotations/instances_<split>.json and the images in "
        "<split>/; without it, scenes pasted from scikit-learn's digits",
    )
    parser.add_argument(
        "--init-backbone",
        "--init-from",
        dest="init_backbone",
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
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the command line; a mistake in it ends with one clear sentence."""
    args = parse_args(argv)
    if args.data_dir is not None and not pathlib.Path(args.data_dir).exists():
        sys.exit(f"{NAME}: --data-dir {args.data_dir} does not exist")
    try:
        recipe = get_recipe(args.config, args.overrides, RECIPES)
    except ValueError as error:
        sys.exit(f"{NAME}: {error}")
    with ending_clearly(NAME, args.workdir, extras="train,detection"):
        from train.detection.run import train

        train(
            recipe,
            args.workdir,
            data_dir=args.data_dir,
            strategy=args.strategy,
            init_backbone=args.init_backbone,
            visualize=args.visualize,
        )


if __name__ == "__main__":
    main()
