"""Export to a TensorFlow SavedModel that TensorFlow Serving takes as it is."""

import contextlib
import dataclasses
import errno
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence, Set
from typing import Any

import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.adjacencies import check_network
from dgnet_keras.cascading import Cascade
from dgnet_keras.layers import exports
from dgnet_keras.paths import usable_path
from dgnet_keras.serving.cards import model_card
from dgnet_keras.serving.cascades import CascadeServingModule
from dgnet_keras.serving.signatures import FILE_FORMATS, MAX_PIXELS, ServingModule
from dgnet_keras.serving.versions import CARD, LABELS, version_changes
from dgnet_keras.user_warnings import warn

WARMUP = "assets.extra/tf_serving_warmup_requests"


def export_saved_model(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    version: int = 1,
    labels: Sequence[str] | None = None,
    image_size: int | Sequence[int] | None = None,
    portable: bool = False,
) -> pathlib.Path:
    """Writes `directory/<version>/`, a SavedModel that takes raw images.

    Images of any size are resized, cropped and normalised inside the graph by
    `model.preprocessing`. Signatures, B images at a time:

    - `serving_default(images: uint8 (B, height, width, channels))` and
      `predict_float(images: float32, 0 to 255)`: `logits` and `probabilities`, float32
      (B, num_classes), the softmax, or for one class the sigmoid; `classes`, int64 (B,), the most
      probable; `top_labels`, string (B, min(5, num_classes)), most probable first;
    - `predict_jpeg(image_bytes: string (B,))`: the same, from JPEG or PNG files of any sizes, for
      models of 1 or 3 channels; from PNG files for those of 4; no such signature for others;
    - `connectivity(images: uint8)`: one float32 (B, N + 1, N + 1) a stage with edges, and `macs`,
      int64 (B,), see `count_macs`;
    - `connectivity_at(images: uint8, threshold: float32, () or (B,))`: the same with another
      threshold, for models with edges;
    - `predict_at(images: uint8, threshold: float32, () or (B,))`: the answer of `serving_default`
      at another threshold, and `macs`, for models with edges: of paths, the dial between the two;
    - `features(images: uint8)`: `features`, the backbone's final feature map, float32.

    A request that does not fit fails with INVALID_ARGUMENT and says why: another rank, no image,
    bytes that are no JPEG or PNG, pixels that are no numbers, more than 2^26 pixels in an image.

    Beside the SavedModel stand `assets/labels.txt` (a label a line), `model_card.json` (variant,
    wiring, threshold, preprocessing, signatures) and, if tensorflow-serving-api is installed,
    `assets.extra/tf_serving_warmup_requests`, which a server runs before it takes requests.

    Args:
        model: a `Classifier`, or a `Cascade` of two. A cascade's `connectivity` has the paths of
            its first network, the multiply-adds of all that was computed, and `asked_again`, bool
            (B,); it has no signature with a threshold.
        directory: the model's folder; versions are its sub-folders.
        version: positive int. The folder of the version appears whole or not at all.
        labels: names of the classes, in order; None means "0", "1", ...
        image_size: (height, width) or an int, in pixels, that the model computes at; None means
            `model.preprocessing.image_size`.
        portable: whether other runtimes than TensorFlow are to read it, such as OpenVINO. A node
            is then skipped where no image of a request takes it, not image by image.

    Returns:
        `pathlib.Path` of the version's folder.

    Warns:
        UserWarning: if the newest version in the folder is of another kind of model, or has other
            labels, image size or channels: a server would go over to this one all the same.

    Raises:
        FileExistsError: if the version exists.
        ValueError: if the model is not a classifier, has weights that are NaN or infinite, or
            labels, version or image size do not fit; for a portable cascade.
    """
    return write_saved_model(
        model,
        directory,
        version=version,
        labels=labels,
        image_size=image_size,
        portable=portable,
    )


def write_saved_model(
    model: keras.Model,
    directory: str | os.PathLike[str],
    *,
    version: int,
    labels: Sequence[str] | None = None,
    image_size: int | Sequence[int] | None = None,
    portable: bool = False,
    training: dict[str, Any] | None = None,
    refuse_changes: bool = False,
) -> pathlib.Path:
    """As `export_saved_model`, with what is known of the training in the model card.

    Args:
        model: as there, like all arguments but the last two.
        directory: as there.
        version: as there.
        labels: as there.
        image_size: as there.
        portable: as there.
        training: see `training_record`; None where nothing is known.
        refuse_changes: whether there is a `ValueError` in place of the warning.
    """
    preprocessing = _check(model, version, labels, image_size)
    if isinstance(model, Cascade):
        _check_cascade(model, portable)
    labels = [str(x) for x in (range(model.num_classes) if labels is None else labels)]
    broken = [label for label in labels if label.splitlines() != [label] or not label.strip()]
    if broken:
        raise ValueError(f"`labels` must be of one line each, not empty. Received: {broken[0]!r}")
    target = pathlib.Path(usable_path("`directory`", directory)) / str(version)
    with atomic_directory(target) as scratch:
        sizes = {"image_size": preprocessing.image_size, "channels": model.input_shape[-1]}
        changed = version_changes(directory, labels, **sizes)
        if changed and refuse_changes:
            raise ValueError(changed)
        if changed:
            warn(changed)
        kind = CascadeServingModule if isinstance(model, Cascade) else ServingModule
        module = kind(model, preprocessing, labels)
        signatures = module.signatures()
        with tempfile.TemporaryDirectory() as folder:
            file = pathlib.Path(folder) / LABELS
            file.write_text("".join(f"{label}\n" for label in labels), encoding="utf-8")
            module.labels_file = tf.saved_model.Asset(str(file))
            with exports.exporting("if" if portable else "tensorflow"):
                tf.saved_model.save(
                    module,
                    str(scratch),
                    signatures=signatures,
                    options=tf.saved_model.SaveOptions(experimental_custom_gradients=True),
                )
        _write_warmup(scratch / WARMUP, signatures, preprocessing, target.parent.name)
        card = model_card(model, preprocessing, signatures, training)
        (scratch / CARD).write_text(json.dumps(card, indent=2) + "\n")
    return target


