"""SavedModels through TensorFlow's C API, as TensorFlow Serving's loader runs them.

Only ctypes and NumPy: neither TensorFlow's Python nor Keras is imported. Which tensors a signature
takes and gives is read by `signature_tensors`, which does import TensorFlow; a process without it
gets them from there:

    tensors = signature_tensors(directory)
    answers = run_elsewhere(directory, tensors, [("serving_default", {"images": images})])

May import nothing of this project.
"""

import contextlib
import ctypes
import importlib.machinery
import pathlib
import pickle
import subprocess
import sys
import tempfile

import numpy as np

DTYPES = {
    **{1: "float32", 2: "float64", 3: "int32", 4: "uint8", 5: "int16", 6: "int8", 9: "int64"},
    **{10: "bool", 17: "uint16", 19: "float16", 22: "uint32", 23: "uint64"},
}
CODES = {np.dtype(name): code for code, name in DTYPES.items()}
STRING = 7
INVALID_ARGUMENT = 3
TAG = b"serve"


class CApiError(RuntimeError):
    """What the C API answered in place of a result.

    Attributes:
        code: number of the `TF_Code`, such as `INVALID_ARGUMENT`.
    """

    def __init__(self, code, message):
        super().__init__(message)
        self.code = code

    def __reduce__(self):
        return type(self), (self.code, str(self))


class _Output(ctypes.Structure):
    _fields_ = [("operation", ctypes.c_void_p), ("index", ctypes.c_int)]


class _Library:
    """The functions of both shared libraries of TensorFlow's wheel, by name."""

    # TensorFlow 2.20's C API: result type of the functions that do not return an int or nothing.
    POINTERS = (
        *("TF_NewStatus", "TF_NewGraph", "TF_NewSessionOptions", "TF_LoadSessionFromSavedModel"),
        *("TF_GraphOperationByName", "TF_AllocateTensor", "TF_TensorData"),
    )

    def __init__(self):
        package = importlib.machinery.PathFinder.find_spec("tensorflow")  # imports nothing
        folder = pathlib.Path(package.submodule_search_locations[0])
        names = ("libtensorflow_framework.so.2", "libtensorflow_cc.so.2")
        self._parts = [ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL) for name in names]

    def __getattr__(self, name):
        part = next(part for part in self._parts if hasattr(part, name))
        function = getattr(part, name)
        result = ctypes.c_void_p if name in self.POINTERS else ctypes.c_int64
        # Set once and at once: another thread may be calling this very function.
        function.restype = ctypes.c_char_p if name == "TF_Message" else result
        setattr(self, name, function)
        return function


class SavedModel:
    """A SavedModel in a session of the C API, which several threads may call at once.

    Args:
        directory: of the SavedModel.
        tensors: `signature_tensors(directory)`.

    Raises:
        CApiError: if it cannot be loaded.
    """

    def __init__(self, directory, tensors):
        self._tensors = tensors
        self._api = api = _Library()
        self._graph = ctypes.c_void_p(api.TF_NewGraph())
        options = ctypes.c_void_p(api.TF_NewSessionOptions())
        tags = (ctypes.c_char_p * 1)(TAG)
        try:
            with self._checked() as status:
                self._session = ctypes.c_void_p(
                    api.TF_LoadSessionFromSavedModel(
                        options, None, str(directory).encode(), tags, 1, self._graph, None, status
                    )
                )
        except CApiError:
            api.TF_DeleteGraph(self._graph)
            raise
        finally:
            api.TF_DeleteSessionOptions(options)

    def __call__(self, signature, inputs):
        """Runs a signature.

        Args:
            signature: its name.
            inputs: dict of names to arrays; strings as an array or list of `bytes`.

        Returns:
            Dict of names to arrays; strings as object arrays of `bytes`.

        Raises:
            CApiError: if TensorFlow refuses.
            KeyError: if signature or input is unknown.
        """
        names = self._tensors[signature]
        pairs = [(names["inputs"][k], self._to_tensor(v)) for k, v in inputs.items()]
        fed = (_Output * len(pairs))(*[self._output(name) for name, _ in pairs])
        values = (ctypes.c_void_p * len(pairs))(*[tensor for _, tensor in pairs])
        wanted = (_Output * len(names["outputs"]))(*map(self._output, names["outputs"].values()))
        results = (ctypes.c_void_p * len(wanted))()
        try:
            with self._checked() as status:
                self._api.TF_SessionRun(
                    *(self._session, None, fed, values, len(pairs), wanted, results, len(wanted)),
                    *(None, 0, None, status),
                )
        finally:
            for value in values:
                self._api.TF_DeleteTensor(ctypes.c_void_p(value))
        answers = {}
        for name, result in zip(names["outputs"], results, strict=True):
            answers[name] = self._to_array(ctypes.c_void_p(result))
            self._api.TF_DeleteTensor(ctypes.c_void_p(result))
        return answers

    def close(self):
        """Frees the session. No call may be under way."""
        with self._checked() as status:
            self._api.TF_CloseSession(self._session, status)
        with self._checked() as status:
            self._api.TF_DeleteSession(self._session, status)
        self._api.TF_DeleteGraph(self._graph)

    @contextlib.contextmanager
    def _checked(self):
        """Yields a status of its own for one call, and raises what the call left there."""
        status = ctypes.c_void_p(self._api.TF_NewStatus())
        try:
            yield status
            code = self._api.TF_GetCode(status) & 0xFFFFFFFF
            if code:
                raise CApiError(code, self._api.TF_Message(status).decode(errors="replace"))
        finally:
            self._api.TF_DeleteStatus(status)

    def _output(self, name):
        operation, _, index = name.partition(":")
        found = self._api.TF_GraphOperationByName(self._graph, operation.encode())
        return _Output(found, int(index or 0))

    def _to_tensor(self, value):
        """A new tensor that holds a copy of the value."""
        value = np.asarray(value, dtype=object if _is_text(value) else None)
        shape = (ctypes.c_int64 * value.ndim)(*value.shape)
        if value.dtype != object:
            value = np.array(value, order="C")  # np.ascontiguousarray gives a scalar an axis
            code, size = CODES[value.dtype], value.nbytes
        else:
            code, size = STRING, 24 * value.size
        tensor = self._api.TF_AllocateTensor(code, shape, value.ndim, ctypes.c_size_t(size))
        data = self._api.TF_TensorData(ctypes.c_void_p(tensor))
        if value.dtype != object:
            ctypes.memmove(data, value.ctypes.data, size)
            return tensor
        for k, text in enumerate(value.ravel()):
            place = ctypes.c_void_p(data + 24 * k)
            self._api.TF_StringInit(place)
            self._api.TF_StringCopy(place, text, ctypes.c_size_t(len(text)))
        return tensor

    def _to_array(self, tensor):
        api = self._api
        code = api.TF_TensorType(tensor) & 0xFFFFFFFF
        rank = ctypes.c_int(api.TF_NumDims(tensor)).value
        shape = [api.TF_Dim(tensor, k) for k in range(rank)]
        size = api.TF_TensorByteSize(tensor)
        data = api.TF_TensorData(tensor)
        if code != STRING:
            return np.frombuffer(ctypes.string_at(data, size), DTYPES[code]).reshape(shape).copy()
        texts = np.empty(int(np.prod(shape)), object)
        for k in range(len(texts)):
            texts[k] = _text(ctypes.string_at(data + 24 * k, 24), data + 24 * k)
        return texts.reshape(shape)


