"""The models of `benchmarks.serving.model_server`: which versions are loaded, and what they answer.

Follows TensorFlow Serving's rules: versions are the folders whose names are numbers; the version
policy (`latest`, `specific`, `all`) says which are wanted; warm-up requests are replayed before a
version is ready; one that is no longer wanted is unloaded when one that is wanted is ready.

May import nothing of this project but `benchmarks.serving.c_api`.
"""

import pathlib
import sys
import threading
import weakref

import grpc
import tensorflow as tf
from google.protobuf import text_format
from tensorflow.core.protobuf import saved_model_pb2
from tensorflow_serving.apis import (
    get_model_metadata_pb2,
    get_model_status_pb2,
    predict_pb2,
    prediction_log_pb2,
)
from tensorflow_serving.config import model_server_config_pb2

from benchmarks.serving import c_api

WARM_UP = "assets.extra/tf_serving_warmup_requests"
CODE_NAMES = {code.value[0]: code.name for code in grpc.StatusCode}
State = get_model_status_pb2.ModelVersionStatus.State


class Refused(Exception):
    """What a request is answered with in place of a result.

    Attributes:
        code: name of the status code, such as "NOT_FOUND".
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code


class Version:
    """A version of a model, loaded. It is freed when the last request lets go of it.

    Args:
        folder: of the SavedModel; its name is the version's number.

    Raises:
        Exception: if it cannot be loaded, or fails a warm-up request.
    """

    def __init__(self, folder):
        self.number = int(folder.name)
        saved_model = c_api.SavedModel(folder, c_api.signature_tensors(folder))
        weakref.finalize(self, saved_model.close)
        self._run = saved_model
        proto = saved_model_pb2.SavedModel.FromString((folder / "saved_model.pb").read_bytes())
        self.signatures = proto.meta_graphs[0].signature_def
        self._warm_up(folder / WARM_UP)

    def predict(self, request):
        """Answers a `PredictRequest`; whether it is meant for this version is not checked.

        Raises:
            Refused: with TensorFlow's code and message.
        """
        name = request.model_spec.signature_name or "serving_default"
        if name not in self.signatures:
            raise Refused("FAILED_PRECONDITION", f'Serving signature key "{name}" not found.')
        _check_names(set(request.inputs), set(self.signatures[name].inputs))
        _check_filter(request.output_filter, self.signatures[name].outputs)
        outputs = self._outputs(name, request.inputs)
        response = predict_pb2.PredictResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = self.number
        response.model_spec.signature_name = name
        for key in request.output_filter or outputs:
            response.outputs[key].CopyFrom(tf.make_tensor_proto(outputs[key]))
        return response

    def _outputs(self, name, tensors):
        try:
            inputs = {key: tf.make_ndarray(proto) for key, proto in tensors.items()}
            return self._run(name, inputs)
        except c_api.CApiError as error:
            raise Refused(CODE_NAMES[error.code], str(error)) from error
        except (KeyError, TypeError, ValueError) as error:  # a dtype unknown, too few values
            raise Refused("INVALID_ARGUMENT", f"Invalid tensor: {error}") from error

    def _warm_up(self, path):
        if not path.exists():
            return
        for record in tf.data.TFRecordDataset(str(path)).as_numpy_iterator():
            log = prediction_log_pb2.PredictionLog.FromString(record)
            if log.HasField("predict_log"):
                self.predict(log.predict_log.request)


class ServedModels:
    """The models of a configuration, kept as their folders and their file are.

    Args:
        config: a `ModelServerConfig`, or the path of a file with its text.

    Raises:
        ValueError: if the configuration is none.
        OSError: if its file cannot be read.
    """

    def __init__(self, config):
        self._path = None if hasattr(config, "model_config_list") else pathlib.Path(config)
        self._text = None if self._path is None else self._path.read_text()
        self._config = config if self._path is None else _parse(self._text)
        _check_config(self._config)
        self._loaded = {}  # replaced, never changed: requests read it without the lock
        self._states = {}
        self._lock = threading.Lock()
        self.poll()

    def reload(self, config):
        """Takes another configuration, and returns when it is in effect.

        Raises:
            ValueError: if it is none; the old one stays.
        """
        _check_config(config)
        with self._lock:
            self._config = config
        self.poll()

    def poll(self):
        """Looks at file and folders once; loads and unloads what they ask for."""
        with self._lock:
            self._read_file()
            configs = {config.name: config for config in self._config.model_config_list.config}
            for name in set(self._states) - set(configs):
                self._set_loaded(name, {})
            for name, config in configs.items():
                self._update(name, config)

    def find(self, spec):
        """The loaded `Version` that a `ModelSpec` asks for.

        Raises:
            Refused: if there is none.
        """
        loaded = self._loaded.get(spec.name, {})
        number = self._number(spec)
        asked = f"Latest({spec.name})" if number is None else f"Specific({spec.name}, {number})"
        number = max(loaded, default=None) if number is None else number
        if number not in loaded:
            raise Refused("NOT_FOUND", f"Servable not found for request: {asked}")
        return loaded[number]

    def predict(self, request):
        """Answers a `PredictRequest`, or raises `Refused`."""
        return self.find(request.model_spec).predict(request)

    def metadata(self, request):
        """Answers a `GetModelMetadataRequest`, or raises `Refused`."""
        if list(request.metadata_field) != ["signature_def"]:
            raise Refused("INVALID_ARGUMENT", "Metadata field must be signature_def")
        version = self.find(request.model_spec)
        signatures = get_model_metadata_pb2.SignatureDefMap()
        for name, signature in version.signatures.items():
            signatures.signature_def[name].CopyFrom(signature)
        response = get_model_metadata_pb2.GetModelMetadataResponse()
        response.model_spec.name = request.model_spec.name
        response.model_spec.version.value = version.number
        response.metadata["signature_def"].Pack(signatures)
        return response

    def status(self, request):
        """Answers a `GetModelStatusRequest`, or raises `Refused`."""
        name, number = request.model_spec.name, self._number(request.model_spec)
        states = dict(self._states.get(name, {}))
        if not states:
            raise Refused("NOT_FOUND", f"Could not find any versions of model {name}")
        if number is not None and number not in states:
            raise Refused("NOT_FOUND", f"Could not find version {number} of model {name}")
        response = get_model_status_pb2.GetModelStatusResponse()
        for version in sorted(states, reverse=True) if number is None else [number]:
            state, error = states[version]
            entry = response.model_version_status.add(version=version, state=state)
            kind = grpc.StatusCode.UNKNOWN if error else grpc.StatusCode.OK
            entry.status.error_code = kind.value[0]
            entry.status.error_message = error
        return response

    def close(self):
        """Unloads everything."""
        with self._lock:
            for name in list(self._loaded):
                self._set_loaded(name, {})

    def _number(self, spec):
        """Of the version that a spec asks for; None for the newest."""
        if spec.WhichOneof("version_choice") != "version_label":
            return spec.version.value if spec.HasField("version") else None
        for config in self._config.model_config_list.config:
            if config.name == spec.name and spec.version_label in config.version_labels:
                return config.version_labels[spec.version_label]
        message = f"Unrecognized servable version label: {spec.version_label}"
        raise Refused("INVALID_ARGUMENT", message)

    def _read_file(self):
        """Takes the file's configuration if it has changed; one that is broken changes nothing."""
        if self._path is None:
            return
        try:
            text = self._path.read_text()
            if text != self._text:
                self._text = text
                config = _parse(text)
                _check_config(config)
                self._config = config
        except (OSError, ValueError) as error:
            print(f"{self._path} is not used: {error}", file=sys.stderr)

    def _update(self, name, config):
        """Loads the versions of a model that are wanted, and then unloads those that are not."""
        wanted = _wanted(config)
        states = self._states.setdefault(name, {})
        for number in set(states) - set(wanted):
            if states[number][0] == State.END:
                states[number] = (State.END, "")  # a version that comes back is tried again
        for number in sorted(wanted):
            is_broken = bool(states.get(number, (0, ""))[1])
            if number not in self._loaded.get(name, {}) and not is_broken:
                self._load(name, pathlib.Path(config.base_path) / wanted[number])
        loaded = self._loaded.get(name, {})
        if not wanted or set(wanted) & set(loaded):
            self._set_loaded(name, {k: v for k, v in loaded.items() if k in wanted})

    def _load(self, name, folder):
        number = int(folder.name)
        self._states[name][number] = (State.LOADING, "")
        try:
            version = Version(folder)
        except Exception as error:
            self._states[name][number] = (State.END, str(error) or type(error).__name__)
            print(f"{folder} is not loaded: {error}", file=sys.stderr)
            return
        self._set_loaded(name, {**self._loaded.get(name, {}), number: version})

    def _set_loaded(self, name, versions):
        states = self._states[name]
        for number in set(self._loaded.get(name, {})) - set(versions):
            states[number] = (State.END, "")
        states.update(dict.fromkeys(versions, (State.AVAILABLE, "")))
        self._loaded = {**self._loaded, name: versions}


