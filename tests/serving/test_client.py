import shutil
import socket
import subprocess
import sys
import time

import numpy as np
import pytest
import serving_helpers
import tensorflow as tf
from serving_helpers import IMAGE, METADATA, encode, error_of, free_port

from benchmarks.serving.model_server import ModelServer
from dgnet_keras.serving import Client

pytestmark = pytest.mark.xdist_group("serving")  # what its fixtures make is made once
PROTOCOLS = ("rest", "grpc")


@pytest.fixture(scope="module")
def run(birds):
    """Function of a signature of version 1 and its inputs: what TensorFlow answers."""
    loaded = tf.saved_model.load(str(birds / "1"))

    def run(signature, **inputs):
        function = loaded.signatures[signature]
        specs = function.structured_input_signature[1]
        return function(**{k: tf.constant(v, specs[k].dtype) for k, v in inputs.items()})

    return run


@pytest.fixture(params=PROTOCOLS)
def url(request, server):
    return url_of(server, request.param)


@pytest.fixture
def client(url):
    with Client(url, "birds", version=1) as client:
        yield client


def url_of(server, protocol):
    return {"rest": server.rest_url, "grpc": server.grpc_url}[protocol]


def check_same(answer, expected):
    assert set(answer) == set(expected)
    for name, tensor in expected.items():
        values = tensor.numpy()
        if values.dtype == object:
            assert answer[name].tolist() == np.char.decode(values.astype(bytes), "utf-8").tolist()
        else:
            assert answer[name].dtype == values.dtype
            np.testing.assert_allclose(answer[name], values, rtol=1e-5, atol=1e-5)


# Answers


def test_predictions_are_those_of_the_saved_model(client, run, images):
    expected = run("serving_default", images=images)
    check_same(client.predict(images), expected)
    check_same(client.predict(list(images)), expected)
    floats = images + np.float64(0.25)
    expected = run("predict_float", images=floats)
    check_same(client.predict(floats), expected)
    check_same(client.features(images), run("features", images=images))


def test_strings_are_text(client, images):
    labels = client.predict(images)["top_labels"]
    assert labels.dtype == object
    assert set(labels[0]) == {"a", "b", "ö"}


def test_jpeg_and_png_as_bytes_and_as_files(client, run, images, tmp_path):
    encoded = [encode(images[0], "PNG"), encode(images[1, :9], "JPEG"), encode(images[2], "PNG")]
    path = tmp_path / "image of unknown kind"
    path.write_bytes(encoded[1])
    expected = run("predict_jpeg", image_bytes=encoded)
    check_same(client.predict_jpeg([encoded[0], path, bytearray(encoded[2])]), expected)
    check_same(client.predict_jpeg([encoded[0], str(path), encoded[2]]), expected)


def test_connectivity_at_the_models_threshold_and_others(client, run, images):
    check_same(client.connectivity(images), run("connectivity", images=images))
    each = np.array([0, 0.5, 0.99], "float32")
    for threshold in (0.5, each, each.tolist()):
        answer = client.connectivity(images, threshold)
        expected = run("connectivity_at", images=images, threshold=threshold)
        check_same(answer, expected)
    assert answer["macs"][0] > answer["macs"][2]


def test_the_dial_is_one_for_all_images_or_one_each(client, run, images):
    for threshold in (0.5, [0, 0.5, 0.99]):
        expected = run("predict_at", images=images, threshold=np.float32(threshold))
        check_same(client.predict(images, threshold), expected)
    with pytest.raises(ValueError, match="one for each of the 3 images"):
        client.predict(images, [0.1, 0.2])


def test_any_signature_takes_a_dict_or_its_only_input(client, run, images):
    expected = run("features", images=images)
    check_same(client.call("features", {"images": images}), expected)
    check_same(client.call("features", images), expected)


def test_metadata_and_status(client):
    known = client.metadata()["connectivity_at"]
    assert known["inputs"]["images"] == {"dtype": "uint8", "shape": (None, None, None, 3)}
    assert known["inputs"]["threshold"] == {"dtype": "float32", "shape": None}
    assert known["outputs"]["macs"] == {"dtype": "int64", "shape": (None,)}
    assert client.status() == [{"version": 1, "state": "AVAILABLE", "error": ""}]


def test_versions_and_labels(url, images):
    def labels(**kwargs):
        with Client(url, "birds", **kwargs) as client:
            return sorted(client.predict(images)["top_labels"][0])

    assert labels() == labels(version=2) == labels(label="canary") == ["d", "e", "f"]
    assert labels(version=1) == labels(label="stable") == ["a", "b", "ö"]
    with Client(url, "birds") as client:
        assert [status["version"] for status in client.status()] == [1, 2]


@pytest.fixture
def live(birds, tmp_path):
    """A server that serves the newest version of a folder, and a function that adds one to it."""

    def add(version):
        shutil.copytree(birds / str(version), tmp_path / str(version))

    add(1)
    with ModelServer(serving_helpers.config(tmp_path, "birds"), poll_seconds=1000) as server:
        yield server, add


