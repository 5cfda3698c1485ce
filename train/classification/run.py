"""A recipe from its data to `results.json`: what `python -m train.imagenet` runs."""

import contextlib
import json
import pathlib
import signal
import sys

from rich import progress
from rich.console import Console

import dgnet_keras as dg
from dgnet_keras import convert
from train import checkpoints
from train.classification import datasets, engine, report
from train.strategies import is_chief, make_strategy, own_folder

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)


def train(recipe, workdir, *, data_dir=None, strategy="one_device", init_from=None):
    """Trains, evaluates, saves, draws and exports a model.

    Args:
        recipe: a `train.classification.recipes.Recipe`.
        workdir: folder of the run; a run that was stopped goes on from its newest checkpoint,
            a finished one is reported again. Several hosts must share it.
        data_dir: where the data lies, see `train.datasets.load_data`.
        strategy: see `train.strategies.make_strategy`.
        init_from: weights to start from, or None; see `load_initial_weights`.

    Returns:
        Dict, the content of `results.json`; empty in workers that are not the chief.

    Raises:
        ValueError: for bad data or a workdir that holds a run of another recipe.
        FileNotFoundError: if the data folder or the weights are missing.
        FloatingPointError: if training diverges.
        OSError: if something cannot be written; what was saved before is whole.
        engine.RunStopped: after SIGTERM or SIGINT; the run's state is saved.
    """
    if not str(workdir):
        raise ValueError("--workdir must be the name of a folder. Received: ''")
    workdir = pathlib.Path(workdir)
    strategy = make_strategy(strategy)
    # Bound to the terminal now: Orbit's output is redirected below. Only the chief speaks.
    console = Console(file=sys.stdout, quiet=not is_chief(strategy))
    data = datasets.load_data(recipe, data_dir)
    config = {
        **json.loads(recipe.to_json()),
        "init_from": None if init_from is None else str(init_from),
        "data": {
            "class_names": list(data.class_names),
            "train_images": len(data.train),
            "test_images": len(data.test),
        },
    }
    check_workdir(config, workdir)
    if (workdir / "results.json").exists():
        results = json.loads((workdir / "results.json").read_text())
        console.print(report.results_table(results, workdir))
        return results
    engine.configure(recipe)
    run = engine.Run(recipe, data, strategy)
    resumes = bool(checkpoints.steps_in(workdir / "checkpoints"))
    if init_from is not None and not resumes:  # before the workdir is claimed
        with strategy.scope():
            load_initial_weights(run.model, init_from)
    own = own_folder(workdir, strategy)
    own.mkdir(parents=True, exist_ok=True)
    if is_chief(strategy):
        text = json.dumps(config, indent=2) + "\n"
        checkpoints.write_atomically(workdir / "config.json", text)
    with (
        engine.orbit_log(own / "train.log"),
        epoch_progress(console) as on_loop,
        stop_signals(run, console),
    ):
        run.open(workdir, on_loop)
        for warning in run.warnings:
            console.print(warning, style="yellow")
        on_loop(run.step, run.total_steps)
        split, said = "validation" if recipe.validation else "test", set()
        for row in run.train_epochs():
            console.print(
                f"epoch {row['epoch']}/{recipe.epochs}: {split} loss {row['loss']:.4f}, "
                f"{split} accuracy {row['accuracy']:.4f}"
            )
            for kind, message in row.get("router_health", {}).items():
                # After one epoch routers may still be where they started.
                if kind not in said and row["epoch"] > 1:
                    said.add(kind)
                    console.print(message, style="yellow")
    run.finish()
    if not is_chief(strategy):
        return {}
    results = report.write_results(run, workdir)
    console.print(report.samples_table(report.predict_samples(run, workdir)))
    console.print(report.results_table(results, workdir))
    return results