def _wanted(config):
    """Names of the folders that the version policy wants, by number."""
    try:
        folders = [path.name for path in pathlib.Path(config.base_path).iterdir() if path.is_dir()]
    except OSError:
        return {}
    found = {int(name): name for name in folders if name.isascii() and name.isdigit()}
    policy = config.model_version_policy
    kind = policy.WhichOneof("policy_choice")
    if kind == "all":
        return found
    if kind == "specific":
        return {
            number: name for number, name in found.items() if number in policy.specific.versions
        }
    count = policy.latest.num_versions or 1
    return {number: found[number] for number in sorted(found)[-count:]}


def _check_names(received, expected):
    if received != expected:
        raise Refused(
            "INVALID_ARGUMENT",
            f"input size does not match signature: {len(received)}!={len(expected)}. Sent extra: "
            f"{sorted(received - expected)}. Missing but required: {sorted(expected - received)}.",
        )


def _check_filter(names, outputs):
    if unknown := sorted(set(names) - set(outputs)):
        message = f"output tensor alias not found in signature: {unknown[0]}"
        raise Refused("INVALID_ARGUMENT", f"{message} Outputs expected: {sorted(outputs)}")


def _parse(text):
    try:
        return text_format.Parse(text, model_server_config_pb2.ModelServerConfig())
    except text_format.ParseError as error:
        raise ValueError(f"not the text of a ModelServerConfig: {error}") from error


def _check_config(config):
    models = config.model_config_list.config
    names = [model.name for model in models]
    if not all(names) or len(set(names)) < len(names) or not all(m.base_path for m in models):
        raise ValueError(f"models must have a base_path and names that differ. Received: {names}")
