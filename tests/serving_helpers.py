"""A tiny model with the signatures of an export, and what tests of serving need besides."""

import io
import pathlib
import socket

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from tensorflow_serving.apis import model_management_pb2, prediction_log_pb2
from tensorflow_serving.config import model_server_config_pb2

from dgnet_keras.serving import ServingError

METADATA = """{"metadata": {"signature_def": {"signature_def": {"serving_default": {
    "inputs": {"images": {"dtype": "DT_UINT8", "tensor_shape": {
        "dim": [{"size": "-1"}, {"size": "-1"}, {"size": "-1"}, {"size": "3"}]}}},
    "outputs": {"logits": {"dtype": "DT_FLOAT", "tensor_shape": {"unknown_rank": true}}}}}}}}"""
IMAGE = np.zeros((1, 8, 8, 3), "uint8")
IMAGES = tf.TensorSpec((None, None, None, 3), tf.uint8, "images")


class Tiny(tf.Module):
    """Answers `number` and the mean of each image; `fail` refuses images of mean 0."""

    def __init__(self, number):
        super().__init__()
        self.number = tf.Variable(float(number))

    @tf.function(input_signature=[IMAGES])
    def predict(self, images):
        mean = tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2, 3))
        classes = tf.cast(mean, tf.int64)
        labels = tf.strings.join(["n°", tf.strings.as_string(classes)])
        return {"logits": mean + self.number, "classes": classes, "top_labels": labels[:, None]}

    @tf.function(
        input_signature=[
            IMAGES,
            tf.TensorSpec((None,), tf.float32, "threshold"),
        ]
    )
    def connectivity_at(self, images, threshold):
        mean = tf.reduce_mean(tf.cast(images, tf.float32), axis=(1, 2, 3))
        return {"stage1": mean[:, None, None] * tf.ones((3, 3)) - threshold[:, None, None]}

    @tf.function(input_signature=[IMAGES])
    def features(self, images):
        return {"features": tf.math.log(tf.cast(images, tf.float32) - 1)}

    @tf.function(input_signature=[tf.TensorSpec((None,), tf.string, "image_bytes")])
    def echo(self, image_bytes):
        return {"text": image_bytes, "raw_bytes": image_bytes}

    @tf.function(input_signature=[IMAGES])
    def fail(self, images):
        message = 'it\'s “too dark”:\n"0" is not > 0'
        with tf.control_dependencies([tf.debugging.Assert(tf.reduce_all(images > 0), [message])]):
            return {"count": tf.shape(images)[0]}


def save(directory, number, names=("connectivity_at", "features", "echo", "fail")):
    """Saves `Tiny` as version `number` of the model whose folder is `directory`."""
    module = Tiny(number)
    signatures = {"serving_default": module.predict, **{n: getattr(module, n) for n in names}}
    folder = pathlib.Path(directory) / str(number)
    scratch = folder.with_name(f"scratch-{number}")
    tf.saved_model.save(module, str(scratch), signatures=signatures)
    scratch.rename(folder)
    return folder


def config(base_path, name="m", versions=(), labels=None):
    """A `ModelServerConfig` of one model; no versions means the latest."""
    proto = model_server_config_pb2.ModelServerConfig()
    model = proto.model_config_list.config.add(
        name=name, base_path=str(base_path), model_platform="tensorflow"
    )
    model.model_version_policy.specific.versions.extend(versions)
    if not versions:
        model.ClearField("model_version_policy")
    model.version_labels.update(labels or {})
    return proto


def reload_request(proto):
    return model_management_pb2.ReloadConfigRequest(config=proto)


def warm_up(folder, request):
    """Writes a `PredictRequest` as the warm-up request of the version in a folder."""
    path = folder / "assets.extra" / "tf_serving_warmup_requests"
    path.parent.mkdir()
    log = prediction_log_pb2.PredictionLog()
    log.predict_log.request.CopyFrom(request)
    with tf.io.TFRecordWriter(str(path)) as writer:
        writer.write(log.SerializeToString())


def encode(pixels, file_format):
    """The content of an image file: pixels uint8 (height, width, 3), or (height, width)."""
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, file_format)
    return buffer.getvalue()


def error_of(function, *args, **kwargs):
    """The `ServingError` that a call raises."""
    with pytest.raises(ServingError) as caught:
        function(*args, **kwargs)
    return caught.value


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]