def load_initial_weights(model, path):
    """Loads weights to start from, all or nothing.

    Args:
        model: a classifier.
        path: a file of `dgnet_keras.convert.load_weights` (timm's included), a checkpoint of a
            run such as `runs/a/checkpoints/ckpt-100`, or a run's folder, whose finished model,
            or else best weights, are taken. With another number of classes the backbone alone is
            loaded.

    Returns:
        List of the paths of the weights loaded.

    Raises:
        FileNotFoundError: if there is nothing at `path`.
        ValueError: as `dgnet_keras.convert.load_weights`; the model is then as it was.
    """
    path = pathlib.Path(path)
    if not path.exists() and not path.with_name(path.name + ".index").exists():
        raise FileNotFoundError(f"No weights file at {path}.{_checkpoints_beside(path)}")
    if path.is_dir():
        found = [path / name for name in ("model.keras", engine.BEST_WEIGHTS)]
        found = [file for file in found if file.exists()]
        if not found:
            raise FileNotFoundError(
                f"The folder {path} has neither model.keras nor {engine.BEST_WEIGHTS}. Expected "
                "the folder of a run, one of its checkpoints/ckpt-<step>, or a weights file"
            )
        return dg.convert.load_weights(model, found[0])
    if path.with_name(path.name + ".index").exists():
        values = checkpoints.read_model_weights(path)
        classes = len(values[convert.HEAD[1]]) if convert.HEAD[1] in values else None
        return convert.assign_with_head(model, values, path, classes)
    return dg.convert.load_weights(model, path)


def _checkpoints_beside(path):
    """`" Checkpoints there: ..."`, for a message, or an empty string."""
    found = sorted(file.stem for file in path.parent.glob("ckpt-*.index"))
    return f" Checkpoints there: {', '.join(found)}" if found else ""


@contextlib.contextmanager
def stop_signals(run, console):
    """SIGTERM, or Ctrl-C, stops the run after the loop at hand, once its state is saved."""

    def stop(number, frame):
        if run.stop_requested and number == signal.SIGINT:
            raise KeyboardInterrupt
        run.stop_requested = True
        console.print(f"{signal.Signals(number).name}: saving, then stopping")

    try:
        before = {number: signal.signal(number, stop) for number in STOP_SIGNALS}
    except ValueError:  # not in the main thread, as in a notebook's worker: nothing to handle
        yield
        return
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def check_workdir(config, workdir):
    """Makes sure that the workdir is new or holds a run of this recipe on this data.

    Raises:
        ValueError: if it holds another run (the message names the keys that differ), or its name
            has a character that TensorFlow takes for a pattern when it looks for checkpoints.
    """
    if set("*?[]") & set(str(workdir.absolute())):
        raise ValueError(f"--workdir must not contain any of * ? [ ]. Received: {workdir}")
    if workdir.exists() and not workdir.is_dir():
        raise ValueError(f"--workdir must be a folder. Received: the file {workdir}")
    path = workdir / "config.json"
    if not path.exists():
        return
    try:
        there, here = json.loads(path.read_text()), config
    except ValueError as error:
        raise ValueError(f"{path} is not the JSON of a run's recipe: {error}") from error
    differences = [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]
    if differences:
        raise ValueError(
            f"{workdir} holds a run of another recipe or other data; choose another --workdir "
            f"(--init-from {workdir} starts from its weights), or the same settings. "
            f"They differ in {'; '.join(differences)}"
        )


@contextlib.contextmanager
def epoch_progress(console):
    """A progress bar over the steps of a run.

    Yields:
        Function of (step, total steps or None) that moves the bar.
    """
    columns = (
        progress.TextColumn("training"),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TextColumn("steps"),
        progress.TimeElapsedColumn(),
        progress.TextColumn("left:"),
        progress.TimeRemainingColumn(),
    )
    with progress.Progress(*columns, console=console, redirect_stdout=False) as bar:
        task = bar.add_task("training")
        yield lambda step, total=None: bar.update(task, completed=step, total=total)
