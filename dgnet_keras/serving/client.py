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

from dgnet_keras.serving.errors import AnswerMismatch, ServingError
from dgnet_keras.serving.grpc import Grpc
from dgnet_keras.serving.requests import (
    check_images,
    check_inputs,
    check_model,
    check_number,
    check_threshold,
    check_url,
    read_files,
    tensor_infos,
)
from dgnet_keras.serving.rest import Rest

TRANSPORTS: dict[str, type[Rest | Grpc]] = {
    **{"http": Rest, "https": Rest},
    **{"grpc": Grpc, "grpcs": Grpc},
}
RETRY_CODES = ("UNAVAILABLE", "RESOURCE_EXHAUSTED")
FIRST_PAUSE, LONGEST_PAUSE = 0.1, 2.0  # seconds between tries


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
        self._where = check_url(url, TRANSPORTS)
        self._name = check_model(model, version, label)
        check_number("timeout", timeout, (int, float), 0, strict=True)
        check_number("retries", retries, int, 0)
        self._timeout = timeout
        self._retries = retries
        self._signatures: Any = None  # a dict once the server has been asked
        transport = TRANSPORTS[urllib.parse.urlsplit(url).scheme]
        self._transport = transport(url, model, version, label)

    def predict(
        self, images: ArrayLike, threshold: ArrayLike | None = None
    ) -> dict[str, np.ndarray]:
        """Classifies images.

        Args:
            images: (B, height, width, channels), uint8 (signature `serving_default`) or floating
                point, 0 to 255 (`predict_float`).
            threshold: at or below which an edge is closed, or of paths a block is passed by: a
                number for all images, or (B,), with uint8 images (`predict_at`). None means the
                model's own.

        Raises:
            ValueError: if images or threshold do not fit; nothing was sent.
            ServingError: if there is no answer, or an error.
        """
        if threshold is not None:
            pixels = check_images(images)
            inputs = {"images": pixels, "threshold": check_threshold(threshold, len(pixels))}
            return self.call("predict_at", inputs)
        pixels = check_images(images, allow_floats=True)
        return self.call("serving_default" if pixels.dtype.kind == "u" else "predict_float", pixels)

    def predict_jpeg(
        self, files: Sequence[bytes | bytearray | str | pathlib.Path] | np.ndarray
    ) -> dict[str, np.ndarray]:
        """Classifies JPEG and PNG files, mixed and of any sizes (signature `predict_jpeg`).

        A model of 4 channels takes PNG files alone. One of 2, or of more than 4, has no such
        signature: no image file holds so many.

        Args:
            files: list of B, each the content as `bytes`, or a path.

        Raises:
            FileNotFoundError: if there is no such file.
            ValueError: if it is no list of JPEG and PNG files, or an empty one; nothing was sent.
            ServingError: if there is no answer, or an error.
        """
        return self.call("predict_jpeg", read_files(files))

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
        pixels = check_images(images)
        if threshold is None:
            return self.call("connectivity", pixels)
        inputs = {"images": pixels, "threshold": check_threshold(threshold, len(pixels))}
        return self.call("connectivity_at", inputs)

    def features(self, images: ArrayLike) -> dict[str, np.ndarray]:
        """The backbone's final feature map (signature `features`).

        Args:
            images: uint8 (B, height, width, channels).

        Raises:
            ValueError: if the images do not fit; nothing was sent.
            ServingError: if there is no answer, or an error.
        """
        return self.call("features", check_images(images))

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
        inputs = check_inputs(signature, inputs, expected["inputs"])
        return self._ask("predict", signature, inputs, expected["outputs"], end=end)

    def _fetch_metadata(self, end, retries=None):
        answer = self._ask("metadata", end=end, retries=retries)
        signatures = answer["metadata"]["signature_def"]["signature_def"]
        self._signatures = {
            name: {part: tensor_infos(signature.get(part, {})) for part in ("inputs", "outputs")}
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


def _state(status):
    """An entry of `status`; the protocol leaves out what is zero or empty."""
    error = status.get("status", {})
    code = error.get("error_code", "OK")
    return {
        "version": int(status.get("version", 0)),
        "state": status.get("state", "UNKNOWN"),
        "error": "" if code == "OK" else f"{code}: {error.get('error_message', '')}",
    }
