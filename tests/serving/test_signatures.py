"""What requests to an export are answered, and what is refused; through TensorFlow's C API."""

import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from catalog import adjacency, create, randomize
from serving_helpers import encode

import dgnet_keras as dg
from benchmarks.serving import c_api
from dgnet_keras.serving.signatures import MAX_PIXELS, ServingModule

pytestmark = pytest.mark.xdist_group("serving")  # what its fixtures make is made once
RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (2, 20, 30, 3), "uint8")
FLOATS = PIXELS.astype("float32")


def with_pixel(value):
    changed = FLOATS.copy()
    changed[1, 3, 3, 1] = value
    return {"images": changed}


def threshold(value, shape=()):
    return {"images": PIXELS, "threshold": np.full(shape, value, "float32")}


JPEG, PNG, GIF, BMP = (encode(PIXELS[0], name) for name in ("JPEG", "PNG", "GIF", "BMP"))
HUGE_PNG, HUGE_JPEG = (encode(np.zeros((9000, 9000), "uint8"), n) for n in ("PNG", "JPEG"))
NO_FILE = "must be whole JPEG or PNG files. Received: image] [0] [of]"

# Signature, inputs, and what the error says.
REFUSED = {
    "no bytes": ("predict_jpeg", {"image_bytes": [b""]}, f"{NO_FILE} [0]"),
    "text": ("predict_jpeg", {"image_bytes": [b"hello" * 20]}, f"{NO_FILE} [100]"),
    "gif": ("predict_jpeg", {"image_bytes": [GIF]}, NO_FILE),
    "bmp": ("predict_jpeg", {"image_bytes": [BMP]}, NO_FILE),
    "second is text": ("predict_jpeg", {"image_bytes": [JPEG, b"x"]}, "image] [1] [of] [1]"),
    "start of a jpeg": ("predict_jpeg", {"image_bytes": [JPEG[:10]]}, "Invalid JPEG data"),
    "jpeg cut short": ("predict_jpeg", {"image_bytes": [JPEG[:-200]]}, "Invalid JPEG data"),
    "start of a png": ("predict_jpeg", {"image_bytes": [PNG[:20]]}, f"{NO_FILE} [20]"),
    "png cut short": ("predict_jpeg", {"image_bytes": [PNG[:-200]]}, "Invalid PNG data"),
    "huge png": ("predict_jpeg", {"image_bytes": [HUGE_PNG]}, f"at most {MAX_PIXELS} pixels"),
    "huge jpeg": ("predict_jpeg", {"image_bytes": [HUGE_JPEG]}, "[9000] [9000]"),
    "no files": ("predict_jpeg", {"image_bytes": np.zeros(0, object)}, "holds no image"),
    "files of rank 2": ("predict_jpeg", {"image_bytes": np.array([[JPEG]], object)}, "[1,1]"),
    "pixels as files": ("predict_jpeg", {"image_bytes": PIXELS}, "to be string but uint8"),
    "NaN": ("predict_float", with_pixel(np.nan), "pixels from 0 to 255"),
    "infinity": ("predict_float", with_pixel(-np.inf), "pixels from 0 to 255"),
    "large pixel": ("predict_float", with_pixel(1e30), "pixels from 0 to 255"),
    "bytes as floats": ("predict_float", {"images": PIXELS}, "to be float but uint8"),
    **{
        f"{signature}, {name}": (signature, {"images": change(pixels)}, message)
        for signature, pixels in (
            ("serving_default", PIXELS),
            ("features", PIXELS),
            ("connectivity", PIXELS),
            ("predict_float", FLOATS),
        )
        for name, change, message in (
            ("no images", lambda x: x[:0], "no pixels. Received: shape] [0 20 30 3]"),
            ("no height", lambda x: x[:, :0], "no pixels. Received: shape] [2 0 30 3]"),
            ("one image", lambda x: x[0], "[20,30,3] is not compatible"),
            ("rank 5", lambda x: x[None], "[1,2,20,30,3] is not compatible"),
            ("a scalar", lambda x: x[0, 0, 0, 0], "[] is not compatible"),
            ("grey", lambda x: x[..., :1], "[2,20,30,1] is not compatible"),
            ("int64", lambda x: x.astype("int64"), "but int64 is provided"),
        )
    },
    "large pixels": (
        "serving_default",
        {"images": np.zeros((1, 2**13, 2**13 + 1, 3), "uint8")},  # of 0.2 GB
        f"at most {MAX_PIXELS} pixels",
    ),
    "threshold below 0": ("connectivity_at", threshold(-0.1), "[0, 1.0). Received:] [-0.1]"),
    "threshold at the scale": ("connectivity_at", threshold(1), "[0, 1.0). Received:] [1]"),
    "threshold NaN": ("connectivity_at", threshold(np.nan), "[0, 1.0). Received:] [nan]"),
    "threshold of 3": ("connectivity_at", threshold(0.1, (3,)), "Received: shape] [3]"),
    "threshold of rank 2": ("connectivity_at", threshold(0.1, (2, 1)), "Received: shape] [2 1]"),
}


