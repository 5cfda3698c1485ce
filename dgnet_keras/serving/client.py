"""Client of a model that TensorFlow Serving serves.

    with Client("http://localhost:8501", "birds") as client:
        answer = client.predict_jpeg(["robin.jpg", "wren.png"])
        answer["top_labels"][:, 0], answer["probabilities"].max(axis=1)

Runs without Keras and, over REST, without TensorFlow; `dgnet_keras` itself imports both.
"""

import itertools
import pathlib
import random
import time
import urllib.parse
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras.serving.transports import (
    RETRY_CODES,
    AnswerMismatch,
    Grpc,
    Rest,
    ServingError,
    numpy_dtype,
)

TRANSPORTS: dict[str, type[Rest | Grpc]] = {
    "http": Rest,
    "https": Rest,
    "grpc": Grpc,
    "grpcs": Grpc,
}
FILE_HEADERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG, PNG
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between tries

__all__ = ["Client", "ServingError"]


class Client:
    """A model on a TensorFlow Serving server, over REST or gRPC.

    Methods that ask for an answer return a dict of output name to array, with the dtypes of the
    signature (`metadata`); strings as object arrays of `str`. B is the number of images.

    Threads may share a client over gRPC; over REST give each its own. Pixels travel as text over
    REST (32 images of 224 x 224: 20 MB, seconds): prefer gRPC there, or files (`predict_jpeg`).
    A label that the server does not know is INVALID_ARGUMENT: so TensorFlow Serving answers.

    Args:
        url: "http://host:8501" (REST; a path prefix is allowed), "https://...",
            "grpc://host:8500", or "grpcs://..." (gRPC with TLS).
        model: its name on the server.
        version: int, to ask for this version; None means the newest that is loaded.
        label: str, to ask for the version that has this label.
        timeout: seconds for a request as a whole, further tries included.
        retries: further tries after a first that found no server, or one that says that it is
            busy or not available. Nothing else is tried again. The pauses double from 0.1 s up
            to 2 s, less a random part of up to a half.

    Raises:
        ValueError: if an argument does not fit.
        ImportError: if a package is missing; the message says which.
    """

    def __init__(
        self,
        url: str,
        model: str,
        *,
        version: int | None = None,
        label: str | None = None,
        timeout: float = 10.0,
        retries: int = 3,
    ) -> None:
        self._where = _check_target(url, version, label)
        _check_number("timeout", timeout, (int, float), 0, strict=True)
        _check_number("retries", retries, int, 0)
        if not isinstance(model, str) or not model:
            raise ValueError(f"`model` must be the name of a model. Received: {model!r}")
        self._name = f"model {model!r}"
        if version is not None or label is not None:
            self._name += f" (version {version})" if label is None else f" (label {label!r})"
        self._timeout = timeout
        self._retries = retries
        self._signatures: Any = None  # a dict once the server has been asked
        transport = TRANSPORTS[urllib.parse.urlsplit(url).scheme]
        self._transport = transport(url, model, version, label)

    def predict(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """Classifies images.

        Args:
            images: (B, height, width, channels), uint8 (signature `serving_default`) or floating
                point, 0 to 255 (`predict_float`).

        Raises:
            ValueError: if the images do not fit; nothing was sent.
            ServingError: if there is no answer, or an error.
        """
        pixels = _check_images(images, "uif")
        return self.call("serving_default" if pixels.dtype.kind == "u" else "predict_float", pixels)

    def predict_jpeg(
        self, files: Sequence[bytes | bytearray | str | pathlib.Path] | np.ndarray
    ) -> dict[str, np.ndarray]:
        """Classifies JPEG and PNG files, mixed and of any sizes (signature `predict_jpeg`).

        Args:
            files: list of B, each the content as `bytes`, or a path.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no list of JPEG and PNG files, or an empty one; nothing was sent.
            ServingError: if there is no answer, or an error.
        """
        if not isinstance(files, (list, tuple, np.ndarray)):
            raise ValueError(f"`files` must be a list. Received: {_short(files)}")
        read = [_content(file) for file in files]
        if not read:
            raise ValueError("`files` must hold at least one file. Received: none")
        return self.call("predict_jpeg", _objects(read))

    def connectivity(
        self, images: ArrayLike, threshold: ArrayLike | None = None
    ) -> dict[str, np.ndarray]:
        """The edge weights that images open (signature `connectivity` or `connectivity_at`).

        Args:
            images: uint8 (B, height, width, channels).
            threshold: at or below which an edge is closed: a number for all images, or (B,); None
                means the model's own.

        Raises:
            ValueError: if images or threshold do not fit; nothing was sent.
            ServingError: if there is no answer, or an error.
        """
        pixels = _check_images(images, "u")
        if threshold is None:
            return self.call("connectivity", pixels)
        given = np.asarray(threshold, "float32")
        if given.shape not in ((), (len(pixels),)):
            raise ValueError(
                f"`threshold` must be a number, or one for each of the {len(pixels)} images. "
                f"Received: shape {given.shape}"
            )
        # A scalar is refused by a server that batches requests.
        thresholds = np.broadcast_to(given, len(pixels))
        return self.call("connectivity_at", {"images": pixels, "threshold": thresholds})

    def features(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """The backbone's final feature map (signature `features`).

        Args:
            images: uint8 (B, height, width, channels).

        Raises:
            ValueError: if the images do not fit; nothing was sent.
            ServingError: if there is no answer, or an error.
        """
        return self.call("features", _check_images(images, "u"))

    def call(
        self, signature: str, inputs: Mapping[str, ArrayLike] | ArrayLike
    ) -> dict[str, np.ndarray]:
        """Runs any signature.

        Args:
            signature: its name.
            inputs: dict of input name to array, or the array of the only input. Strings as `str`
                or `bytes`. The dtype must be the signature's; floating point is converted.

        Raises:
            ValueError: if the inputs are not the signature's; no request was sent.
            ServingError: if there is no answer, or an error; code "NOT_FOUND" if the server has no
                such model, version or signature.
        """
        end = time.monotonic() + self._timeout
        is_cached = self._signatures is not None and signature in self._signatures
        try:
            return self._call(signature, inputs, end, refresh=not is_cached)
        except (ValueError, AnswerMismatch):
            if not is_cached:
                raise
        # What did not fit may be what is known of the model: a new version may differ.
        return self._call(signature, inputs, end, refresh=True)

    def status(self) -> list[dict[str, Any]]:
        """State of the model's versions.

        Returns:
            List, ascending, of dicts: `version` (int), `state` ("START", "LOADING", "AVAILABLE",
            "UNLOADING" or "END"), `error` (str, empty if there is none).

        Raises:
            ServingError: if there is no answer, or the server does not know the model.
        """
        answer = self._ask("status", end=time.monotonic() + self._timeout)
        return sorted(map(_state, answer["model_version_status"]), key=lambda s: s["version"])

    def metadata(self) -> dict[str, dict[str, dict[str, dict[str, Any]]]]:
        """The signatures, as the server had them when it was last asked.

        It is asked the first time, and when `call` meets a signature, inputs or outputs that do
        not fit.

        Returns:
            Dict of signature name to `{"inputs": {name: info}, "outputs": {name: info}}`; an info
            is `{"dtype": "uint8", "shape": (None, None, None, 3)}`, with dtype "string" for
            strings and shape None if even the rank is open.

        Raises:
            ServingError: if there is no answer, or the server does not know the model.
        """
        if self._signatures is None:
            self._fetch_metadata(time.monotonic() + self._timeout)
        return self._signatures

    def wait_until_ready(self, seconds: float) -> None:
        """Returns when the model, in the version asked for, can be called.

        Raises:
            ServingError: code "DEADLINE_EXCEEDED", if that takes longer than `seconds`; the
                message says what was the matter last.
        """
        end = time.monotonic() + seconds
        while True:
            try:
                return self._fetch_metadata(min(end, time.monotonic() + self._timeout), retries=0)
            except ServingError as error:
                if time.monotonic() + FIRST_PAUSE > end:
                    raise ServingError(
                        "DEADLINE_EXCEEDED", f"not ready after {seconds} s: {error}"
                    ) from error
            time.sleep(FIRST_PAUSE)

    def close(self) -> None:
        """Closes the connections."""
        self._transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def _call(self, signature, inputs, end, refresh):
        if refresh:
            self._fetch_metadata(end)
        if signature not in self._signatures:
            raise ServingError(
                "NOT_FOUND",
                f"{self._where}: {self._name} has no signature {signature!r}. "
                f"It has: {', '.join(sorted(self._signatures))}",
            )
        expected = self._signatures[signature]
        inputs = _check_inputs(signature, inputs, expected["inputs"])
        return self._ask("predict", signature, inputs, expected["outputs"], end=end)

    def _fetch_metadata(self, end, retries=None):
        answer = self._ask("metadata", end=end, retries=retries)
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        self._signatures = {
            name: {part: _tensor_infos(signature.get(part, {})) for part in ("inputs", "outputs")}
            for name, signature in signatures.items()
            if not name.startswith("__")
        }

    def _ask(self, method, *arguments, end, retries=None):
        """Asks until there is an answer, an error that stays, or no time or try left."""
        retries = self._retries if retries is None else retries
        for tries in itertools.count(1):
            left = end - time.monotonic()
            try:
                if left <= 0:
                    raise ServingError("DEADLINE_EXCEEDED", "no time left")
                return getattr(self._transport, method)(*arguments, timeout=left)
            except ServingError as error:
                pause = min(FIRST_PAUSE * 2 ** (tries - 1), LONGEST_PAUSE)
                pause *= random.uniform(0.5, 1)
                is_last = tries > retries or time.monotonic() + pause > end
                if error.code not in RETRY_CODES or is_last:
                    text = self._explain(error, tries)
                    raise type(error)(error.code, text, reached=error.reached) from error
            time.sleep(pause)

    def _explain(self, error, tries):
        where, name = self._where, self._name
        count = "1 try" if tries == 1 else f"{tries} tries"
        if not error.reached:
            return f"{where} cannot be reached for {name} ({error}) after {count}"
        if error.code == "DEADLINE_EXCEEDED":
            return f"{where}: {name} took longer than {self._timeout} s ({error})"
        if error.code == "NOT_FOUND":
            return f"{where} has no {name}, or no version of it is loaded ({error})"
        after = f" after {count}" if tries > 1 else ""
        return f"{where}: {name} answered {error.code}{after}: {error}"


def _check_target(url, version, label):
    """The server, as errors name it: without user and password."""
    parts = urllib.parse.urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in TRANSPORTS or not parts.hostname:
        raise ValueError(
            "`url` must be like http://host:8501, https://host, grpc://host:8500 or "
            f"grpcs://host:8500. Received: {url!r}"
        )
    _check_port(url, parts)
    if version is not None and label is not None:
        raise ValueError(f"Give `version` or `label`, not both. Received: {version!r}, {label!r}")
    if version is not None:
        _check_number("version", version, int, 0)
    if label is not None and (not isinstance(label, str) or not label):
        raise ValueError(f"`label` must be a string. Received: {label!r}")
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def _check_port(url, parts):
    try:
        is_right = parts.port != 0
    except ValueError:
        is_right = False
    if parts.scheme.startswith("grpc"):
        is_right = is_right and parts.port is not None and not parts.path.strip("/")
    if not is_right or parts.query or parts.fragment:
        raise ValueError(
            "`url` must end in a port (REST: or in a path, without a query), as "
            f"grpc://host:8500 does. Received: {url!r}"
        )


def _check_number(name, value, kinds, least, strict=False):
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not least <= value < 2**63 or (strict and value == least):
        kind = "an integer" if kinds is int else "a number"
        bound = f"> {least}" if strict else f">= {least}"
        raise ValueError(f"`{name}` must be {kind} {bound}. Received: {value!r}")


def _check_images(images, kinds):
    """The images as an array; `kinds`: NumPy's letters of the dtypes that are allowed."""
    images = np.asarray(images)
    is_known = images.dtype == np.uint8 or (images.dtype.kind == "f" and "f" in kinds)
    if images.ndim != 4 or not images.size or not is_known:
        dtypes = "uint8 or floating point" if "f" in kinds else "uint8"
        raise ValueError(
            f"`images` must be {dtypes}, of shape (batch, height, width, channels), and not "
            f"empty. Received: {images.dtype}, {images.shape}"
        )
    return images


def _check_inputs(signature, inputs, expected):
    """The inputs as arrays of the dtypes expected."""
    if not isinstance(inputs, dict) and len(expected) == 1:
        inputs = {next(iter(expected)): inputs}
    if not isinstance(inputs, dict) or set(inputs) != set(expected):
        received = sorted(inputs) if isinstance(inputs, dict) else _short(inputs)
        raise ValueError(
            f"Signature {signature!r} takes the inputs {sorted(expected)}. Received: {received}"
        )
    return {name: _check_input(name, inputs[name], info) for name, info in expected.items()}


def _check_input(name, value, info):
    dtype, shape = info["dtype"], info["shape"]
    array = _bytes_array(value) if dtype == "string" else np.asarray(value)
    is_right = dtype == "string" or array.dtype == dtype
    if array.dtype.kind == "f" and dtype.startswith("float"):
        array, is_right = array.astype(dtype), True
    if not is_right or not _fits(array.shape, shape) or 0 in array.shape[:1]:
        raise ValueError(
            f"Input {name!r} must be {dtype} of shape {_shape_text(shape)}, and not empty. "
            f"Received: {array.dtype}, {array.shape}"
        )
    return array


def _fits(shape, expected):
    if expected is None:
        return True
    return len(shape) == len(expected) and all(
        e in (None, s) for s, e in zip(shape, expected, strict=True)
    )


def _shape_text(shape):
    return "of any rank" if shape is None else str(shape)


def _bytes_array(value):
    array = np.asarray(value, object)
    texts = [t.encode() if isinstance(t, str) else t for t in array.ravel()]
    wrong = [t for t in texts if not isinstance(t, bytes)]
    if wrong:
        raise ValueError(f"Strings must be `str` or `bytes`. Received: {_short(wrong[0])}")
    return _objects(texts).reshape(array.shape)


def _objects(values):
    array = np.empty(len(values), object)
    array[:] = values
    return array


def _content(file):
    """The bytes of a JPEG or PNG file."""
    if not isinstance(file, (bytes, bytearray, str, pathlib.Path)):
        raise ValueError(f"A file must be `bytes` or a path. Received: {_short(file)}")
    if isinstance(file, (str, pathlib.Path)):
        content, name = pathlib.Path(file).read_bytes(), str(file)
    else:
        content, name = bytes(file), f"{len(file)} bytes"
    if not content.startswith(FILE_HEADERS):
        raise ValueError(
            f"A file must be a JPEG or PNG. Received: {name}, which begins with {content[:8]!r}"
        )
    return content


def _short(value):
    text = repr(value)
    return text if len(text) <= 60 else f"{type(value).__name__} {text[:40]}..."


def _state(status):
    """An entry of `status`; the protocol leaves out what is zero or empty."""
    error = status.get("status", {})
    code = error.get("error_code", "OK")
    return {
        "version": int(status.get("version", 0)),
        "state": status.get("state", "UNKNOWN"),
        "error": "" if code == "OK" else f"{code}: {error.get('error_message', '')}",
    }


def _tensor_infos(tensors):
    infos = {}
    for name, tensor in tensors.items():
        shape = tensor.get("tensor_shape", {})
        sizes = [int(dim.get("size", 0)) for dim in shape.get("dim", [])]
        open_shape = tuple(None if size < 0 else size for size in sizes)
        infos[name] = {
            "dtype": numpy_dtype(tensor["dtype"]),
            "shape": None if shape.get("unknown_rank") else open_shape,
        }
    return infos
