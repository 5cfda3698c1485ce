"""What a detector is used for once it is trained: export, predictions, pictures.

Imports `train.detection.decoding`.
"""

import itertools
import pathlib

import keras
import tensorflow as tf
from official.vision.serving import detection as serving
from official.vision.serving import export_saved_model_lib

from dgnet_keras.decoding import upright
from dgnet_keras.serving import export
from dgnet_keras.serving.versions import version_changes
from dgnet_keras.user_warnings import warn
from dgnet_keras.visualize import plot_detections
from train.detection import decoding


class _Detector(serving.DetectionModule):
    """Model Garden's export, with boxes in pixels of the image as it was given, upright."""

    def _decode_image(self, encoded_image_bytes):
        stored = super()._decode_image(encoded_image_bytes)
        return upright(stored, encoded_image_bytes)

    def serve(self, images):
        """Boxes [ymin, xmin, ymax, xmax] in pixels, scores, labels and number of detections."""
        answers = dict(super().serve(images))
        scale = tf.tile(answers.pop("image_info")[:, 2:3, :], [1, 1, 2])
        answers["detection_boxes"] = tf.cast(answers["detection_boxes"], tf.float32) / scale
        return answers


def _detector(run, model):
    return _Detector(
        params=run.params,
        batch_size=None,
        input_image_size=list(run.recipe.image_size),
        model=model,
    )


def export_detector(run, directory, version=1):
    """Exports a detector as `directory/<version>`, whole or not at all.

    Signatures: `serving_default`, uint8 (batch, height, width, 3) of any size; `predict_jpeg`,
    string (batch,), JPEG or PNG of equal sizes. Both give `detection_boxes` (batch, count, 4),
    [ymin, xmin, ymax, xmax] in pixels of the images given, `detection_scores`,
    `detection_classes` (labels, a line each in `assets/labels.txt` from 1 on) and
    `num_detections`.

    Args:
        run: a `train.detection.run.DetectionRun`.
        directory: folder of versions.
        version: positive int.

    Raises:
        FileExistsError: if there is such a version.

    Warns:
        UserWarning: if the newest version there has other labels, or is a classifier.
    """
    changed = version_changes(directory, run.data.train.class_names)
    if changed:
        warn(changed)
    with export.atomic_directory(pathlib.Path(directory) / str(version)) as scratch:
        weights = tf.train.Checkpoint(model=run.model).write(str(scratch / "weights"))
        # A model that was never trained: Keras 2 would save its layers as they were called then.
        module = _detector(run, model=None)
        labels = scratch / "labels.txt"
        labels.write_text("".join(f"{name}\n" for name in run.data.train.class_names))
        module.labels = tf.saved_model.Asset(str(labels))
        export_saved_model_lib.export_inference_graph(
            input_type="image_tensor",
            batch_size=None,
            input_image_size=list(run.recipe.image_size),
            params=run.params,
            checkpoint_path=weights,
            export_dir=str(scratch),
            export_module=module,
            function_keys={"image_tensor": "serving_default", "image_bytes": "predict_jpeg"},
            save_options=tf.saved_model.SaveOptions(experimental_custom_gradients=True),
        )
        for file in (labels, *scratch.glob("weights*")):
            file.unlink()


def predict(run, images):
    """The detector's answers for images as they are, one by one.

    Args:
        run: a `train.detection.run.DetectionRun`.
        images: iterable of uint8 arrays (height, width, 3).

    Yields:
        Dict for each: `boxes` (count, 4) [ymin, xmin, ymax, xmax] in pixels, `scores`, `labels`,
        `adjacency` (dict of stage to (N + 1, N + 1)).
    """
    module = _detector(run, run.model)
    any_size = tf.TensorSpec((None, None, None, 3), tf.uint8)
    detect = module.inference_from_image_tensors.get_concrete_function(any_size)
    backbone = run.backbone.backbone
    paths = dict(backbone.adjacency_outputs)
    route = keras.Model(backbone.input, paths) if paths else lambda x, training: {}

    @tf.function(input_signature=[any_size])
    def find_paths(images):
        return route(module.preprocess(images)[0], training=False)

    for image in images:
        batch = tf.constant(image[None])
        answers = detect(batch)
        count = int(answers["num_detections"][0])
        yield {
            "boxes": answers["detection_boxes"][0, :count].numpy(),
            "scores": answers["detection_scores"][0, :count].numpy(),
            "labels": answers["detection_classes"][0, :count].numpy(),
            "adjacency": {name: matrix[0].numpy() for name, matrix in find_paths(batch).items()},
        }


def draw_predictions(run, folder, count):
    """Draws the first `count` validation images, `folder/<image id>.png` each."""
    split = run.data.validation
    folder.mkdir(exist_ok=True)
    entries = split.images[:count]
    images = (
        decoding.read_image(
            split.images_dir / entry["file_name"], (entry["width"], entry["height"])
        )
        for entry in entries
    )
    images, drawn = itertools.tee(images)  # one at a time in memory
    for entry, image, found in zip(entries, drawn, predict(run, images), strict=True):
        picture = plot_detections(
            image,
            found["boxes"],
            scores=found["scores"],
            names=[split.class_names[label - 1] for label in found["labels"]],
            adjacency=found["adjacency"],
            title=entry["file_name"],
        )
        picture.savefig(folder / f"{entry['id']}.png", dpi=130)
