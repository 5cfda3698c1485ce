"""The command line: python -m dgnet_keras list|info|adapt|plot|export|predict|serve-config."""

import argparse
import os
import sys

from dgnet_keras.commands import (
    adapting,
    exporting,
    listing,
    plotting,
    predicting,
    serve_config,
)
from dgnet_keras.user_warnings import on_one_line


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m dgnet_keras",
        description="Dynamic Graph Networks for Keras.",
        epilog="Example: python -m dgnet_keras info resnet50 --image-size 288",
    )
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    for group in (listing, adapting, plotting, exporting, predicting, serve_config):
        group.add_parsers(commands)
    return parser.parse_args(argv)


def main(argv=None):
    """Runs a command; a mistake ends with one clear sentence."""
    args = parse_args(argv)
    try:
        with on_one_line("dgnet_keras"):
            args.run(args)
    except BrokenPipeError:  # whoever read the answers has enough of them
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"dgnet_keras: {error}")


if __name__ == "__main__":
    main()
