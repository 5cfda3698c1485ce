"""Moving weights: between wirings, and from files, all or nothing.

Only arrays are read, from `.weights.h5`, `.safetensors` and the weights inside `.keras`: no
pickles, nothing that runs code.
"""

import contextlib
import json
import os
import re
import tempfile
import warnings
import zipfile
from collections.abc import Callable, Collection, Mapping
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf
from numpy.typing import ArrayLike

from dgnet_keras.layers.options import default_edge_scale
from dgnet_keras.layers.wiring import ROUTED

WIRING_LAYERS = ("router_", "gate_")
WIRING_WEIGHTS = ("edge_logits", "adjacency")
HEAD = ("logits/kernel", "logits/bias")
# In a .weights.h5 file: routers, gates, and what a graph stage itself holds; the classifier.
H5_WIRING = re.compile(r"/_routers/|/_gates/|^layers/graph_stage(_\d+)?/vars/")
H5_HEAD = re.compile(r"^layers/dense/vars/\d$")
TIMM_KINDS = {
    "kernel": "weight",
    "bias": "bias",
    "gamma": "weight",
    "beta": "bias",
    "moving_mean": "running_mean",
    "moving_variance": "running_var",
}


def is_wiring_weight(path: str) -> bool:
    """Whether the weight at `path` belongs to the wiring, and not to a block, stem or head."""
    parts = path.split("/")
    return any(p.startswith(WIRING_LAYERS) for p in parts[:-1]) or parts[-1].startswith(
        WIRING_WEIGHTS
    )


def copy_weights(source: keras.Model, target: keras.Model) -> list[str]:
    """Copies weights by `Variable.path` between two models of one variant, in any wirings.

    Weights of the wiring (routers, gates, edge logits) that only one of the two has are left as
    they are. Nothing is changed unless everything fits.

    Args:
        source: model to copy from.
        target: model to copy into.

    Returns:
        List of the paths copied.

    Raises:
        ValueError: if a weight outside the wiring is missing on either side, shapes differ (with
            another number of classes: copy between the models' `backbone`), two weights of a
            model have the same path, or routers would be used at another `edge_scale` than they
            were trained at.
    """
    values = {v.path: v for v in source.weights}
    if len(values) < len(source.weights):
        raise ValueError(f"Weights of the model {source.name!r} share their paths.")
    _check_edge_scale(target, values, _edge_scale(source))
    return assign_weights(target, values, f"model {source.name!r}")


def _edge_scale(model):
    return next((layer.edge_scale for layer in model.layers if hasattr(layer, "edge_scale")), None)


def _check_edge_scale(model, values, scale):
    """Raises `ValueError` if routers among `values`, of a model of `scale`, mean something else."""
    routed = any(is_wiring_weight(v.path) and v.path in values for v in model.weights)
    own = _edge_scale(model)
    if routed and scale is not None and scale != own:
        raise ValueError(
            "Routers and edge logits mean something else at another `edge_scale`. Received: "
            f"edge_scale={scale} in the source, {own} in the target (None means 1 with "
            "`init='open'`, 2 with `init='static'`: give the target the source's)"
        )


