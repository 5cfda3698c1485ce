"""Moving weights between models of any wirings, and from files, all or nothing."""

import os
from collections.abc import Callable

import keras

from dgnet_keras.cifar_weights import load_cifar_resnet
from dgnet_keras.timm import from_timm, is_hub_name, load_timm, timm_config, timm_name
from dgnet_keras.user_warnings import warn
from dgnet_keras.weight_files import (
    backbone_config,
    has_wiring,
    load_h5,
    load_keras,
    saved_config,
)
from dgnet_keras.weights import (
    HEAD,
    WeightsMismatch,
    assign_weights,
    assign_with_head,
    check_edge_scale,
    edge_scale_of,
    fixed_thresholds,
    is_wiring_weight,
)

NAMED = 3  # differences that are named where the variant is another

__all__ = [
    "HEAD",
    "WeightsMismatch",
    "assign_weights",
    "assign_with_head",
    "copy_weights",
    "from_timm",
    "is_static",
    "is_wiring_weight",
    "load_cifar_resnet",
    "load_timm",
    "load_weights",
    "stated_variant",
    "timm_name",
]


def copy_weights(source: keras.Model, target: keras.Model) -> list[str]:
    """Copies weights by `Variable.path` between two models of one variant, in any wirings.

    Weights of the wiring (routers, gates, edge logits) that only one of the two has are left as
    they are. Nothing is changed unless everything fits.

    Args:
        source: model to copy from.
        target: model to copy into.

    Returns:
        List of the paths copied; it shows its first entries only, `list(...)` shows them all.

    Raises:
        ValueError: if a weight outside the wiring is missing on either side, shapes differ (with
            another number of classes: copy between the models' `backbone`), two weights of a
            model have the same path, or routers would be used at another `edge_scale` than they
            were trained at.
    """
    values = {v.path: v for v in source.weights}
    if len(values) < len(source.weights):
        raise ValueError(f"Weights of the model {source.name!r} share their paths.")
    check_edge_scale(target, values, edge_scale_of(source))
    copied = assign_weights(target, values, f"model {source.name!r}")
    moved = fixed_thresholds(source, moved=True)
    other = fixed_thresholds(source) != fixed_thresholds(target)
    if moved and other and any(map(is_wiring_weight, copied)):
        shown = ", ".join(map(str, sorted(moved)))
        warn(
            f"The model {source.name!r} was given the threshold {shown} by `set_threshold` or "
            f"`calibrate`. It is no weight, and {target.name!r} keeps its own: set it there, too."
        )
    return copied


def load_weights(model: keras.Model, path: str | os.PathLike[str]) -> list[str]:
    """Loads weights that this package or timm wrote, all or nothing.

    The wirings of file and model may differ: weights of the wiring that only one of them has are
    left as they are. With another number of classes the backbone alone is loaded, and a warning
    says so; another says that a file without weights of the wiring starts a model of `init="open"`,
    which computes something else than the file's network.

    Args:
        model: a model of this package.
        path: a file of `model.save_weights` (`.weights.h5`) or `model.save` (`.keras`), or a
            `.safetensors` file with timm's names or `timm/...` (see `load_timm`), or an `.npz`
            file of CIFAR ResNets (see `load_cifar_resnet`).

    Returns:
        List of the paths of the weights loaded, shown as by `copy_weights`.

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if the file is of another kind, broken, or of another architecture, or its
            routers were trained at another `edge_scale` (known of `.keras` only); the message
            lists names and shapes, and another variant that the file says it is of; the model is
            as it was.
    """
    path = os.fspath(path)
    if is_hub_name(path):
        return load_timm(model, path)
    loaders: dict[str, Callable[..., list[str]]] = {
        ".weights.h5": load_h5,
        ".keras": load_keras,
        ".safetensors": load_timm,
        ".npz": load_cifar_resnet,
    }
    load = next((loaders[suffix] for suffix in loaders if path.endswith(suffix)), None)
    if load is None:
        inside = os.path.join(path, "model.keras")
        hint = f". Did you mean {inside}?" if os.path.exists(inside) else ""
        raise ValueError(
            f"A weights file must end in one of {', '.join(loaders)}. Received: {path}{hint}"
        )
    if not os.path.exists(path):
        raise FileNotFoundError(f"No weights file at {path}")
    try:
        return load(model, path)
    except WeightsMismatch as error:
        stated, own = stated_variant(path), getattr(model, "backbone", model).name
        if stated in (None, own):
            raise
        differences = "\n".join(str(error).splitlines()[: 1 + NAMED])
        raise WeightsMismatch(
            f"{path} says that it is of the variant {stated}. Received: a model of {own}. "
            f"{differences}\n  ..."
        ) from error


def stated_variant(path: str | os.PathLike[str]) -> str | None:
    """The variant that a file says its weights are of, timm's or ours; None where it does not."""
    path = os.fspath(path)
    if path.endswith(".safetensors"):
        return timm_config(path)["architecture"]
    if path.endswith(".keras"):
        return (backbone_config(saved_config(path)) or {}).get("name")
    return None


def is_static(path: str | os.PathLike[str]) -> bool:
    """Whether this holds the weights of a static network: timm's do; not so what is not there.

    A `.weights.h5` file is told by its weights, among which there are none of a graph.
    """
    path = os.fspath(path)
    if not os.path.exists(path):
        return is_hub_name(path)
    if path.endswith(".keras"):
        return (backbone_config(saved_config(path)) or {}).get("wiring") == "chain"
    return not path.endswith(".weights.h5") or not has_wiring(path)
