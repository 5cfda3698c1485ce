"""A recipe from its data to `results.json`: what `python -m train.imagenet` runs."""

import contextlib

import keras
import numpy as np
import orbit
import tensorflow as tf

from dgnet_keras.budget import noise_states
from dgnet_keras.layers.wiring import BY_IMAGE, PATHS
from train.checkpoints import of_variables
from train.classification import datasets, input_pipeline, report, task
from train.classification.findings import check_data, check_decoded
from train.classification.model import create_model, create_teacher, trained_variables
from train.classification.optimizers import create_optimizer
from train.classification.sources import check_teacher, other_classes
from train.loop import Run
from train.session import Session
from train.strategies import averaging, is_chief, moved
from train.weights import BEST_WEIGHTS, content_sha256, load_initial_weights, save_weights
from train.workdir import read_json, write_json


def train(recipe, workdir, *, data_dir=None, strategy="one_device", init_from=None, summary=True):
    """Trains, evaluates, saves, draws and exports a model.

    Args:
        recipe: a `train.classification.recipes.Recipe`.
        workdir: folder of the run; a run that was stopped goes on from its newest checkpoint,
            a finished one is reported again. Several hosts must share it.
        data_dir: where the data lies, see `train.classification.datasets.load_data`.
        strategy: see `train.strategies.make_strategy`.
        init_from: weights to start from, or None; see `train.weights.load_initial_weights`.
        summary: whether some images are predicted from the export and left in `samples/`, and a
            table of the results is printed.

    Returns:
        Dict, the content of `results.json`; empty in workers that are not the chief.

    Raises:
        ValueError: for bad data or a workdir that holds a run of another recipe.
        FileNotFoundError: if the data folder or the weights are missing.
        FloatingPointError: if training diverges.
        OSError: if something cannot be written; what was saved before is whole.
        train.loop.RunStopped: after SIGTERM or SIGINT; the run's state is saved.
    """
    session = Session(workdir, strategy)
    data = datasets.load_data(recipe, data_dir)
    findings = [*check_data(data, recipe, init_from), *other_classes(init_from, data.class_names)]
    results = session.finished(
        recipe,
        init_from=init_from,
        fingerprints={
            "the training images": data.train.fingerprint(),
            "the test images": data.test.fingerprint(),
            "distill_from": content_sha256(recipe.distill_from),
        },
        data={
            "class_names": list(data.class_names),
            "train_images": len(data.train),
            "test_images": len(data.test),
        },
    )
    _warn(findings, session.console)
    if results is None:
        check_teacher(recipe, data.class_names)
        configure(recipe)
        run = ClassificationRun(recipe, data, session.strategy, init_from)
        run.restore(session.workdir)  # before the workdir is claimed
        if not run.step and (session.workdir / "export" / "1").exists():
            raise ValueError(
                f"{session.workdir} has the model of a run whose checkpoints are gone: choose "
                "another --workdir, or move what is there"
            )
        with session.training(run) as rows:
            _tell(run, rows, session.console)
        run.finish()
        if not session.is_chief:
            return {}
        unseen = check_decoded(data, recipe, run.skipped.names)
        _warn(unseen, session.console)
        results = report.write_results(run, session.workdir, [*findings, *unseen])
        if summary:
            samples = report.predict_samples(data, session.workdir)
            session.console.print(report.samples_table(samples))
    if summary:
        session.show(results)
    return results


def _warn(findings, console):
    for finding in findings:
        console.print(finding, style="yellow", markup=False, highlight=False)


def _tell(run, rows, console):
    """Prints a line an epoch, and in the end what is wrong with the routers."""
    recipe = run.recipe
    split = "validation" if recipe.validation else "test"
    for row in rows:
        console.print(
            f"epoch {row['epoch']}/{recipe.epochs}: {split} loss {row['loss']:.4f}, "
            f"{split} accuracy {row['accuracy']:.4f}"
            + (f", share of MACs {row['share_of_macs']:.3f}" if recipe.macs_target else "")
            + (f", {speed:.0f} images/s" if (speed := row.get("train_images_per_second")) else "")
        )
        if row["step"] == run.total_steps:
            for message in row.get("router_health", {}).values():
                console.print(message, style="yellow")


def configure(recipe):
    """Seeds what is seeded globally; makes operations repeatable, or compiled, as the recipe says.

    XLA is used on GPUs only (TPUs have nothing else): on a CPU it made a training step 3 to 4
    times slower.
    """
    keras.utils.set_random_seed(recipe.seed)
    if recipe.deterministic:
        tf.config.experimental.enable_op_determinism()
    if recipe.xla and tf.config.list_physical_devices("GPU"):
        tf.config.optimizer.set_jit("autoclustering")


def check_channels(recipe, data):
    """Raises `ValueError` unless the images have the channels that the model takes."""
    shape, channels = list(recipe.input_shape), recipe.input_shape[-1]
    images = getattr(data.train, "images", None)
    if images is not None and images.shape[-1] != channels:
        raise ValueError(
            f"`input_shape` must have the images' {images.shape[-1]} channels. "
            f"Received: input_shape={shape}"
        )
    if images is None and channels not in (1, 3):
        raise ValueError(
            f"Image files are read with 1 or 3 channels. Received: input_shape={shape}"
        )
    if recipe.rand_augment_layers and channels != 3:
        raise ValueError(f"RandAugment needs 3 channels. Received: input_shape={shape}")


