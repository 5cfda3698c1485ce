import http.server
import io
import pickle
import shutil
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import serving_helpers
import tensorflow as tf
from catalog import create, randomize
from PIL import Image

import dgnet_keras as dg
from benchmarks.serving.model_server import ModelServer
from dgnet_keras.serving import Client, ServingError

pytestmark = pytest.mark.xdist_group("serving")  # what its fixtures make is made once
ROWS = {1: "resnet_cifar_split", 2: "resnet_basic"}
LABELS = {1: ["a", "b", "ö"], 2: ["d", "e", "f"]}
PROTOCOLS = ("rest", "grpc")
IMAGE = np.zeros((1, 8, 8, 3), "uint8")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A model's folder with two versions."""
    folder = tmp_path_factory.mktemp("birds")
    for version, row in ROWS.items():
        model = create(row, input_shape=(16, 16, 3))
        randomize(model)
        dg.export_saved_model(model, folder, version=version, labels=LABELS[version])
    return folder


@pytest.fixture(scope="module")
def server(folder):
    labels = {"stable": 1, "canary": 2}
    with ModelServer(serving_helpers.config(folder, "birds", [1, 2], labels)) as server:
        yield server


@pytest.fixture(scope="module")
def run(folder):
    """Function of a signature of version 1 and its inputs: what TensorFlow answers."""
    loaded = tf.saved_model.load(str(folder / "1"))

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


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 20, 30, 3), "uint8")


def url_of(server, protocol):
    return {"rest": server.rest_url, "grpc": server.grpc_url}[protocol]


def encode(array, file_format):
    buffer = io.BytesIO()
    Image.fromarray(array).save(buffer, file_format)
    return buffer.getvalue()


def check_same(answer, expected):
    assert set(answer) == set(expected)
    for name, tensor in expected.items():
        values = tensor.numpy()
        if values.dtype == object:
            assert answer[name].tolist() == np.char.decode(values.astype(bytes), "utf-8").tolist()
        else:
            assert answer[name].dtype == values.dtype
            np.testing.assert_allclose(answer[name], values, rtol=1e-5, atol=1e-5)


def error_of(function, *args, **kwargs):
    with pytest.raises(ServingError) as caught:
        function(*args, **kwargs)
    return caught.value


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
def live(folder, tmp_path):
    """A server that serves the newest version of a folder, and a function that adds one to it."""

    def add(version):
        without_warm_up = shutil.ignore_patterns("assets.extra")
        shutil.copytree(folder / str(version), tmp_path / str(version), ignore=without_warm_up)

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

METADATA = """{"metadata": {"signature_def": {"signature_def": {"serving_default": {
    "inputs": {"images": {"dtype": "DT_UINT8", "tensor_shape": {"unknown_rank": true}}},
    "outputs": {"logits": {"dtype": "DT_FLOAT", "tensor_shape": {"unknown_rank": true}}}}}}}}"""


@pytest.fixture
def scripted():
    """Function of a list of (HTTP status, body): a server of these, its URL, and what it saw."""
    servers = []

    def start(answers):
        seen, answers = [], list(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                seen.append(self.path)
                status, body = answers.pop(0)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *args):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


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


@pytest.mark.parametrize(
    ("status", "code"), [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (500, "UNKNOWN")]
)
def test_other_errors_are_not_tried_again(scripted, status, code):
    url, seen = scripted([(200, METADATA), (status, '{ "error": "it\\\'s \\"bad\\"" }')])
    error = error_of(Client(url, "m").predict, IMAGE)
    assert error.code == code
    assert 'it\'s "bad"' in str(error)
    assert len(seen) == 2


@pytest.mark.parametrize("body", ["<html>welcome</html>", "[1]", '{"predictions": []}'])
def test_an_answer_that_is_none_of_tensorflow_serving(scripted, body):
    url, _ = scripted([(200, body)])
    error = error_of(Client(url, "m").metadata)
    assert error.code == "INTERNAL"
    assert "Received" in str(error)


def test_over_grpc_a_server_that_is_busy_is_asked_again(server, monkeypatch):
    from benchmarks.serving.served_models import Refused

    tries, predict = [], server.models.predict

    def busy(request):
        tries.append(1)
        if len(tries) < 3:
            raise Refused("UNAVAILABLE", "busy")
        return predict(request)

    monkeypatch.setattr(server.models, "predict", busy)
    with Client(server.grpc_url, "birds") as client:
        assert client.predict(IMAGE)["classes"].shape == (1,)
        assert len(tries) == 3
        with pytest.raises(ServingError, match="no pixels"):
            client.call("serving_default", np.zeros((1, 0, 4, 3), "uint8"))
        assert len(tries) == 4


def free_port():
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return listener.getsockname()[1]


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


def test_a_closed_client_says_so(server, images):
    client = Client(server.grpc_url, "birds")
    client.close()
    error = error_of(client.predict, images)
    assert error.code == "CANCELLED"
    assert "closed" in str(error)


def test_a_server_that_answers_byte_by_byte_costs_the_timeout():
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle():
            connection, _ = listener.accept()
            for _ in range(15):
                connection.sendall(b"H")
                time.sleep(0.1)
            connection.close()

        thread = threading.Thread(target=trickle)
        thread.start()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "birds", timeout=0.5)
        start = time.monotonic()
        error = error_of(client.status)
        assert time.monotonic() - start < 1
        assert error.code == "DEADLINE_EXCEEDED"
        thread.join()


