"""python -m dgnet_keras predict MODEL IMAGES: classes of images."""

import collections.abc
import csv
import dataclasses
import json
import pathlib
import sys

from dgnet_keras.commands.images import check_channels, named_files, read_encoded
from dgnet_keras.commands.models import class_names, load_model, read_lines, run_record
from dgnet_keras.commands.paths import existing
from dgnet_keras.paths import usable_path

BATCH_SIZE = 32


def add_parsers(commands):
    """Adds the parser of `predict`, with the function `run`."""
    predict = commands.add_parser(
        "predict",
        help="classes of images",
        description="Classifies image files, the images of folders, or an image from standard "
        "input (-). JPEG, PNG, WebP, BMP and GIF are read; a file that cannot be decoded is named "
        "on standard error and left out, and the exit code is then 1. Standard output holds the "
        "answers alone.",
        epilog="Example: python -m dgnet_keras predict served/digits photo.jpg more/ --top 3",
    )
    predict.add_argument(
        "model", help="a .keras file, the folder of a run, a SavedModel, or a folder of versions"
    )
    predict.add_argument("images", nargs="+", help="files, folders, or - for standard input")
    predict.add_argument(
        "--labels", help="text file, the name of a class on each line; by default the model's own"
    )
    predict.add_argument("--top", type=int, default=1, help="so many labels of an image (1)")
    form = predict.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        action="store_true",
        help='a JSON line an image: {"image": F, "predictions": [{"label": L, "probability": P}]}',
    )
    form.add_argument(
        "--csv",
        action="store_true",
        help="a row an image, under a header: image,label_1,probability_1 and so on up to --top",
    )
    predict.set_defaults(run=predict_command)


def predict_command(args):
    """Prints the most probable labels of each image."""
    if args.top < 1:
        raise ValueError(f"`--top` must be positive. Received: {args.top}")
    existing(args.model)
    files = list(named_files(args.images))
    named = read_lines(existing(args.labels)) if args.labels else None
    classifier = open_classifier(args.model)
    if named is not None:
        classifier = _with_labels(classifier, named)
    top = min(args.top, len(classifier.labels))
    if args.json:
        write = _write_json
    elif args.csv:
        write = _csv_writer(top)
    else:
        write = _table_writer([name for name, _ in files], classifier.labels)
    skipped = 0
    for start in range(0, len(files), BATCH_SIZE):
        batch = files[start : start + BATCH_SIZE]
        names, contents = read_encoded(batch, classifier.channels)
        skipped += len(batch) - len(names)
        if names:
            for name, values in zip(names, classifier.classify(contents), strict=True):
                best = (-values).argsort(kind="stable")[:top]
                write(name, [(classifier.labels[k], float(values[k])) for k in best])
        sys.stdout.flush()
    if skipped:
        sys.exit(1)


def _with_labels(classifier, labels):
    if len(labels) != len(classifier.labels):
        raise ValueError(
            f"`--labels` must name the model's {len(classifier.labels)} classes. Received: "
            f"{len(labels)} lines"
        )
    return dataclasses.replace(classifier, labels=labels)


def _write_json(name, answers):
    predictions = [{"label": label, "probability": p} for label, p in answers]
    print(json.dumps({"image": name, "predictions": predictions}))


def _csv_writer(top):
    """Writes the header; returns a function of a name and its (label, probability) pairs."""
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(
        ["image", *(f"{c}_{k + 1}" for k in range(top) for c in ("label", "probability"))]
    )
    return lambda name, answers: rows.writerow([name, *(cell for pair in answers for cell in pair)])


def _table_writer(names, labels):
    """Likewise, for a table that people read."""
    widths = [max(map(len, column)) for column in (["image", *names], ["label", *labels])]
    row = f"{{:<{widths[0]}}}  {{:<{widths[1]}}}  {{:>11}}"
    print(row.format("image", "label", "probability"))

    def write(name, answers):
        for rank, (label, probability) in enumerate(answers):
            print(row.format("" if rank else name, label, f"{probability:.4f}"))

    return write


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
    from dgnet_keras.adjacencies import check_network
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
    check_network(model, "num_classes")
    check_channels(model.input_shape[-1])
    labels = class_names(run_record(path)[0]) or [str(k) for k in range(model.num_classes)]
    _check_labels(labels, model.num_classes, path)
    return ImageClassifier(_keras_classify(model), labels, model.input_shape[-1])


def _open_saved_model(folder):
    import tensorflow as tf

    try:
        signatures = tf.saved_model.load(str(usable_path("MODEL", folder))).signatures
    except (OSError, ValueError, IndexError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} cannot be read as a SavedModel: {reason}") from error
    file, default = folder / "assets" / "labels.txt", signatures.get("serving_default")
    outputs = getattr(default, "structured_outputs", {})
    shape = outputs["probabilities"].shape if "probabilities" in outputs else None
    is_classifier = file.exists() and shape is not None and shape.rank == 2
    if is_classifier:
        (images,) = default.structured_input_signature[1].values()
        check_channels(images.shape[-1])
    if not is_classifier or "predict_jpeg" not in signatures:
        raise ValueError(
            f"{folder} is not a classifier's export, such as `export` makes (a detector's is asked "
            "as docs/detection.md shows)"
        )
    labels = read_lines(file)
    _check_labels(labels, outputs["probabilities"].shape[-1], file)
    predict = signatures["predict_jpeg"]
    return ImageClassifier(
        lambda files: predict(tf.constant(files))["probabilities"].numpy(),
        labels,
        images.shape[-1],
    )


def _check_labels(labels, count, source):
    if len(labels) != count:
        raise ValueError(f"{source}: expected a name for each of {count} classes, got {labels}")


def _keras_classify(model):
    import numpy as np
    import tensorflow as tf

    from dgnet_keras.decoding import decode_image
    from dgnet_keras.serving.signatures import probabilities

    channels = model.input_shape[-1]

    def classify(files):
        pixels = [decode_image(f, channels) for f in files]
        images = np.stack([model.preprocessing(p) for p in pixels])
        return probabilities(tf.constant(model.predict(images, verbose=0))).numpy()

    return classify
