"""python -m dgnet_keras predict MODEL IMAGES: classes of images, or what a detector finds."""

import dataclasses
import functools
import pathlib
import sys

from dgnet_keras.commands import classifying, detecting
from dgnet_keras.commands.images import check_channels, named_files, read_encoded
from dgnet_keras.commands.models import check_labels, read_lines
from dgnet_keras.commands.paths import existing, output_folder
from dgnet_keras.paths import usable_path

BATCH_SIZE = 32
LEAST_SCORE = 0.3


def add_parsers(commands):
    """Adds the parser of `predict`, with the function `run`."""
    predict = commands.add_parser(
        "predict",
        help="classes of images, or what a detector finds in them",
        description="Classifies image files, the images of folders, or an image from standard "
        "input (-); with a detector's export, says what is in them and where. JPEG, PNG, WebP, BMP "
        "and GIF are read; a file that cannot be decoded is named on standard error and left out, "
        "and the exit code is then 1. Standard output holds the answers alone.",
        epilog="Example: python -m dgnet_keras predict served/digits photo.jpg more/ --top 3",
    )
    predict.add_argument(
        "model", help="a .keras file, the folder of a run, a SavedModel, or a folder of versions"
    )
    predict.add_argument("images", nargs="+", help="files, folders, or - for standard input")
    predict.add_argument(
        "--labels", help="text file, the name of a class on each line; by default the model's own"
    )
    predict.add_argument(
        "--top", type=int, help="so many labels of an image (1), or at most so many boxes (all)"
    )
    predict.add_argument(
        "--min-score",
        type=float,
        help=f"of a detector: boxes of lower scores are left out ({LEAST_SCORE})",
    )
    predict.add_argument(
        "--output", help="of a detector: folder for pictures of the images with their boxes"
    )
    form = predict.add_mutually_exclusive_group()
    form.add_argument(
        "--json",
        action="store_true",
        help='a JSON line an image: {"image": F, "predictions": [{"label": L, "probability": P}]}, '
        'or {"image": F, "detections": [{"label": L, "score": S, "box": [ymin, xmin, ymax, '
        "xmax]}]} in pixels",
    )
    form.add_argument(
        "--csv",
        action="store_true",
        help="a row an image, under a header: image,label_1,probability_1 and so on up to --top; "
        "or a row a box: image,label,score,ymin,xmin,ymax,xmax",
    )
    predict.set_defaults(run=predict_command)


def predict_command(args):
    """Prints what the model says of each image."""
    if args.top is not None and args.top < 1:
        raise ValueError(f"`--top` must be positive. Received: {args.top}")
    if args.min_score is not None and not 0 <= args.min_score <= 1:
        raise ValueError(f"`--min-score` must be in [0, 1]. Received: {args.min_score}")
    existing(args.model)
    if args.output is not None:
        args.output = output_folder(args.output, [given for given in args.images if given != "-"])
    files = list(named_files(args.images))
    named = read_lines(existing(args.labels)) if args.labels else None
    model = open_model(args.model)
    if named is not None:
        check_labels(named, len(model.labels), "--labels")
        model = dataclasses.replace(model, labels=named)
    answers, write = _ways(model, [name for name, _ in files], args)
    skipped = 0
    for start in range(0, len(files), BATCH_SIZE):
        batch = files[start : start + BATCH_SIZE]
        names, contents = read_encoded(batch, model.channels)
        skipped += len(batch)
        if names:
            for name, found in answers(names, contents):
                write(name, found)
                skipped -= 1
        sys.stdout.flush()
    if skipped:
        sys.exit(1)


def _ways(model, names, args):
    """How the model is asked about images, and how its answers are printed: two functions."""
    form = "json" if args.json else "csv" if args.csv else "table"
    if isinstance(model, classifying.ImageClassifier):
        for flag, value in (("--min-score", args.min_score), ("--output", args.output)):
            if value is not None:
                raise ValueError(f"`{flag}` is for detectors. Received: {args.model}, a classifier")
        top = min(args.top or 1, len(model.labels))
        write = classifying.writer(form, names, model.labels, top)
        return functools.partial(model.answers, top=top), write
    draw = None
    if args.output is not None:
        args.output.mkdir(parents=True, exist_ok=True)
        draw = detecting.drawer(args.output)
    least = LEAST_SCORE if args.min_score is None else args.min_score
    options = {"least_score": least, "top": args.top, "draw": draw}
    write = detecting.writer(form, names, model.labels)
    return functools.partial(model.answers, **options), write


def open_model(path):
    """The `ImageClassifier` or `ImageDetector` at a path.

    Args:
        path: a .keras file, the folder of a run, a SavedModel, or a folder of its versions, of
            which the newest is taken.

    Raises:
        FileNotFoundError: if there is no model.
        ValueError: if it cannot be read, or is neither.
    """
    from dgnet_keras.serving.config import found_versions

    path = pathlib.Path(path)
    if not path.is_dir() or (path / "model.keras").exists():
        return classifying.open_model(path)
    for place in (path, path / "export"):  # the latter in a detector's run
        versions = found_versions(place) if place.is_dir() else []
        folder = place / str(versions[-1]) if versions else place
        if (folder / "saved_model.pb").exists():
            return _open_saved_model(folder)
    raise FileNotFoundError(
        f"No model at {path}. Expected a .keras file, or the folder of a finished run, of a "
        "SavedModel, or of its versions"
    )


def _open_saved_model(folder):
    import tensorflow as tf

    try:
        signatures = tf.saved_model.load(str(usable_path("MODEL", folder))).signatures
    except (OSError, ValueError, IndexError, tf.errors.OpError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(f"{folder} cannot be read as a SavedModel: {reason}") from error
    file, default = folder / "assets" / "labels.txt", signatures.get("serving_default")
    outputs = getattr(default, "structured_outputs", {})
    if file.exists() and "detection_boxes" in outputs:
        return detecting.of_signatures(signatures, read_lines(file))
    probabilities = outputs.get("probabilities")
    is_classifier = file.exists() and probabilities is not None and probabilities.shape.rank == 2
    if is_classifier:
        (images,) = default.structured_input_signature[1].values()
        check_channels(images.shape[-1])
    if not is_classifier or "predict_jpeg" not in signatures:
        raise ValueError(
            f"{folder} is not the export of a classifier, such as `export` makes, or of a detector"
        )
    labels = read_lines(file)
    check_labels(labels, outputs["probabilities"].shape[-1], file)
    return classifying.of_signatures(signatures, labels, images.shape[-1])
