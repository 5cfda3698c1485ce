"""What every command that trains does around its run: folder, terminal, signals, results."""

import contextlib
import dataclasses
import json
import math
import pathlib
import signal
import sys
import time

from rich import progress
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from dgnet_keras.paths import usable_path
from train.loop import orbit_log
from train.strategies import is_chief, make_strategy
from train.workdir import check_workdir, read_json, write_json

STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT)
LINE_SECONDS = 60


class Session:
    """One call of `train`: where it writes, where it runs, and the terminal.

    Args:
        workdir: folder of the run.
        strategy: see `train.strategies.make_strategy`.

    Attributes:
        workdir: the same, a `pathlib.Path`.
        strategy: a `tf.distribute` strategy.
        is_chief: whether this process writes what the run leaves behind.
        console: a `rich.console.Console`; of the workers only the chief speaks.
    """

    def __init__(self, workdir, strategy):
        if not str(workdir):
            raise ValueError("--workdir must be the name of a folder. Received: ''")
        self.workdir = pathlib.Path(usable_path("--workdir", workdir))
        self.strategy = make_strategy(strategy)
        self.is_chief = is_chief(self.strategy)
        # Bound to the terminal now: Orbit's output is redirected during training.
        self.console = Console(file=sys.stdout, quiet=not self.is_chief)

    def finished(self, recipe, data, fingerprints=None, **init):
        """Results of the finished run in the workdir, a dict; None if there is something to do.

        Args:
            recipe: of the run.
            data: dict, by which the data can be told from others.
            fingerprints: dict of what to a hash of its content, or None.
            **init: weights that the run starts from, by the name of the option, or None.

        Raises:
            ValueError: if the workdir holds another run.
        """
        init = {name: None if path is None else str(path) for name, path in init.items()}
        self.config = {**json.loads(recipe.to_json()), **init, "data": data}
        self.config["fingerprints"] = {k: v for k, v in (fingerprints or {}).items() if v}
        defaults = {
            field.name: field.default
            for field in dataclasses.fields(recipe)
            if field.default is not dataclasses.MISSING
        }
        check_workdir(self.config, self.workdir, defaults)
        return read_json(self.workdir / "results.json")

    @contextlib.contextmanager
    def training(self, run):
        """Claims the workdir for a restored run, and watches over it: log, progress bar, signals.

        Yields:
            The rows of `run.train_epochs`.
        """
        run.own.mkdir(parents=True, exist_ok=True)
        if self.is_chief:
            write_json(self.workdir / "config.json", self.config)
        with (
            orbit_log(run.own / "train.log"),
            epoch_progress(self.console) as move,
            stop_signals(run, self.console),
        ):
            if run.step:
                self.console.print(f"Resumed from step {run.step} of {run.total_steps}")
            for warning in run.warnings:
                self.console.print(warning, style="yellow", markup=False)
            move(run.step, run.total_steps)
            yield run.train_epochs(lambda step: move(step, line=run.progress))

    def show(self, results):
        """Prints the table of `results.json`."""
        self.console.print(results_table(results, self.workdir))


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


@contextlib.contextmanager
def epoch_progress(console):
    """A progress bar over the steps of a run; in a file, where no bar moves, a line a minute.

    Yields:
        Function of (step, total steps or None, line) that moves the bar.
    """
    has_bar, printed = console.is_terminal or console.is_jupyter, -math.inf

    def move(step, total=None, line=""):
        nonlocal printed
        bar.update(task, completed=step, total=total)
        if line and not has_bar and time.monotonic() - printed >= LINE_SECONDS:
            printed = time.monotonic()
            console.print(line, markup=False)

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
        yield move


def results_table(results, workdir):
    """A table of `results.json`."""
    table = Table(title=f"Run in {workdir}", show_header=False)
    table.add_column(overflow="fold")
    table.add_column(overflow="fold")
    for name, value in results.items():
        if name == "skipped_images":
            value = f"{len(value)}" + "".join(f"\n{path}" for path in value[:5])
        elif name == "router_health":
            value = "\n".join(value) or "good"
        elif name == "data_findings":
            value = "\n".join(value) or "none"
        elif isinstance(value, float):
            value = f"{value:,.4f}"
        elif isinstance(value, int):
            value = f"{value:,}"
        elif isinstance(value, dict):
            value = "\n".join(f"{key}: {entry}" for key, entry in value.items())
        table.add_row(name, escape(value) if isinstance(value, str) else value)
    return table
