"""TensorFlow Serving's REST API for `benchmarks.serving.model_server`: HTTP, and the JSON in it.

May import nothing of this project but `benchmarks.serving.served_models`.
"""

import base64
import contextlib
import http.server
import json
import re
import socket
import urllib.parse
import weakref

import numpy as np
import tensorflow as tf
from google.protobuf import json_format
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    model_pb2,
    predict_pb2,
)

from benchmarks.serving.served_models import Refused

HTTP_CODES = {
    **{"INVALID_ARGUMENT": 400, "FAILED_PRECONDITION": 400, "OUT_OF_RANGE": 400},
    **{"NOT_FOUND": 404, "UNIMPLEMENTED": 501, "UNAVAILABLE": 503, "DEADLINE_EXCEEDED": 504},
    **{"RESOURCE_EXHAUSTED": 429, "ALREADY_EXISTS": 409, "ABORTED": 409},
}
MODEL_PATH = r"/v1/models/([^/:]+)(?:/versions/(\d+)|/labels/([^/:]+))?"


class RestServer(http.server.ThreadingHTTPServer):
    """A server on loopback, which ends its connections when it is closed.

    Args:
        models: `ServedModels`.
        port: 0 takes a free one.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, models, port):
        self._connections = weakref.WeakSet()
        handler = type("Handler", (_RestHandler,), {"models": models})
        super().__init__(("127.0.0.1", port), handler)

    def process_request(self, request, client_address):
        """Remembers the connection, too."""
        self._connections.add(request)
        super().process_request(request, client_address)

    def server_close(self):
        """Ends the connections, too."""
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
