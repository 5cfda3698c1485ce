"""A detection recipe from its data to `results.json`: what `python -m train.coco` runs."""

import contextlib
import functools
import json
import logging
import math
import os
import pathlib
import sys
import time

import orbit
import tensorflow as tf
import tf_keras
from official.core import base_trainer
from official.modeling import performance
from rich.console import Console

from train.checkpoints import steps_in, write_atomically
from train.classification.engine import RunStopped, orbit_log
from train.classification.run import (
    check_workdir,
    epoch_progress,
    load_initial_weights,
    stop_signals,
)
from train.detection import annotations as coco_data
from train.detection import export as coco_export
from train.detection import garden as coco_task
from train.detection import report as coco_report
from train.detection import scenes as coco_scenes
from train.detection.evaluator import Evaluator
from train.detection.records import write_records
from train.strategies import agreement, averaging, is_chief, make_strategy, own_folder

PATTERN = ",*?[]{}"  # a name with these matches other files than itself, or several


def train(
    recipe,
    workdir,
    *,
    data_dir=None,
    strategy="one_device",
    init_backbone=None,
    visualize=0,
):
    """Trains, evaluates and exports a detector.

    Args:
        recipe: a `DetectionRecipe`.
        workdir: folder of the run; a run that was stopped goes on from its newest checkpoint, a
            finished one is reported again. Several hosts must share it.
        data_dir: folder in COCO's layout (see `coco_data.find_splits`); None: scenes of digits,
            made in the workdir.
        strategy: see `train.strategies.make_strategy`.
        init_backbone: weights that the backbone starts from, or None; see
            `train.classification.run.load_initial_weights`.
        visualize: number of validation images to draw, with the boxes found and the connectivity
            that each image took.

    Returns:
        Dict, the content of `results.json`; empty in workers that are not the chief.

    Raises:
        ValueError: for bad data or a workdir that holds a run of another recipe.
        FileNotFoundError: if data or weights are missing.
        FloatingPointError: if training diverges.
        OSError: if something cannot be written; what was saved before is whole.
        RunStopped: after SIGTERM or SIGINT; the run's state is saved.
    """
    if not str(workdir):
        raise ValueError("--workdir must be the name of a folder. Received: ''")
    if visualize < 0:
        raise ValueError(f"--visualize must be a number of images. Received: {visualize}")
    workdir = pathlib.Path(workdir)
    strategy = make_strategy(strategy)
    console = Console(file=sys.stdout, quiet=not is_chief(strategy))
    data = load_data(recipe, workdir, data_dir)
    config = {
        **json.loads(recipe.to_json()),
        "init_backbone": None if init_backbone is None else str(init_backbone),
        "data": {
            "class_names": list(data.train.class_names),
            "train_images": len(data.train.images),
            "validation_images": len(data.validation.images),
            "train_sha256": data.train.sha256,
            "validation_sha256": data.validation.sha256,
        },
    }
    check_workdir(config, workdir)
    for finding in data.findings:
        console.print(finding, style="yellow")
    done = workdir / "results.json"
    if done.exists() and not visualize:
        results = json.loads(done.read_text())
        console.print(coco_report.results_table(results, workdir))
        return results
    with _policy(recipe.dtype):
        run = Run(recipe, data, strategy, init_backbone)
        run.restore(workdir)  # before the workdir is claimed
        if done.exists() and run.step != run.total_steps:
            raise ValueError(
                f"{workdir} holds a finished run whose last checkpoint, of step {run.total_steps}, "
                "is gone: its predictions cannot be drawn"
            )
        own = own_folder(workdir, strategy)
        own.mkdir(parents=True, exist_ok=True)
        if is_chief(strategy):
            write_atomically(workdir / "config.json", json.dumps(config, indent=2) + "\n")
        with (
            orbit_log(own / "train.log"),
            epoch_progress(console) as on_loop,
            stop_signals(run, console),
        ):
            run.open(workdir, on_loop)
            on_loop(run.step, run.total_steps)
            for row in run.train_epochs():
                console.print(
                    f"epoch {row['epoch']}/{recipe.epochs}: validation AP {row['AP']:.4f}, "
                    f"AP50 {row['AP50']:.4f}"
                )
        if not is_chief(strategy):
            return {}
        if isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
            run = run.alone(workdir)
        if done.exists():
            results = json.loads(done.read_text())
        else:
            if not (workdir / "export" / "1").exists():
                coco_export.export_detector(run, workdir / "export")
            results = coco_report.write_results(run, workdir)
        if visualize:
            coco_export.draw_predictions(run, workdir / "visualizations", visualize)
    console.print(coco_report.results_table(results, workdir))
    return results


