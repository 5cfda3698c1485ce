"""Classifiers as `predict` asks them, and the forms of their answers."""

import collections.abc
import csv
import dataclasses
import json
import sys

from dgnet_keras.commands.images import check_channels, two_columns
from dgnet_keras.commands.models import check_labels, class_names, load_model, run_record


@dataclasses.dataclass(frozen=True)
class ImageClassifier:
    """A classifier as the command needs it.

    Attributes:
        classify: function of a list of JPEG or PNG files (bytes) to probabilities, float32
            (images, classes).
        labels: list of strings, one a class.
        channels: of the images.
    """

    classify: collections.abc.Callable
    labels: list[str]
    channels: int

    def answers(self, names, contents, top=1):
        """Yields (name, its most probable labels as (label, probability) pairs) of files."""
        for name, values in zip(names, self.classify(contents), strict=True):
            best = (-values).argsort(kind="stable")[:top]
            yield name, [(self.labels[k], float(values[k])) for k in best]


def open_model(path):
    """The `ImageClassifier` of a `.keras` file or of a run's folder; errors as of `load_model`."""
    from dgnet_keras.adjacencies import check_network

    model = load_model(path)
    check_network(model, "num_classes")
    check_channels(model.input_shape[-1])
    labels = class_names(run_record(path)[0]) or [str(k) for k in range(model.num_classes)]
    check_labels(labels, model.num_classes, path)
    return ImageClassifier(_keras_classify(model), labels, model.input_shape[-1])


def of_signatures(signatures, labels, channels):
    """The `ImageClassifier` of an export's signatures."""
    import tensorflow as tf

    predict = signatures["predict_jpeg"]
    return ImageClassifier(
        lambda files: predict(tf.constant(files))["probabilities"].numpy(), labels, channels
    )


def writer(form, names, labels, top):
    """A function of a name and its (label, probability) pairs that prints them.

    Args:
        form: "json", "csv" or "table".
        names: list of strings, of all images.
        labels: list of strings, of all classes.
        top: number of pairs.
    """
    if form == "json":
        return _write_json
    return _csv_writer(top) if form == "csv" else _table_writer(names, labels)


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
    row = two_columns(names, labels) + "  {:>11}"
    print(row.format("image", "label", "probability"))

    def write(name, answers):
        for rank, (label, probability) in enumerate(answers):
            print(row.format("" if rank else name, label, f"{probability:.4f}"))

    return write


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