def test_clients_follow_to_version_2_and_back(live, tmp_path, images):
    server, add = live
    with Client(server.rest_url, "birds") as rest, Client(server.grpc_url, "birds") as grpc:
        clients = (rest, grpc)

        def outputs():
            for client in clients:
                assert client.predict(images)["logits"].shape == (3, 3)
            first, second = (set(client.connectivity(images)) for client in clients)
            assert first == second
            return first

        before = outputs()
        add(2)
        server.models.poll()
        # Its stages are others: what was known of the outputs no longer holds.
        assert outputs() != before
        assert all("d" in client.predict(images)["top_labels"] for client in clients)
        assert [status["state"] for status in rest.status()] == ["END", "AVAILABLE"]
        shutil.rmtree(tmp_path / "2")
        server.models.poll()
        assert outputs() == before
        assert all("a" in client.predict(images)["top_labels"] for client in clients)


# Errors of a server that answers


@pytest.mark.parametrize(
    ("target", "code", "texts"),
    [
        ({"model": "bees"}, "NOT_FOUND", ["bees"]),
        ({"model": "birds", "version": 7}, "NOT_FOUND", ["birds", "version 7"]),
        ({"model": "birds", "label": "gold"}, "INVALID_ARGUMENT", ["label: gold"]),
    ],
)
def test_what_the_server_does_not_have(url, target, code, texts):
    with Client(url, **target) as client:
        for ask in (client.status, client.metadata, lambda: client.predict(IMAGE)):
            error = error_of(ask)
            assert error.code == code
            assert all(text in str(error) for text in [url, *texts])


def test_a_signature_that_the_model_does_not_have(client):
    error = error_of(client.call, "segment", IMAGE)
    assert error.code == "NOT_FOUND"
    assert "segment" in str(error)
    assert "predict_jpeg" in str(error)


def test_a_refusal_carries_the_servers_message(client):
    error = error_of(client.predict, np.full((1, 4, 4, 3), np.nan))
    assert error.code == "INVALID_ARGUMENT"
    assert "images must have pixels from 0 to 255" in str(error)
    assert "birds" in str(error)
    error = error_of(client.connectivity, IMAGE, 1.5)
    assert "threshold must be in" in str(error)
    error = error_of(client.predict_jpeg, [encode(IMAGE[0], "PNG")[:20]])
    assert "must be whole JPEG or PNG files" in str(error)


# Errors of the network


@pytest.mark.parametrize("status", [503, 429, 502])
def test_a_server_that_is_busy_is_asked_again(scripted, status):
    busy = (status, '{"error": "busy"}')
    url, seen = scripted([busy, busy, (200, METADATA), busy, (200, '{"outputs": [[1.5]]}')])
    answer = Client(url, "m").predict(IMAGE)
    np.testing.assert_array_equal(answer["logits"], np.array([[1.5]], "float32"))
    assert len(seen) == 5


def test_after_the_last_try_the_error_says_how_often(scripted):
    url, seen = scripted([(503, '{"error": "busy"}')] * 5)
    error = error_of(Client(url, "m", retries=2).metadata)
    assert error.code == "UNAVAILABLE"
    assert "3 tries" in str(error)
    assert "busy" in str(error)
    assert len(seen) == 3


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_is_down(scheme):
    url = f"{scheme}://127.0.0.1:{free_port()}"
    with Client(url, "birds", retries=2) as client:
        error = error_of(client.predict, IMAGE)
    assert error.code == "UNAVAILABLE"
    assert not error.reached
    for text in (url, "birds", "cannot be reached", "connection refused", "3 tries"):
        assert text in str(error)


@pytest.mark.parametrize("scheme", ["http", "grpc"])
def test_a_server_that_never_answers_costs_the_timeout(scheme):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        url = f"{scheme}://127.0.0.1:{listener.getsockname()[1]}"
        with Client(url, "birds", timeout=0.5) as client:
            start = time.monotonic()
            error = error_of(client.predict, IMAGE)
            seconds = time.monotonic() - start
    assert error.code == "DEADLINE_EXCEEDED"
    assert "0.5 s" in str(error)
    assert 0.4 < seconds < 1.5


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_waiting_until_a_server_has_started(tiny, protocol):
    port = free_port()
    scheme, argument = {"rest": ("http", "rest_port"), "grpc": ("grpc", "grpc_port")}[protocol]
    with Client(f"{scheme}://127.0.0.1:{port}", "birds", version=2) as client:
        error = error_of(client.wait_until_ready, 0.3)
        assert error.code == "DEADLINE_EXCEEDED"
        assert "connection refused" in str(error)
        config = serving_helpers.config(tiny, "birds", [2])
        with ModelServer(config, **{argument: port}):
            client.wait_until_ready(5)
            assert client.predict(IMAGE)["logits"] == 2


def test_errors_do_not_repeat_a_password():
    with Client(f"http://me:secret@127.0.0.1:{free_port()}", "birds", retries=0) as client:
        error = error_of(client.status)
    assert "secret" not in str(error)


@pytest.mark.parametrize(("protocol", "absent"), [("rest", "keras tensorflow"), ("grpc", "keras")])
def test_the_modules_need_no_keras(server, protocol, absent):
    code = f"""
import sys, types
for name in "{absent}".split():
    sys.modules[name] = None
package = types.ModuleType("dgnet_keras")  # whose own __init__ imports Keras
package.__path__ = ["dgnet_keras"]
sys.modules["dgnet_keras"] = package
import numpy
from dgnet_keras.serving import Client
print(Client("{url_of(server, protocol)}", "birds").predict(numpy.zeros((2, 8, 8, 3), "uint8")))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert "probabilities" in done.stdout, done.stderr[-2000:]
