"""Models that a command is given: a `.keras` file, or the folder of a run."""

import json
import pathlib

from dgnet_keras.commands.paths import existing


def load_model(path):
    """The classifier in a `.keras` file, or in the folder of a run."""
    path = existing(path)

    import keras

    file = path / "model.keras" if path.is_dir() else path
    if not file.exists():
        export = path / "export"
        hint = f". {export} is served as it is" if export.is_dir() else ""
        raise FileNotFoundError(
            f"No model at {file}. Expected a .keras file, or the folder of a finished run{hint}"
        )
    try:
        return keras.saving.load_model(file, compile=False)
    except (OSError, ValueError, TypeError, KeyError) as error:  # TypeError: unknown custom layers
        raise ValueError(f"{file} cannot be read as a Keras model: {error}") from error


def run_record(path):
    """What a run says of itself: its `config.json` and `results.json`.

    Args:
        path: folder of a run, or a file.

    Returns:
        Tuple of two dicts, empty for a file, or where there are none.

    Raises:
        ValueError: if one of them cannot be read.
    """
    return tuple(
        _read_record(pathlib.Path(path) / f"{name}.json") for name in ("config", "results")
    )


def class_names(config):
    """Names of the classes that a run's `config.json` tells, or None."""
    return config.get("data", {}).get("class_names")


def read_lines(path):
    """Labels of a text file, one a line; Windows' byte order mark and line ends are left out."""
    try:
        return path.read_text(encoding="utf-8-sig").removesuffix("\n").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} must be text in UTF-8: {error}") from error


def check_labels(labels, count, source):
    """Raises `ValueError` unless there is a name for each of `count` classes."""
    if len(labels) != count:
        raise ValueError(
            f"{source} must name the model's {count} classes. Received: {len(labels)} names"
        )


def _read_record(file):
    if not file.exists():
        return {}
    try:
        record = json.loads(file.read_text())
    except ValueError as error:
        raise ValueError(f"{file} is not JSON: {error}") from error
    if not isinstance(record, dict) or not isinstance(record.get("data", {}), dict):
        raise ValueError(f"{file} is not the record of a run")
    return record
