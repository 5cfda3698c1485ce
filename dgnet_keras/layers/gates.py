"""Which gates there are, and what their options may be; without TensorFlow."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING, Literal, get_args

from dgnet_keras.checks import is_number

if TYPE_CHECKING:
    import keras

# A layer that gates the edges into a node, as a function of the options and `name` and `dtype`.
GateFactory = Callable[..., "keras.layers.Layer"]

Gradient = Literal["straight_through", "masked", "surrogate"]
GRADIENTS: tuple[Gradient, ...] = get_args(Gradient)
_registered: dict[str, GateFactory] = {}


def gates() -> tuple[str, ...]:
    """Names of all gates, the registered ones last."""
    return (*GRADIENTS, *_registered)


def register_gate(name: str, make: GateFactory) -> None:
    """Adds a gate: a layer that turns the edges into a node into their weights, 0 where closed.

    It is called as `gate(edge_weights, logits=, keep=, threshold=, training=)`: weights and
    logits of the edges, float32 (batch, sources), the least logit, -12, of a source that is off;
    `keep`, boolean of that shape, or None: edges that must stay open; `threshold`, a scalar,
    (batch, 1) or None: taken in place of its own. It returns (batch, sources). A process that
    loads a saved model has to register the name before.

    Args:
        name: what `GraphStage`, the backbones and `create` then take as `gate`.
        make: function of a stage's `GraphOptions` and of the keyword arguments `name` and `dtype`
            of the layer that it returns.

    Raises:
        ValueError: if `name` is that of a built-in gate, or no non-empty string.
    """
    if name in GRADIENTS or not isinstance(name, str) or not name:
        raise ValueError(
            f"`name` must be a new gate's, not one of {list(GRADIENTS)}. Received: name={name!r}"
        )
    _registered[name] = make


def registered_gate(name: str) -> GateFactory | None:
    """What `register_gate` was given under a name; None for others."""
    return _registered.get(name)


def check_gate(gate: str, *, threshold: float, edge_scale: float, learn_threshold: bool) -> None:
    """Raises `ValueError` for a threshold outside [0, edge_scale), or that cannot be learned."""
    for name, value in (("edge_scale", edge_scale), ("threshold", threshold)):
        if not is_number(value):
            raise ValueError(f"`{name}` must be a number. Received: {value!r}")
    check_edge_scale(edge_scale)
    if not 0 <= threshold < edge_scale:
        raise ValueError(
            f"`threshold` must be in [0, edge_scale) = [0, {edge_scale}). "
            f"Received: threshold={threshold}"
        )
    if learn_threshold and gate in GRADIENTS and gate != "surrogate":
        raise ValueError(
            "`learn_threshold=True` needs `gate='surrogate'`, the only gate whose gradient "
            f"reaches the threshold. Received: gate={gate!r}"
        )
    if learn_threshold and threshold == 0:
        raise ValueError(
            "`learn_threshold=True` needs an initial `threshold` above 0. "
            f"Received: threshold={threshold}"
        )


def check_edge_scale(edge_scale: float) -> None:
    """Raises `ValueError` unless it is a positive, finite number."""
    if not (math.isfinite(edge_scale) and edge_scale > 0):
        raise ValueError(
            f"`edge_scale` must be a positive number. Received: edge_scale={edge_scale}"
        )
