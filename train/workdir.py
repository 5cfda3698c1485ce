"""A run's folder: whose it is, and files in it that appear whole or not at all."""

import contextlib
import json
import os

from train.strategies import is_chief

_OF_A_RUN = ("results.json", "history.json", "checkpoints", "model.keras", "export")


@contextlib.contextmanager
def atomic_file(path):
    """Yields a path to write to, of the same suffixes; at the end it becomes the file, whole."""
    scratch = path.with_name(f".{path.name}")
    try:
        yield scratch
        os.replace(scratch, path)
    finally:
        scratch.unlink(missing_ok=True)


def write_json(path, content, indent=2):
    """Writes a JSON file, whole or not at all."""
    with atomic_file(path) as scratch:
        scratch.write_text(json.dumps(content, indent=indent) + "\n")


def read_json(path, default=None):
    """The content of a JSON file; `default` where there is none."""
    return json.loads(path.read_text()) if path.exists() else default


def own_folder(workdir, strategy):
    """The workdir, or for a worker that is not the chief, which must write too, a folder in it."""
    if is_chief(strategy):
        return workdir
    return workdir / f".worker-{strategy.cluster_resolver.task_id}"


def check_workdir(config, workdir, defaults=None):
    """Makes sure that the workdir is new or holds a run of this recipe on this data.

    Args:
        config: dict, what `config.json` of this run holds. Its `fingerprints`, a dict of what to a
            hash of its content, are compared where both runs have one.
        workdir: `pathlib.Path`.
        defaults: dict of what a key meant where a folder, of an earlier version, has none.

    Raises:
        ValueError: if it holds another run (the message names the keys that differ), or its name
            has a character that TensorFlow takes for a pattern when it looks for checkpoints.
    """
    if set("*?[]") & set(str(workdir.absolute())):
        raise ValueError(f"--workdir must not contain any of * ? [ ]. Received: {workdir}")
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir must be a folder. Received: the file {workdir}")
    path = workdir / "config.json"
    if not path.exists() and (left := [name for name in _OF_A_RUN if (workdir / name).exists()]):
        raise ValueError(
            f"{workdir} has what a run left, but no config.json that says which run: choose "
            f"another --workdir. Received: a folder with {', '.join(left)}"
        )
    try:
        there = read_json(path, config)
    except ValueError as error:
        raise ValueError(f"{path} is not the JSON of a run's recipe: {error}") from error
    there, config = {**(defaults or {}), **there}, dict(config)
    old, new = (found.pop("fingerprints", {}) for found in (there, config))
    changed = [key for key in new if old.get(key, new[key]) != new[key]]
    differences = [f"{key}: other content under the same name" for key in changed]
    differences += [
        f"{key}: {json.dumps(there.get(key))} there, {json.dumps(config.get(key))} here"
        for key in sorted({*there, *config})
        if there.get(key) != config.get(key)
    ]
    if differences:
        raise ValueError(
            f"{workdir} holds a run of another recipe or other data; choose another --workdir "
            f"(--init-from {workdir} starts from its weights), or the same settings. "
            f"They differ in {'; '.join(differences)}"
        )
