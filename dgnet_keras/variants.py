"""The variants by name, and `create`: a model by the name of its variant."""

import dataclasses
import inspect
import os
from collections.abc import Sequence
from typing import Any, Unpack, overload

from dgnet_keras.backbones import FAMILIES
from dgnet_keras.backbones.base import Backbone, Spec
from dgnet_keras.checks import closest
from dgnet_keras.classifier import Classifier
from dgnet_keras.convert import is_static, load_weights
from dgnet_keras.layers.options import GraphKeywords, GraphOptions, shows_graph_options
from dgnet_keras.layers.wiring import PATHS


def list_variants(family: str | None = None) -> list[str]:
    """Names of the variants, in table order.

    Args:
        family: `"resnet"`, ...; None means all families.

    Returns:
        List of names that `create` takes.

    Raises:
        ValueError: for an unknown family.
    """
    families = {cls.family: cls for cls in FAMILIES}
    if family is not None and family not in families:
        raise ValueError(f"Unknown family {family!r}. Families are: {', '.join(families)}")
    chosen = families.values() if family is None else [families[family]]
    return [name for cls in chosen for name in cls.variants]


def family_of(name: str) -> type[Backbone]:
    """The backbone class that has the variant `name`.

    Raises:
        ValueError: for an unknown variant; the message names the closest ones.
    """
    for cls in FAMILIES:
        if name in cls.variants:
            return cls
    raise ValueError(
        f"Unknown variant {name!r}.{closest(name, list_variants())} "
        "`dgnet_keras.list_variants()` lists all."
    )


class CreateKeywords(GraphKeywords, total=False):
    """The keyword arguments of `create` but for `num_classes`, for type checkers and editors."""

    input_shape: Sequence[int | None]
    seed: int
    weights: str | os.PathLike[str] | None
    macs_target: float | None
    macs_weight: float
    macs_spread: float


@overload
def create(
    name: str, *, num_classes: int = ..., **options: Unpack[CreateKeywords]
) -> Classifier: ...
@overload
def create(name: str, *, num_classes: None, **options: Unpack[CreateKeywords]) -> Backbone: ...
@overload
def create(name: str, *, num_classes: int = ..., **options: Any) -> Classifier: ...
@overload
def create(name: str, *, num_classes: None, **options: Any) -> Backbone: ...


@shows_graph_options
def create(
    name: str,
    *,
    num_classes: int | None = 1000,
    input_shape: Sequence[int | None] = (224, 224, 3),
    seed: int = 0,
    weights: str | os.PathLike[str] | None = None,
    macs_target: float | None = None,
    macs_weight: float = 10.0,
    macs_spread: float = 0.0,
    **options: Any,
) -> Classifier | Backbone:
    """Creates a model by the name of its variant.

    Args:
        name: one of `list_variants()`, such as `"resnet50"` or `"resnet20_cifar"`.
        num_classes: number of classes; None gives the backbone without a classifier.
        input_shape: (height, width, channels) in pixels; height and width may be None.
        seed: of the initial weights and of random wiring; at least 0.
        weights: path of a `.weights.h5`, `.keras` or timm `.safetensors` file, a hub name, or
            None; see `convert.load_weights`. Of a static network, they make `init="static"` the
            default. Those of paths have a threshold, which a `threshold` given here replaces.
        macs_target: share of the static twin's multiply-adds that training is to reach, in (0, 1],
            or None; see `budget.Budget`.
        macs_weight: what the loss of this budget is multiplied by.
        macs_spread: half of the range of the images' own targets, in [0, 1), see `budget.Budget`:
            images in doubt may compute more than `macs_target`, others less. For classifiers.
        **options: fields of `layers.GraphOptions` (`wiring`, `threshold`, `edge_scale`, `init`,
            `gate`, `learn_threshold`, `max_nodes`), and of the family's Spec, such as `depths`,
            `widths`, `stem_strides`.

    Returns:
        A `Classifier` (logits, float32), or the backbone if `num_classes` is None.

    Raises:
        ValueError: for an unknown variant or option, or a value out of range; the message says
            what was expected and what was received.
    """
    family = family_of(name)
    graph = {key: options.pop(key) for key in GraphOptions.names() if key in options}
    if weights is not None and is_static(weights):
        graph = {"init": "static", **graph}
    backbone = family(
        _override(name, family.variants[name], options),
        input_shape=input_shape,
        seed=seed,
        name=name,
        **graph,
    )
    model = backbone if num_classes is None else Classifier(backbone, num_classes)
    model.macs_weight = macs_weight
    if isinstance(model, Classifier):
        model.macs_spread = macs_spread
    elif macs_spread:
        raise ValueError(
            "`macs_spread` goes by a classifier's doubt: a backbone has none. "
            f"Received: num_classes=None, macs_spread={macs_spread!r}"
        )
    model.macs_target = macs_target
    if weights is not None:
        load_weights(model, weights)
        if model.wiring in PATHS and graph.get("threshold") is not None:
            model.set_threshold(graph["threshold"])
    return model


def _override(name, spec, overrides):
    is_spec = isinstance(spec, Spec)  # the families' Specs are dataclasses, their base is none
    if not is_spec:
        raise ValueError(f"The variant {name!r} must be a Spec of its family. Received: {spec!r}")
    fields = [field.name for field in dataclasses.fields(spec)]
    for key in overrides:
        if key not in fields:
            options = list(inspect.signature(create).parameters)[1:-1]
            raise ValueError(
                f"Unknown argument {key!r}.{closest(key, [*options, *fields])} "
                f"Options: {', '.join(options)}; fields of {type(spec).__name__}: "
                f"{', '.join(fields)}"
            )
    return dataclasses.replace(spec, **overrides)
