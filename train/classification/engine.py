"""Training engine: a recipe at work under a `tf.distribute` strategy, on Orbit.

`model.fit` works on the same models, but not under every strategy (Keras issue 20585).
"""

import contextlib
import dataclasses
import hashlib
import json
import time

import keras
import numpy as np
import orbit
import tensorflow as tf

import dgnet_keras as dg
from train import checkpoints
from train.classification import input_pipeline, task
from train.classification.optimizers import create_optimizer
from train.strategies import agreement, averaging, is_chief, moved, own_folder

BEST_WEIGHTS = "best.weights.h5"


class RunStopped(Exception):
    """A run was asked to stop, and has saved its state."""


def create_model(recipe, num_classes):
    """The recipe's classifier."""
    fields = {
        field.name for field in dataclasses.fields(dg.classifier.family_of(recipe.model).spec_class)
    }
    unknown = sorted(set(recipe.model_overrides) - fields)
    if unknown:
        raise ValueError(
            f"`model_overrides` sets fields of {recipe.model}'s Spec: {', '.join(sorted(fields))}. "
            f"Received: {unknown}"
        )
    policy = keras.config.dtype_policy()
    keras.config.set_dtype_policy(recipe.dtype)
    try:
        model = dg.create(
            recipe.model,
            num_classes=num_classes,
            input_shape=recipe.input_shape,
            wiring=recipe.wiring,
            threshold=recipe.threshold,
            edge_scale=recipe.edge_scale,
            init=recipe.init,
            gate=recipe.gate,
            learn_threshold=recipe.learn_threshold,
            max_nodes=recipe.max_nodes,
            seed=recipe.seed,
            **recipe.model_overrides,
        )
    finally:
        keras.config.set_dtype_policy(policy)
    model.preprocessing = dg.Preprocessing.for_input(recipe.input_shape, crop=recipe.crop)
    for layer in task.norms(model):
        layer.synchronized = recipe.synchronized_norm
    return model


def check_fit(recipe, data, strategy):
    """Makes sure that recipe, data and strategy go together.

    Raises:
        ValueError: if the replicas (and accumulated parts) do not divide the batch, or the images
            have other channels than the model takes.
    """
    replicas, parts = strategy.num_replicas_in_sync, recipe.accumulation_steps
    if recipe.batch_size % (replicas * parts):
        each = "" if parts == 1 else f" times accumulation_steps={parts}"
        raise ValueError(
            f"`batch_size` must be a multiple of the number of replicas{each}. Received: "
            f"batch_size={recipe.batch_size}, {replicas} replicas"
        )
    channels = recipe.input_shape[-1]
    images = getattr(data.train, "images", None)
    if images is not None and images.shape[-1] != channels:
        raise ValueError(
            f"`input_shape` must have the images' {images.shape[-1]} channels. "
            f"Received: input_shape={recipe.input_shape}"
        )
    if images is None and channels not in (1, 3):
        raise ValueError(
            f"Image files are read with 1 or 3 channels. Received: input_shape={recipe.input_shape}"
        )
    if recipe.rand_augment_layers and channels != 3:
        raise ValueError(
            f"RandAugment needs 3 channels. Received: input_shape={recipe.input_shape}"
        )


