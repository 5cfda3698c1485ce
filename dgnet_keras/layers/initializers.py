"""Initial weights: seeds, drawn in the order in which layers are made, and given arrays."""

import contextlib
import contextvars
import random
from collections.abc import Iterator, Sequence
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

_numbers: contextvars.ContextVar[random.Random | None] = contextvars.ContextVar(
    "dgnet_keras_seeds", default=None
)


@contextlib.contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds drawn inside follow from `seed`, whatever other threads do.

    Layers of this package draw with `next_seed`. Those of others, in the stem or head of a family
    of your own, draw from Python's `random`, as Keras does: it is seeded too, and set back.
    """
    state = random.getstate()
    random.seed(seed)
    token = _numbers.set(random.Random(seed))
    try:
        yield
    finally:
        _numbers.reset(token)
        random.setstate(state)


@contextlib.contextmanager
def unseeded() -> Iterator[None]:
    """Layers made inside draw no seeds: those of a config that has its own."""
    token = _numbers.set(None)
    try:
        yield
    finally:
        _numbers.reset(token)


def next_seed() -> int | None:
    """The next seed for an initializer, or for dropout; None outside of `seeded`: Keras's own."""
    numbers = _numbers.get()
    return None if numbers is None else numbers.randint(1, 10**9)


@keras.saving.register_keras_serializable(package="dgnet_keras")
class ArrayInitializer(keras.initializers.Initializer):
    """An initializer that gives an array.

    Args:
        values: numbers, as many as the weight has.
    """

    def __init__(self, values: ArrayLike) -> None:
        self.values = np.asarray(values)

    def __call__(self, shape: Sequence[int], dtype: str | None = None) -> Any:
        """The values in `shape` and `dtype`."""
        return keras.ops.reshape(keras.ops.convert_to_tensor(self.values, dtype), shape)

    def get_config(self) -> dict[str, Any]:
        """The values as nested lists."""
        return {"values": self.values.tolist()}
