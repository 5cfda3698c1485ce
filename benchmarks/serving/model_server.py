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

May import nothing of this project but `rest_api`, `served_models` and `c_api`.
"""

import argparse
import concurrent.futures
import threading

import grpc
from tensorflow_serving.apis import (
    model_management_pb2,
    model_service_pb2_grpc,
    prediction_service_pb2_grpc,
)

from benchmarks.serving.rest_api import RestServer
from benchmarks.serving.served_models import Refused, ServedModels

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
        self._rest = RestServer(self.models, rest_port)
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