@pytest.fixture(scope="module")
def model(bird_models):
    return bird_models[1]


@pytest.fixture(scope="module")
def export(birds):
    return birds / "1"


@pytest.fixture(scope="module")
def refusals(export):
    """What each request of `REFUSED` is answered, and what good ones are after all of them."""
    tensors = c_api.signature_tensors(export)
    good = [("serving_default", {"images": PIXELS}), ("predict_jpeg", {"image_bytes": [JPEG]})]
    requests = [(name, inputs) for name, inputs, _ in REFUSED.values()]
    *answers, last, jpeg = c_api.run_elsewhere(export, tensors, requests + good)
    return dict(zip(REFUSED, answers, strict=True)), last, jpeg


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_fit_is_an_invalid_argument_that_says_why(refusals, case):
    error = refusals[0][case]
    assert isinstance(error, c_api.CApiError), "an answer"
    assert error.code == c_api.INVALID_ARGUMENT
    assert REFUSED[case][2] in str(error)


def test_the_process_answers_after_bad_requests(refusals):
    _, last, jpeg = refusals
    assert last["probabilities"].shape == (2, 3)
    assert jpeg["probabilities"].shape == (1, 3)


BAD_REQUESTS = """
import os, pickle, sys
from benchmarks.serving import c_api
directory, tensors, requests = pickle.load(open(sys.argv[1], "rb"))
model = c_api.SavedModel(directory, tensors)

def resident():
    return int(open("/proc/self/statm").read().split()[1]) * os.sysconf("SC_PAGE_SIZE") / 2**20

refused = 0
for k in range(5_000):
    if k == 1_000:
        before = resident()
    try:
        model(*requests[k % len(requests)])
    except c_api.CApiError:
        refused += 1
print(refused, resident() - before)
"""


@pytest.mark.slow
def test_thousands_of_bad_requests_leave_no_memory_behind(export, tmp_path):
    requests = [request[:2] for name, request in REFUSED.items() if name != "large pixels"]
    tensors = c_api.signature_tensors(export)
    (tmp_path / "requests").write_bytes(pickle.dumps((export, tensors, requests)))
    done = subprocess.run(
        [sys.executable, "-c", BAD_REQUESTS, tmp_path / "requests"],
        capture_output=True,
        text=True,
        cwd=pathlib.Path(__file__).parents[2],
    )
    assert done.returncode == 0, done.stderr[-2000:]
    refused, growth = done.stdout.split()
    assert int(refused) == 5_000
    assert float(growth) < 12, "MiB"


@pytest.fixture(scope="module")
def signatures(export):
    return tf.saved_model.load(str(export)).signatures


