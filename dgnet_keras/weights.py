"""The weights of a model by path: which are the wiring's, reading files, all or nothing.

Only arrays are read, from `.weights.h5` and from the weights inside `.keras`: no pickles, nothing
that runs code.
"""

import contextlib
import dataclasses
import json
import os
import re
import tempfile
import zipfile
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.layers.options import default_edge_scale
from dgnet_keras.layers.wiring import ROUTED
from dgnet_keras.user_warnings import warn
from dgnet_keras.weight_paths import WeightPaths

WIRING_LAYERS = ("router_", "path_router_", "gate_")
WIRING_WEIGHTS = ("edge_logits", "node_logits", "adjacency")
HEAD = ("logits/kernel", "logits/bias")
# In a .weights.h5 file: routers, gates, and what a graph stage itself holds; the classifier.
H5_WIRING = re.compile(r"/_(path_)?routers/|/_gates/|^layers/graph_stage(_\d+)?/vars/")
H5_HEAD = re.compile(r"^layers/dense/vars/\d$")


class WeightsMismatch(ValueError):
    """Weights do not fit a model: names or shapes differ."""


def is_wiring_weight(path: str) -> bool:
    """Whether the weight at `path` belongs to the wiring, and not to a block, stem or head."""
    parts = path.split("/")
    return any(p.startswith(WIRING_LAYERS) for p in parts[:-1]) or parts[-1].startswith(
        WIRING_WEIGHTS
    )


def edge_scale_of(model: keras.Model) -> float | None:
    """The largest edge weight of a model's graph stages; None without one."""
    stages = (layer for layer in model.layers if isinstance(layer, GraphStage))
    return next((stage.edge_scale for stage in stages), None)


def check_edge_scale(model: keras.Model, values: Collection[str], scale: float | None) -> None:
    """Raises if routers would be used at another `edge_scale` than they were trained at.

    Args:
        model: a model of this package.
        values: paths of the weights that it is to get.
        scale: of the model that they come from, or None where nothing tells.

    Raises:
        ValueError: if weights of the wiring are among `values`, and `scale` is not the model's.
    """
    routed = any(is_wiring_weight(v.path) and v.path in values for v in model.weights)
    own = edge_scale_of(model)
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
        ValueError: if a weight outside the wiring is missing on either side, shapes differ, or two
            weights of the model have the same path; the model is then as it was.
    """
    wanted = {v.path: tuple(v.shape) for v in model.weights}
    if len(wanted) < len(model.weights):
        raise ValueError(f"Weights of the model {model.name!r} share their paths.")
    received = {path: tuple(value.shape) for path, value in values.items()}
    _check_fit(model, wanted, received, source, lambda p: p in keep or is_wiring_weight(p), names)
    variables = {v.path: v for v in model.weights if v.path in values}
    for path, variable in variables.items():
        variable.assign(values[path])
    return WeightPaths(variables)


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
        raise WeightsMismatch(
            f"Weights of {source} do not fit the model {model.name!r}, which was left as it was:"
            f"\n  {shown}{more}"
        )


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
        ValueError: as `assign_weights`.
    """
    keep: tuple[str, ...] = ()
    if classes != getattr(model, "num_classes", None):
        keep = HEAD if hasattr(model, "num_classes") else ()
        values = {k: v for k, v in values.items() if k not in HEAD}
    loaded = assign_weights(model, values, os.fspath(path), keep=keep, names=names)
    if keep:
        warn(
            f"{path} has {classes or 'no'} classes, the model {model.num_classes}: the backbone "
            "was loaded, the classifier was left as it was."
        )
    if not any(map(is_wiring_weight, loaded)) and _starts_elsewhere(model):
        warn(
            f"{path} has no weights of this model's wiring: with init='open' it computes something "
            "else than the static network of these blocks, with init='static' it starts as that."
        )
    return loaded


def _starts_elsewhere(model):
    """Whether new routers or edge logits make a network compute another function than the chain."""
    stages = [layer for layer in model.layers if isinstance(layer, GraphStage)]
    return any(s.graphs and s.wiring in ROUTED and s.init == "open" for s in stages)


