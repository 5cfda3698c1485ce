"""The loop of every run, on Orbit: steps, epochs, evaluation, saving, stopping, history.

`model.fit` works on the same models, but not under every strategy (Keras issue 20585).
"""

import abc
import contextlib
import time

import numpy as np
import orbit
import tensorflow as tf

from train.checkpoints import Checkpoints
from train.pace import LoopLength, TimeLeft
from train.strategies import agreement, is_chief
from train.workdir import own_folder, read_json, write_json


class RunStopped(Exception):
    """A run was asked to stop, and has saved its state."""


class Run(abc.ABC):
    """A recipe at work: takes its state from a workdir, and trains on from there.

    A subclass adds what differs between kinds of model: the abstract methods, and these
    attributes, set when it is made: `model`; `steps_per_epoch`; `global_step`, a `tf.Variable`;
    `evaluator`, an `orbit.AbstractEvaluator`; `average_statistics`, of `strategies.averaging`.

    Args:
        recipe: with `epochs`, `batch_size`, `evaluation_epochs`, `steps_per_loop` and
            `checkpoints_kept`.
        data: that is trained on and evaluated.
        strategy: a `tf.distribute` strategy.
        init_from: weights to start from where there is no checkpoint, or None.
        accumulation_steps: parts that each replica takes its share of a batch in.

    Attributes:
        checkpoint_epochs: epochs between two checkpoints.
        checkpoint_steps: steps between two checkpoints within an epoch; 0 is none.
        loss_name: of the loss among the metrics of a loop.
        history: rows of `history.json`, a dict for each epoch that was evaluated.
        train_seconds: `tf.Variable`, time spent in training steps, interruptions left out.
        stop_requested: set to True, the run stops after the loop at hand.
        progress: a line about how far the run is, which is also printed.
        warnings: sentences about what was found in the workdir.

    Raises:
        ValueError: if the replicas and parts do not divide the batch.
    """

    loss_name = "loss"

    def __init__(self, recipe, data, strategy, init_from, accumulation_steps=1):
        replicas, parts = strategy.num_replicas_in_sync, accumulation_steps
        if recipe.batch_size % (replicas * parts):
            each = "" if parts == 1 else f" times accumulation_steps={parts}"
            raise ValueError(
                f"`batch_size` must be a multiple of the number of replicas{each}. Received: "
                f"batch_size={recipe.batch_size}, {replicas} replicas"
            )
        self.recipe = recipe
        self.data = data
        self.strategy = strategy
        self.init_from = init_from
        self.checkpoint_epochs = recipe.evaluation_epochs
        self.checkpoint_steps = 0
        self.train_seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.stop_requested = False
        self.progress = ""
        self.warnings = []
        self._on_loop = lambda step: None
        self._time_left = lambda step, now: ""
        self._any_worker = agreement(strategy)
        self._loop_length = LoopLength(recipe.steps_per_loop, self._any_worker)

    @property
    def step(self):
        """Updates done so far."""
        return int(self.global_step.numpy())

    @property
    def total_steps(self):
        """Updates of the whole recipe."""
        return self.recipe.epochs * self.steps_per_epoch

    @property
    @abc.abstractmethod
    def weights_by_name(self):
        """Dict of a name of its own to each variable of the model."""

    @abc.abstractmethod
    def _saved(self):
        """What checkpoints hold: `checkpoint` and `shapes` of `train.checkpoints.Checkpoints`."""

    @abc.abstractmethod
    def _start(self):
        """Makes the model ready for the first step where there is no checkpoint to go on from."""

    @abc.abstractmethod
    def _trainer(self, epoch):
        """`orbit.AbstractTrainer` of an epoch, the same object until something changes."""

    @abc.abstractmethod
    def _mean_of_loops(self, loops):
        """What the history says of the training of an epoch.

        Args:
            loops: pairs of the number of steps of a loop and its metrics.
        """

    def _evaluate_epoch(self):
        """Figures of the history's row; also leaves in the workdir what goes with them."""
        return self.evaluate()

    def restore(self, workdir):
        """Goes on from the newest whole checkpoint of the workdir, or starts; writes nothing.

        Args:
            workdir: `pathlib.Path` of the folder that the run writes into.

        Raises:
            ValueError: if its checkpoints are of another model, none can be read, or the initial
                weights do not fit.
            FileNotFoundError: if there are no such weights.
        """
        self.workdir = workdir
        self.own = own_folder(workdir, self.strategy)
        self.checkpoints = Checkpoints(
            self.own / "checkpoints",
            workdir / "checkpoints",
            *self._saved(),
            self.recipe.checkpoints_kept,
        )
        with self.strategy.scope():
            step, broken = self.checkpoints.restore()
            if step is None:
                self._start()
        self.warnings += [f"{line}; the one before it is used." for line in broken]
        history = read_json(workdir / "history.json", [])
        self.history = [row for row in history if row["step"] <= self.step]
        self._use(trainer=None)

    def _use(self, trainer):
        self._controller = orbit.Controller(
            global_step=self.global_step,
            trainer=trainer,
            evaluator=self.evaluator,
            strategy=self.strategy,
            steps_per_loop=lambda step: self._loop_length.steps,
            summary_dir=str(self.own / "tensorboard"),
            train_actions=[self._after_loop],
        )

    def train_epochs(self, on_loop=lambda step: None):
        """Trains to the end of the recipe, from wherever the restored run is.

        Args:
            on_loop: called with the step whenever `progress` is new, after at most
                `recipe.steps_per_loop` steps.

        Yields:
            After each epoch that is evaluated (see `recipe.evaluation_epochs`), its row of
            `history.json`.

        Raises:
            RunStopped: if `stop_requested` was set; a checkpoint has been saved.
            FloatingPointError: if a loss or a weight is not finite.
            OSError: if a checkpoint could not be written.
        """
        self._on_loop = on_loop
        self._time_left = TimeLeft(self.total_steps)
        evaluated = self.history[-1]["step"] if self.history else 0
        if self.step > evaluated and self._ends(self.recipe.evaluation_epochs):
            yield self._end_epoch({})  # stopped between checkpoint and evaluation
        while self.step < self.total_steps:
            self.train_to((self.step // self.steps_per_epoch + 1) * self.steps_per_epoch)
            if self._ends(self.checkpoint_epochs):
                self.save()
            if self._ends(self.recipe.evaluation_epochs):
                yield self._end_epoch(self._mean_of_loops(self._loops))

    def _ends(self, epochs):
        """Whether the step is the last of the run, or of a period of so many epochs."""
        return self.step == self.total_steps or self.step % (epochs * self.steps_per_epoch) == 0

    def train_to(self, end):
        """Trains to a step of the epoch at hand, with the checkpoints of `checkpoint_steps`."""
        trainer = self._trainer(self.step // self.steps_per_epoch)
        if trainer is not self._controller.trainer:
            self._use(trainer)
        self._loops = []
        every = self.checkpoint_steps or end
        while self.step < end:
            target = min(end, (self.step // every + 1) * every)
            self._train_loops(target)
            if target < end:
                self.save()

    def _train_loops(self, target):
        self._clock, self._step_before = time.monotonic(), self.step
        try:
            self._controller.train(target, checkpoint_at_completion=False)
        except RunStopped:
            self.save()
            raise
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}\n{self._last_good()}") from error

    def _after_loop(self, output):
        now, step = time.monotonic(), self.step
        self.train_seconds.assign_add(now - self._clock)
        self._loop_length.took(now - self._clock, step - self._step_before)
        metrics = {k: float(v) for k, v in output.items()}
        self._loops.append((step - self._step_before, metrics))
        self._clock, self._step_before = now, step
        left = self._time_left(step, now)
        self._tell(f"loss {metrics[self.loss_name]:.4f}{left}")
        if self._any_worker(self.stop_requested) and self.step < self.total_steps:
            raise RunStopped

    def _tell(self, text):
        """Says how far the run is: in the log, and to who called `train_epochs`."""
        self.progress = f"step {self.step}/{self.total_steps}, {text}"
        print(self.progress)
        self._on_loop(self.step)

    def save(self):
        """Saves a checkpoint, unless a weight is not finite."""
        self.average_statistics()
        for name, variable in self.weights_by_name.items():
            if not np.isfinite(variable.numpy()).all():
                raise FloatingPointError(
                    f"{name} is not finite at step {self.step}: training has diverged. "
                    f"Try a lower learning_rate or clip_norm.\n{self._last_good()}"
                )
        self.checkpoints.save(self.step)

    def _last_good(self):
        step = self.checkpoints.last_good
        if step is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.checkpoints.source / f'ckpt-{step}'}"

    def evaluate(self):
        """Figures of the split that is evaluated, as floats."""
        self.average_statistics()
        return {name: float(value) for name, value in self._controller.evaluate().items()}

    def _end_epoch(self, train_metrics):
        """Evaluates, and writes the epoch's row into `history.json`."""
        row = {
            "epoch": self.step // self.steps_per_epoch,
            "step": self.step,
            **{f"train_{name}": value for name, value in train_metrics.items()},
            **self._evaluate_epoch(),
        }
        self.history.append(row)
        if is_chief(self.strategy):
            write_json(self.workdir / "history.json", self.history)
        return row


@contextlib.contextmanager
def orbit_log(path):
    """Sends what Orbit prints (some lines a loop) to a log file, and leaves the terminal alone."""
    with open(path, "a", buffering=1) as log, contextlib.redirect_stdout(log):
        yield
