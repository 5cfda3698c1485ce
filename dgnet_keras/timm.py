"""Weights that timm published, in the models of this package."""

import json
import os
import pathlib
import re
from collections.abc import Mapping
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras.weights import HEAD, assign_with_head, is_wiring_weight, reading

HUB_FILE = "model.safetensors"  # of a hub repository
TIMM_KINDS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def load_timm(model: keras.Model, path: str | os.PathLike[str]) -> list[str]:
    """Loads weights published by timm into a model of this package, all or nothing.

    The routers, gates and edge logits of the model are left as they are: with
    `wiring="dynamic", init="static"` the model then computes what timm's does. With another number
    of classes the backbone alone is loaded, and a warning says so.

    Args:
        model: a backbone or classifier of a variant that timm has.
        path: a `.safetensors` file, or the name of a Hugging Face hub repository such as
            `"timm/resnet50.a1_in1k"` (needs the package huggingface_hub and a network).

    Returns:
        List of the paths of the weights loaded, shown as by `copy_weights`.

    Raises:
        FileNotFoundError: if there is no such file.
        ImportError: for a hub name without huggingface_hub.
        ConnectionError: if the hub cannot be reached, or has no such file.
        ValueError: if the file is not a whole safetensors file, or is of another architecture;
            the message lists names and shapes, and the model is as it was.
    """
    names = getattr(model, "backbone", model).timm_names
    if names is None:
        raise ValueError(
            f"{type(getattr(model, 'backbone', model)).__name__} has no `timm_names`, which say "
            f"where timm keeps the weights of a layer. Received: {path}"
        )
    path = _locate(path)
    # safetensors' NumPy reader knows no bfloat16.
    from safetensors.tensorflow import load_file

    with reading(path, "safetensors"):
        arrays = {name: tensor.numpy() for name, tensor in load_file(path).items()}
    paths = {timm_name(v.path, names): v for v in model.weights if not is_wiring_weight(v.path)}
    head = {name for name in (timm_name(path, names) for path in HEAD) if name}
    values = {}
    for name, array in arrays.items():
        if name in paths:
            values[paths[name].path] = from_timm(array, len(paths[name].shape))
        elif name not in head and not name.endswith("num_batches_tracked"):
            values[name] = array
    classes = next((len(arrays[n]) for n in sorted(head) if n in arrays), None)
    in_file = {variable.path: name for name, variable in paths.items() if name}
    return assign_with_head(model, values, path, classes, in_file)


def timm_name(path: str, templates: Mapping[str, str]) -> str | None:
    """The name of timm's tensor for the weight at `path`.

    Args:
        path: `Variable.path`, such as `"stage1/block_0/conv1/conv/kernel"`.
        templates: a family's `timm_names`: layer path to module name, both with places for
            numbers: `{stage}`, `{block}`, `{conv}`, and in the module name also `{stage0}` (from 0)
            and `{block1}` (from 1). The first that matches counts.

    Returns:
        Such as `"layer1.0.conv1.weight"`; None where no template matches.
    """
    layer, _, kind = path.rpartition("/")
    for template, module in templates.items():
        pattern = re.sub(r"\\?{(\w+)\\?}", r"(?P<\1>\\d+)", re.escape(template))
        found = re.fullmatch(pattern, layer)
        if found:
            numbers = {key: int(value) for key, value in found.groupdict().items()}
            numbers["stage0"] = numbers.get("stage", 0) - 1
            numbers["block1"] = numbers.get("block", 0) + 1
            return f"{module.format(**numbers)}.{TIMM_KINDS[kind]}"
    return None


def from_timm(array: ArrayLike, rank: int) -> np.ndarray:
    """PyTorch's layout to Keras's, float32.

    Args:
        array: (out, in, height, width), (out, in) or (channels,).
        rank: of the Keras weight: 4 gives (height, width, in, out), 2 gives (in, out), also from
            a 1x1 convolution.
    """
    array = np.asarray(array, "float32")
    if array.ndim == 4 and rank == 4:
        return array.transpose(2, 3, 1, 0)
    if array.ndim == 4 and rank == 2 and array.shape[2:] == (1, 1):
        array = array[:, :, 0, 0]
    return array.T if array.ndim == 2 else array


def timm_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What timm says of the network in a `.safetensors` file.

    Returns:
        Dict, the `config.json` beside the file, or empty; with `architecture`, timm's name of the
        network, which without that file is the file's up to its first point, or where it is
        called `model.safetensors` the folder's: `resnet50` of `resnet50.a1_in1k.safetensors`.

    Raises:
        ValueError: if `config.json` is not JSON.
    """
    file = pathlib.Path(path)
    named = file.parent.name if file.name == HUB_FILE else file.name
    beside, config = file.with_name("config.json"), {}
    if beside.exists():
        with reading(beside, "JSON"):
            config = json.loads(beside.read_text())
    return {"architecture": named.partition(".")[0], **config}


def is_hub_name(path: str | os.PathLike[str]) -> bool:
    """Whether this is `timm/...`, the name of one of timm's hub repositories, and nothing here."""
    path = os.fspath(path)
    return path.startswith("timm/") and path.count("/") == 1 and not os.path.exists(path)


def hub_file(name: str, file: str) -> str:
    """The local copy of a file of a Hugging Face hub repository.

    Raises:
        ImportError: without huggingface_hub.
        ConnectionError: if the hub cannot be reached, or has no such file.
    """
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(
            f"{name} is not a file; to load it from the Hugging Face hub, install "
            "dgnet_keras[hub] (the package huggingface_hub)."
        ) from error
    try:
        return hf_hub_download(name, file)
    except Exception as error:
        raise ConnectionError(
            f"Could not get {file} of {name} from the Hugging Face hub: {error}. "
            "`python -m dgnet_keras list --pretrained` shows the names that fit."
        ) from error


def _locate(path):
    """The local file of a path or hub name."""
    path = os.fspath(path)
    if os.path.exists(path):
        return path
    if path.endswith(".safetensors") or path.startswith((".", "/", "~")) or path.count("/") != 1:
        raise FileNotFoundError(
            f"No weights file at {path}. Expected a .safetensors file, or the name of a hub "
            "repository such as timm/resnet50.a1_in1k"
        )
    return hub_file(path, HUB_FILE)