@pytest.mark.parametrize("protocol", PROTOCOLS)
def test_waiting_until_a_server_has_started(tmp_path, protocol):
    serving_helpers.save(tmp_path, 2)
    port = free_port()
    scheme, argument = {"rest": ("http", "rest_port"), "grpc": ("grpc", "grpc_port")}[protocol]
    with Client(f"{scheme}://127.0.0.1:{port}", "birds", version=2) as client:
        error = error_of(client.wait_until_ready, 0.3)
        assert error.code == "DEADLINE_EXCEEDED"
        assert "connection refused" in str(error)
        config = serving_helpers.config(tmp_path, "birds", [2])
        with ModelServer(config, **{argument: port}):
            client.wait_until_ready(5)
            assert client.predict(IMAGE)["logits"] == 2


# What is refused before it is sent


@pytest.fixture
def unsent():
    """A client whose server was never there."""
    with Client("http://127.0.0.1:9", "birds") as client:
        yield client


@pytest.mark.parametrize(
    "images",
    [
        np.zeros((8, 8, 3), "uint8"),
        np.zeros((0, 8, 8, 3), "uint8"),
        np.zeros((1, 8, 8, 3), "int64"),
        np.full((1, 8, 8, 3), "x"),
    ],
)
def test_images_that_do_not_fit(unsent, images):
    with pytest.raises(ValueError, match=r"`images` must be uint8.*Received: .*\(.*3\)"):
        unsent.predict(images)
    with pytest.raises(ValueError, match=r"`images` must be uint8.*Received: .*\(.*3\)"):
        unsent.features(images)


def test_only_bytes_have_features_and_connectivity(unsent):
    for method in (unsent.features, unsent.connectivity):
        with pytest.raises(ValueError, match=r"must be uint8.*float32"):
            method(IMAGE.astype("float32"))
    with pytest.raises(ValueError, match=r"each of the 1 images. Received: shape \(2,\)"):
        unsent.connectivity(IMAGE, [0.1, 0.2])


def test_files_that_do_not_fit(unsent, tmp_path):
    with pytest.raises(FileNotFoundError, match="robin"):
        unsent.predict_jpeg([tmp_path / "robin.jpg"])
    gif = tmp_path / "wren.jpg"
    gif.write_bytes(encode(IMAGE[0], "GIF"))
    with pytest.raises(ValueError, match=r"JPEG or PNG. Received: .*wren.jpg.*GIF"):
        unsent.predict_jpeg([encode(IMAGE[0], "PNG"), gif])
    for files, message in (
        ("robin.jpg", "must be a list"),
        ([], "at least one"),
        ([b""], "Received: 0 bytes"),
        ([7], "`bytes` or a path. Received: 7"),
    ):
        with pytest.raises(ValueError, match=message):
            unsent.predict_jpeg(files)


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"image": IMAGE}, r"takes the inputs \['images'\]. Received: \['image'\]"),
        (IMAGE.astype("int32"), "must be uint8 of shape .*Received: int32"),
        (IMAGE[..., :1], r"\(None, None, None, 3\).*\(1, 8, 8, 1\)"),
    ],
)
def test_inputs_that_are_not_the_signatures(client, server, monkeypatch, inputs, message):
    monkeypatch.setattr(server.models, "predict", lambda request: pytest.fail("was sent"))
    with pytest.raises(ValueError, match=message):
        client.call("serving_default", inputs)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"url": "localhost:8501"}, "`url` must be like .*localhost:8501"),
        ({"url": "ftp://localhost"}, "`url` must be like"),
        ({"url": "http://localhost:port"}, "must end in a port"),
        ({"url": "grpc://localhost"}, "must end in a port"),
        ({"url": "grpc://localhost:8500/v1"}, "must end in a port"),
        ({"model": ""}, "`model`.*''"),
        ({"version": 1, "label": "stable"}, "not both.*1.*stable"),
        ({"version": "1"}, "`version` must be an integer.*'1'"),
        ({"label": 1}, "`label` must be a string.*1"),
        ({"timeout": 0}, "`timeout` must be a number > 0.*0"),
        ({"retries": -1}, "`retries` must be an integer >= 0.*-1"),
    ],
)
def test_bad_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        Client(**{"url": "http://localhost:8501", "model": "birds", **kwargs})


def test_errors_do_not_repeat_a_password():
    with Client(f"http://me:secret@127.0.0.1:{free_port()}", "birds", retries=0) as client:
        error = error_of(client.status)
    assert "secret" not in str(error)


def test_an_error_goes_through_pickle():
    error = pickle.loads(pickle.dumps(ServingError("NOT_FOUND", "no", reached=False)))
    assert (error.code, str(error), error.reached) == ("NOT_FOUND", "no", False)


# Packages


@pytest.mark.parametrize(
    ("package", "url"),
    [
        ("requests", "http://localhost:8501"),
        ("tensorflow_serving.apis.prediction_service_pb2_grpc", "grpc://localhost:8500"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package, url):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install '\.\[serving\]'"):
        Client(url, "birds")


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
