"""The weights that a run starts from and leaves behind."""

import hashlib
import pathlib

import numpy as np

import dgnet_keras as dg
from dgnet_keras import convert
from dgnet_keras.paths import named, usable_path
from dgnet_keras.timm import is_hub_name
from train import checkpoints
from train.workdir import atomic_file, read_json

BEST_WEIGHTS = "best.weights.h5"


def load_initial_weights(model, path, option="--init-from"):
    """Loads weights to start from, all or nothing.

    Args:
        model: a classifier or a backbone.
        path: what `dgnet_keras.convert.load_weights` takes (timm's included), a checkpoint of a
            run such as `runs/a/checkpoints/ckpt-100`, or a run's folder, whose finished model,
            or else best weights, are taken. With another number of classes the backbone alone is
            loaded.
        option: or key, that the path was given with.

    Returns:
        List of the paths of the weights loaded.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: as `dgnet_keras.convert.load_weights`; the model is then as it was.
    """
    if is_hub_name(str(path)):
        return dg.convert.load_weights(model, str(path))
    path = named(usable_path(option, path))
    if path.with_name(path.name + ".index").exists():
        values = checkpoints.read_model_weights(path)
        classes = len(values[convert.HEAD[1]]) if convert.HEAD[1] in values else None
        return convert.assign_with_head(model, values, path, classes)
    if not path.exists():
        raise FileNotFoundError(f"No weights file at {path}.{_checkpoints_beside(path)}")
    if path.is_dir():
        found = [path / name for name in ("model.keras", BEST_WEIGHTS)]
        found = [file for file in found if file.exists()]
        if not found:
            raise FileNotFoundError(
                f"The folder {path} has neither model.keras nor {BEST_WEIGHTS}. Expected "
                "the folder of a run, one of its checkpoints/ckpt-<step>, or a weights file"
            )
        path = found[0]
    return dg.convert.load_weights(model, path)


def content_sha256(path):
    """A hash of weights that lie under a name.

    Args:
        path: see `load_initial_weights`, or None.

    Returns:
        String: of a finished run's folder what its `results.json` says, of a file its SHA-256. None
        where that cannot be told: of checkpoints, hub names, and what is gone.
    """
    path = None if path is None or is_hub_name(str(path)) else pathlib.Path(path)
    if path is None or not path.exists():
        return None
    if path.is_dir():
        return read_json(path / "results.json", {}).get("weights_sha256")
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _checkpoints_beside(path):
    """`" Checkpoints there: ..."`, for a message, or an empty string."""
    found = sorted(file.stem for file in path.parent.glob("ckpt-*.index"))
    return f" Checkpoints there: {', '.join(found)}" if found else ""


def save_weights(model, path):
    """Writes a `.weights.h5` file that appears whole or not at all."""
    with atomic_file(pathlib.Path(path)) as scratch:
        model.save_weights(scratch)


def weights_sha256(model):
    """SHA-256 over path, dtype, shape and bytes of all weights, in the order of their paths."""
    return variables_sha256({variable.path: variable for variable in model.weights})


def variables_sha256(variables):
    """The same of a dict of names to variables."""
    digest = hashlib.sha256()
    for name, variable in sorted(variables.items()):
        values = np.ascontiguousarray(variable.numpy())
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()