class Data:
    """Checked annotations and TFRecords of both splits.

    Attributes:
        train: `CocoSplit` that is learned from.
        validation: `CocoSplit` that is evaluated.
        train_records: `records.Records`.
        validation_records: likewise.
        findings: sentences about what was mended or left out.
    """

    def __init__(self, train, validation, directory, *, masks):
        self.train = train
        self.validation = validation
        self.train_records = write_records(train, directory, training=True, masks=masks)
        self.validation_records = write_records(validation, directory, training=False, masks=masks)
        self.findings = list(dict.fromkeys([*train.findings, *validation.findings]))


def load_data(recipe, workdir, data_dir=None):
    """The recipe's data, checked, as TFRecords; see `train`.

    TFRecords are kept in `data_dir`, or in the workdir where that cannot be written to.

    Raises:
        FileNotFoundError: if something is missing.
        ValueError: if the annotations are broken, the splits' categories differ, or TFRecords
            cannot be named in such a folder.
    """
    directory = _records_folder(workdir, data_dir)
    if data_dir is None:
        data_dir = workdir / "data"
        coco_scenes.make_digit_scenes(data_dir)
    splits = coco_data.find_splits(data_dir)
    masks = recipe.detector == "maskrcnn"
    loaded = []
    for wanted, prefixes, limit in (
        (recipe.train_split, ("train",), recipe.train_images),
        (recipe.validation_split, ("val", "test"), recipe.validation_images),
    ):
        name = coco_data.choose_split(splits, wanted, prefixes)
        loaded.append(coco_data.load_split(*splits[name], limit=limit, masks=masks))
    categories = [
        {i: n for i, n in zip(s.category_ids, s.class_names, strict=True) if i is not None}
        for s in loaded
    ]
    if categories[0] != categories[1]:
        differ = dict(sorted(categories[0].items() ^ categories[1].items()))
        raise ValueError(
            "Both splits must list the same categories, under the same ids. They differ in "
            f"{str(differ)[:200]}"
        )
    return Data(*loaded, directory, masks=masks)


def _records_folder(workdir, data_dir):
    """Where TFRecords are kept; `ValueError` if TensorFlow would take its name for a pattern."""
    flag, place = ("--workdir", workdir) if data_dir is None else ("--data-dir", data_dir)
    folder = (workdir / "data" if data_dir is None else pathlib.Path(data_dir)) / "tfrecords"
    existing = folder if folder.exists() else folder.parent
    if existing.exists() and not os.access(existing, os.W_OK):
        flag, place, folder = "--workdir", workdir, workdir / "tfrecords"
    if set(PATTERN) & set(str(folder.absolute())):
        raise ValueError(
            f"TensorFlow takes {' '.join(PATTERN)} in names of files for patterns: "
            f"{flag} must not contain any. Received: {place}"
        )
    return folder


@contextlib.contextmanager
def _policy(name):
    """tf_keras's dtype policy and silent loggers, for as long as a model is made and traced."""
    before = tf_keras.mixed_precision.global_policy()
    levels = {logger: logger.level for logger in map(logging.getLogger, ("tensorflow", "absl"))}
    tf_keras.mixed_precision.set_global_policy(name)
    for logger in levels:
        logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        tf_keras.mixed_precision.set_global_policy(before)
        for logger, level in levels.items():
            logger.setLevel(level)


