"""The functions of an exported SavedModel: raw images in, answers out, bad input refused.

`export` writes it to files. What a request must be is checked in the graph, by operations that fail
with INVALID_ARGUMENT and say what was received: a server has no Python.
"""

from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.adjacencies import answers_at
from dgnet_keras.budget import stages_of
from dgnet_keras.complexity import model_costs
from dgnet_keras.decoding import JPEG_HEADER, PNG_HEADER, upright
from dgnet_keras.layers.gate import ThresholdGate, gate_dtype
from dgnet_keras.layers.path_router import PathGate
from dgnet_keras.layers.wiring import PATHS
from dgnet_keras.preprocessing import Preprocessing

TOP_LABELS = 5
MAX_PIXELS = 2**26  # height times width of one image; it takes 0.8 GB as float32
MAX_FLOAT = 1e4  # of a pixel given as float32: larger ones, NaN and infinity are mistakes

PNG_HEADER_BYTES = 33  # signature and image header, which every PNG begins with
FILE_FORMATS = {1: ("JPEG", "PNG"), 3: ("JPEG", "PNG"), 4: ("PNG",)}  # by number of channels


class ServingModule(tf.Module):
    """Functions and variables of a SavedModel; holds no Keras object when saved.

    Args:
        model: a `Classifier`.
        preprocessing: the `Preprocessing` of the graph.
        labels: list of strings, one a class.
    """

    def __init__(
        self, model: keras.Model, preprocessing: Preprocessing, labels: Sequence[str]
    ) -> None:
        super().__init__()
        size = (*preprocessing.image_size, model.input_shape[-1])
        self._preprocessing = preprocessing
        self._size = size
        self._labels = tf.constant(labels)
        # Traced once for all signatures, each of which is pruned to what it gives when loaded.
        self._inputs = tf.TensorSpec((None, *size), tf.float32, "preprocessed")
        self._run, self._run_at = self._functions(model)
        shape = (None, None, None, size[-1])
        self.preprocess = graph_function(self._prepare, [tf.TensorSpec(shape, tf.uint8, "images")])
        self.preprocess_float = graph_function(
            self._prepare, [tf.TensorSpec(shape, tf.float32, "images")]
        )
        if size[-1] in FILE_FORMATS:
            self.preprocess_jpeg = graph_function(
                self._decode, [tf.TensorSpec((None,), tf.string, "image_bytes")]
            )
        self.weights = [variable.value for variable in model.variables]

    def _functions(self, model):
        """Functions of preprocessed images, and of them and thresholds; None without edges.

        They give what signatures answer with, by name. Where all gates have one threshold the
        first is the second at it, so that the export has the network once.
        """
        at = self._dial(model)
        own = None if at is None else common_threshold(model)
        if own is None:
            run = graph_function(self._everything(model), [self._inputs])
        else:

            def run(images):
                return at(images, tf.fill([tf.shape(images)[0]], own))

        return run, at and self._checked(at, model)

    def _everything(self, model):
        """The function of preprocessed images to what signatures answer with, by name."""
        outputs = {"logits": model.output, "features": model.backbone.output}
        outputs["adjacency"] = dict(model.adjacency_outputs)
        network = keras.Model(model.input, outputs)
        macs = self._macs(model)

        def run(images):
            found = network(images, training=False)
            return {**found, "macs": macs(found["adjacency"], images)}

        return run

    def _macs(self, model):
        """The function of adjacency and images to the multiply-adds of each image."""
        costs = model_costs(model, self._size[:2])

        def macs(adjacency, images):
            adjacency = {name: tf.cast(matrix, tf.float32) for name, matrix in adjacency.items()}
            return costs.of_images(adjacency, tf.shape(images)[0])

        return macs

    def _dial(self, model):
        """As `_everything`, of images and a threshold for each; None without edges."""
        if not model.adjacency_outputs:
            return None
        macs, head = self._macs(model), keras.Model(model.backbone.output, model.output)

        def run(images, threshold):
            features, adjacency = answers_at(model.backbone, images, threshold[:, None])
            found = {
                "features": features,
                "logits": head(features, training=False),
                "adjacency": adjacency,
            }
            return {**found, "macs": macs(adjacency, images)}

        thresholds = tf.TensorSpec((None,), tf.float32, "threshold")
        return graph_function(run, [self._inputs, thresholds])

    def _checked(self, at, model):
        """`at` for thresholds of a request."""
        options = model.backbone.graph_options
        limit = None if options.wiring in PATHS else options.resolved_edge_scale
        return lambda images, threshold: at(
            images, check_threshold_input(threshold, tf.shape(images)[0], limit)
        )

    def signatures(self) -> dict[str, tf.types.experimental.PolymorphicFunction]:
        """The signature functions by name: those that can answer."""
        (raw,), (floats,) = self.preprocess.input_signature, self.preprocess_float.input_signature
        threshold = tf.TensorSpec(None, tf.float32, "threshold")  # scalar, or one an image

        def predict(images):
            return self._answer(self.preprocess(images))

        def predict_float(images):
            return self._answer(self.preprocess_float(images))

        def predict_jpeg(image_bytes):
            return self._answer(self.preprocess_jpeg(image_bytes))

        specs: dict[str, tuple[Callable, list[tf.TensorSpec]]] = {
            "serving_default": (predict, [raw]),
            "predict_float": (predict_float, [floats]),
            "features": (self._features, [raw]),
            "connectivity": (self._connectivity, [raw]),
        }
        if hasattr(self, "preprocess_jpeg"):
            specs["predict_jpeg"] = (predict_jpeg, self.preprocess_jpeg.input_signature)
        if self._run_at is not None:
            specs["connectivity_at"] = (self._connectivity_at, [raw, threshold])
            specs["predict_at"] = (self._predict_at, [raw, threshold])
        return {name: graph_function(*spec) for name, spec in specs.items()}

    def _features(self, images):
        features = self._run(self.preprocess(images))["features"]
        return {"features": tf.cast(features, tf.float32)}  # clients know no bfloat16

    def _connectivity(self, images):
        return self._with_macs(self._run(self.preprocess(images)))

    def _connectivity_at(self, images, threshold):
        return self._with_macs(self._run_at(self.preprocess(images), threshold))

    def _predict_at(self, images, threshold):
        found = self._run_at(self.preprocess(images), threshold)
        return {**self._named(found["logits"]), "macs": found["macs"]}

    def _prepare(self, images):
        return self._preprocessing.normalize(self._resize(check_images(images)))

    def _resize(self, images):
        # OpenVINO 2026.4 reads memory that was never written behind a branch: its first answer to
        # images of the model's size was wrong.
        return self._preprocessing.resize_and_crop(images, skip_if_fits=False)

    def _decode(self, image_bytes):
        """Encoded images to the model's input, float32 (batch, height, width, channels)."""

        def decode(element):
            index, encoded = element
            encoded = check_encoded(index, encoded, self._size[-1])
            image = tf.io.decode_image(encoded, self._size[-1], expand_animations=False)
            image.set_shape((None, None, self._size[-1]))
            return self._resize(upright(image, encoded))

        image_bytes = tf.ensure_shape(image_bytes, (None,))
        count = tf.size(image_bytes)
        with tf.control_dependencies([_check(count > 0, "image_bytes holds no image")]):
            elements = (tf.range(count), image_bytes)
        decoded = tf.map_fn(decode, elements, fn_output_signature=tf.TensorSpec(self._size))
        return self._preprocessing.normalize(decoded)

    def _with_macs(self, found):
        adjacency = {name: tf.cast(m, tf.float32) for name, m in found["adjacency"].items()}
        return {**adjacency, "macs": found["macs"]}

    def _answer(self, images):
        return self._named(self._run(images)["logits"])

    def _named(self, logits):
        """What is answered of an image, by name."""
        top = tf.math.top_k(logits, min(TOP_LABELS, logits.shape[-1])).indices
        return {
            "logits": logits,
            "probabilities": probabilities(logits),
            "classes": tf.argmax(logits, axis=-1),
            "top_labels": tf.gather(self._labels, top),
        }


