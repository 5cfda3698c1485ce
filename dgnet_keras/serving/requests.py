"""What a client is given, checked and converted before anything is sent.

Each function raises `ValueError` if its argument does not fit. May import neither Keras nor
TensorFlow.
"""

import pathlib
import urllib.parse
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

FILE_HEADERS = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n")  # JPEG, PNG
NUMPY_DTYPES = {"DT_FLOAT": "float32", "DT_DOUBLE": "float64", "DT_HALF": "float16"}


def check_url(url: str, schemes: Collection[str]) -> str:
    """A server's URL, as errors name it: without user and password."""
    parts = urllib.parse.urlsplit(url) if isinstance(url, str) else None
    if parts is None or parts.scheme not in schemes or not parts.hostname:
        raise ValueError(
            "`url` must be like http://host:8501, https://host, grpc://host:8500 or "
            f"grpcs://host:8500. Received: {url!r}"
        )
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
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}".rstrip("/")


def check_model(model: str, version: int | None, label: str | None) -> str:
    """A model, in the version asked for, as errors name it."""
    if version is not None and label is not None:
        raise ValueError(f"Give `version` or `label`, not both. Received: {version!r}, {label!r}")
    if version is not None:
        check_number("version", version, int, 0)
    if label is not None and (not isinstance(label, str) or not label):
        raise ValueError(f"`label` must be a string. Received: {label!r}")
    if not isinstance(model, str) or not model:
        raise ValueError(f"`model` must be the name of a model. Received: {model!r}")
    if label is not None:
        return f"model {model!r} (label {label!r})"
    return f"model {model!r}" + (f" (version {version})" if version is not None else "")


def check_number(name: str, value: Any, kinds: Any, least: int, strict: bool = False) -> None:
    """Refuses what is not a number of these types in [least, 2^63); `strict`: in (least, 2^63)."""
    is_number = isinstance(value, kinds) and not isinstance(value, bool)
    if not is_number or not least <= value < 2**63 or (strict and value == least):
        kind = "an integer" if kinds is int else "a number"
        bound = f"> {least}" if strict else f">= {least}"
        raise ValueError(f"`{name}` must be {kind} {bound}. Received: {value!r}")


def check_images(images: ArrayLike, allow_floats: bool = False) -> np.ndarray:
    """Images as an array (B, height, width, channels), uint8 or, where allowed, floating point."""
    images = np.asarray(images)
    is_known = images.dtype == np.uint8 or (allow_floats and images.dtype.kind == "f")
    if images.ndim != 4 or not images.size or not is_known:
        dtypes = "uint8 or floating point" if allow_floats else "uint8"
        raise ValueError(
            f"`images` must be {dtypes}, of shape (batch, height, width, channels), and not "
            f"empty. Received: {images.dtype}, {images.shape}"
        )
    return images


def check_threshold(threshold: ArrayLike, count: int) -> np.ndarray:
    """A threshold, or one for each of `count` images, as float32 (count,)."""
    given = np.asarray(threshold, "float32")
    if given.shape not in ((), (count,)):
        raise ValueError(
            f"`threshold` must be a number, or one for each of the {count} images. "
            f"Received: shape {given.shape}"
        )
    # A scalar is refused by a server that batches requests.
    return np.broadcast_to(given, count)


def read_files(
    files: Sequence[bytes | bytearray | str | pathlib.Path] | np.ndarray,
) -> np.ndarray:
    """JPEG and PNG files, each its content or a path, as an object array (B,) of `bytes`.

    Raises:
        FileNotFoundError: if there is no such file.
    """
    if not isinstance(files, (list, tuple, np.ndarray)):
        raise ValueError(f"`files` must be a list. Received: {_short(files)}")
    read = [_content(file) for file in files]
    if not read:
        raise ValueError("`files` must hold at least one file. Received: none")
    return _objects(read)


def check_inputs(
    signature: str,
    inputs: Mapping[str, ArrayLike] | ArrayLike,
    expected: Mapping[str, Mapping[str, Any]],
) -> dict[str, np.ndarray]:
    """The inputs of a signature as arrays of its dtypes, strings as object arrays of `bytes`.

    Args:
        signature: its name.
        inputs: dict of name to array, or the array of the only input.
        expected: what it takes, see `tensor_infos`.
    """
    is_dict = isinstance(inputs, dict)
    given: Any = {next(iter(expected)): inputs} if not is_dict and len(expected) == 1 else inputs
    if not isinstance(given, dict) or set(given) != set(expected):
        received = sorted(given) if is_dict else _short(given)
        raise ValueError(
            f"Signature {signature!r} takes the inputs {sorted(expected)}. Received: {received}"
        )
    return {name: _check_input(name, given[name], info) for name, info in expected.items()}


def tensor_infos(tensors: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Dtypes and shapes by name, see `Client.metadata`, of the protocol's `TensorInfo`s."""
    infos = {}
    for name, tensor in tensors.items():
        shape, dtype = tensor.get("tensor_shape", {}), tensor["dtype"]
        sizes = [int(dim.get("size", 0)) for dim in shape.get("dim", [])]
        open_shape = tuple(None if size < 0 else size for size in sizes)
        infos[name] = {
            "dtype": NUMPY_DTYPES.get(dtype, dtype.removeprefix("DT_").lower()),
            "shape": None if shape.get("unknown_rank") else open_shape,
        }
    return infos


def _check_input(name, value, info):
    dtype, shape = info["dtype"], info["shape"]
    array = _bytes_array(value) if dtype == "string" else np.asarray(value)
    is_right = dtype == "string" or array.dtype == dtype
    if array.dtype.kind == "f" and dtype.startswith("float"):
        array, is_right = array.astype(dtype), True
    if not is_right or not _fits(array.shape, shape) or 0 in array.shape[:1]:
        shape_text = "of any rank" if shape is None else str(shape)
        raise ValueError(
            f"Input {name!r} must be {dtype} of shape {shape_text}, and not empty. "
            f"Received: {array.dtype}, {array.shape}"
        )
    return array


def _fits(shape, expected):
    if expected is None:
        return True
    return len(shape) == len(expected) and all(
        e in (None, s) for s, e in zip(shape, expected, strict=True)
    )


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
