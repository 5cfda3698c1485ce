"""One try over TensorFlow Serving's gRPC API. May not import Keras."""

import importlib
import re
import time
from collections.abc import Mapping
from typing import Any

import numpy as np

from dgnet_keras.serving.errors import ServingError, import_needed

# What gRPC says of a server that it does not reach; its code is that of a server that refuses.
UNREACHED = "failed to connect|DNS resolution|errors resolving|Socket closed|Connection reset"


class Grpc:
    """TensorFlow Serving's gRPC API, with the methods of `rest.Rest`.

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
        predictions = self._apis.prediction_service_pb2_grpc
        self._predictions = predictions.PredictionServiceStub(self._channel)
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
        """The outputs of a signature; `outputs` is not used, for an answer says its dtypes."""
        from tensorflow import make_ndarray, make_tensor_proto

        end = time.monotonic() + timeout
        request = self._apis.predict_pb2.PredictRequest(model_spec=self._spec)
        request.model_spec.signature_name = signature
        for name, value in inputs.items():
            request.inputs[name].CopyFrom(make_tensor_proto(value))
        answer = self._ask(self._predictions.Predict, request, end - time.monotonic())
        arrays = {name: make_ndarray(proto) for name, proto in answer.outputs.items()}
        return {
            name: _as_text(a) if a.dtype == object and not name.endswith("_bytes") else a
            for name, a in arrays.items()
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
        """The `GetModelStatusResponse`, in the form that REST gives it."""
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


def _as_text(array):
    texts = [text.decode(errors="replace") for text in array.ravel()]
    return np.array(texts, object).reshape(array.shape)


def _last_part(details):
    """Of gRPC's "failed to connect to all addresses; last error: ...: Connection refused (111)"."""
    return re.sub(r" \(\d+\)$|\]$", "", details.rpartition(": ")[2]).lower() or details
