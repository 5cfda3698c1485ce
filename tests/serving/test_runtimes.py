"""Exports of the catalog's core, in other runtimes than Keras."""

import io
import pathlib
import pickle
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from catalog import CORE, adjacency, create, randomize
from PIL import Image

import dgnet_keras as dg
from benchmarks.serving import c_api

pytestmark = pytest.mark.xdist_group("runtimes")  # what its fixtures make is made once
SIZE = 16
SHAPES = ((1, 16, 16, 3), (3, 25, 40, 3), (64, 20, 17, 3))
RUNTIMES = {"tensorflow": 5, "c_api": 5, "openvino": 3}  # requests that each of them answers


# Loading takes long in Python. All are looked through, and the C API has the same kernels.
LOADED = ("resnet_cifar_split", "mobilenet_v2_path")


def raw_images(shape):
    return np.random.default_rng(sum(shape)).integers(0, 256, shape, "uint8")


def encoded_images():
    """JPEG and PNG files of unequal sizes."""
    files = []
    for name, shape in (("JPEG", (40, 30, 3)), ("PNG", (16, 16, 3)), ("PNG", (9, 20, 3))):
        buffer = io.BytesIO()
        Image.fromarray(raw_images(shape)).save(buffer, name)
        files.append(buffer.getvalue())
    return files


def decoded(files):
    return [tf.io.decode_image(file, 3, expand_animations=False).numpy() for file in files]


def expected_answers(model, preprocessing):
    """What Keras answers to the requests of `jobs`, in order."""
    inputs = [preprocessing(raw_images(shape)) for shape in SHAPES]
    inputs.append(tf.stack([preprocessing(image) for image in decoded(encoded_images())]))
    together = tf.nn.softmax(model(tf.concat(inputs, axis=0))).numpy()
    ends = np.cumsum([len(x) for x in inputs])
    answers = [{"probabilities": part} for part in np.split(together, ends[:-1])]
    connectivity = adjacency(model, inputs[1])
    connectivity["macs"] = dg.count_macs(model, inputs[1])["per_instance"]["macs"]
    return [*answers, connectivity]


@pytest.fixture(scope="module")
def jobs(tmp_path_factory):
    """Row to a job of `saved_model_runtimes`, and row to what Keras answers."""
    folder = tmp_path_factory.mktemp("exports")
    requests = [("serving_default", {"images": raw_images(shape)}) for shape in SHAPES]
    requests.append(("predict_jpeg", {"image_bytes": encoded_images()}))
    requests.append(("connectivity", {"images": raw_images(SHAPES[1])}))
    jobs, expected = {}, {}
    for row in CORE:
        model = randomize(create(row))
        directory = dg.export_saved_model(model, folder / row, image_size=SIZE)
        portable = dg.export_saved_model(
            model, folder / f"{row}_portable", portable=True, image_size=SIZE
        )
        config = {**model.preprocessing.to_config(), "image_size": SIZE}
        expected[row] = expected_answers(model, dg.Preprocessing(**config))
        tensors = c_api.signature_tensors(directory)
        jobs[row] = (directory, portable, tensors, requests, row in LOADED)
    return jobs, expected


@pytest.mark.slow
def test_other_runtimes_answer_as_keras_does(jobs, tmp_path):
    jobs, expected = jobs
    (tmp_path / "jobs").write_bytes(pickle.dumps(jobs))
    script = pathlib.Path(__file__).with_name("saved_model_runtimes.py")
    for runtime, count in RUNTIMES.items():
        line = [sys.executable, script, runtime, tmp_path / "jobs", tmp_path / runtime]
        done = subprocess.run(line, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-2000:]
        for word in ("custom gradient", "WARNING:tensorflow"):
            assert word not in done.stderr, done.stderr[-2000:]
        answers = pickle.loads((tmp_path / runtime).read_bytes())
        for row in CORE:
            if runtime == "tensorflow" and row not in LOADED:
                continue
            assert len(answers[row]) == count
            for found, wanted in zip(answers[row], expected[row], strict=False):
                for name, value in wanted.items():
                    np.testing.assert_allclose(
                        found[name], value, atol=1e-5, rtol=1e-5, err_msg=f"{runtime} {row} {name}"
                    )