class ClassificationRun(Run):
    """A `Recipe` on `ImageData`: adds phases of freezing, averaged weights, the best weights.

    Raises:
        ValueError: also if the data does not fill a batch or has other channels than the model
            takes, or the recipe does not make a model.
    """

    def __init__(self, recipe, data, strategy, init_from=None):
        super().__init__(recipe, data, strategy, init_from, recipe.accumulation_steps)
        check_channels(recipe, data)
        self.steps_per_epoch = input_pipeline.steps_per_epoch(data.train, recipe)
        self.checkpoint_epochs = recipe.checkpoint_epochs
        self.checkpoint_steps = recipe.checkpoint_steps
        self.skipped = input_pipeline.SkippedImages()
        with strategy.scope():
            self.model = create_model(recipe, len(data.class_names))
            self.teacher = create_teacher(recipe, len(data.class_names))
            self.variables = list(self.model.trainable_variables)
            self.optimizer = create_optimizer(recipe, self.steps_per_epoch, self.variables)
            self.global_step = orbit.utils.create_global_step()
            self.evaluator = task.Evaluator(self.model, recipe, strategy, self._test_dataset())
        statistics = [v for v in self.model.non_trainable_variables if v.name.startswith("moving_")]
        self.average_statistics = averaging(strategy, [v.value for v in statistics])
        self._frozen = None

    @property
    def weights_by_name(self):
        """Dict of path to Keras variable."""
        return {variable.path: variable for variable in self.model.weights}

    def _saved(self):
        return of_variables(
            {"model": self.model.weights, "optimizer": self.optimizer.variables},
            {
                "step": self.global_step,
                "train_seconds": self.train_seconds,
                **{f"noise_{name}": state for name, state in noise_states(self.model).items()},
            },
        )

    def _start(self):
        if self.init_from is not None:
            load_initial_weights(self.model, self.init_from)

    def restore(self, workdir):
        """As of `Run`; also the names of images that could not be read before."""
        super().restore(workdir)
        self._skipped_file = self.own / "skipped_images.json"
        self.skipped.names |= set(read_json(self._skipped_file, []))

    def _trainer(self, epoch):
        """A new training step where what is frozen changes."""
        frozen = {
            "freeze_backbone": epoch < self.recipe.freeze_backbone_epochs,
            "freeze_routers": epoch < self.recipe.freeze_routers_epochs,
        }
        if frozen != self._frozen:
            self._frozen = frozen
            self._phase = task.Trainer(
                self.model,
                trained_variables(self.model, **frozen),
                self.optimizer,
                self.recipe,
                self.strategy,
                self._train_dataset(self.step),
                self.global_step,
                total_steps=self.total_steps,
                teacher=self.teacher,
            )
        return self._phase

    def _mean_of_loops(self, loops):
        """Mean loss, accuracy and images/s of the loops of an epoch, weighted by their examples."""
        loops = [metrics for _, metrics in loops]
        weights = [loop["examples"] for loop in loops]
        seconds = sum(loop["examples"] / loop["images_per_second"] for loop in loops)
        return {
            **{
                key: float(np.average([loop[key] for loop in loops], weights=weights))
                for key in ("loss", "accuracy", "share_of_macs")
                if key in loops[0]
            },
            "images_per_second": sum(weights) / seconds,
            "learning_rate": loops[-1]["learning_rate"],
        }

    def evaluate(self):
        """Metrics of the test split (see `task.Evaluator`), as floats."""
        with self._averaged():
            return super().evaluate()

    def evaluate_at(self, threshold):
        """Sets the threshold of the model, and returns the metrics of `evaluate`."""
        self.model.set_threshold(threshold)
        if self.recipe.wiring not in PATHS:  # whose thresholds are no weights, but traced
            with self.strategy.scope():
                self.evaluator = task.Evaluator(
                    self.model, self.recipe, self.strategy, self._test_dataset()
                )
            self._use(trainer=None)
        return self.evaluate()

    def _evaluate_epoch(self):
        """Keeps the best weights, and the names of images that could not be read."""
        with self._averaged():
            figures = super().evaluate()
            best = max((row["accuracy"] for row in self.history), default=-1.0)
            if is_chief(self.strategy) and figures["accuracy"] > best:
                save_weights(self.model, self.own / BEST_WEIGHTS)
        if self.recipe.wiring in BY_IMAGE:
            figures["router_health"] = {f.kind: f.message for f in self.evaluator.findings}
        write_json(self._skipped_file, sorted(self.skipped.names), indent=None)
        return figures

    def _averaged(self):
        """A context in which the weights are their moving averages, if the recipe has those."""
        if not self.recipe.ema_momentum:
            return contextlib.nullcontext()
        return moved(self.strategy, self.variables, self._use_averages)

    def _use_averages(self):
        self.optimizer.finalize_variable_values(self.variables)

    def finish(self):
        """Leaves the model with the weights that were evaluated, every layer trainable again."""
        if self.recipe.ema_momentum and self.step:
            with self.strategy.scope():
                self._use_averages()
        trained_variables(self.model, freeze_backbone=False, freeze_routers=False)

    def _train_dataset(self, start_step):
        return self.strategy.distribute_datasets_from_function(
            lambda context: input_pipeline.train_batches(
                self.data.train,
                self.model.preprocessing,
                self.recipe,
                num_classes=len(self.data.class_names),
                start_step=start_step,
                context=context,
                skipped=self.skipped,
            )
        )

    def _test_dataset(self):
        return self.strategy.distribute_datasets_from_function(
            lambda context: input_pipeline.test_batches(
                self.data.test,
                self.model.preprocessing,
                self.recipe.batch_size,
                context=context,
                skipped=self.skipped,
            )
        )