def _write_warmup(path, signatures, preprocessing, model_name):
    """Writes a request to each signature, as TensorFlow Serving replays them after loading."""
    try:
        from tensorflow_serving.apis import predict_pb2, prediction_log_pb2
    except ImportError:
        warn(
            "The export has no warm-up requests, so a server's first answers will be slow: they "
            "need tensorflow-serving-api (the extra `serving`)."
        )
        return
    path.parent.mkdir()
    channels = signatures["serving_default"].input_signature[0].shape[-1]
    with tf.io.TFRecordWriter(str(path)) as writer:
        for name, function in signatures.items():
            request = predict_pb2.PredictRequest()
            request.model_spec.name = model_name
            request.model_spec.signature_name = name
            for spec in function.input_signature:
                value = _warmup_value(spec, preprocessing.image_size, channels)
                request.inputs[spec.name].CopyFrom(tf.make_tensor_proto(value, spec.dtype))
            log = prediction_log_pb2.PredictionLog(
                predict_log=prediction_log_pb2.PredictLog(request=request)
            )
            writer.write(log.SerializeToString())


def _warmup_value(spec, image_size, channels):
    """One image, as pixels or encoded, or a threshold for it: a batching server takes no scalar."""
    if spec.name == "threshold":
        return [0.0]
    if spec.dtype == tf.string:
        encode = tf.io.encode_jpeg if "JPEG" in FILE_FORMATS[channels] else tf.io.encode_png
        return [encode(np.zeros((*image_size, 1), "uint8")).numpy()]
    return np.zeros((1, *image_size, spec.shape[-1]))


def _check(model, version, labels, image_size):
    """Returns the preprocessing to export with."""
    check_network(model, "num_classes")
    if isinstance(version, bool) or not isinstance(version, int) or not 0 < version < 2**63:
        raise ValueError(f"`version` must be a positive integer of 64 bits. Received: {version!r}")
    is_list = hasattr(labels, "__len__") and not isinstance(labels, (str, bytes, Mapping, Set))
    if labels is not None and (not is_list or None in list(labels)):
        raise ValueError(f"`labels` must be a list of strings. Received: {labels!r}")
    if labels is not None and len(labels) != model.num_classes:
        raise ValueError(
            f"`labels` must name the model's {model.num_classes} classes. Received: "
            f"{len(labels)} labels"
        )
    preprocessing = model.preprocessing
    if image_size is not None:
        preprocessing = dataclasses.replace(preprocessing, image_size=image_size)
    if np.prod(preprocessing.image_size, dtype=float) > MAX_PIXELS:
        raise ValueError(
            f"`image_size` must have at most {MAX_PIXELS} pixels. "
            f"Received: {preprocessing.image_size}"
        )
    expected = model.input_shape[1:3]
    if any(e not in (None, s) for e, s in zip(expected, preprocessing.image_size, strict=True)):
        raise ValueError(
            f"`image_size` must fit the model's input, {expected} (height, width). "
            f"Received: {preprocessing.image_size}. Create the model with "
            "`input_shape=(None, None, channels)` to export it at any size."
        )
    for weight in model.weights:
        values = np.asarray(weight.numpy(), "float32")
        if weight.name == "threshold":  # of paths, infinite where they take every node, or none
            values = values[~np.isinf(values)]
        if not np.isfinite(values).all():
            raise ValueError(
                f"The model's weights must be finite. Received: {weight.path} with NaN or infinity"
            )
    return preprocessing


def _check_cascade(model, portable):
    for key in ("first", "second"):
        if not hasattr(getattr(model, key), "adjacency_outputs"):
            raise ValueError(
                f"The `{key}` network of a cascade must be a classifier of dgnet_keras to be "
                f"exported. Received: {getattr(model, key)}. `model.export` takes any"
            )
    if portable:
        raise ValueError(
            "A cascade is not portable: other runtimes than TensorFlow do not ask a network about "
            "some images of a request alone. Received: portable=True"
        )


@contextlib.contextmanager
def atomic_directory(target: pathlib.Path) -> Iterator[pathlib.Path]:
    """Yields an empty folder that becomes `target` if the body succeeds, and is gone if not.

    Its name is not a number, so that a server that watches the parent does not load it.

    Raises:
        FileExistsError: if `target` exists, or another process made it in the meantime.
    """
    taken = f"Version {target.name} exists: {target}. Choose another version."
    if target.exists():
        raise FileExistsError(taken)
    target.parent.mkdir(parents=True, exist_ok=True)
    scratch = pathlib.Path(tempfile.mkdtemp(prefix=f".{target.name}-", dir=target.parent))
    try:
        yield scratch
        scratch.chmod(0o755)
        os.rename(scratch, target)
    except OSError as error:
        if error.errno in (errno.ENOTEMPTY, errno.EEXIST):
            raise FileExistsError(taken) from error
        raise
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