def common_threshold(model: keras.Model) -> float | None:
    """The float32 threshold of all gates of a model; any where there are no gates.

    None where they have several, learn theirs, compare in float64, or are not this package's.
    """
    gates = [gate for stage in stages_of(model) for gate in stage.gates()]
    for gate in gates:
        is_fixed = type(gate) is ThresholdGate and not gate.learn_threshold
        if not (is_fixed or type(gate) is PathGate) or gate_dtype(gate.compute_dtype) != "float32":
            return None
    thresholds = {float(np.float32(gate.current_threshold())) for gate in gates} or {0.0}
    return thresholds.pop() if len(thresholds) == 1 else None


def probabilities(logits: tf.Tensor) -> tf.Tensor:
    """Of logits (batch, classes): their softmax, or of one class alone the sigmoid.

    The softmax of a single logit is 1 whatever the image is.
    """
    return tf.nn.softmax(logits) if logits.shape[-1] > 1 else tf.sigmoid(logits)


def graph_function(
    function: Callable[..., object], input_signature: Sequence[tf.TensorSpec]
) -> tf.types.experimental.PolymorphicFunction:
    """A `tf.function` without AutoGraph, which takes most of the time of an export."""
    return tf.function(function, input_signature=input_signature, autograph=False)


def check_images(images: tf.Tensor) -> tf.Tensor:
    """Refuses what is not a batch of images: its shape, size, or pixels.

    Args:
        images: (batch, height, width, channels) uint8 or float32; the rank is checked when run.

    Returns:
        The images.
    """
    images = tf.ensure_shape(images, images.shape)
    shape = tf.shape(images, tf.int64)
    checks = [
        _check(tf.reduce_all(shape > 0), "images has no pixels. Received: shape", shape),
        _check_size(shape[1], shape[2], "images"),
    ]
    if images.dtype.is_floating:
        is_number = tf.reduce_all(tf.abs(images) <= MAX_FLOAT)  # false for NaN
        checks.append(
            _check(
                is_number,
                "images must have pixels from 0 to 255. Received: NaN, infinity, or a pixel beyond",
                MAX_FLOAT,
            )
        )
    with tf.control_dependencies(checks):
        return tf.identity(images)