def assign_weights(
    model: keras.Model,
    values: Mapping[str, Any],
    source: str,
    *,
    keep: Collection[str] = (),
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Assigns arrays to the weights of a model; all or nothing.

    Args:
        model: a model of this package.
        values: dict of `Variable.path` to array.
        source: where the values come from, for the message of an error.
        keep: paths that may be missing in `values`, besides those of the wiring.
        names: dict of path to the weight's name in the source, for the message of an error.

    Returns:
        List of the paths assigned.

    Raises:
        ValueError: as `copy_weights`.
    """
    wanted = {v.path: tuple(v.shape) for v in model.weights}
    if len(wanted) < len(model.weights):
        raise ValueError(f"Weights of the model {model.name!r} share their paths.")
    received = {path: tuple(value.shape) for path, value in values.items()}
    _check_fit(model, wanted, received, source, lambda p: p in keep or is_wiring_weight(p), names)
    variables = {v.path: v for v in model.weights if v.path in values}
    for path, variable in variables.items():
        variable.assign(values[path])
    return list(variables)


def load_weights(model: keras.Model, path: str | os.PathLike[str]) -> list[str]:
    """Loads weights that this package or timm wrote, all or nothing.

    The wirings of file and model may differ: weights of the wiring that only one of them has are
    left as they are. With another number of classes the backbone alone is loaded, and a warning
    says so; another says that a file without weights of the wiring starts a model of `init="open"`,
    which computes something else than the file's network.

    Args:
        model: a model of this package.
        path: a file of `model.save_weights` (`.weights.h5`) or `model.save` (`.keras`), or a
            `.safetensors` file with timm's names (see `load_timm`).

    Returns:
        List of the paths of the weights loaded.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another kind, broken, or of another architecture, or its
            routers were trained at another `edge_scale` (known of `.keras` only); the message
            lists names and shapes, and the model is as it was.
    """
    path = os.fspath(path)
    readers: dict[str, Callable[..., list[str]]] = {
        ".weights.h5": _load_h5,
        ".keras": _load_keras,
        ".safetensors": load_timm,
    }
    read = next((readers[suffix] for suffix in readers if path.endswith(suffix)), None)
    if read is None:
        inside = os.path.join(path, "model.keras")
        hint = f". Did you mean {inside}?" if os.path.exists(inside) else ""
        raise ValueError(
            f"A weights file must end in one of {', '.join(readers)}. Received: {path}{hint}"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(f"No weights file at {path}")
    return read(model, path)


def _load_keras(model, path):
    """Loads the arrays of a file of `model.save`; nothing of its configuration is run."""
    with tempfile.TemporaryDirectory() as folder:
        with _reading(path, "Keras"), zipfile.ZipFile(path) as archive:
            inner = archive.extract("model.weights.h5", folder)
            scale = _configured_edge_scale(json.loads(archive.read("config.json")))
        return _load_h5(model, inner, name=path, edge_scale=scale)


def _configured_edge_scale(config):
    """`edge_scale` of the graph stages in a saved model's configuration; None if it has none."""
    if isinstance(config, dict):
        if "edge_scale" in config:
            return config["edge_scale"] or default_edge_scale(config["init"])
        config = list(config.values())
    found = map(_configured_edge_scale, config) if isinstance(config, list) else ()
    return next((value for value in found if value is not None), None)


def _load_h5(model, path, name=None, edge_scale=None):
    """Loads a file of `model.save_weights`.

    Args:
        model: a model of this package.
        path: of the file.
        name: what errors call it; None means the path.
        edge_scale: of the model that was saved, or None where nothing tells.
    """
    name = name or path
    names = _h5_names(model)
    with _reading(name, "HDF5"), h5py.File(path) as file:
        # A compiled model's file also holds its optimizer.
        stored = {k: v for k, v in _h5_arrays(file).items() if k.startswith("layers/")}
    values = {names.get(n, n): a for n, a in stored.items() if n in names or not _is_extra(n)}
    _check_edge_scale(model, values, edge_scale)
    classes = next((len(a) for n, a in stored.items() if H5_HEAD.match(n) and a.ndim == 1), None)
    return assign_with_head(model, values, name, classes)


def _is_extra(name):
    """Whether a dataset that the model has no place for may be left out: wiring or classifier."""
    return H5_WIRING.search(name) or H5_HEAD.match(name)


def _h5_names(model):
    """Dict of the name that Keras gives a weight in a `.weights.h5` file to its path.

    Found by saving a copy of the model whose weights hold their own index; in float32, which holds
    it exactly.
    """
    config = model.get_config()
    backbone = config["backbone"]["config"] if "backbone" in config else config
    backbone["dtype"] = keras.dtype_policies.serialize(keras.DTypePolicy("float32"))
    scratch = type(model).from_config(config)
    for i, variable in enumerate(scratch.weights):
        variable.assign(np.full(variable.shape, i))
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "index.weights.h5")
        scratch.save_weights(path)
        with h5py.File(path) as file:
            arrays = _h5_arrays(file)
    return {name: scratch.weights[int(a.flat[0])].path for name, a in arrays.items()}


