"""Trains any image classifier, the digits included: flags in, `train` does the rest.

python -m train.imagenet --config digits_resnet20 --workdir runs/digits
python -m train.imagenet --config cifar10_resnet20 --data-dir DIR --workdir runs/cifar10 \
    --set wiring=chain --set epochs=2
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

from train.classification.recipes import RECIPES, get_recipe
from train.command_line import add_run_flags, ending_clearly, make_parser
from train.recipes import shown

NAME = "train.imagenet"


def parse_args(argv=None):
    """The command line."""
    parser = make_parser(
        NAME,
        RECIPES,
        description="Trains an image classifier with instance-aware connectivity. The same "
        "command again resumes a run that was stopped.",
        example="--config digits_resnet20 --workdir runs/digits",
    )
    add_run_flags(
        parser,
        data="folder with train/<class>/*.jpg and test/<class>/*.jpg, with TFRecords "
        "(--set dataset=tfrecord), or of TensorFlow Datasets (--set dataset=tfds:NAME)",
    )
    parser.add_argument(
        "--init-from",
        metavar="FILE",
        help="weights to start from: .weights.h5, .keras, timm's .safetensors, an .npz of CIFAR "
        "ResNets, the folder of a run, or its checkpoints/ckpt-STEP; with another number of "
        "classes, those of the backbone. Variant, image size, mean and standard deviation are then "
        "theirs, and a graph starts as the static network (init=static), unless --set says "
        "otherwise",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Runs the command line; a mistake in it ends with one clear sentence."""
    args = parse_args(argv)
    try:
        recipe = get_recipe(args.config, args.overrides)
    except ValueError as error:
        sys.exit(f"{NAME}: {error}")
    with ending_clearly(NAME, args.workdir):
        from train.classification.run import train
        from train.classification.sources import settled

        if args.init_from is not None:
            recipe, changes = settled(recipe, args.overrides, args.init_from, args.workdir)
            if changes:
                said = ", ".join(f"{key}={shown(value)}" for key, value in changes.items())
                print(f"As {args.init_from} says: {said}", flush=True)
        train(
            recipe,
            args.workdir,
            data_dir=args.data_dir,
            strategy=args.strategy,
            init_from=args.init_from,
        )


if __name__ == "__main__":
    main()
