"""What is traced for a file, and what those who read such a file lack."""

import contextlib
import contextvars
from collections.abc import Iterator
from typing import Literal

import tensorflow as tf

# What can be in a file: all of TensorFlow; of its branches `If` alone (OpenVINO, LiteRT); none
# that hold convolutions, and no multiplication that knows of NaN (ONNX).
Reader = Literal["tensorflow", "if", "onnx"]

_reader: contextvars.ContextVar[Reader | None] = contextvars.ContextVar("reader", default=None)


@contextlib.contextmanager
def exporting(reader: Reader) -> Iterator[None]:
    """What is traced inside is for a file: sums have no gradient of their own, which takes room."""
    token = _reader.set(reader)
    try:
        yield
    finally:
        _reader.reset(token)


def reader() -> Reader | None:
    """Who reads what is being traced; None where it is for no file."""
    return _reader.get()


def times(x: tf.Tensor, mask: tf.Tensor) -> tf.Tensor:
    """`x * mask`, and 0 where the mask is 0, of NaN too."""
    if reader() == "onnx":
        return tf.where(mask == 0, tf.zeros_like(x), x * mask)
    return tf.math.multiply_no_nan(x, mask)
