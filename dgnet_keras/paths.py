"""Names of files: those that TensorFlow can use, and how the others are printed."""

import os
import pathlib


def usable_path(
    flag: str, path: str | os.PathLike[str], any_bytes: bool = False
) -> pathlib.Path | str:
    """A local path as TensorFlow reads it; others, such as `gs://...`, as they are.

    TensorFlow takes `link/..` for the folder that the link lies in, and not for the parent of what
    it points to. So a path with `..` is resolved.

    Args:
        flag: or argument, that the path was given with.
        path: of a file or folder.
        any_bytes: whether its name may be other than UTF-8.

    Returns:
        `pathlib.Path`, or a str where it is not local.

    Raises:
        ValueError: if its name is not UTF-8.
    """
    if "://" in str(path):
        return str(path)
    path = pathlib.Path(path)
    if ".." in path.parts:
        path = path.resolve()
    if not any_bytes and not is_utf8(path.absolute()):
        raise ValueError(
            f"{flag} must be a path whose name is UTF-8, or TensorFlow cannot use it. Received: "
            f"{os.fsencode(path)!r}"
        )
    return path


def named(path: str | os.PathLike[str]) -> pathlib.Path:
    """The path; one without a name of its own, such as `.`, resolved."""
    path = pathlib.Path(path)
    return path if path.name else path.resolve()


def is_utf8(path: str | os.PathLike[str]) -> bool:
    """Whether the name of a path is UTF-8."""
    try:
        str(path).encode()
    except UnicodeEncodeError:
        return False
    return True


def readable(name: str | os.PathLike[str]) -> str:
    """A file's name that can be printed: what is not UTF-8 is written as Python writes bytes."""
    return os.fsencode(name).decode(errors="backslashreplace")