def load_keras(model: keras.Model, path: str) -> list[str]:
    """`load_h5` of the arrays in a file of `model.save`; nothing of its configuration is run."""
    with tempfile.TemporaryDirectory() as folder:
        with reading(path, "Keras"), zipfile.ZipFile(path) as archive:
            inner = archive.extract("model.weights.h5", folder)
        config = backbone_config(saved_config(path))
        scale = config.get("edge_scale") or default_edge_scale(config["init"]) if config else None
        loaded = load_h5(model, inner, name=path, edge_scale=scale)
    if config:
        _warn_of_another_network(model, path, config, any(map(is_wiring_weight, loaded)))
    return loaded


def saved_config(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The configuration in a file of `model.save`, of which nothing is run.

    Raises:
        ValueError: if the file is not whole.
    """
    with reading(path, "Keras"), zipfile.ZipFile(path) as archive:
        return json.loads(archive.read("config.json"))


def backbone_config(config: Any) -> dict[str, Any] | None:
    """The configuration of the backbone in that of a saved model; None if it has none."""
    if isinstance(config, dict):
        if "edge_scale" in config:
            return config
        config = list(config.values())
    found = map(backbone_config, config) if isinstance(config, list) else ()
    return next((value for value in found if value is not None), None)


def _warn_of_another_network(model, path, config, is_routed):
    """Warns of what weights do not show, but what they were trained with."""
    backbone = getattr(model, "backbone", model)
    own = {
        **backbone.graph_options.keywords(),
        "preprocessing": backbone.preprocessing.to_config(),
        "spec": dataclasses.asdict(backbone.spec),
    }
    pixels = config.get("preprocessing", {}), own["preprocessing"]
    pairs = {f"preprocessing.{k}": [c.get(k) for c in pixels] for k in ("mean", "std")}
    specs = json.loads(json.dumps([config.get("spec", {}), own["spec"]]))  # tuples become lists
    pairs |= {k: [s.get(k) for s in specs] for k in specs[1]}
    if config["wiring"] != "chain":
        pairs["wiring"] = [config["wiring"], own["wiring"]]
    if is_routed:
        pairs["threshold"] = [config.get("threshold"), backbone.graph_options.resolved_threshold]
    differ = [f"{k} {a} (here {b})" for k, (a, b) in pairs.items() if a not in (None, b)]
    if differ:
        warn(f"{path} was trained as another network, though its weights fit: {', '.join(differ)}.")


def load_h5(
    model: keras.Model, path: str, name: str | None = None, edge_scale: float | None = None
) -> list[str]:
    """Loads a file of `model.save_weights`, all or nothing.

    Args:
        model: a model of this package.
        path: of the file.
        name: what errors call it; None means the path.
        edge_scale: of the model that was saved, or None where nothing tells.

    Returns:
        List of the paths of the weights loaded.

    Raises:
        ValueError: if the file is no whole HDF5 file, or does not fit the model, which is then as
            it was.
    """
    name = name or path
    names, has_config = _h5_names(model), name != path
    with reading(name, "HDF5"), h5py.File(path) as file:
        # A compiled model's file also holds its optimizer.
        stored = {k: v for k, v in _h5_arrays(file).items() if k.startswith("layers/")}
    values = {names.get(n, n): a for n, a in stored.items() if n in names or not _is_extra(n)}
    check_edge_scale(model, values, edge_scale)
    classes = next((len(a) for n, a in stored.items() if H5_HEAD.match(n) and a.ndim == 1), None)
    loaded = assign_with_head(model, values, name, classes)
    if not has_config and any(H5_WIRING.search(n) for n in stored if n not in names):
        warn(
            f"{name} has weights of another wiring than this model's. They were left out, though "
            "the blocks were trained with them."
        )
    return loaded


def has_wiring(path: str) -> bool:
    """Whether a file of `model.save_weights` holds weights of routers, gates or edges."""
    with reading(path, "HDF5"), h5py.File(path) as file:
        return any(H5_WIRING.search(name) for name in _h5_arrays(file))


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


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turns whatever a reader raises into a `ValueError` that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is not a whole {kind} file: {error}") from error
