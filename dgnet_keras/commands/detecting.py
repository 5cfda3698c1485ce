"""Detectors as `predict` asks them, the forms of their answers, and pictures of them."""

import collections.abc
import csv
import dataclasses
import itertools
import json
import pathlib
import sys

from dgnet_keras.commands.images import two_columns

BOX = ("ymin", "xmin", "ymax", "xmax")


@dataclasses.dataclass(frozen=True)
class ImageDetector:
    """A detector as the command needs it.

    Attributes:
        detect: function of uint8 (1, height, width, 3) to a dict of `detection_boxes`,
            `detection_scores`, `detection_classes` and `num_detections`, a row each.
        labels: list of strings; the first is of class 1.
        channels: of the images.
    """

    detect: collections.abc.Callable
    labels: list[str]
    channels: int = 3

    def find(self, pixels, least_score, top=None):
        """Tuple of boxes (count, 4) in pixels, scores and labels, from the highest score on."""
        found = {key: value.numpy()[0] for key, value in self.detect(pixels[None]).items()}
        scores = found["detection_scores"][: int(found["num_detections"])]
        order = [k for k in (-scores).argsort(kind="stable") if scores[k] >= least_score][:top]
        classes = found["detection_classes"][order].astype(int)
        if len(classes) and not 1 <= classes.min() <= classes.max() <= len(self.labels):
            raise ValueError(
                f"The detector's labels must name classes 1 to {classes.max()}, all that it finds. "
                f"Received: {len(self.labels)} names, and classes from {classes.min()} on"
            )
        names = [self.labels[k - 1] for k in classes]
        return found["detection_boxes"][order], scores[order], names

    def answers(self, names, contents, least_score, top=None, draw=None):
        """Yields (name, its (label, score, box) triples) of the files that it can take.

        Args:
            names: list of strings.
            contents: list of bytes, JPEG or PNG.
            least_score: of what is found.
            top: so many boxes of an image at most, or None for all.
            draw: see `drawer`, or None.
        """
        import tensorflow as tf

        from dgnet_keras.decoding import decode_image

        for name, content in zip(names, contents, strict=True):
            pixels = decode_image(content, self.channels)
            try:
                boxes, scores, labels = self.find(pixels, least_score, top)
            except tf.errors.OpError as error:
                print(f"Skipped: {name}: {str(error).splitlines()[0]}", file=sys.stderr)
                continue
            if draw is not None:
                draw(name, pixels.numpy(), boxes, scores, labels)
            triples = zip(labels, scores.tolist(), boxes.tolist(), strict=True)
            yield name, list(triples)


def of_signatures(signatures, labels):
    """The `ImageDetector` of an export's signatures."""
    detect = signatures["serving_default"]
    return ImageDetector(lambda pixels: detect(inputs=pixels), labels)


def drawer(folder):
    """A function of a name, image, boxes, scores and labels that draws them as a file of a folder.

    The file has the image's name, and a number where another image has that already.
    """
    from dgnet_keras.visualize import plot_detections

    drawn = set()

    def draw(name, image, boxes, scores, labels):
        stem = "standard_input" if name == "-" else pathlib.PurePath(name).stem
        numbers = (f"-{k}" if k > 1 else "" for k in itertools.count(1))
        file = next(f for f in (f"{stem}{n}.png" for n in numbers) if f.casefold() not in drawn)
        drawn.add(file.casefold())  # some file systems do not tell A from a
        figure = plot_detections(
            image, boxes, scores=scores, names=labels, least_score=0, title=pathlib.Path(name).name
        )
        figure.savefig(folder / file, dpi=130)
        print(folder / file, file=sys.stderr)

    return draw


def writer(form, names, labels):
    """A function of a name and its (label, score, box) triples that prints them.

    Args:
        form: "json", "csv" or "table".
        names: list of strings, of all images.
        labels: list of strings, of all classes.
    """
    if form == "json":
        return _write_json
    return _csv_writer() if form == "csv" else _table_writer(names, labels)


def _write_json(name, answers):
    detections = [{"label": label, "score": score, "box": box} for label, score, box in answers]
    print(json.dumps({"image": name, "detections": detections}))


def _csv_writer():
    rows = csv.writer(sys.stdout, lineterminator="\n")
    rows.writerow(["image", "label", "score", *BOX])
    return lambda name, answers: rows.writerows(
        [name, label, score, *box] for label, score, box in answers
    )


def _table_writer(names, labels):
    row = two_columns(names, labels) + "  {:>5}" + "  {:>6}" * len(BOX)
    print(row.format("image", "label", "score", *BOX))

    def write(name, answers):
        if not answers:
            print(row.format(name, "-", "", *[""] * len(BOX)).rstrip())
        for rank, (label, score, box) in enumerate(answers):
            sides = [f"{side:.0f}" for side in box]
            print(row.format("" if rank else name, label, f"{score:.2f}", *sides))

    return write
