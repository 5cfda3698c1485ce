"""python -m dgnet_keras export | predict | serve-config: from a trained model to a server."""

import argparse
import collections.abc
import dataclasses
import io
import json
import pathlib
import sys

from dgnet_keras.commands.models import class_names, load_model, run_record

BATCH_SIZE = 32


def add_parsers(commands):
    """Adds the parsers of the three commands, each with the function `run`."""
    _add_export(commands)
    _add_predict(commands)
    _add_serve_config(commands)


def _add_export(commands):
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
    export.set_defaults(run=export_command)


def _add_predict(commands):
    predict = commands.add_parser(
        "predict",
        help="classes of images",
        description="Classifies image files, the images of folders, or an image from standard "
        "input (-). JPEG, PNG, BMP and GIF are read; a file that cannot be decoded is named and "
        "left out, and the exit code is then 1.",
        epilog="Example: python -m dgnet_keras predict served/digits photo.jpg more/ --top 3",
    )
    predict.add_argument(
        "model", help="a .keras file, the folder of a run, a SavedModel, or a folder of versions"
    )
    predict.add_argument("images", nargs="+", help="files, folders, or - for standard input")
    predict.add_argument("--top", type=int, default=1, help="so many labels of an image (1)")
    predict.add_argument("--json", action="store_true", help="a JSON line an image, not a table")
    predict.set_defaults(run=predict_command)


def _add_serve_config(commands):
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


def _label(text):
    label, equals, version = text.partition("=")
    if not (label and equals and version.isdecimal()):
        raise argparse.ArgumentTypeError(f"expected LABEL=VERSION, such as stable=1, got {text!r}")
    return label, int(version)


def export_command(args):
    """Exports a model, and prints where."""
    from dgnet_keras.serving.export import training_record, write_saved_model

    model = load_model(args.model)
    config, results = run_record(args.model)
    labels = class_names(config)
    if args.labels:
        labels = _read_lines(pathlib.Path(args.labels))
    version = args.version
    if version is None:
        folders = pathlib.Path(args.directory).glob("[0-9]*")
        version = max([0, *(int(path.name) for path in folders if path.name.isdecimal())]) + 1
    target = write_saved_model(
        model,
        args.directory,
        version=version,
        labels=labels,
        image_size=args.image_size,
        training=training_record(config, results) if config or results else None,
    )
    print(target)


def serve_config_command(args):
    """Writes the files, and prints their names."""
    from dgnet_keras.serving.config import write_serving_config

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


def predict_command(args):
    """Prints the most probable labels of each image."""
    if args.top < 1:
        raise ValueError(f"`--top` must be positive. Received: {args.top}")
    files = list(_image_files(args.images))
    classifier = open_classifier(args.model)
    widths = [
        max(map(len, column))
        for column in (["image", *(n for n, _ in files)], ["label", *classifier.labels])
    ]
    row = f"{{:<{widths[0]}}}  {{:<{widths[1]}}}  {{:>11}}"
    if not args.json:
        print(row.format("image", "label", "probability"))
    skipped = 0
    for start in range(0, len(files), BATCH_SIZE):
        batch = files[start : start + BATCH_SIZE]
        names, contents = _readable(batch, classifier.channels)
        skipped += len(batch) - len(names)
        if names:
            for name, values in zip(names, classifier.classify(contents), strict=True):
                _print_answer(name, values, classifier.labels, args, row)
    if skipped:
        sys.exit(1)


def _print_answer(name, probabilities, labels, args, row):
    best = (-probabilities).argsort(kind="stable")[: args.top]
    if args.json:
        answers = [{"label": labels[k], "probability": float(probabilities[k])} for k in best]
        print(json.dumps({"image": name, "predictions": answers}), flush=True)
        return
    for rank, k in enumerate(best):
        shown = name if rank == 0 else ""
        print(row.format(shown, labels[k], f"{probabilities[k]:.4f}"), flush=True)


def _image_files(arguments):
    """Yields (name, path, or None for standard input) of each image."""
    from dgnet_keras.commands.plotting import IMAGE_SUFFIXES

    for argument in arguments:
        path = pathlib.Path(argument)
        if argument == "-":
            yield "-", None
        elif path.is_dir():
            found = sorted(
                p for p in path.rglob("*") if p.suffix.lower() in IMAGE_SUFFIXES and not p.is_dir()
            )
            if not found:
                raise ValueError(f"{path} has no images ({', '.join(IMAGE_SUFFIXES)})")
            yield from ((str(p), p) for p in found)
        elif path.exists():
            yield argument, path
        else:
            raise FileNotFoundError(f"No image at {path}")


