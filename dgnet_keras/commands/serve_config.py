"""python -m dgnet_keras serve-config DIRECTORY: files for TensorFlow Serving's Docker image."""

import argparse
import pathlib

from dgnet_keras.commands.paths import existing


def add_parsers(commands):
    """Adds the parser of `serve-config`, with the function `run`."""
    config = commands.add_parser(
        "serve-config",
        help="files for tensorflow/serving",
        description="Writes models.config, batching.config and docker-compose.yml for TensorFlow "
        "Serving's Docker image. A model serves its newest version, or those that are named.",
        epilog="Example: python -m dgnet_keras serve-config served/digits --output serving "
        "--versions 1 2 --label stable=1",
    )
    config.add_argument("directory", help="folder of a model's versions; its name is the model's")
    config.add_argument("--output", default="serving", help="folder for the files (serving)")
    config.add_argument("--name", help="of the model; by default the folder's")
    config.add_argument("--versions", type=int, nargs="+", help="by default the newest")
    config.add_argument(
        "--label",
        dest="labels",
        action="append",
        type=_label,
        default=[],
        metavar="LABEL=VERSION",
        help="a name for a version, such as stable=1; may be repeated",
    )
    config.add_argument("--rest-port", type=int, default=8501, help="8501")
    config.add_argument("--grpc-port", type=int, default=8500, help="8500")
    config.add_argument("--max-batch-size", type=int, default=32, help="images (32)")
    config.add_argument(
        "--batch-timeout-micros",
        type=int,
        default=2000,
        help="microseconds that a request waits for others (2000)",
    )
    config.add_argument("--overwrite", action="store_true", help="replaces files that are there")
    config.set_defaults(run=serve_config_command)


def serve_config_command(args):
    """Writes the files, and prints their names."""
    from dgnet_keras.serving.config import write_serving_config

    existing(args.directory)
    name = args.name or pathlib.Path(args.directory).resolve().name
    if len(dict(args.labels)) < len(args.labels):
        raise ValueError(f"A `--label` names one version. Received: {args.labels}")
    paths = write_serving_config(
        {name: args.directory},
        args.output,
        rest_port=args.rest_port,
        grpc_port=args.grpc_port,
        max_batch_size=args.max_batch_size,
        batch_timeout_micros=args.batch_timeout_micros,
        versions={name: args.versions} if args.versions else None,
        labels={name: dict(args.labels)} if args.labels else None,
        overwrite=args.overwrite,
    )
    for path in paths:
        print(path)
    print(f"docker compose --file {paths[-1]} up --detach")


def _label(text):
    label, equals, version = text.partition("=")
    if not (label and equals and version.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected LABEL=VERSION, such as stable=1, got {text!r}")
    return label, int(version)
