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

STOPPED = 143  # as the shell reports a process that SIGTERM ended


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
    parser.add_argument(
        "--data-dir",
        help="folder with train/<class>/*.jpg and test/<class>/*.jpg, with TFRecords "
        "(--set dataset=tfrecord), or of TensorFlow Datasets (--set dataset=tfds:NAME)",
    )
    parser.add_argument(
        "--strategy",
        default="one_device",
        help="one_device (default), mirrored (all GPUs of this host), multi_worker (the hosts of "
        "TF_CONFIG) or tpu",
    )
    parser.add_argument(
        "--init-from",
        metavar="FILE",
        help="weights to start from: .weights.h5, .keras, timm's .safetensors, the folder of a "
        "run, or its checkpoints/ckpt-STEP; with another number of classes, those of the backbone",
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


def explain(error):
    """The cause in a TensorFlow error's message, without the graph that it lists."""
    lines = [line.strip() for line in error.message.splitlines() if line.strip()]
    aborted = next((line for line in lines if line.startswith("Collective ops is aborted")), None)
    if aborted:
        return (
            f"Another worker is gone ({aborted.rpartition('by: ')[2]}). Start all workers again "
            "with the same command: the run goes on from its newest checkpoint."
        )
    asserted = next((line for line in lines if "assertion failed" in line), None)
    if asserted is None and lines[0].startswith("Graph execution error"):
        # Where it was detected is listed first; the cause stands before the node's name.
        nodes = (k for k, line in enumerate(lines) if line.startswith("[[{{node"))
        asserted = lines[max(next(nodes, len(lines)) - 1, 0)]
    return f"{type(error).__name__}: {asserted or lines[0]}"


def main(argv=None):
    """Runs the command line; a mistake in it ends with one clear sentence."""
    args = parse_args(argv)
    try:
        recipe = get_recipe(args.config, args.overrides)
    except ValueError as error:
        sys.exit(f"train.imagenet: {error}")
    import tensorflow as tf

    from train import engine, runner

    try:
        runner.train(
            recipe,
            args.workdir,
            data_dir=args.data_dir,
            strategy=args.strategy,
            init_from=args.init_from,
        )
    except engine.RunStopped:
        print(f"Stopped and saved in {args.workdir}: the same command goes on.", file=sys.stderr)
        sys.exit(STOPPED)
    except (ValueError, OSError, FloatingPointError) as error:
        sys.exit(f"train.imagenet: {error}")
    except tf.errors.OpError as error:  # such as a worker that is gone, or a label out of range
        sys.exit(f"train.imagenet: {explain(error)}")


if __name__ == "__main__":
    main()
