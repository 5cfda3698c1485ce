"""A recipe from its data to `results.json`: what `python -m train.imagenet` runs."""

import contextlib
import json
import pathlib
import sys

from rich import progress
from rich.console import Console

import dgnet_keras as dg
from train import engine, input_pipeline, report


def train(recipe, workdir, *, data_dir=None, strategy="one_device", init_from=None):
    """Trains, evaluates, saves, draws and exports a model.

    Args:
        recipe: a `train.configs.Recipe`.
        workdir: folder of the run; a run that was stopped goes on from its newest checkpoint,
            a finished one is reported again.
        data_dir: folder of the images, for recipes whose data set is a folder.
        strategy: `"one_device"`, `"mirrored"` or `"multi_worker"`.
        init_from: weights to start from, or None; see `dgnet_keras.convert.load_weights`.

    Returns:
        Dict, the content of `results.json`.

    Raises:
        ValueError: for bad data or a workdir that holds a run of another recipe.
        FileNotFoundError: if the data folder or the weights are missing.
    """
    workdir = pathlib.Path(workdir)
    strategy = engine.make_strategy(strategy)
    # Bound to the terminal now: Orbit's output is redirected below. Only the chief speaks.
    console = Console(file=sys.stdout, quiet=not engine.is_chief(strategy))
    data = input_pipeline.load_data(recipe.dataset, data_dir)
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
    engine.set_determinism(recipe)
    run = engine.Run(recipe, data, strategy)
    if init_from is not None:  # before the workdir is claimed; a checkpoint overrides it
        with strategy.scope():
            dg.convert.load_weights(run.model, init_from)
    own = engine.own_folder(workdir, strategy)
    own.mkdir(parents=True, exist_ok=True)
    if engine.is_chief(strategy):
        engine.write_atomically(workdir / "config.json", json.dumps(config, indent=2) + "\n")
    with engine.orbit_log(own / "train.log"), epoch_progress(console) as on_loop:
        run.open(workdir, on_loop)
        on_loop(run.step, run.total_steps)
        metrics = None
        for metrics in run.train_epochs():
            console.print(
                f"epoch {metrics['epoch']}/{recipe.epochs}: test loss {metrics['loss']:.4f}, "
                f"test accuracy {metrics['accuracy']:.4f}"
            )
        metrics = metrics or run.evaluate()
    if not engine.is_chief(strategy):
        return {}
    results = report.write_results(run, workdir, metrics)
    console.print(report.samples_table(report.predict_samples(run, workdir)))
    console.print(report.results_table(results, workdir))
    return results


def check_workdir(config, workdir):
    """Makes sure that the workdir is new or holds a run of this recipe on this data.

    Raises:
        ValueError: if it holds another run (the message names the keys that differ), or its name
            has a character that TensorFlow takes for a pattern when it looks for checkpoints.
    """
    if set("*?[]") & set(str(workdir.absolute())):
        raise ValueError(f"--workdir must not contain any of * ? [ ]. Received: {workdir}")
    path = workdir / "config.json"
    if not path.exists():
        return
    there, here = json.loads(path.read_text()), config
    differences = [
        f"{key}: {there.get(key)!r} there, {here.get(key)!r} here"
        for key in sorted({*there, *here})
        if there.get(key) != here.get(key)
    ]
    if differences:
        raise ValueError(
            f"{workdir} holds a run of another recipe or other data; choose another --workdir, or "
            f"the same settings. They differ in {'; '.join(differences)}"
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