def _is_text(value):
    first = np.asarray(value, dtype=object).ravel()[:1]
    return bool(len(first)) and isinstance(first[0], bytes)


def _text(raw, place):
    """The content of a `TF_TString`: its two lowest bits say where the characters are."""
    kind, words = raw[0] & 3, np.frombuffer(raw, "<u8")
    if kind == 0:  # small: in the struct itself
        return raw[1 : 1 + (raw[0] >> 2)]
    if kind == 2:  # offset: 32-bit size and distance
        size, offset = np.frombuffer(raw[:8], "<u4")
        return ctypes.string_at(place + int(offset), int(size >> 2))
    pointer = words[2] if kind == 1 else words[1]
    return ctypes.string_at(int(pointer), int(words[0] >> 2))


def signature_tensors(directory):
    """Names of the tensors that each signature of a SavedModel takes and gives.

    Returns:
        Dict of signature to `{"inputs": {name: tensor name}, "outputs": {...}}`.
    """
    from tensorflow.python.saved_model import loader_impl

    graph = loader_impl.parse_saved_model(str(directory)).meta_graphs[0]
    return {
        name: {
            "inputs": {key: info.name for key, info in signature.inputs.items()},
            "outputs": {key: info.name for key, info in signature.outputs.items()},
        }
        for name, signature in graph.signature_def.items()
        if not name.startswith("__")
    }


def run_elsewhere(directory, tensors, requests):
    """Runs requests in a process that has neither TensorFlow's Python nor Keras.

    Args:
        directory: of the SavedModel.
        tensors: `signature_tensors(directory)`.
        requests: list of (signature, inputs).

    Returns:
        List with a dict of arrays, or the `CApiError`, for each.

    Raises:
        RuntimeError: if the process dies.
    """
    with tempfile.TemporaryDirectory() as folder:
        files = [pathlib.Path(folder) / name for name in ("requests", "answers")]
        files[0].write_bytes(pickle.dumps((str(directory), tensors, requests)))
        line = [
            sys.executable,
            "-c",
            "import benchmarks.serving.c_api as m; m.main()",
            *map(str, files),
        ]
        root = pathlib.Path(__file__).parents[2]
        done = subprocess.run(line, capture_output=True, text=True, cwd=root)
        if done.returncode:
            raise RuntimeError(f"exit code {done.returncode}: {done.stderr[-2000:]}")
        return pickle.loads(files[1].read_bytes())


def main():
    """What `run_elsewhere` starts."""
    for name in ("keras", "tf_keras", "tensorflow"):
        sys.modules.setdefault(name, None)
    directory, tensors, requests = pickle.loads(pathlib.Path(sys.argv[1]).read_bytes())
    model = SavedModel(directory, tensors)
    answers = []
    for signature, inputs in requests:
        try:
            answers.append(model(signature, inputs))
        except CApiError as error:
            answers.append(error)
    pathlib.Path(sys.argv[2]).write_bytes(pickle.dumps(answers))