class Run:
    """A recipe at work on Model Garden's trainer; once opened in a workdir, checkpoints and loop.

    Args:
        recipe: a `DetectionRecipe`.
        data: `Data`.
        strategy: a `tf.distribute` strategy.
        init_backbone: weights that the backbone starts from, or None.

    Raises:
        ValueError: if the replicas do not divide the batch, or the recipe does not make a model.
    """

    def __init__(self, recipe, data, strategy, init_backbone=None):
        if recipe.batch_size % strategy.num_replicas_in_sync:
            raise ValueError(
                "`batch_size` must be a multiple of the number of replicas. Received: "
                f"batch_size={recipe.batch_size}, {strategy.num_replicas_in_sync} replicas"
            )
        self.recipe = recipe
        self.data = data
        self.strategy = strategy
        self.steps_per_epoch = coco_task.steps_per_epoch(recipe, data.train_records)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        self.params = coco_task.experiment(
            recipe,
            data.train_records,
            data.validation_records,
            num_classes=len(data.train.category_ids) + 1,
        )
        self.evaluator = Evaluator(data.validation, recipe.detector == "maskrcnn")
        load = init_backbone and functools.partial(load_initial_weights, path=init_backbone)
        self.task = coco_task.make_task(self.params, self.evaluator, load)
        tf_keras.utils.set_random_seed(recipe.seed)
        with strategy.scope():
            self.model = self.task.build_model()
            optimizer = coco_task.create_optimizer(
                self.params, self.model, recipe.router_lr_multiplier
            )
            optimizer = performance.configure_optimizer(
                optimizer,
                use_float16=recipe.dtype == "mixed_float16",
                loss_scale=self.params.runtime.loss_scale,
            )
            self.trainer = base_trainer.Trainer(
                self.params, self.task, self.model, optimizer, train=True, evaluate=True
            )
            self.train_seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.trainer.checkpoint.train_seconds = self.train_seconds
        statistics = [v for v in self.backbone._pyramid.weights if v.name.startswith("moving_")]
        self._average_statistics = averaging(strategy, statistics)
        self._any_worker = agreement(strategy)
        self.stop_requested = False

    @property
    def backbone(self):
        """The `GardenBackbone`."""
        return self.model.backbone

    @property
    def step(self):
        """Updates done so far."""
        return int(self.trainer.global_step.numpy())

    def restore(self, workdir):
        """Takes the newest checkpoint of the workdir, or the backbone's initial weights.

        Raises:
            ValueError: if the checkpoint is broken or of another model, all are gone, or the
                initial weights do not fit.
            FileNotFoundError: if there are no such weights.
        """
        self._checkpoints = workdir / "checkpoints"
        steps = steps_in(self._checkpoints)
        if not steps and (workdir / "history.json").exists():
            raise ValueError(
                f"{workdir} holds the history of a run, and no checkpoint in {self._checkpoints}: "
                "it cannot go on. Choose another --workdir to start again"
            )
        with self.strategy.scope():
            if not steps:
                self.trainer.initialize()
                return
            newest = str(self._checkpoints / f"ckpt-{steps[0]}")
            try:
                status = self.trainer.checkpoint.restore(newest)
                status.assert_existing_objects_matched()
                status.expect_partial()  # no warning at exit where there was no training
            except (tf.errors.OpError, AssertionError, ValueError) as error:
                raise ValueError(
                    f"The checkpoint {newest} cannot be read: {error}. Remove its files to go on "
                    "from the one before"
                ) from error

    def alone(self, workdir):
        """The same run without the other workers, from its newest checkpoint.

        Normalisation's statistics are synchronised when they are read, by all workers.
        """
        run = Run(self.recipe, self.data, make_strategy("one_device"))
        run.restore(workdir)
        run.history = self.history
        return run

    def open(self, workdir, on_loop=lambda step: None):
        """Makes ready to write into the workdir.

        Args:
            workdir: `pathlib.Path` of the folder.
            on_loop: called with the step after every `recipe.steps_per_loop` steps.
        """
        own = own_folder(workdir, self.strategy)
        self._on_loop = on_loop
        self._manager = tf.train.CheckpointManager(
            self.trainer.checkpoint,
            directory=str(own / "checkpoints"),
            max_to_keep=self.recipe.checkpoints_kept,
            step_counter=self.trainer.global_step,
        )
        self._history_file = workdir / "history.json"
        history = json.loads(self._history_file.read_text()) if self._history_file.exists() else []
        self.history = [row for row in history if row["step"] <= self.step]
        self._detections_file = workdir / "detections.json"
        self.controller = orbit.Controller(
            global_step=self.trainer.global_step,
            trainer=self.trainer,
            evaluator=self.trainer,
            strategy=self.strategy,
            steps_per_loop=self.recipe.steps_per_loop,
            summary_interval=self.recipe.steps_per_loop,
            summary_dir=str(own / "tensorboard"),
            train_actions=[self._after_loop],
        )

    def train_epochs(self):
        """Trains to the end of the recipe, from wherever the run is.

        Yields:
            After each epoch that is evaluated, its row of `history.json`.

        Raises:
            RunStopped: if `stop_requested` was set; a checkpoint has been saved.
            FloatingPointError: if a loss is not finite.
        """
        every = self.recipe.evaluation_epochs
        is_due = self.step % (every * self.steps_per_epoch) == 0 or self.step == self.total_steps
        if self.step and is_due and (not self.history or self.history[-1]["step"] != self.step):
            yield self._end_epoch([])  # stopped between checkpoint and evaluation
        while self.step < self.total_steps:
            epoch = self.step // self.steps_per_epoch + 1
            epoch = min(math.ceil(epoch / every) * every, self.recipe.epochs)
            self.train_to(epoch * self.steps_per_epoch)
            yield self._end_epoch(self._loops)

    def train_to(self, step):
        """Trains to a step, and saves a checkpoint there, or where it was asked to stop."""
        self._clock, self._loops = time.monotonic(), []
        try:
            self.controller.train(step, checkpoint_at_completion=False)
        except RunStopped:
            self._save()
            raise
        self._save()

    def _after_loop(self, output):
        now = time.monotonic()
        self.train_seconds.assign_add(now - self._clock)
        self._clock = now
        self._loops.append({k: float(v) for k, v in output.items()})
        if not math.isfinite(self._loops[-1]["training_loss"]):
            good = [self._checkpoints / f"ckpt-{step}" for step in steps_in(self._checkpoints)[:1]]
            raise FloatingPointError(
                f"The loss is not finite at step {self.step}: training has diverged. Try a lower "
                f"learning_rate or clip_norm. The last good checkpoint: {', '.join(map(str, good))}"
            )
        self._on_loop(self.step)
        if self._any_worker(self.stop_requested) and self.step < self.total_steps:
            raise RunStopped

    def _save(self):
        self._average_statistics()
        self._manager.save(checkpoint_number=self.step)

    def _end_epoch(self, loops):
        """Evaluates, and writes the row of `history.json` and the detections."""
        self._average_statistics()
        losses = {k: sum(loop[k] for loop in loops) / len(loops) for k in (loops or [{}])[0]}
        figures = {k: float(v) for k, v in self.controller.evaluate().items()}
        row = {
            "epoch": self.step // self.steps_per_epoch,
            "step": self.step,
            **{f"train_{name}": value for name, value in losses.items()},
            **figures,
        }
        self.history.append(row)
        if is_chief(self.strategy):
            write_atomically(self._history_file, json.dumps(self.history, indent=2) + "\n")
            write_atomically(self._detections_file, json.dumps(self.evaluator.detections) + "\n")
        return row
