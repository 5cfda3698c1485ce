import ast
import base64
import concurrent.futures
import pathlib
import re
import shutil
import subprocess
import sys
import time

import grpc
import numpy as np
import pytest
import requests
import serving_helpers
import tensorflow as tf
from google.protobuf import text_format
from tensorflow_serving.apis import (
    get_model_status_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from benchmarks.serving.model_server import ModelServer

pytestmark = pytest.mark.xdist_group("model_server")  # what its fixtures make is made once
ROOT = pathlib.Path(__file__).parents[3]
IMAGES = np.arange(2 * 2 * 2 * 3, dtype="uint8").reshape(2, 2, 2, 3) + 1  # means 6.5 and 18.5


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Folder of the versions 1 and 2, which add 1 and 2 to the mean."""
    folder = tmp_path_factory.mktemp("saved")
    for number in (1, 2):
        serving_helpers.save(folder, number)
    return folder


@pytest.fixture(scope="module")
def server(saved):
    with ModelServer(serving_helpers.config(saved, "m", [1, 2], {"stable": 1})) as server:
        yield server


@pytest.fixture
def folder(saved, tmp_path):
    """A folder of version 1 alone, and a function that adds version 2."""
    shutil.copytree(saved / "1", tmp_path / "m" / "1")
    return tmp_path / "m", lambda: shutil.copytree(saved / "2", tmp_path / "m" / "2")


def start(config):
    """A server that looks at its files only when told to."""
    return ModelServer(config, poll_seconds=1000)


def ask(server, path, body=None):
    """Status and JSON of a REST request."""
    url = f"{server.rest_url}/v1/models/{path}"
    answer = requests.get(url) if body is None else requests.post(url, json=body)
    return answer.status_code, answer.json()


def first_logit(server, path="m"):
    code, answer = ask(server, f"{path}:predict", {"inputs": IMAGES.tolist()})
    assert code == 200, answer
    return answer["outputs"]["logits"][0]


def states(server, path="m"):
    _, answer = ask(server, path)
    return {int(s["version"]): s["state"] for s in answer["model_version_status"]}


def predict(server, **inputs):
    """Over gRPC, the outputs; `signature`, `version` and `output_filter` may be among inputs."""
    request = predict_pb2.PredictRequest()
    request.model_spec.name = "m"
    request.model_spec.signature_name = inputs.pop("signature", "")
    request.output_filter.extend(inputs.pop("output_filter", []))
    for name, value in inputs.items():
        request.inputs[name].CopyFrom(tf.make_tensor_proto(value))
    with grpc.insecure_channel(server.grpc_url.removeprefix("grpc://")) as channel:
        stub = prediction_service_pb2_grpc.PredictionServiceStub(channel)
        return {k: tf.make_ndarray(v) for k, v in stub.Predict(request).outputs.items()}


# Protocols


def test_rows_and_columns_are_two_forms_of_one_answer(server):
    code, columns = ask(server, "m:predict", {"inputs": {"images": IMAGES.tolist()}})
    assert code == 200
    expected = {"logits": [8.5, 20.5], "classes": [6, 18], "top_labels": [["n°6"], ["n°18"]]}
    assert columns == {"outputs": expected}
    rows = [{name: values[i] for name, values in expected.items()} for i in range(2)]
    named = [{"images": image} for image in IMAGES.tolist()]
    for instances in (IMAGES.tolist(), named):
        assert ask(server, "m:predict", {"instances": instances}) == (200, {"predictions": rows})


def test_a_single_output_has_no_name(server):
    body = {"signature_name": "features", "inputs": np.full((1, 1, 1, 3), 2).tolist()}
    assert ask(server, "m:predict", body) == (200, {"outputs": [[[[0, 0, 0]]]]})


def test_bytes_travel_as_base64_where_the_names_end_so(server):
    texts = [b"\xff\x00", b"plain"]
    encoded = [{"b64": base64.b64encode(text).decode()} for text in texts]
    inputs = {"signature_name": "echo", "instances": [encoded[1], "plain"]}
    code, answer = ask(server, "m:predict", inputs)
    assert code == 200
    assert answer["predictions"] == [{"text": "plain", "raw_bytes": encoded[1]}] * 2
    assert predict(server, image_bytes=texts, signature="echo")["raw_bytes"].tolist() == texts


def test_not_a_number_and_infinity_are_written_as_such(server):
    body = {"signature_name": "features", "inputs": [[[[1, 0, 2]]]]}
    _, answer = ask(server, "m:predict", body)
    np.testing.assert_array_equal(answer["outputs"][0][0][0], [-np.inf, np.nan, 0])


def test_grpc_gives_what_rest_gives(server):
    answer = predict(server, images=IMAGES)
    np.testing.assert_array_equal(answer["logits"], [8.5, 20.5])
    assert answer["top_labels"].tolist() == [["n°6".encode()], ["n°18".encode()]]
    assert set(predict(server, images=IMAGES, output_filter=["classes"])) == {"classes"}


def test_metadata(server):
    code, answer = ask(server, "m/versions/1/metadata")
    assert code == 200
    assert answer["model_spec"]["name"] == "m"
    assert answer["model_spec"]["version"] == "1"
    signature = answer["metadata"]["signature_def"]["signature_def"]["features"]
    assert signature["inputs"]["images"]["dtype"] == "DT_UINT8"
    sizes = [d["size"] for d in signature["inputs"]["images"]["tensor_shape"]["dim"]]
    assert sizes == ["-1", "-1", "-1", "3"]


def test_versions_and_labels(server):
    assert first_logit(server) == 8.5
    assert first_logit(server, "m/versions/1") == first_logit(server, "m/labels/stable") == 7.5
    assert states(server) == {1: "AVAILABLE", 2: "AVAILABLE"}
    assert states(server, "m/labels/stable") == {1: "AVAILABLE"}


@pytest.mark.parametrize(
    ("path", "code", "message"),
    [
        ("x", 404, "Could not find any versions of model x"),
        ("m/versions/3", 404, "Could not find version 3 of model m"),
        ("m/versions/3/metadata", 404, r"Servable not found for request: Specific\(m, 3\)"),
        ("m/labels/gold", 400, "Unrecognized servable version label: gold"),
        ("m/nonsense", 400, "Malformed request: GET /v1/models/m/nonsense"),
    ],
)
def test_what_there_is_not(server, path, code, message):
    response = requests.get(f"{server.rest_url}/v1/models/{path}")
    assert response.status_code == code
    assert re.search(message, response.json()["error"])


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"inputs": [[1]]}, "2 for input with 2 dimension(s)"),
        ({"signature_name": ["x"], "inputs": []}, "not found"),
        ({"inputs": {"image": [[[[1, 1, 1]]]]}}, "image"),
        ({"inputs": [[[[1, 1, 300]]]]}, "not of expected type: uint8"),
        ({"inputs": [[[[1, 1, 0.5]]]]}, "not of expected type: uint8"),
        ({"inputs": [[[[1, 1]], [[1]]]]}, "not of expected type: uint8"),
        ({"inputs": [], "instances": []}, "one of 'instances' and 'inputs'"),
        ({"instances": []}, "not empty"),
        ([1], "one of 'instances' and 'inputs'"),
        ({"signature_name": "x", "inputs": []}, '"x" not found'),
        ({"signature_name": "connectivity_at", "inputs": {"images": []}}, "threshold"),
        ({"signature_name": "fail", "inputs": [[[[0, 0, 0]]]]}, "too dark"),
    ],
)
def test_requests_that_are_refused(server, body, message):
    response = requests.post(f"{server.rest_url}/v1/models/m:predict", json=body)
    assert response.status_code == 400
    assert message in response.text.encode().decode("unicode_escape")
    assert first_logit(server) == 8.5


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({"images": np.zeros((1, 2, 2, 3), "float32")}, "uint8"),
        ({"images": np.zeros((2, 2, 3), "uint8")}, "3 for input with 3 dimension"),
        ({"images": np.zeros((2, 2, 3), "complex64")}, "Invalid tensor"),
        ({"pixels": IMAGES}, r"extra: \['pixels'\]. Missing but required: \['images'\]"),
        ({"images": IMAGES, "output_filter": ["x"]}, "alias not found in signature: x"),
    ],
)
def test_requests_that_are_refused_over_grpc(server, inputs, message):
    with pytest.raises(grpc.RpcError, match=message) as error:
        predict(server, **inputs)
    assert error.value.code() == grpc.StatusCode.INVALID_ARGUMENT
    assert predict(server, images=IMAGES)["logits"][0] == 8.5


def test_no_json_at_all(server):
    response = requests.post(f"{server.rest_url}/v1/models/m:predict", data="{")
    assert response.status_code == 400
    assert "JSON Parse error" in response.text


def test_requests_from_several_threads(server):
    def run(value):
        images = np.full((1, 3, 3, 3), value, "uint8")
        rest = ask(server, "m:predict", {"inputs": images.tolist()})[1]["outputs"]["logits"]
        return [*rest, *predict(server, images=images)["logits"]]

    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(run, range(1, 41)))
    assert answers == [[value + 2] * 2 for value in range(1, 41)]


def test_it_listens_on_loopback_only(server):
    assert server.rest_url.startswith("http://127.0.0.1:")
    assert server.grpc_url.startswith("grpc://127.0.0.1:")
    port = int(server.rest_url.rpartition(":")[2])
    with pytest.raises(requests.ConnectionError):
        requests.get(f"http://127.0.0.2:{port}/v1/models/m", timeout=1)


# Versions


def test_the_newest_version_is_taken_and_the_old_one_unloaded(folder):
    path, add = folder
    with start(serving_helpers.config(path)) as server:
        assert first_logit(server) == 7.5
        add()
        assert first_logit(server) == 7.5
        server.models.poll()
        assert first_logit(server) == 8.5
        assert states(server) == {1: "END", 2: "AVAILABLE"}
        shutil.rmtree(path / "2")
        server.models.poll()
        assert first_logit(server) == 7.5


def test_folders_are_looked_at_by_themselves(folder):
    path, add = folder
    (path / ".2-unfinished").mkdir()
    with ModelServer(serving_helpers.config(path), poll_seconds=0.05) as server:
        assert states(server) == {1: "AVAILABLE"}
        add().rename(path / "3")
        for _ in range(100):
            if states(server).get(3) == "AVAILABLE":
                break
            time.sleep(0.05)
        assert first_logit(server, "m/versions/3") == 8.5


@pytest.mark.parametrize("what", ["graph", "warm-up"])
def test_the_old_version_stays_if_the_new_one_is_broken(folder, what):
    path, add = folder
    with start(serving_helpers.config(path)) as server:
        add()
        if what == "graph":
            (path / "2" / "saved_model.pb").write_bytes(b"broken")
        else:
            serving_helpers.warm_up(path / "2", request_to("fail", np.zeros_like(IMAGES)))
        server.models.poll()
        server.models.poll()
        assert first_logit(server) == 7.5
        assert states(server) == {1: "AVAILABLE", 2: "END"}
        broken = ask(server, "m/versions/2")[1]["model_version_status"][0]["status"]
        assert broken["error_code"] == "UNKNOWN"
        assert ("too dark" in broken["error_message"]) == (what == "warm-up")
        shutil.rmtree(path / "2")
        server.models.poll()
        add()
        server.models.poll()
        assert first_logit(server) == 8.5


def request_to(signature, images):
    request = predict_pb2.PredictRequest()
    request.model_spec.signature_name = signature
    request.inputs["images"].CopyFrom(tf.make_tensor_proto(images))
    return request


def test_warm_up_requests_that_succeed_are_no_matter(folder):
    path, _ = folder
    serving_helpers.warm_up(path / "1", request_to("fail", IMAGES))
    with start(serving_helpers.config(path)) as server:
        assert first_logit(server) == 7.5


@pytest.mark.parametrize(
    ("policy", "expected"),
    [
        ("", [2]),
        ("latest { num_versions: 2 }", [1, 2]),
        ("all {}", [1, 2]),
        ("specific { versions: 1 }", [1]),
    ],
)
def test_policies(saved, policy, expected):
    config = serving_helpers.config(saved)
    text_format.Parse(policy, config.model_config_list.config[0].model_version_policy)
    with start(config) as server:
        assert sorted(states(server)) == expected


# Configuration


def test_the_file_is_read_again_when_it_changes(saved, tmp_path):
    file = tmp_path / "models.config"
    file.write_text(str(serving_helpers.config(saved, versions=[1], labels={"stable": 1})))
    with start(file) as server:
        assert first_logit(server, "m/labels/stable") == 7.5
        file.write_text(str(serving_helpers.config(saved, versions=[2], labels={"stable": 2})))
        server.models.poll()
        assert first_logit(server, "m/labels/stable") == 8.5
        file.write_text("model_config_list {")
        server.models.poll()
        assert first_logit(server, "m/labels/stable") == 8.5
        file.write_text(str(serving_helpers.config(saved, "other")))
        server.models.poll()
        assert ask(server, "m:predict", {"inputs": IMAGES.tolist()})[0] == 404
        assert first_logit(server, "other") == 8.5


def test_the_configuration_is_replaced_over_grpc(saved):
    with start(serving_helpers.config(saved)) as server:
        target = server.grpc_url.removeprefix("grpc://")
        with grpc.insecure_channel(target) as channel:
            stub = model_service_pb2_grpc.ModelServiceStub(channel)
            request = serving_helpers.reload_request(serving_helpers.config(saved, versions=[1]))
            assert stub.HandleReloadConfigRequest(request).status.error_code == 0
            assert first_logit(server) == 7.5
            request.config.model_config_list.config[0].base_path = ""
            status = stub.HandleReloadConfigRequest(request).status
            assert (status.error_code, "base_path" in status.error_message) == (3, True)
            assert first_logit(server) == 7.5
            asked = get_model_status_pb2.GetModelStatusRequest()
            asked.model_spec.name = "m"
            (one,) = (s for s in stub.GetModelStatus(asked).model_version_status if s.state == 30)
            assert one.version == 1


@pytest.mark.parametrize("text", ["model_config_list {", "model_config_list { config {} }"])
def test_a_configuration_that_is_none(tmp_path, text):
    (tmp_path / "models.config").write_text(text)
    with pytest.raises(ValueError, match=r"ModelServerConfig|base_path"):
        start(tmp_path / "models.config")
    with pytest.raises(FileNotFoundError):
        start(tmp_path / "nowhere")


# Module


def test_the_command_line_serves(saved, tmp_path):
    file = tmp_path / "models.config"
    file.write_text(str(serving_helpers.config(saved)))
    line = [sys.executable, "-m", "benchmarks.serving.model_server", "--model_config_file", file]
    with subprocess.Popen(line, stdout=subprocess.PIPE, text=True, cwd=ROOT) as process:
        try:
            said = process.stdout.readline()
            assert "stand-in for TensorFlow Serving" in said
            rest, target = said.split()[-2:]
            assert requests.get(f"{rest}/v1/models/m").status_code == 200
            assert target.startswith("grpc://127.0.0.1:")
        finally:
            process.terminate()


@pytest.mark.parametrize("name", ["model_server", "rest_api", "served_models"])
def test_it_imports_nothing_of_the_project_but_benchmarks(name):
    tree = ast.parse((ROOT / "benchmarks" / "serving" / f"{name}.py").read_text())
    names = {n.module for n in ast.walk(tree) if isinstance(n, ast.ImportFrom)}
    names |= {a.name for n in ast.walk(tree) if isinstance(n, ast.Import) for a in n.names}
    assert not {n.split(".")[0] for n in names} & {"dgnet_keras", "train", "keras", "tests"}