def check_encoded(
    index: int | tf.Tensor, encoded: bytes | tf.Tensor, channels: int = 3
) -> tf.Tensor:
    """Refuses what is not a JPEG or PNG file, or too large an image, before it is decoded.

    Args:
        index: of the image in the request, for the message.
        encoded: scalar string.
        channels: that it is decoded to, one of `FILE_FORMATS`.

    Returns:
        `encoded`.
    """
    length = tf.strings.length(encoded)
    is_jpeg = tf.strings.substr(encoded, 0, len(JPEG_HEADER)) == JPEG_HEADER
    is_png = tf.strings.substr(encoded, 0, len(PNG_HEADER)) == PNG_HEADER
    is_png = tf.logical_and(is_png, length >= PNG_HEADER_BYTES)
    formats = FILE_FORMATS[channels]
    known = _check(
        tf.logical_or(is_jpeg, is_png) if "JPEG" in formats else is_png,
        f"image_bytes must be whole {' or '.join(formats)} files. Received: image",
        *(index, "of", length, "bytes, which is neither" if "JPEG" in formats else "bytes"),
    )

    def png_size():
        return tf.io.decode_raw(tf.strings.substr(encoded, 16, 8), tf.int32, little_endian=False)

    def jpeg_size():
        return tf.image.extract_jpeg_shape(encoded)[:2]

    with tf.control_dependencies([known]):
        size = tf.cast(tf.cond(is_jpeg, jpeg_size, png_size), tf.int64)
    with tf.control_dependencies([_check_size(size[0], size[1], "image_bytes")]):
        return tf.identity(encoded)


def check_threshold_input(threshold: tf.Tensor, count: tf.Tensor, limit: float | None) -> tf.Tensor:
    """Refuses a threshold outside [0, limit), or of another shape than () or (count,).

    Without a limit, that of paths, it refuses NaN alone: minus infinity takes every node, infinity
    none but those that always run.

    Returns:
        float32 (count,): a threshold for each image.
    """
    values = tf.reshape(threshold, [-1])
    if limit is None:
        in_range, expected = tf.logical_not(tf.math.is_nan(values)), "a number"
    else:
        in_range = tf.logical_and(values >= 0, values < limit)
        expected = f"in [0, edge_scale) = [0, {limit})"
    fits = tf.logical_or(tf.size(values) == 1, tf.size(values) == count)
    checks = [
        _check(
            tf.logical_and(tf.rank(threshold) <= 1, fits),
            "threshold must be a scalar or have one value an image. Received: shape",
            tf.shape(threshold),
        ),
        _check(
            tf.reduce_all(in_range),
            f"threshold must be {expected}. Received:",
            values,
        ),
    ]
    with tf.control_dependencies(checks):
        return tf.broadcast_to(values, [count])


def _check_size(height, width, name):
    within = tf.logical_and(tf.logical_and(height > 0, width > 0), height * width <= MAX_PIXELS)
    return _check(
        within,
        f"{name}: an image may have at most {MAX_PIXELS} pixels. Received: height, width",
        *(height, width),
    )


def _check(condition, *message):
    return tf.debugging.Assert(condition, list(message), summarize=8)
