"""Keras optimizers with which routers learn more slowly than the blocks they connect.

Routers see pooled features, which are positive: at the blocks' own rate they move all images'
edge weights together and fast, and can close the edges of a block before it has learned anything
(measured in docs/results.md). Edge logits and thresholds count as routers.
"""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import keras
import tensorflow as tf

from dgnet_keras.weights import is_wiring_weight

if TYPE_CHECKING:  # the mix-in is for optimizers, and calls their methods
    from keras.optimizers import Optimizer as _Optimizer
else:
    _Optimizer = object


class _RouterRate(_Optimizer):
    """Mix-in: routers have `router_lr_multiplier` times the learning rate."""

    def __init__(self, *args: Any, router_lr_multiplier: float = 0.1, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if not router_lr_multiplier >= 0:
            raise ValueError(
                "`router_lr_multiplier` must be 0 or positive. "
                f"Received: router_lr_multiplier={router_lr_multiplier}"
            )
        self.router_lr_multiplier = float(router_lr_multiplier)
        self._routers: frozenset[int] = frozenset()

    def build(self, variables: Sequence[keras.Variable]) -> None:
        """Notes which of the variables are the routers', by their paths."""
        super().build(variables)
        self._routers = frozenset(
            index for index, variable in enumerate(variables) if is_wiring_weight(variable.path)
        )

    def update_step(
        self, gradient: tf.Tensor, variable: keras.Variable, learning_rate: tf.Tensor
    ) -> None:
        """One update, at the variable's own learning rate."""
        if self._get_variable_index(variable) in self._routers:
            learning_rate = learning_rate * self.router_lr_multiplier
        super().update_step(gradient, variable, learning_rate)

    def get_config(self) -> dict[str, Any]:
        """The constructor's arguments."""
        return {**super().get_config(), "router_lr_multiplier": self.router_lr_multiplier}


@keras.saving.register_keras_serializable(package="dgnet_keras")
class SGD(_RouterRate, keras.optimizers.SGD):
    """`keras.optimizers.SGD`, with a learning rate of their own for routers.

    Args:
        *args: see `keras.optimizers.SGD`.
        router_lr_multiplier: of the learning rate, for routers, edge logits and thresholds.
        **kwargs: see `keras.optimizers.SGD`.

    Raises:
        ValueError: if `router_lr_multiplier` is negative.
    """


@keras.saving.register_keras_serializable(package="dgnet_keras")
class Adam(_RouterRate, keras.optimizers.Adam):
    """`keras.optimizers.Adam`, with a learning rate of their own for routers; see `SGD`."""


@keras.saving.register_keras_serializable(package="dgnet_keras")
class AdamW(_RouterRate, keras.optimizers.AdamW):
    """`keras.optimizers.AdamW`, with a learning rate of their own for routers; see `SGD`.

    Weight decay is at the common rate.
    """
