"""A stand-in for TensorFlow Serving: its protocols, over SavedModels run by TensorFlow's C API.

    with ModelServer("models.config") as server:
        print(server.rest_url, server.grpc_url)

    python -m benchmarks.serving.model_server --model_config_file models.config --rest_api_port 8501

THIS IS NOT TENSORFLOW SERVING, whose binary cannot be had everywhere. It serves tests, benchmarks
and notebooks on this machine (loopback only). The messages are TensorFlow Serving's own protos, the
loader is the same (`c_api`), the rules for versions and labels, the status codes and the
JSON follow its published sources; errors may be worded otherwise. Left out: batching, Classify,
Regress and MultiInference, TLS, monitoring, further tries at a version that failed to load, the
refusal of labels for versions that are not loaded, and everything about speed but the computation
itself: what is measured here is no measurement of TensorFlow Serving.

May import nothing of this project but `c_api` and `served_models`.
"""

import argparse
import base64
import concurrent.futures
import contextlib
import http.server
import json
import re
import socket
import threading
import urllib.parse
import weakref

import grpc
import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_management_pb2,
    model_pb2,
    model_service_pb2_grpc,
    predict_pb2,
    prediction_service_pb2_grpc,
)

from benchmarks.serving.served_models import Refused, ServedModels

HTTP_CODES = {
    **{"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400},
    **{"NOT_FOUND": 404, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504},
    **{"RESOURCE_EXHAUSTED": 429, "ALREADY_EXISTS": 409, "ABORTED": 409},
}
MODEL_PATH = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"


NAME = "benchmarks.serving.model_server"


class ModelServer:
    """Serves models until it is closed; they are loaded when it has been made.

    Args:
        model_config: a `ModelServerConfig`, or the path of a file with its text, which is read
            again when it changes.
        rest_port: for REST; 0 takes a free one.
        grpc_port: for gRPC; 0 takes a free one.
        poll_seconds: between looks at the file and at the models' folders.

    Attributes:
        rest_url: "http://127.0.0.1:PORT".
        grpc_url: "grpc://127.0.0.1:PORT".
        models: the `ServedModels`; `models.poll()` looks at once.

    Raises:
        ValueError, OSError: if the configuration is none or cannot be read, or a port is taken.
    """

    def __init__(self, model_config, *, rest_port=0, grpc_port=0, poll_seconds=1.0):
        self.models = ServedModels(model_config)
        handler = type("Handler", (_RestHandler,), {"models": self.models})
        self._rest = _HttpServer(("127.0.0.1", rest_port), handler)
        self._grpc, port = _grpc_server(self.models, grpc_port)
        self.rest_url = f"http://127.0.0.1:{self._rest.server_address[1]}"
        self.grpc_url = f"grpc://127.0.0.1:{port}"
        self._is_closed = threading.Event()
        self._threads = [
            threading.Thread(target=self._rest.serve_forever, args=(0.05,), daemon=True),
            threading.Thread(target=self._keep_polling, args=(poll_seconds,), daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    def close(self):
        """Stops to answer, and unloads the models."""
        self._is_closed.set()
        self._rest.shutdown()
        self._rest.server_close()
        self._grpc.stop(grace=None).wait()
        for thread in self._threads:
            thread.join()
        self.models.close()

    def __enter__(self):
        return self

    def __exit__(self, *exc_info):
        self.close()

    def _keep_polling(self, seconds):
        while not self._is_closed.wait(seconds):
            self.models.poll()


def _grpc_server(models, port):
    """A started server and its port."""
    server = grpc.server(
        concurrent.futures.ThreadPoolExecutor(16),
        options=[
            *(("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)),
            ("grpc.so_reuseport", 0),
        ],
    )
    predictions, management = _PredictionService(), _ModelService()
    predictions.models = management.models = models
    prediction_service_pb2_grpc.add_PredictionServiceServicer_to_server(predictions, server)
    model_service_pb2_grpc.add_ModelServiceServicer_to_server(management, server)
    port = server.add_insecure_port(f"127.0.0.1:{port}")
    server.start()
    return server, port


def _answer(context, method, request):
    try:
        return method(request)
    except Refused as error:
        context.abort(grpc.StatusCode[error.code], str(error))


class _PredictionService(prediction_service_pb2_grpc.PredictionServiceServicer):
    def Predict(self, request, context):
        return _answer(context, self.models.predict, request)

    def GetModelMetadata(self, request, context):
        return _answer(context, self.models.metadata, request)


class _ModelService(model_service_pb2_grpc.ModelServiceServicer):
    def GetModelStatus(self, request, context):
        return _answer(context, self.models.status, request)

    def HandleReloadConfigRequest(self, request, context):
        response = model_management_pb2.ReloadConfigResponse()
        try:
            self.models.reload(request.config)
        except ValueError as error:
            response.status.error_code = grpc.StatusCode.INVALID_ARGUMENT.value[0]
            response.status.error_message = str(error)
        return response


class _HttpServer(http.server.ThreadingHTTPServer):
    """One that ends its connections when it is closed."""

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *arguments):
        self._connections = weakref.WeakSet()
        super().__init__(*arguments)

    def process_request(self, request, client_address):
        self._connections.add(request)
        super().process_request(request, client_address)

    def server_close(self):
        super().server_close()
        for connection in list(self._connections):
            with contextlib.suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _RestHandler(http.server.BaseHTTPRequestHandler):
    """TensorFlow Serving's REST API: predict, status, metadata."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def do_GET(self):
        found = re.fullmatch(rf"(?i){MODEL_PATH}(/metadata)?", self.path)
        self._reply(self._metadata if found and found[4] else self._status, found)

    def do_POST(self):
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        found = re.fullmatch(rf"(?i){MODEL_PATH}:predict", self.path)
        self._reply(lambda spec: predict_json(self.models, spec, body), found)

    def log_message(self, *arguments):
        pass

    def _reply(self, method, found):
        try:
            if not found:
                message = f"Malformed request: {self.command} {self.path}"
                raise Refused("INVALID_ARGUMENT", message)
            code, text = 200, method(_spec(found))
        except Refused as error:
            code, text = HTTP_CODES.get(error.code, 500), f'{{ "error": "{_escape(str(error))}" }}'
        content = text.encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def _status(self, spec):
        request = get_model_status_pb2.GetModelStatusRequest(model_spec=spec)
        return json.dumps(_to_dict(self.models.status(request)))

    def _metadata(self, spec):
        request = get_model_metadata_pb2.GetModelMetadataRequest(model_spec=spec)
        request.metadata_field.append("signature_def")
        answer = self.models.metadata(request)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        metadata = {"signature_def": _to_dict(signatures)}
        return json.dumps({"model_spec": _to_dict(answer.model_spec), "metadata": metadata})


def predict_json(models, spec, body):
    """Answers the body of a REST request to predict, in row or columnar form.

    Args:
        models: `ServedModels`.
        spec: `ModelSpec`, without a signature.
        body: bytes, JSON.

    Raises:
        Refused: if the body, or what it asks for, is refused.
    """
    try:
        question = json.loads(body)
    except ValueError as error:
        raise Refused("INVALID_ARGUMENT", f"JSON Parse error: {error}") from error
    is_row = isinstance(question, dict) and "instances" in question
    if not isinstance(question, dict) or is_row == ("inputs" in question):
        message = "Request must be an object with one of 'instances' and 'inputs'"
        raise Refused("INVALID_ARGUMENT", message)
    name = question.get("signature_name", "serving_default")
    signatures = models.find(spec).signatures
    if not isinstance(name, str) or name not in signatures:
        message = f'Serving signature name: "{name}" not found in signature def'
        raise Refused("INVALID_ARGUMENT", message)
    infos = signatures[name].inputs
    columns = _columns(question["instances"], infos) if is_row else question["inputs"]
    if not isinstance(columns, dict) or "b64" in columns:
        columns = {next(iter(infos)): columns}
    request = predict_pb2.PredictRequest(model_spec=spec)
    request.model_spec.signature_name = name
    for key, value in columns.items():
        if key not in infos:
            raise Refused("INVALID_ARGUMENT", f"JSON object: does not have named input: {key}")
        request.inputs[key].CopyFrom(_tensor(key, value, tf.as_dtype(infos[key].dtype)))
    return _to_json(models.predict(request).outputs, is_row)


def _columns(instances, infos):
    """Of a list with an instance for each row, the inputs by name."""
    if not isinstance(instances, list) or not instances:
        raise Refused("INVALID_ARGUMENT", "'instances' must be a list that is not empty")
    if not all(isinstance(row, dict) and set(row) == set(infos) for row in instances):
        if len(infos) > 1:
            message = f"Each instance must have the inputs {sorted(infos)}"
            raise Refused("INVALID_ARGUMENT", message)
        return {next(iter(infos)): instances}
    return {key: [row[key] for row in instances] for key in infos}


def _tensor(name, value, dtype):
    try:
        array = _decode(value) if dtype == tf.string else _numbers(value, dtype.as_numpy_dtype)
    except (AttributeError, TypeError, ValueError, OverflowError) as error:
        message = f"JSON Value of input {name} is not of expected type: {dtype.name} ({error})"
        raise Refused("INVALID_ARGUMENT", message[:1000]) from error
    return tf.make_tensor_proto(array, dtype)


def _numbers(value, dtype):
    given = np.array(value)
    array = given.astype(dtype)
    allowed = {"f": "iuf", "b": "b"}.get(array.dtype.kind, "iu")
    if given.size and given.dtype.kind not in allowed:
        raise ValueError(f"it holds {given.dtype}")
    if array.dtype.kind in "iu" and (array != given).any():
        raise ValueError("out of range")
    return array


def _decode(value):
    """Nested lists of strings with `{"b64": ...}` and text as an object array of bytes."""
    array = np.array(value, object)
    for index, text in np.ndenumerate(array):
        is_base64 = isinstance(text, dict) and list(text) == ["b64"]
        array[index] = base64.b64decode(text["b64"]) if is_base64 else text.encode()
    return array


def _to_json(outputs, is_row):
    """The answer's text; without the output's name if there is only one."""
    lists = {name: _to_lists(name, tf.make_ndarray(proto)) for name, proto in outputs.items()}
    if is_row and len({len(v) if isinstance(v, list) else None for v in lists.values()}) > 1:
        message = "Tensors have inconsistent batch size, use 'inputs' in place of 'instances'"
        raise Refused("INVALID_ARGUMENT", message)
    if len(lists) == 1:
        return json.dumps({"predictions" if is_row else "outputs": next(iter(lists.values()))})
    if not is_row:
        return json.dumps({"outputs": lists})
    rows = zip(*lists.values(), strict=True)
    return json.dumps({"predictions": [dict(zip(lists, row, strict=True)) for row in rows]})


def _to_lists(name, array):
    if array.dtype != object:
        return array.tolist()
    texts = np.empty(array.shape, object)
    for index, text in np.ndenumerate(array):
        is_bytes = name.endswith("_bytes")
        texts[index] = {"b64": base64.b64encode(text).decode()} if is_bytes else text.decode()
    return texts.tolist()


def _spec(found):
    """The `ModelSpec` that a path names."""
    name, version, label = (part and urllib.parse.unquote(part) for part in found.groups()[:3])
    spec = model_pb2.ModelSpec(name=name, version_label=label)
    if version:
        spec.version.value = int(version)
    return spec


def _escape(text):
    """As TensorFlow Serving escapes errors: as C does, which JSON does not always understand."""
    quoted = text.replace("\\", "\\\\").replace('"', '\\"').replace("'", "\\'")
    quoted = quoted.replace("\n", "\\n").replace("\t", "\\t").replace("\r", "\\r")
    return "".join(c if " " <= c <= "~" else _octal(c) for c in quoted)


def _octal(character):
    return "".join(f"\\{byte:03o}" for byte in character.encode())


def _to_dict(message):
    return json_format.MessageToDict(
        message, preserving_proto_field_name=True, always_print_fields_with_no_presence=True
    )


def main(arguments=None):
    """Serves until it is interrupted; the flags are TensorFlow Serving's."""
    parser = argparse.ArgumentParser(
        prog=f"python -m {NAME}",
        description=__doc__.splitlines()[0],
        epilog=f"Example: python -m {NAME} --model_config_file models.config",
    )
    parser.add_argument("--model_config_file", required=True)
    parser.add_argument("--rest_api_port", type=int, default=0, help="0 takes a free one")
    parser.add_argument("--port", type=int, default=0, help="for gRPC; 0 takes a free one")
    parser.add_argument("--file_system_poll_wait_seconds", type=float, default=1.0)
    flags = parser.parse_args(arguments)
    with ModelServer(
        flags.model_config_file,
        rest_port=flags.rest_api_port,
        grpc_port=flags.port,
        poll_seconds=flags.file_system_poll_wait_seconds,
    ) as server:
        print(f"stand-in for TensorFlow Serving: {server.rest_url} {server.grpc_url}", flush=True)
        try:
            threading.Event().wait()
        except KeyboardInterrupt:
            pass


if __name__ == "__main__":
    main()
