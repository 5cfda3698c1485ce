"""The weights of a model by path: which are the wiring's; assigning them, all or nothing."""

import contextlib
import os
from collections.abc import Collection, Iterator, Mapping
from typing import Any

import keras
import numpy as np

from dgnet_keras.layers.gate import ThresholdGate
from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.layers.wiring import ROUTED
from dgnet_keras.user_warnings import warn
from dgnet_keras.weight_paths import WeightPaths

WIRING_LAYERS = ("router_", "path_router_", "gate_")
WIRING_WEIGHTS = ("edge_logits", "node_logits", "adjacency")
HEAD = ("logits/kernel", "logits/bias")


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


def fixed_thresholds(model: keras.Model, *, moved: bool = False) -> set[float]:
    """The thresholds of the gates that hold theirs as no weight.

    Args:
        model: a model of this package.
        moved: whether only those that `set_threshold` gave.
    """
    gates = [
        (gate, stage.threshold)
        for stage in model.layers
        if isinstance(stage, GraphStage)
        for gate in stage.gates()
        if type(gate) is ThresholdGate and not gate.learn_threshold
    ]
    return {gate.threshold for gate, first in gates if not moved or gate.threshold != first}


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
    if not any(path in values and _decides_paths(path) for path in wanted):
        # The threshold of paths is one of these routers' logits.
        values = {path: value for path, value in values.items() if "/gate_path/" not in path}
    if len(wanted) < len(model.weights):
        raise ValueError(f"Weights of the model {model.name!r} share their paths.")
    received = {path: tuple(value.shape) for path, value in values.items()}
    _check_fit(model, wanted, received, source, lambda p: p in keep or is_wiring_weight(p), names)
    variables = {v.path: v for v in model.weights if v.path in values}
    for path, variable in variables.items():
        variable.assign(values[path])
    return WeightPaths(variables)


def _decides_paths(path):
    return "/path_router_" in path or path.rpartition("/")[2].startswith("node_logits")


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


@contextlib.contextmanager
def reading(path: str | os.PathLike[str], kind: str) -> Iterator[None]:
    """Turns whatever a reader raises into a `ValueError` that names the file."""
    try:
        yield
    except Exception as error:
        raise ValueError(f"{path} is not a whole {kind} file: {error}") from error
