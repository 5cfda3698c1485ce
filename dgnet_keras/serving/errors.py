"""What goes wrong between a client and a server, and a package that is not there."""

import functools
import importlib
import types
from typing import Any


class ServingError(RuntimeError):
    """The server did not answer, or answered with an error.

    Attributes:
        code: name of the gRPC status code, such as "INVALID_ARGUMENT", "NOT_FOUND",
            "UNAVAILABLE", "DEADLINE_EXCEEDED"; over REST, of the one that the HTTP code stands
            for.
        reached: whether the server was reached.
    """

    def __init__(self, code: str, message: str, *, reached: bool = True) -> None:
        super().__init__(message)
        self.code = code
        self.reached = reached

    def __reduce__(self) -> tuple[Any, ...]:
        return functools.partial(type(self), reached=self.reached), (self.code, str(self))


class AnswerMismatch(ServingError):
    """The answer does not have the outputs that the metadata promise."""


def import_needed(name: str) -> types.ModuleType:
    """Imports a module of the extra `serving`.

    Raises:
        ImportError: that names the extra.
    """
    try:
        return importlib.import_module(name)
    except ImportError as error:
        raise ImportError(
            f"Serving needs `{name}`: pip install 'dgnet_keras[serving]', in a checkout "
            f"pip install '.[serving]' ({error})"
        ) from error
