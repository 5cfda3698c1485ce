"""What the commands of `train` share: flags, and how each of them ends."""

import argparse
import contextlib
import dataclasses
import signal
import sys
import textwrap

from dgnet_keras.user_warnings import on_one_line
from train import postponed
from train.recipes import shown

STOPPED = 143  # as the shell reports a process that SIGTERM ended


def make_parser(name, recipes, *, description, example):
    """A parser with the flags of every command: which recipe, and changes to it.

    Args:
        name: of the module that is run.
        recipes: dict of the recipes by name, dataclasses of one kind.
        description: of the command.
        example: arguments that work.
    """
    command = f"python -m {name}"
    keys = textwrap.fill(
        f"Keys of a recipe, for --set: {_keys(next(iter(recipes.values())))}. "
        "The API reference (make docs) says what they do.",
        width=98,
    )
    parser = argparse.ArgumentParser(
        prog=command,
        description=textwrap.fill(description, width=98),
        epilog=f"{keys}\n\nExample: {command} {example}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config", required=True, help=f"recipe: {', '.join(recipes)}")
    parser.add_argument(
        "--set",
        dest="overrides",
        metavar="KEY=VALUE",
        action="append",
        default=[],
        help="changes one key of the recipe, such as --set wiring=chain; may be repeated",
    )
    return parser


def _keys(recipe):
    """The keys of a recipe, with what they are where no recipe says otherwise."""
    return ", ".join(
        field.name
        if field.default in (dataclasses.MISSING, None, "", ())
        else f"{field.name} ({shown(field.default)})"
        for field in dataclasses.fields(recipe)
    )


def add_run_flags(parser, *, data):
    """Adds the flags of a command that trains: where it writes, reads and runs.

    Args:
        parser: of `make_parser`.
        data: help on the folder of the data.
    """
    parser.add_argument("--workdir", required=True, help="folder that the run writes into")
    parser.add_argument("--data-dir", help=data)
    parser.add_argument(
        "--strategy",
        default="one_device",
        help="one_device (default), mirrored (all GPUs of this host), multi_worker (the hosts of "
        "TF_CONFIG) or tpu",
    )


@contextlib.contextmanager
def ending_clearly(name, workdir, extras="train"):
    """Ends the process with one sentence where the body fails or is stopped.

    SIGTERM ends the body as an exception would, so that what is half written is removed, until
    the body handles signals itself.

    Args:
        name: of the module that is run.
        workdir: of the run.
        extras: what must be installed with the package, as pip takes it.
    """
    install = f"Install it with: pip install -e '.[{extras}]'"
    try:
        postponed.load()
        import tensorflow as tf

        from train.loop import RunStopped
    except ModuleNotFoundError as error:
        sys.exit(f"{name}: {error}. {install}")
    except ImportError as error:  # such as for another backend of Keras
        sys.exit(f"{name}: {error}")
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(STOPPED))
    try:
        with on_one_line(name):
            yield
    except RunStopped:
        print(f"Stopped and saved in {workdir}: the same command goes on.", file=sys.stderr)
        sys.exit(STOPPED)
    except ModuleNotFoundError as error:
        sys.exit(f"{name}: {error}. {install}")
    except (ValueError, OSError, ImportError, FloatingPointError) as error:
        sys.exit(f"{name}: {error}")
    except tf.errors.OpError as error:  # such as a worker that is gone, or a label out of range
        sys.exit(f"{name}: {explain(error)}")
    finally:
        signal.signal(signal.SIGTERM, before)


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