class Run:
    """A recipe at work: data, model, optimizer; once opened in a workdir, checkpoints and loop.

    Args:
        recipe: a `Recipe`.
        data: `ImageData`.
        strategy: a `tf.distribute` strategy.

    Raises:
        ValueError: if recipe, data and strategy do not go together, the data does not fill a
            batch, or the recipe does not make a model.
    """

    def __init__(self, recipe, data, strategy):
        check_fit(recipe, data, strategy)
        self.recipe = recipe
        self.data = data
        self.strategy = strategy
        self.skipped = input_pipeline.SkippedImages()
        self.steps_per_epoch = input_pipeline.steps_per_epoch(data.train, recipe)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        with strategy.scope():
            self.model = create_model(recipe, len(data.class_names))
            self.variables = list(self.model.trainable_variables)
            self.optimizer = create_optimizer(recipe, self.steps_per_epoch, self.variables)
            self.global_step = orbit.utils.create_global_step()
            self.evaluator = task.Evaluator(self.model, recipe, strategy, self._test_dataset())
        statistics = [v for v in self.model.non_trainable_variables if v.name.startswith("moving_")]
        self._average_statistics = averaging(strategy, statistics)
        self.train_seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self._any_worker = agreement(strategy)
        self.stop_requested = False
        self.warnings = []

    def open(self, workdir, on_loop=lambda step: None):
        """Goes on from the newest whole checkpoint of the workdir, or starts there.

        Args:
            workdir: `pathlib.Path` of the folder that the run writes into.
            on_loop: called with the step after every `recipe.steps_per_loop` steps.

        Raises:
            ValueError: if its checkpoints are of another model, or none can be read.
        """
        own = own_folder(workdir, self.strategy)
        self._own = own
        self._on_loop = on_loop
        self._skipped_file = own / "skipped_images.json"
        if self._skipped_file.exists():
            self.skipped.names |= set(json.loads(self._skipped_file.read_text()))
        self.checkpoints = checkpoints.Checkpoints(
            own / "checkpoints",
            workdir / "checkpoints",
            {"model": self.model.weights, "optimizer": self.optimizer.variables},
            {"step": self.global_step, "train_seconds": self.train_seconds},
            self.recipe.checkpoints_kept,
        )
        with self.strategy.scope():
            _, broken = self.checkpoints.restore()
        self.warnings += [f"{line}; the one before it is used." for line in broken]
        self._history_file = workdir / "history.json"
        history = json.loads(self._history_file.read_text()) if self._history_file.exists() else []
        self.history = [row for row in history if row["step"] <= self.step]
        self._phase = None

    @property
    def step(self):
        """Updates done so far."""
        return int(self.global_step.numpy())

    def train_epochs(self):
        """Trains to the end of the recipe, from wherever the run is.

        Yields:
            After each epoch that is evaluated (see `recipe.evaluation_epochs`), its row of
            `history.json`.

        Raises:
            RunStopped: if `stop_requested` was set; a checkpoint has been saved.
            FloatingPointError: if a loss or a weight is not finite.
            OSError: if a checkpoint could not be written.
        """
        if self.step and self.step % self.steps_per_epoch == 0 and self._is_evaluated():
            if not self.history or self.history[-1]["step"] != self.step:
                yield self._end_epoch({})  # stopped between checkpoint and evaluation
        while self.step < self.total_steps:
            epoch = self.step // self.steps_per_epoch
            self._start_phase(epoch)
            self._seen = []
            self._train_to((epoch + 1) * self.steps_per_epoch)
            if (epoch + 1) % self.recipe.checkpoint_epochs == 0 or self.step == self.total_steps:
                self._save()
            if self._is_evaluated():
                yield self._end_epoch(_mean_of_loops(self._seen))

    def _is_evaluated(self):
        """Whether the epoch that has just ended is one to evaluate."""
        epoch = self.step // self.steps_per_epoch
        return epoch % self.recipe.evaluation_epochs == 0 or self.step == self.total_steps

    def _train_to(self, end):
        """Trains to a step, with the checkpoints of `checkpoint_steps` on the way."""
        every = self.recipe.checkpoint_steps or end
        try:
            while self.step < end:
                target = min(end, (self.step // every + 1) * every)
                self._clock = time.monotonic()
                self.controller.train(target, checkpoint_at_completion=False)
                if target < end:
                    self._save()
        except RunStopped:
            self._save()
            raise
        except FloatingPointError as error:
            raise FloatingPointError(f"{error}\n{self._last_good()}") from error

    def _after_loop(self, output):
        now = time.monotonic()
        self.train_seconds.assign_add(now - self._clock)
        self._clock = now
        self._seen.append({k: float(v) for k, v in output.items()})
        self._on_loop(self.step)
        if self._any_worker(self.stop_requested) and self.step < self.total_steps:
            raise RunStopped

    def _start_phase(self, epoch):
        """Makes the training step anew where what is frozen changes."""
        frozen = {
            "freeze_backbone": epoch < self.recipe.freeze_backbone_epochs,
            "freeze_routers": epoch < self.recipe.freeze_routers_epochs,
        }
        if frozen == self._phase:
            return
        self._phase = frozen
        trainer = task.Trainer(
            self.model,
            task.trained_variables(self.model, **frozen),
            self.optimizer,
            self.recipe,
            self.strategy,
            self._train_dataset(self.step),
            self.global_step,
        )
        self.controller = self._controller(trainer)

    def _controller(self, trainer=None):
        return orbit.Controller(
            global_step=self.global_step,
            trainer=trainer,
            evaluator=self.evaluator,
            strategy=self.strategy,
            steps_per_loop=self.recipe.steps_per_loop,
            summary_interval=self.recipe.steps_per_loop,
            summary_dir=str(self._own / "tensorboard"),
            train_actions=[self._after_loop],
        )

    def _save(self):
        """Saves a checkpoint, unless a weight is not finite."""
        self._average_statistics()
        for variable in self.model.weights:
            if not np.isfinite(variable.numpy()).all():
                raise FloatingPointError(
                    f"{variable.path} is not finite at step {self.step}: training has diverged. "
                    f"Try a lower learning_rate or clip_norm.\n{self._last_good()}"
                )
        self.checkpoints.save(self.step)

    def _last_good(self):
        step = self.checkpoints.last_good
        if step is None:
            return "There is no checkpoint yet."
        return f"The last good checkpoint is {self.checkpoints.source / f'ckpt-{step}'}"

    def _end_epoch(self, train_metrics):
        """Evaluates, keeps the best weights, and writes the epoch's row into `history.json`."""
        self._average_statistics()
        with self._averaged():
            metrics = self._evaluate()
            row = {
                "epoch": self.step // self.steps_per_epoch,
                "step": self.step,
                **{f"train_{k}": v for k, v in train_metrics.items()},
                **metrics,
            }
            if self.recipe.wiring == "dynamic":
                row["router_health"] = {f.kind: f.message for f in self.evaluator.findings}
            best = max((r["accuracy"] for r in self.history), default=-1.0)
            if is_chief(self.strategy) and row["accuracy"] > best:
                checkpoints.save_weights(self.model, self._own / BEST_WEIGHTS)
        self.history.append(row)
        if is_chief(self.strategy):
            text = json.dumps(self.history, indent=2) + "\n"
            checkpoints.write_atomically(self._history_file, text)
        text = json.dumps(sorted(self.skipped.names)) + "\n"
        checkpoints.write_atomically(self._skipped_file, text)
        return row

    def _evaluate(self):
        if self._phase is None:
            self.controller = self._controller()
        return {name: float(value) for name, value in self.controller.evaluate().items()}

    def evaluate(self):
        """Metrics of the test split (see `task.Evaluator`), as floats."""
        self._average_statistics()
        with self._averaged():
            return self._evaluate()

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
        task.trained_variables(self.model, freeze_backbone=False, freeze_routers=False)

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


def _mean_of_loops(loops):
    """Mean loss, accuracy and images/s of the loops of an epoch, weighted by their examples."""
    if not loops:
        return {}
    weights = [loop["examples"] for loop in loops]
    means = {k: np.average([m[k] for m in loops], weights=weights) for k in ("loss", "accuracy")}
    seconds = sum(loop["examples"] / loop["images_per_second"] for loop in loops)
    return {
        **{k: float(v) for k, v in means.items()},
        "images_per_second": sum(weights) / seconds,
        "learning_rate": loops[-1]["learning_rate"],
    }


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


def weights_sha256(model):
    """SHA-256 over path, dtype, shape and bytes of all weights, in the order of their paths."""
    return variables_sha256({variable.path: variable for variable in model.weights})


def variables_sha256(variables):
    """The same of a dict of names to variables."""
    digest = hashlib.sha256()
    for name, variable in sorted(variables.items()):
        values = np.ascontiguousarray(variable.numpy())
        digest.update(f"{name} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def orbit_log(path):
    """Sends what Orbit prints (a line a loop) to a log file, and leaves the terminal alone."""
    with open(path, "a", buffering=1) as log, contextlib.redirect_stdout(log):
        yield
