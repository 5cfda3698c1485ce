"""Models that a command is given: a `.keras` file, or the folder of a run."""

import json
import pathlib


def load_model(path):
    """The classifier in a `.keras` file, or in the folder of a run."""
    import keras

    path = pathlib.Path(path)
    file = path / "model.keras" if path.is_dir() else path
    if not file.exists():
        raise FileNotFoundError(
            f"No model at {file}. Expected a .keras file, or the folder of a finished run"
        )
    try:
        return keras.saving.load_model(file, compile=False)
    except (OSError, ValueError, TypeError) as error:  # TypeError: unknown custom layers
        raise ValueError(f"{file} cannot be read as a Keras model: {error}") from error


def run_record(path):
    """What a run says of itself: its `config.json` and `results.json`.

    Args:
        path: folder of a run, or a file.

    Returns:
        Tuple of two dicts, empty for a file, or where there are none.
    """
    files = [pathlib.Path(path) / name for name in ("config.json", "results.json")]
    return tuple(json.loads(file.read_text()) if file.exists() else {} for file in files)