@pytest.mark.parametrize("value", [0.0, 0.45])
def test_connectivity_at_equals_a_model_made_with_that_threshold(signatures, model, value):
    other = create("resnet_cifar_split", threshold=value)
    dg.copy_weights(model, other)
    x = model.preprocessing(PIXELS)
    found = signatures["connectivity_at"](images=tf.constant(PIXELS), threshold=tf.constant(value))
    for name, matrix in adjacency(other, x).items():
        np.testing.assert_allclose(found[name], matrix, rtol=1e-5, atol=1e-6)
    counted = dg.count_macs(other, x)["per_instance"]["macs"]
    np.testing.assert_array_equal(found["macs"], counted)


@pytest.fixture(scope="module")
def paths():
    """A model of paths, and the signatures of its export."""
    model = randomize(create("resnet_cifar_path", input_shape=(16, 16, 3)))
    module = ServingModule(model, model.preprocessing, ["a", "b", "c"])
    return model, module.signatures()


def test_predict_at_equals_a_model_of_that_threshold(paths):
    model, signatures = paths
    pixels = np.random.default_rng(0).integers(0, 256, (6, 16, 16, 3)).astype("uint8")
    x = model.preprocessing(pixels)
    other = create("resnet_cifar_path", input_shape=(16, 16, 3))
    dg.copy_weights(model, other)
    for value in (-np.inf, -1.0, 0.0, 0.7, np.inf):
        answer = signatures["predict_at"](tf.constant(pixels), tf.constant(value, tf.float32))
        other.set_threshold(value)
        expected = other(x)
        np.testing.assert_allclose(answer["logits"], expected, rtol=1e-4, atol=1e-5)
        np.testing.assert_array_equal(answer["classes"], np.argmax(expected, axis=-1))
        expected = dg.count_macs(other, x)["per_instance"]["macs"]
        np.testing.assert_array_equal(answer["macs"], expected)
    assert set(answer) == {*signatures["serving_default"](tf.constant(pixels)), "macs"}


def test_each_request_of_a_batch_has_its_own_dial(paths):
    _, signatures = paths
    pixels = tf.constant(np.random.default_rng(1).integers(0, 256, (3, 16, 16, 3)).astype("uint8"))
    limits = [-2.0, 0.0, 2.0]
    mixed = signatures["predict_at"](pixels, tf.constant(limits))["logits"]
    macs = signatures["connectivity_at"](pixels, tf.constant(limits))["macs"].numpy()
    for b, limit in enumerate(limits):
        alone = signatures["predict_at"](pixels[b : b + 1], tf.constant(limit))["logits"]
        np.testing.assert_allclose(mixed[b], alone[0], rtol=1e-4, atol=1e-5)
    assert macs[0] >= macs[2]
    with pytest.raises(tf.errors.InvalidArgumentError, match="threshold must be a number"):
        signatures["predict_at"](pixels, tf.constant(np.nan, tf.float32))


def test_each_image_may_have_its_own_threshold(signatures):
    def at(threshold):
        found = signatures["connectivity_at"](
            images=tf.constant(PIXELS), threshold=tf.constant(threshold)
        )
        return {name: value.numpy() for name, value in found.items()}

    low, high, mixed = at(0.05), at(0.6), at([0.05, 0.6])
    assert any((low[name] != high[name]).any() for name in low)
    for name, matrix in mixed.items():
        np.testing.assert_allclose(matrix[0], low[name][0], rtol=1e-5)
        np.testing.assert_allclose(matrix[1], high[name][1], rtol=1e-5)


def test_connectivity_says_the_macs_of_each_image(signatures, model):
    found = signatures["connectivity"](tf.constant(PIXELS))
    counted = dg.count_macs(model, model.preprocessing(PIXELS))
    np.testing.assert_array_equal(found["macs"], counted["per_instance"]["macs"])
    assert (found["macs"].numpy() < counted["macs"]).all()
