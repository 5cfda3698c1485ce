"""One try over TensorFlow Serving's REST API. May import neither Keras nor TensorFlow."""

import base64
import concurrent.futures
import functools
import json
import re
import threading
import time
import urllib.parse
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgnet_keras.serving.errors import AnswerMismatch, ServingError, import_needed

# How TensorFlow Serving's REST API maps its codes; 400 also stands for FAILED_PRECONDITION and
# OUT_OF_RANGE. 502 is what a proxy answers while the server behind it restarts.
HTTP_CODES = {
    **{400: "INVALID_ARGUMENT", 401: "UNAUTHENTICATED", 403: "PERMISSION_DENIED"},
    **{404: "NOT_FOUND", 408: "DEADLINE_EXCEEDED", 409: "ABORTED", 413: "INVALID_ARGUMENT"},
    **{429: "RESOURCE_EXHAUSTED", 499: "CANCELLED", 501: "UNIMPLEMENTED", 502: "UNAVAILABLE"},
    **{503: "UNAVAILABLE", 504: "DEADLINE_EXCEEDED"},
}


class Rest:
    """TensorFlow Serving's REST API, in its columnar format.

    Methods raise `ServingError`; `timeout` is in seconds.

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
        """The outputs of a signature.

        Args:
            signature: its name.
            inputs: dict of input name to array; strings as object arrays of `bytes`.
            outputs: the signature's, a dict of name to `{"dtype": ...}`.
            timeout: seconds, in which the question is written, too.

        Returns:
            Dict of output name to array; strings as object arrays, of `str`, or of `bytes` where
            the output's name ends in `_bytes`.
        """
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
        """The `GetModelMetadataResponse`, as a dict."""
        return self._ask("GET", "/metadata", "metadata", timeout)

    def status(self, timeout: float) -> dict[str, Any]:
        """The `GetModelStatusResponse`, as a dict."""
        return self._ask("GET", "", "model_version_status", timeout)

    def close(self) -> None:
        """Closes the connections."""
        self._session.close()

    def _ask(self, method, path, key, timeout, body=None):
        """The JSON object of the answer, which has `key`."""
        if timeout <= 0:
            raise ServingError("DEADLINE_EXCEEDED", "the request is too large to write in time")
        headers = {"Content-Type": "application/json"}
        request = functools.partial(self._session.request, method, self._path + path)
        try:
            answer = _within(timeout, request, data=body, headers=headers, timeout=timeout)
        except (TimeoutError, self._requests.Timeout) as error:
            raise ServingError("DEADLINE_EXCEEDED", "no answer") from error
        except self._requests.RequestException as error:
            raise ServingError("UNAVAILABLE", _cause(error), reached=False) from error
        status = answer.status_code
        if status != 200:
            text = _error_text(status, answer.content)
            raise ServingError(HTTP_CODES.get(status, "UNKNOWN"), text)
        return _json_object(answer.content, key)


def _within(seconds, function, **arguments):
    """Calls in a thread, because requests' time-out is for each wait for the network.

    Raises:
        TimeoutError: if it takes longer. The thread goes on until its next wait times out.
    """
    future: concurrent.futures.Future = concurrent.futures.Future()

    def run():
        try:
            future.set_result(function(**arguments))
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
