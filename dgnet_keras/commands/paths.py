"""Paths that a command is given."""

import itertools
import pathlib

from dgnet_keras.checks import closest


def existing(path):
    """The path as a `pathlib.Path`.

    Raises:
        FileNotFoundError: if nothing is there; the message names what is, under a similar name.
    """
    path = pathlib.Path(path)
    if path.exists():
        return path
    if path.is_symlink():
        raise FileNotFoundError(f"{path} is a link to {path.readlink()}, which does not exist")
    missing = next((p for p in reversed(path.parents) if not p.exists()), path)
    inside = itertools.islice(missing.parent.iterdir(), 1000) if missing.parent.is_dir() else ()
    hint = closest(missing, (missing.with_name(p.name) for p in inside))
    reason = "" if missing == path else f": there is no {missing}"
    raise FileNotFoundError(f"{path} does not exist{reason}.{hint}")


def output_folder(path, images=()):
    """The path of `--output`, a folder that may not be there yet, as a `pathlib.Path`.

    Args:
        path: of the folder.
        images: files and folders that are read and must not be written over, or read again.

    Raises:
        ValueError: if a file is there, or images lie in it, or it in their folder.
    """
    path = pathlib.Path(path)
    if path.exists() and not path.is_dir():
        raise ValueError(f"`--output` must be a folder. Received: the file {path}")
    for given in map(pathlib.Path, images):
        folder = given if given.is_dir() else given.parent
        target, folder = path.resolve(), folder.resolve()
        if target == folder or (given.is_dir() and target.is_relative_to(folder)):
            raise ValueError(
                f"`--output` must be another folder than that of the images. Received: {path}, and "
                f"the images {given}"
            )
    return path
