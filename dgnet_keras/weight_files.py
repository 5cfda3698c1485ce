"""Files of weights that Keras writes: `.weights.h5`, and those inside of `.keras`.

Only arrays are read: no pickles, nothing that runs code.
"""

import dataclasses
import json
import os
import re
import tempfile
import zipfile
from typing import Any

import h5py
import keras
import numpy as np
import tensorflow as tf

from dgnet_keras.layers.options import default_edge_scale
from dgnet_keras.user_warnings import warn
from dgnet_keras.weights import (
    assign_with_head,
    check_edge_scale,
    fixed_thresholds,
    is_wiring_weight,
    reading,
)

# In a .weights.h5 file: routers, gates, and what a graph stage itself holds; the classifier.
H5_WIRING = re.compile(r"/_(path_)?routers/|/_gates/|^layers/graph_stage(_\d+)?/vars/")
H5_STAGE = re.compile(r"^layers/graph_stage(_\d+)?/vars/")
H5_HEAD = re.compile(r"^layers/dense/vars/\d$")


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
        pairs |= {key: [config.get(key), own[key]] for key in ("wiring", "max_nodes")}
    if is_routed:
        own_thresholds = fixed_thresholds(model) or {backbone.graph_options.resolved_threshold}
        for saved in sorted(_saved_thresholds(config.get("changes"))) or [config.get("threshold")]:
            pairs["threshold"] = [saved, min(own_thresholds, key=lambda t: t != saved)]
    differ = [f"{k} {a} (here {b})" for k, (a, b) in pairs.items() if a not in (None, b)]
    if differ:
        warn(f"{path} was trained as another network, though its weights fit: {', '.join(differ)}.")


def _saved_thresholds(changes):
    """Those that gates were given later, in the changes that a saved model's config holds."""
    if not isinstance(changes, (dict, list)):
        return set()
    inner = changes.values() if isinstance(changes, dict) else changes
    found = set().union(*map(_saved_thresholds, inner))
    for key, change in changes.items() if isinstance(changes, dict) else ():
        if key.startswith("gate_") and isinstance(change, dict) and "threshold" in change:
            found.add(float(change["threshold"][-1]))
    return found


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
    if _has_other_stage_weights(model, names, stored):
        names = {n: path for n, path in names.items() if not H5_STAGE.search(n)}
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


def _has_other_stage_weights(model, names, stored):
    """Whether the weights that stages themselves hold are those of another wiring, or other graphs.

    `learned`, `learned_path` and `random` have theirs under the same names.
    """
    shapes = {v.path: tuple(v.shape) for v in model.weights}
    own = {n: shapes[path] for n, path in names.items() if H5_STAGE.search(n)}
    return own != {n: array.shape for n, array in stored.items() if H5_STAGE.search(n)}


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
