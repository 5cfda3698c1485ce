"""How `dgnet_keras.serving.Client` reaches TensorFlow Serving: over REST, or over gRPC.

Both transports have the same methods, which try once and raise `ServingError`:

- `predict(signature, inputs, outputs, timeout)`: dict of arrays; strings as object arrays, of
  `str`, or of `bytes` where the output's name ends in `_bytes`;
- `metadata(timeout)` and `status(timeout)`: the protocol's messages as a JSON dict.

`timeout` is in seconds. May import neither Keras nor, for REST, TensorFlow.
"""

import base64
import concurrent.futures
import importlib
import json
import re
import threading
import time
import types
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np

NUMPY_DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16"}
RETRY_CODES = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
# How TensorFlow Serving's REST API maps its codes; 400 also stands for FAILED_PRECONDITION and
# OUT_OF_RANGE. 502 is what a proxy answers while the server behind it restarts.
HTTP_CODES = {
    **{400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"},
    **{404: "NOT_FOUND", 408: "DEADLINE_EXCEEDED", 409: "ABORTED", 413: "INVALID_ARGUMENT"},
    **{429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE"},
    **{503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"},
}


# What gRPC says of a server that it does not reach; its code is that of a server that refuses.
UNREACHED = "failed to connect|DNS resolution|errors resolving|Socket closed|Connection reset"


class ServingError(RuntimeError):
    """The server did not answer, or answered with an error.

    Attributes:
        code: name of the gRPC status code, such as "INVALID_ARGUMENT", "NOT_FOUND",
            "UNAVAILABLE", "DEADLINE_EXCEEDED"; over REST, of the one that the HTTP code stands
            for.
        reached: whether the server was reached.
    """

    def __init__(self, code: str, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.reached = reached

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_error, (type(self), self.code, str(self), self.reached)


class AnswerMismatch(ServingError):
    """The answer does not have the outputs that the metadata promise."""


def _restore_error(kind, code, message, reached):
    return kind(code, message, reached=reached)


def import_needed(name: str) -> types.ModuleType:
    """Imports a module of the extra `serving`.

    Raises:
        ImportError: that names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Serving needs `{name}`: pip install 'dgnet_keras[serving]', in a checkout "
            f"pip install '.[serving]' ({error})"
        ) from error


def numpy_dtype(name: str) -> str:
    """NumPy's name of TensorFlow's `DT_...`; "string" for strings."""
    return NUMPY_DTYPES.get(name, name.removeprefix("DT_").lower())


class Rest:
    """TensorFlow Serving's REST API, in its columnar format.

    Args:
        url: "http://host:8501" or "https://...", a path prefix allowed.
        model: its name.
        version: int, or None.
        label: str, or None.
    """

    def __init__(self, url: str, model: str, version: int | None, label: str | None) -> None:
        self._requests = import_needed("requests")
        self._session = self._requests.Session()
        self._path = f"{url.rstrip('/')}/v1/models/{urllib.parse.quote(model, safe='')}"
        if version is not None:
            self._path += f"/versions/{version}"
        if label is not None:
            self._path += f"/labels/{urllib.parse.quote(label, safe='')}"

    def predict(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, Any],
        timeout: float,
    ) -> dict[str, np.ndarray]:
        """See the module; `outputs` are the signature's, by name, with their dtypes."""
        end = time.monotonic() + timeout
        columns = {name: _to_json(value) for name, value in inputs.items()}
        question = {"signature_name": signature, "inputs": columns}
        body = json.dumps(question, separators=(",", ":"))
        answer = self._ask("POST", ":predict", "outputs", end - time.monotonic(), body)["outputs"]
        # The server leaves the name out where there is only one.
        answer = answer if len(outputs) > 1 else {next(iter(outputs)): answer}
        if not isinstance(answer, dict) or set(answer) != set(outputs):
            raise AnswerMismatch("INTERNAL", f"the outputs are not {sorted(outputs)}")
        return {name: _from_json(answer[name], info["dtype"]) for name, info in outputs.items()}

    def metadata(self, timeout: float) -> dict[str, Any]:
        """The `GetModelMetadataResponse`."""
        return self._ask("GET", "/metadata", "metadata", timeout)

    def status(self, timeout: float) -> dict[str, Any]:
        """The `GetModelStatusResponse`."""
        return self._ask("GET", "", "model_version_status", timeout)

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def _ask(self, method, path, key, timeout, body=None):
        """The JSON object of the answer, which has `key`."""
        if timeout <= 0:
            raise ServingError("DEADLINE_EXCEEDED", "the request is too large to write in time")
        try:
            status, content = _within(timeout, self._exchange, method, path, timeout, body)
        except (TimeoutError, self._requests.Timeout) as error:
            raise ServingError("DEADLINE_EXCEEDED", "no answer") from error
        except self._requests.RequestException as error:
            raise ServingError("UNAVAILABLE", _cause(error), reached=False) from error
        if status != 200:
            raise ServingError(HTTP_CODES.get(status, "UNKNOWN"), _error_text(status, content))
        return _json_object(content, key)

    def _exchange(self, method, path, timeout, body):
        """HTTP status and content."""
        headers = {"Content-Type": "application/json"}
        answer = self._session.request(
            method, self._path + path, data=body, headers=headers, timeout=timeout
        )
        return answer.status_code, answer.content


class Grpc:
    """TensorFlow Serving's gRPC API.

    Args:
        url: "grpc://host:8500", or "grpcs://..." with TLS.
        model: its name.
        version: int, or None.
        label: str, or None.
    """

    # Messages of any size, and a server that comes back is found within a second.
    OPTIONS = (
        *(("grpc.max_send_message_length", -1), ("grpc.max_receive_message_length", -1)),
        *(("grpc.initial_reconnect_backoff_ms", 100), ("grpc.max_reconnect_backoff_ms", 1000)),
    )

    def __init__(self, url: str, model: str, version: int | None, label: str | None) -> None:
        self._grpc = import_needed("grpc")
        apis = "tensorflow_serving.apis"
        import_needed(f"{apis}.prediction_service_pb2_grpc")
        self._apis = importlib.import_module(apis)
        import_needed(f"{apis}.model_service_pb2_grpc")
        self._json_format = importlib.import_module("google.protobuf.json_format")
        scheme, _, target = url.rstrip("/").partition("://")
        if scheme == "grpcs":
            credentials = self._grpc.ssl_channel_credentials()
            self._channel = self._grpc.secure_channel(target, credentials, self.OPTIONS)
        else:
            self._channel = self._grpc.insecure_channel(target, self.OPTIONS)
        self._predictions = self._apis.prediction_service_pb2_grpc.PredictionServiceStub(
            self._channel
        )
        self._models = self._apis.model_service_pb2_grpc.ModelServiceStub(self._channel)
        self._spec = self._apis.model_pb2.ModelSpec(name=model, version_label=label)
        if version is not None:
            self._spec.version.value = version

    def predict(
        self,
        signature: str,
        inputs: Mapping[str, np.ndarray],
        outputs: Mapping[str, Any],
        timeout: float,
    ) -> dict[str, np.ndarray]:
        """See the module; `outputs` are not needed: an answer says its dtypes."""
        from tensorflow import make_ndarray, make_tensor_proto

        end = time.monotonic() + timeout
        request = self._apis.predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(make_tensor_proto(value))
        answer = self._ask(self._predictions.Predict, request, end - time.monotonic())
        arrays = {name: make_ndarray(proto) for name, proto in answer.outputs.items()}
        return {
            name: _as_text(array) if array.dtype == object and not _is_bytes(name) else array
            for name, array in arrays.items()
        }

    def metadata(self, timeout: float) -> dict[str, Any]:
        """The `GetModelMetadataResponse`, in the form that REST gives it."""
        apis = self._apis.get_model_metadata_pb2
        request = apis.GetModelMetadataRequest(model_spec=self._spec)
        request.metadata_field.append("signature_def")
        answer = self._ask(self._predictions.GetModelMetadata, request, timeout)
        signatures = apis.SignatureDefMap()
        answer.metadata["signature_def"].Unpack(signatures)
        return {"metadata": {"signature_def": self._to_dict(signatures)}}

    def status(self, timeout: float) -> dict[str, Any]:
        """The `GetModelStatusResponse`."""
        request = self._apis.get_model_status_pb2.GetModelStatusRequest(model_spec=self._spec)
        return self._to_dict(self._ask(self._models.GetModelStatus, request, timeout))

    def close(self) -> None:
        """Closes the connection."""
        self._channel.close()

    def _to_dict(self, message):
        return self._json_format.MessageToDict(message, preserving_proto_field_name=True)

    def _ask(self, method, request, timeout):
        try:
            return method(request, timeout=max(timeout, 0))
        except ValueError as error:  # of a closed channel
            raise ServingError("CANCELLED", "the client is closed", reached=False) from error
        except self._grpc.RpcError as error:
            code, details = error.code().name, error.details() or ""
            reached = not re.search(UNREACHED, details)
            reason = details if reached else _last_part(details)
            raise ServingError(code, reason, reached=reached) from error


def _within(seconds, function, *arguments):
    """Calls in a thread, because requests' time-out is for each wait for the network.

    Raises:
        TimeoutError: if it takes longer. The thread goes on until its next wait times out.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function(*arguments))
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future.result(seconds)


def _json_object(content, key):
    """The object that a text holds; it must have `key`."""
    try:
        answer = json.loads(content)
    except ValueError:
        answer = None
    if not isinstance(answer, dict) or key not in answer:
        message = f"the answer must be a JSON object with {key!r}. Received: {content[:100]!r}"
        raise ServingError("INTERNAL", message)
    return answer


def _is_bytes(name):
    return name.endswith("_bytes")


def _as_text(array):
    texts = [text.decode(errors="replace") for text in array.ravel()]
    return np.array(texts, object).reshape(array.shape)


def _to_json(value):
    if value.dtype != object:
        return value.tolist()
    encoded = [{"b64": base64.b64encode(text).decode()} for text in value.ravel()]
    return np.array(encoded, object).reshape(value.shape).tolist()


def _from_json(value, dtype):
    if dtype != "string":
        return np.array(value, dtype)
    array = np.array(value, object)
    for index, text in np.ndenumerate(array):
        if isinstance(text, dict):
            array[index] = base64.b64decode(text["b64"])
    return array


def _error_text(status, content):
    """The server's message, which it escapes as C does: an apostrophe is no longer JSON."""
    text = content.decode(errors="replace")
    found = re.search(r'^\s*{\s*"error"\s*:\s*"(.*)"\s*}\s*$', text, re.DOTALL)
    if not found:
        return f"HTTP {status}: {' '.join(text.split())[:500]}"
    try:
        return json.loads(text)["error"]
    except ValueError:
        raw = found[1].encode("ascii", "backslashreplace")
        return raw.decode("unicode_escape").encode("latin-1", "replace").decode(errors="replace")


def _cause(error):
    """What the operating system said, of an exception that libraries have wrapped."""
    cause, text = error, str(error)
    while cause is not None:
        if isinstance(cause, OSError) and cause.strerror:
            text = cause.strerror.lower()
        cause = cause.__cause__ or cause.__context__
    return text


def _last_part(details):
    """Of gRPC's "failed to connect to all addresses; last error: ...: Connection refused (111)"."""
    return re.sub(r" \(\d+\)$|\]$", "", details.rpartition(": ")[2]).lower() or details