def _readable(files, channels):
    """Names and contents, JPEG or PNG, of the files that can be classified; others are named."""
    import tensorflow as tf
    from PIL import Image

    names, contents = [], []
    for name, path in files:
        try:
            content = _served_content(path, channels)
        except (OSError, tf.errors.OpError, Image.DecompressionBombError) as error:
            reason = str(error).splitlines()[0] if isinstance(error, FileNotFoundError) else ""
            print(f"Skipped: {name} cannot be decoded {reason}".rstrip(), file=sys.stderr)
            continue
        names.append(name)
        contents.append(content)
    return names, contents


def _served_content(path, channels):
    """An image's content as an export takes it: within its limits, JPEG or PNG."""
    import tensorflow as tf
    from PIL import Image

    from dgnet_keras.serving.signatures import JPEG_HEADER, PNG_HEADER, check_encoded

    content = sys.stdin.buffer.read() if path is None else path.read_bytes()
    if not content.startswith((JPEG_HEADER, PNG_HEADER)):
        buffer = io.BytesIO()  # by Pillow: TensorFlow takes a BMP's palette for grey levels
        Image.open(io.BytesIO(content)).convert("RGB").save(buffer, "PNG")
        content = buffer.getvalue()
    tf.io.decode_image(check_encoded(0, content), channels, expand_animations=False)
    return content


@dataclasses.dataclass(frozen=True)
class ImageClassifier:
    """A model as the command needs it.

    Attributes:
        classify: function of a list of JPEG or PNG files (bytes) to probabilities, float32
            (images, classes).
        labels: list of strings, one a class.
        channels: of the images.
    """

    classify: collections.abc.Callable
    labels: list[str]
    channels: int


def open_classifier(path):
    """The `ImageClassifier` at a path.

    Args:
        path: a .keras file, the folder of a run, a SavedModel, or a folder of its versions, of
            which the newest is taken.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it cannot be read, or is no classifier.
    """
    from dgnet_keras.serving.config import found_versions

    path = pathlib.Path(path)
    if path.is_dir() and not (path / "model.keras").exists():
        versions = found_versions(path)
        folder = path / str(versions[-1]) if versions else path
        if (folder / "saved_model.pb").exists():
            return _open_saved_model(folder)
        raise FileNotFoundError(
            f"No model at {path}. Expected a .keras file, or the folder of a finished run, of a "
            "SavedModel, or of its versions"
        )
    model = load_model(path)
    if not hasattr(model, "num_classes"):
        raise ValueError(f"The model of {path} is not a classifier of dgnet_keras.")
    labels = class_names(run_record(path)[0]) or [str(k) for k in range(model.num_classes)]
    _check_labels(labels, model.num_classes, path)
    return ImageClassifier(_keras_classify(model), labels, model.input_shape[-1])


def _open_saved_model(folder):
    import tensorflow as tf

    try:
        signatures = tf.saved_model.load(str(folder)).signatures
    except (OSError, ValueError, IndexError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} cannot be read as a SavedModel: {reason}") from error
    file, names = folder / "assets" / "labels.txt", ("serving_default", "predict_jpeg")
    outputs = getattr(signatures.get("predict_jpeg"), "structured_outputs", {})
    shape = outputs["probabilities"].shape if "probabilities" in outputs else None
    if not file.exists() or shape is None or shape.rank != 2 or set(names) - set(signatures):
        raise ValueError(
            f"{folder} is not a classifier's export, such as `export` makes (a detector's is asked "
            "as docs/detection.md shows)"
        )
    labels = _read_lines(file)
    _check_labels(labels, shape[-1], file)
    (images,) = signatures["serving_default"].structured_input_signature[1].values()
    predict = signatures["predict_jpeg"]
    return ImageClassifier(
        lambda files: predict(tf.constant(files))["probabilities"].numpy(),
        labels,
        images.shape[-1],
    )


def _check_labels(labels, count, source):
    if len(labels) != count:
        raise ValueError(f"{source}: expected a name for each of {count} classes, got {labels}")


def _read_lines(path):
    """Lines of a text file; Windows' byte order mark and line ends are left out."""
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}") from error


def _keras_classify(model):
    import numpy as np
    import tensorflow as tf

    channels = model.input_shape[-1]

    def classify(files):
        pixels = [tf.io.decode_image(f, channels, expand_animations=False) for f in files]
        images = np.stack([model.preprocessing(p) for p in pixels])
        return tf.nn.softmax(model.predict(images, verbose=0)).numpy()

    return classify
