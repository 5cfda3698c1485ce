"""python -m dgnet_keras export MODEL DIRECTORY: a SavedModel for TensorFlow Serving."""

from dgnet_keras.commands.models import class_names, load_model, read_lines, run_record
from dgnet_keras.commands.paths import existing


def add_parsers(commands):
    """Adds the parser of `export`, with the function `run`."""
    export = commands.add_parser(
        "export",
        help="a SavedModel for TensorFlow Serving",
        description="Writes DIRECTORY/<version>, a SavedModel that takes raw images, JPEG and PNG "
        "files, with labels, model card and warm-up requests. The class names of a run become its "
        "labels.",
        epilog="Example: python -m dgnet_keras export runs/digits served/digits",
    )
    export.add_argument("model", help="a .keras file, or the folder of a run")
    export.add_argument("directory", help="folder of the model's versions")
    export.add_argument(
        "--version", type=int, help="by default one more than the newest there, or 1"
    )
    export.add_argument("--labels", help="text file, the name of a class on each line")
    export.add_argument(
        "--image-size",
        type=int,
        nargs=2,
        metavar=("HEIGHT", "WIDTH"),
        help="pixels that the model computes at; by default those it was made for",
    )
    export.add_argument(
        "--allow-changes",
        action="store_true",
        help="export although the newest version in DIRECTORY has other labels, image size or "
        "channels, or is another kind of model",
    )
    export.add_argument(
        "--portable",
        action="store_true",
        help="for other runtimes than TensorFlow, such as OpenVINO: a node is skipped where no "
        "image of a request takes it, not image by image",
    )
    export.set_defaults(run=export_command)


def export_command(args):
    """Exports a model, and prints where."""
    from dgnet_keras.serving.cards import training_record
    from dgnet_keras.serving.export import write_saved_model
    from dgnet_keras.serving.versions import version_numbers

    named = read_lines(existing(args.labels)) if args.labels else None
    model = load_model(args.model)
    config, results = run_record(args.model)
    labels = named or class_names(config)
    version = args.version
    if version is None:
        version = max(version_numbers(args.directory), default=0) + 1
    target = write_saved_model(
        model,
        args.directory,
        version=version,
        labels=labels,
        image_size=args.image_size,
        portable=args.portable,
        training=training_record(config, results) if config or results else None,
        refuse_changes=not args.allow_changes,
    )
    print(target)
