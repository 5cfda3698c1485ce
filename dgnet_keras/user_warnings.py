"""Warnings that name the user's line, and how a command shows them."""

import contextlib
import os
import pathlib
import sys
import warnings
from collections.abc import Iterator
from types import FrameType

_PACKAGE = pathlib.Path(__file__).parent
# `train/` lies beside the package in a checkout.
_OWN = tuple(f"{folder}{os.sep}" for folder in (_PACKAGE, _PACKAGE.parent / "train"))
_LIBRARIES = ("keras", "tensorflow", "contextlib")


def warn(message: str, category: type[Warning] = UserWarning) -> None:
    """Warns at the user's line: the innermost outside of the package, `train`, Keras, TensorFlow.

    Args:
        message: a sentence.
        category: of the warning.
    """
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and _is_internal(frame):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, category, stacklevel=level)  # noqa: TID251


def _is_internal(frame: FrameType) -> bool:
    module = frame.f_globals.get("__name__", "").partition(".")[0]
    return frame.f_code.co_filename.startswith(_OWN) or module in _LIBRARIES


@contextlib.contextmanager
def on_one_line(command: str) -> Iterator[None]:
    """Within it a warning is a line on standard error, without its place in the source.

    Args:
        command: that is run, which the line begins with.
    """

    def show(message, category, filename, lineno, file=None, line=None):
        print(f"{command}: warning: {' '.join(str(message).split())}", file=file or sys.stderr)

    with warnings.catch_warnings():
        warnings.showwarning = show
        yield
