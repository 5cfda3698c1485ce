"""Export to a TensorFlow SavedModel that TensorFlow Serving takes as it is."""

import contextlib
import os
import pathlib
import shutil
import tempfile

import keras
import tensorflow as tf

TOP_LABELS = 5


def export_saved_model(model, directory, *, version=1, labels=None, image_size=None):
    """Writes `directory/<version>/`, a SavedModel that takes raw images.

    Images of any size are resized, cropped and normalised inside the graph by
    `model.preprocessing`. Signatures, B images at a time:

    - `serving_default(images: uint8 (B, height, width, channels))` and
      `predict_float(images: float32, 0 to 255)`: `logits` and `probabilities`, float32
      (B, num_classes); `classes`, int64 (B,), the most probable; `top_labels`, string
      (B, min(5, num_classes)), most probable first;
    - `predict_jpeg(image_bytes: string (B,))`: the same, from JPEG or PNG files;
    - `connectivity(images: uint8)`: one float32 (B, N + 1, N + 1) a stage with edges;
    - `features(images: uint8)`: `features`, the backbone's final feature map.

    Args:
        model: a `Classifier`.
        directory: the model's folder; versions are its sub-folders.
        version: positive int. The folder of the version appears whole or not at all.
        labels: names of the classes, in order; None means "0", "1", ...
        image_size: (height, width) or an int, in pixels, that the model computes at; None means
            `model.preprocessing.image_size`.

    Returns:
        `pathlib.Path` of the version's folder.

    Raises:
        FileExistsError: if the version exists.
        ValueError: if the model is not a classifier, or labels, version or image size do not fit.
    """
    preprocessing = _check(model, version, labels, image_size)
    target = pathlib.Path(directory) / str(version)
    labels = range(model.num_classes) if labels is None else labels
    labels = [str(label) for label in labels]
    with atomic_directory(target) as scratch:
        module = _ServingModule(model, preprocessing, labels)
        tf.saved_model.save(
            module,
            str(scratch),
            signatures=module.signatures(),
            options=tf.saved_model.SaveOptions(experimental_custom_gradients=True),
        )
    return target


def _check(model, version, labels, image_size):
    """Returns the preprocessing to export with."""
    if not hasattr(model, "num_classes"):
        raise ValueError(f"`model` must be a classifier of dgnet_keras. Received: {model}")
    if isinstance(version, bool) or not isinstance(version, int) or version < 1:
        raise ValueError(f"`version` must be a positive integer. Received: {version!r}")
    if labels is not None and len(labels) != model.num_classes:
        raise ValueError(
            f"`labels` must name the model's {model.num_classes} classes. Received: "
            f"{len(labels)} labels"
        )
    preprocessing = model.preprocessing
    if image_size is not None:
        config = {**preprocessing.to_config(), "image_size": image_size}
        preprocessing = type(preprocessing)(**config)
    expected = model.input_shape[1:3]
    if any(e not in (None, s) for e, s in zip(expected, preprocessing.image_size, strict=True)):
        raise ValueError(
            f"`image_size` must fit the model's input, {expected} (height, width). "
            f"Received: {preprocessing.image_size}. Create the model with "
            "`input_shape=(None, None, channels)` to export it at any size."
        )
    return preprocessing


@contextlib.contextmanager
def atomic_directory(target):
    """Yields an empty folder that becomes `target` if the body succeeds, and is gone if not.

    Its name is not a number, so that a server that watches the parent does not load it.
    """
    if target.exists():
        raise FileExistsError(f"Version {target.name} exists: {target}. Choose another version.")
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        os.rename(scratch, target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


class _ServingModule(tf.Module):
    """The functions and variables of the SavedModel; holds no Keras object when saved."""

    def __init__(self, model, preprocessing, labels):
        super().__init__()
        outputs = {"logits": model.output, "features": model.backbone.output}
        outputs["adjacency"] = dict(model.adjacency_outputs)
        self._run = keras.Model(model.input, outputs)
        self._preprocessing = preprocessing
        self._channels = model.input_shape[-1]
        self._labels = tf.constant(labels)
        self.weights = [variable.value for variable in model.variables]

    def _trackable_children(self, *args, **kwargs):
        children = super()._trackable_children(*args, **kwargs)
        return {k: v for k, v in children.items() if k != "_run"}

    def signatures(self):
        """The signature functions by name."""
        shape = (None, None, None, self._channels)
        raw = tf.TensorSpec(shape, tf.uint8, "images")
        floats = tf.TensorSpec(shape, tf.float32, "images")
        encoded = tf.TensorSpec((None,), tf.string, "image_bytes")
        signatures = {
            "serving_default": tf.function(self._predict, [raw]),
            "predict_float": tf.function(self._predict, [floats]),
            "predict_jpeg": tf.function(self._predict_jpeg, [encoded]),
            "features": tf.function(self._features, [raw]),
        }
        if self._run.output["adjacency"]:
            signatures["connectivity"] = tf.function(self._connectivity, [raw])
        return signatures

    def _outputs(self, images):
        return self._run(self._preprocessing(images), training=False)

    def _predict(self, images):
        return self._answer(self._outputs(images)["logits"])

    def _features(self, images):
        return {"features": self._outputs(images)["features"]}

    def _connectivity(self, images):
        return self._outputs(images)["adjacency"]

    def _predict_jpeg(self, image_bytes):
        def decode(encoded):
            image = tf.io.decode_image(encoded, self._channels, expand_animations=False)
            image.set_shape((None, None, self._channels))
            return self._preprocessing.resize_and_crop(image)

        size = (*self._preprocessing.image_size, self._channels)
        images = tf.map_fn(decode, image_bytes, fn_output_signature=tf.TensorSpec(size))
        images = self._preprocessing.normalize(images)
        return self._answer(self._run(images, training=False)["logits"])

    def _answer(self, logits):
        top = tf.math.top_k(logits, min(TOP_LABELS, logits.shape[-1])).indices
        return {
            "logits": logits,
            "probabilities": tf.nn.softmax(logits),
            "classes": tf.argmax(logits, axis=-1),
            "top_labels": tf.gather(self._labels, top),
        }
