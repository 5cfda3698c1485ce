"""A detection recipe from its data to `results.json`: what `python -m train.coco` runs."""

import contextlib
import logging
import math

import numpy as np
import tensorflow as tf
import tf_keras
from official.modeling import performance

from train.detection import garden
from train.detection.data import load_data
from train.detection.evaluator import Evaluator
from train.detection.export import draw_predictions, export_detector
from train.detection.report import classes_table, write_results
from train.detection.trainer import Trainer
from train.loop import Run
from train.session import Session
from train.strategies import averaging, is_chief, one_device
from train.weights import load_initial_weights
from train.workdir import write_json


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
        data_dir: folder in COCO's layout (see `train.detection.annotations.find_splits`); None:
            scenes of digits, made in the workdir.
        strategy: see `train.strategies.make_strategy`.
        init_backbone: weights that the backbone starts from, or None; see
            `train.weights.load_initial_weights`.
        visualize: number of validation images to draw, with the boxes found and the connectivity
            that each image took.

    Returns:
        Dict, the content of `results.json`; empty in workers that are not the chief.

    Raises:
        ValueError: for bad data or a workdir that holds a run of another recipe.
        FileNotFoundError: if data or weights are missing.
        FloatingPointError: if training diverges.
        OSError: if something cannot be written; what was saved before is whole.
        train.loop.RunStopped: after SIGTERM or SIGINT; the run's state is saved.
    """
    if visualize < 0:
        raise ValueError(f"--visualize must be a number of images. Received: {visualize}")
    session = Session(workdir, strategy)
    data = load_data(recipe, session.workdir, data_dir)
    results = session.finished(
        recipe,
        init_backbone=init_backbone,
        data={
            "class_names": list(data.train.class_names),
            "train_images": len(data.train.images),
            "validation_images": len(data.validation.images),
            "train_sha256": data.train.sha256,
            "validation_sha256": data.validation.sha256,
        },
    )
    for finding in data.findings:
        session.console.print(finding, style="yellow", markup=False, highlight=False)
    if results is None or visualize:
        with dtype_policy(recipe.dtype):
            run = DetectionRun(recipe, data, session.strategy, init_backbone)
            run.restore(session.workdir)  # before the workdir is claimed
            if results is not None and run.step != run.total_steps:
                raise ValueError(
                    f"{session.workdir} holds a finished run whose last checkpoint, of step "
                    f"{run.total_steps}, is gone: its predictions cannot be drawn"
                )
            with session.training(run) as rows:
                for row in rows:
                    session.console.print(
                        f"epoch {row['epoch']}/{recipe.epochs}: validation AP {row['AP']:.4f}, "
                        f"AP50 {row['AP50']:.4f}"
                    )
            if not session.is_chief:
                return {}
            if isinstance(session.strategy, tf.distribute.MultiWorkerMirroredStrategy):
                run = run.alone()
            if results is None:
                if not (session.workdir / "export" / "1").exists():
                    export_detector(run, session.workdir / "export")
                results = write_results(run, session.workdir)
            if visualize:
                draw_predictions(run, session.workdir / "visualizations", visualize)
    session.show({name: value for name, value in results.items() if name != "classes"})
    if results.get("classes"):  # a run of an earlier version has none
        session.console.print(classes_table(results["classes"]))
    return results


@contextlib.contextmanager
def dtype_policy(name):
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


class DetectionRun(Run):
    """A `DetectionRecipe` on `Data`: adds Model Garden's trainer and checkpoints, and detections.

    `init_from` are weights of the backbone.

    Raises:
        ValueError: also if the recipe does not make a model.
    """

    loss_name = "training_loss"

    def __init__(self, recipe, data, strategy, init_from=None):
        super().__init__(recipe, data, strategy, init_from)
        self.steps_per_epoch = garden.steps_per_epoch(recipe, data.train_records)
        self.params = garden.experiment(
            recipe,
            data.train_records,
            data.validation_records,
            num_classes=len(data.train.category_ids) + 1,
        )
        coco = Evaluator(
            data.validation, recipe.detector == "maskrcnn", on_images=self._tell_evaluated
        )
        self.task = garden.make_task(self.params, coco)
        tf_keras.utils.set_random_seed(recipe.seed)
        with strategy.scope():
            self.model = self.task.build_model()
            optimizer = garden.create_optimizer(
                self.params, self.model, recipe.router_lr_multiplier
            )
            optimizer = performance.configure_optimizer(
                optimizer,
                use_float16=recipe.dtype == "mixed_float16",
                loss_scale=self.params.runtime.loss_scale,
            )
            self.trainer = Trainer(
                recipe, self.params, self.task, self.model, optimizer, train=True, evaluate=True
            )
        self.evaluator = self.trainer
        self.global_step = self.trainer.global_step
        self.trainer.checkpoint.train_seconds = self.train_seconds
        statistics = [
            variable
            for path, variable in self.backbone.variables_by_path.items()
            if path.rpartition("/")[2].startswith("moving_")
        ]
        self.average_statistics = averaging(strategy, statistics)

    @property
    def backbone(self):
        """The `GardenBackbone`."""
        return self.model.backbone

    @property
    def weights_by_name(self):
        """Dict of place and name to variable: Keras 2 does not keep names apart."""
        return {f"{k:05} {v.name}": v for k, v in enumerate(self.model.weights)}

    def alone(self):
        """The same run without the other workers, from its newest checkpoint.

        Normalisation's statistics are synchronised when they are read, by all workers.
        """
        run = DetectionRun(self.recipe, self.data, one_device())
        run.restore(self.workdir)
        return run

    def _saved(self):
        return self.trainer.checkpoint, None

    def _start(self):
        if (self.workdir / "history.json").exists():
            raise ValueError(
                f"{self.workdir} holds the history of a run, and no checkpoint in "
                f"{self.checkpoints.source}: it cannot go on. Choose another --workdir to start "
                "again"
            )
        self.trainer.initialize()
        if self.init_from is not None:
            load_initial_weights(self.backbone.backbone, self.init_from)

    def _trainer(self, epoch):
        return self.trainer

    def _after_loop(self, output):
        if not math.isfinite(output["training_loss"]):
            raise FloatingPointError(
                f"The loss is not finite at step {self.step}: training has diverged. "
                "Try a lower learning_rate or clip_norm."
            )
        super()._after_loop(output)

    def _mean_of_loops(self, loops):
        """Means over the steps of an epoch."""
        steps = [count for count, _ in loops]
        return {
            key: float(np.average([metrics[key] for _, metrics in loops], weights=steps))
            for key in loops[0][1]
        }

    def _tell_evaluated(self, images, left):
        total = len(self.data.validation.images)
        self._tell(f"{images} of {total} images evaluated{left}")

    def _evaluate_epoch(self):
        """Adds the figures of each class; leaves the detections behind in `detections.json`."""
        figures = self.evaluate()
        found = self.task.evaluator
        if is_chief(self.strategy):
            write_json(self.workdir / "detections.json", found.detections, indent=None)
        return {**figures, "classes": found.classes}