def _h5_arrays(file):
    arrays = {}

    def visit(name, item):
        if isinstance(item, h5py.Dataset):
            # HDF5 has no bfloat16: Keras stores its bytes, and says so in an attribute.
            narrow = item.attrs.get("dtype") == "bfloat16"
            arrays[name] = item[()].view(tf.bfloat16.as_numpy_dtype) if narrow else item[()]

    file.visititems(visit)
    return arrays


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
        List of the paths of the weights loaded.

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

    with _reading(path, "safetensors"):
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
    try:
        from huggingface_hub import hf_hub_download
    except ImportError as error:
        raise ImportError(
            f"{path} is not a file; to load it from the Hugging Face hub, install "
            "dgnet_keras[hub] (the package huggingface_hub)."
        ) from error
    try:
        return hf_hub_download(path, "model.safetensors")
    except Exception as error:
        raise ConnectionError(
            f"Could not get model.safetensors of {path} from the Hugging Face hub: {error}"
        ) from error


@contextlib.contextmanager
def _reading(path, kind):
    """Turns whatever a reader raises into a `ValueError` that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is not a whole {kind} file: {error}") from error


def assign_with_head(
    model: keras.Model,
    values: Mapping[str, np.ndarray],
    path: str | os.PathLike[str],
    classes: int | None,
    names: Mapping[str, str] | None = None,
) -> list[str]:
    """Assigns arrays, but for the classifier where the source has none or one of other classes.

    Args:
        model: a model of this package.
        values: dict of `Variable.path` to array.
        path: where the values come from.
        classes: number of classes there, or None.
        names: dict of path to the weight's name there, for the message of an error.

    Returns:
        List of the paths assigned; a warning says so if the classifier is not among them.

    Raises:
        ValueError: as `copy_weights`.
    """
    keep: tuple[str, ...] = ()
    if classes != getattr(model, "num_classes", None):
        keep = HEAD if hasattr(model, "num_classes") else ()
        values = {k: v for k, v in values.items() if k not in HEAD}
    loaded = assign_weights(model, values, os.fspath(path), keep=keep, names=names)
    if keep:
        warnings.warn(
            f"{path} has {classes or 'no'} classes, the model {model.num_classes}: the backbone "
            "was loaded, the classifier was left as it was.",
            stacklevel=4,
        )
    if not any(map(is_wiring_weight, loaded)) and _starts_elsewhere(model):
        warnings.warn(
            f"{path} has no weights of this model's wiring: with init='open' it computes something "
            "else than the static network of these blocks. With init='static' it starts as that.",
            stacklevel=4,
        )
    return loaded


def _starts_elsewhere(model):
    """Whether new routers or edge logits make a network compute another function than the chain."""
    stages = [layer for layer in model.layers if hasattr(layer, "edge_scale") and layer.graphs]
    return any(stage.wiring in ROUTED and stage.init == "open" for stage in stages)


def _check_fit(model, wanted, received, source, is_optional, names=None):
    """Raises `ValueError` that lists what differs between two dicts of path to shape."""

    def shown_as(path):
        return f"{path} ({names[path]})" if names and path in names else path

    problems = [
        f"{shown_as(name)}: {shape} only in the model"
        for name, shape in wanted.items()
        if name not in received and not is_optional(name)
    ]
    problems += [
        f"{name}: {shape} only in the source"
        for name, shape in received.items()
        if name not in wanted and not is_optional(name)
    ]
    problems += [
        f"{shown_as(name)}: expected {shape}, received {received[name]}"
        for name, shape in wanted.items()
        if received.get(name, shape) != shape
    ]
    if problems:
        more = f"\n  and {len(problems) - 20} more" if len(problems) > 20 else ""
        shown = "\n  ".join(problems[:20])
        raise ValueError(
            f"Weights of {source} do not fit the model {model.name!r}, which was left as it was:"
            f"\n  {shown}{more}"
        )
