"""Training engine: a recipe and a workdir in, a trained, evaluated, exported model out.

The loop runs on Orbit under a `tf.distribute` strategy; `model.fit` works on the same models, but
not under every strategy (Keras issue 20585).
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import time

import keras
import numpy as np
import orbit
import tensorflow as tf

import dgnet_keras as dg
from dgnet_keras.layers.gate import check_choice
from train import input_pipeline

STRATEGIES = ("one_device", "mirrored", "multi_worker")


def make_strategy(name):
    """A `tf.distribute` strategy.

    Args:
        name: `"one_device"` (the first GPU, or the CPU), `"mirrored"` (all GPUs, or all logical
            CPU devices, of this host) or `"multi_worker"` (all hosts of `TF_CONFIG`).

    Raises:
        ValueError: for an unknown name, or `"multi_worker"` without `TF_CONFIG`.
    """
    check_choice("strategy", name, STRATEGIES)
    if name == "multi_worker":
        if "TF_CONFIG" not in os.environ:
            raise ValueError(
                "The strategy 'multi_worker' needs the environment variable TF_CONFIG, which "
                "names the workers and which of them this process is."
            )
        # Before anything else asks for devices: collectives are set up at program start-up.
        return tf.distribute.MultiWorkerMirroredStrategy()
    gpus = tf.config.list_logical_devices("GPU")
    if name == "one_device":
        return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")
    devices = gpus or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def is_chief(strategy):
    """Whether this process writes what a run leaves behind."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_type or resolver.task_id == 0


def write_atomically(path, text):
    """Writes a text file that appears whole or not at all."""
    scratch = path.with_name(path.name + ".tmp")
    scratch.write_text(text)
    os.replace(scratch, path)


def own_folder(workdir, strategy):
    """The workdir, or for a worker that is not the chief, which must write too, a folder in it."""
    if is_chief(strategy):
        return workdir
    return workdir / f".worker-{strategy.cluster_resolver.task_id}"


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
    return model


def create_optimizer(recipe, steps_per_epoch):
    """SGD with Nesterov momentum; linear warm-up, then cosine decay to 0."""
    total = recipe.epochs * steps_per_epoch
    warmup = min(round(recipe.warmup_epochs * steps_per_epoch), total - 1)
    schedule = keras.optimizers.schedules.CosineDecay(
        initial_learning_rate=0.0 if warmup else recipe.learning_rate,
        decay_steps=total - warmup,
        warmup_target=recipe.learning_rate if warmup else None,
        warmup_steps=warmup,
    )
    return keras.optimizers.SGD(
        schedule, momentum=recipe.momentum, nesterov=recipe.momentum > 0, name="optimizer"
    )


class Task(orbit.StandardTrainer, orbit.StandardEvaluator):
    """One training step and one evaluation step, and the sums that metrics are made of.

    Args:
        model: a classifier, made in the strategy's scope.
        optimizer: a Keras optimizer, made in the strategy's scope.
        recipe: a `Recipe`.
        strategy: the `tf.distribute` strategy.
        test_dataset: distributed batches of the test split.
    """

    def __init__(self, model, optimizer, recipe, strategy, test_dataset):
        orbit.StandardTrainer.__init__(self, None)
        orbit.StandardEvaluator.__init__(self, test_dataset)
        self.model = model
        self.optimizer = optimizer
        self.recipe = recipe
        self.strategy = strategy
        # L2 on every kernel, routers' included; biases and normalisation are of rank 1 or 0.
        self.decayed = [v for v in model.trainable_variables if len(v.shape) > 1]
        self.sums = {name: tf.Variable(0.0) for name in ("loss", "correct", "weight")}

    def losses(self, logits, labels):
        """Cross-entropy of each example, (batch,)."""
        classes = logits.shape[-1]
        smooth = self.recipe.label_smoothing
        targets = tf.one_hot(labels, classes) * (1 - smooth) + smooth / classes
        return tf.nn.softmax_cross_entropy_with_logits(targets, logits)

    def train_loop_begin(self):
        """Forgets the sums of the loop before."""
        self._reset()

    def train_step(self, iterator):
        """One update from one global batch."""
        self._accumulate(self.strategy.run(self._train_replica, args=(next(iterator),)))

    def _train_replica(self, batch):
        variables = self.model.trainable_variables
        with tf.GradientTape() as tape:
            logits = self.model(batch["image"], training=True)
            losses = self.losses(logits, batch["label"]) * batch["weight"]
            # The optimizer sums gradients over replicas: the loss is a share of the whole batch.
            loss = tf.reduce_sum(losses) / self.recipe.batch_size
            decay = tf.add_n([tf.nn.l2_loss(v.value) for v in self.decayed])
            replicas = self.strategy.num_replicas_in_sync
            loss += self.recipe.weight_decay * decay / replicas
        gradients = tape.gradient(loss, [v.value for v in variables])
        self.optimizer.apply(gradients, variables)
        return _sums(losses, logits, batch)

    def train_loop_end(self):
        """Means over the loop's examples.

        Raises:
            ValueError: if none of the loop's images could be decoded.
            FloatingPointError: if the loss is not finite.
        """
        means = self._means("training")
        if not np.isfinite(means["loss"].numpy()):
            raise FloatingPointError(
                f"The loss is {means['loss'].numpy()} at step {int(self.optimizer.iterations)}: "
                "training has diverged. Try a lower learning_rate or a longer warm-up."
            )
        return {**means, "learning_rate": self.optimizer.learning_rate}

    def eval_begin(self):
        """Forgets the sums of the loop before."""
        self._reset()

    def eval_step(self, iterator):
        """Sums over one global batch of the test split."""
        self._accumulate(self.strategy.run(self._test_replica, args=(next(iterator),)))

    def _test_replica(self, batch):
        logits = self.model(batch["image"], training=False)
        losses = self.losses(logits, batch["label"]) * batch["weight"]
        return _sums(losses, logits, batch)

    def eval_end(self):
        """Means over the test split."""
        return {**self._means("test"), "examples": self.sums["weight"].read_value()}

    def _reset(self):
        for total in self.sums.values():
            total.assign(0.0)

    def _accumulate(self, sums):
        for name, value in sums.items():
            reduced = self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            self.sums[name].assign_add(reduced)

    def _means(self, split):
        weight = self.sums["weight"].read_value()
        if not weight.numpy():
            raise ValueError(f"None of these {split} images could be decoded.")
        return {
            "loss": self.sums["loss"] / weight,
            "accuracy": self.sums["correct"] / weight,
        }


def _sums(losses, logits, batch):
    hits = tf.cast(tf.argmax(logits, axis=-1) == batch["label"], tf.float32)
    return {
        "loss": tf.reduce_sum(losses),
        "correct": tf.reduce_sum(hits * batch["weight"]),
        "weight": tf.reduce_sum(batch["weight"]),
    }


class Run:
    """A recipe at work: data, model, optimizer; once opened in a workdir, checkpoints and loop.

    Args:
        recipe: a `Recipe`.
        data: `ImageData`.
        strategy: a `tf.distribute` strategy.

    Raises:
        ValueError: if the replicas do not divide the batch, the data does not fill one, or the
            recipe does not make a model.
    """

    def __init__(self, recipe, data, strategy):
        replicas = strategy.num_replicas_in_sync
        if recipe.batch_size % replicas:
            raise ValueError(
                "`batch_size` must be a multiple of the number of replicas. Received: "
                f"batch_size={recipe.batch_size}, {replicas} replicas"
            )
        received = data.train.images
        if received is not None and received.shape[-1] != recipe.input_shape[-1]:
            raise ValueError(
                f"`input_shape` must have the images' {received.shape[-1]} channels. "
                f"Received: input_shape={recipe.input_shape}"
            )
        if received is None and recipe.input_shape[-1] not in (1, 3):
            raise ValueError(
                "Image files are read with 1 or 3 channels. Received: "
                f"input_shape={recipe.input_shape}"
            )
        self.recipe = recipe
        self.data = data
        self.strategy = strategy
        self.skipped = input_pipeline.SkippedImages()
        self.steps_per_epoch = input_pipeline.steps_per_epoch(data.train, recipe)
        self.total_steps = recipe.epochs * self.steps_per_epoch
        with strategy.scope():
            self.model = create_model(recipe, len(data.class_names))
            self.optimizer = create_optimizer(recipe, self.steps_per_epoch)
            self.optimizer.build(self.model.trainable_variables)
            self.train_seconds = tf.Variable(0.0, dtype=tf.float64, trainable=False)
        self.task = Task(self.model, self.optimizer, recipe, strategy, self._test_dataset())

    def open(self, workdir, on_loop=lambda step: None):
        """Goes on from the newest checkpoint of the workdir, or starts there.

        Args:
            workdir: `pathlib.Path` of the folder that the run writes into.
            on_loop: called with the step after every `recipe.steps_per_loop` steps.
        """
        own = own_folder(workdir, self.strategy)
        self._skipped_file = own / "skipped_images.json"
        if self._skipped_file.exists():
            self.skipped.names |= set(json.loads(self._skipped_file.read_text()))
        checkpoint = tf.train.Checkpoint(
            model=by_path(self.model.weights),
            optimizer=by_path(self.optimizer.variables),
            train_seconds=self.train_seconds,
        )
        newest = tf.train.latest_checkpoint(workdir / "checkpoints")
        if newest is not None:
            with self.strategy.scope():
                checkpoint.restore(newest).assert_consumed()
        self.manager = tf.train.CheckpointManager(
            checkpoint,
            directory=str(own / "checkpoints"),
            max_to_keep=self.recipe.checkpoints_kept,
            checkpoint_name="ckpt",
        )
        self.controller = orbit.Controller(
            global_step=self.optimizer.iterations.value,
            trainer=self.task,
            evaluator=self.task,
            strategy=self.strategy,
            steps_per_loop=self.recipe.steps_per_loop,
            summary_interval=self.recipe.steps_per_loop,
            summary_dir=str(own / "tensorboard"),
            train_actions=[lambda _: on_loop(self.step)],
        )
        self.task.train_dataset = self._train_dataset(self.step)

    @property
    def step(self):
        """Updates done so far."""
        return int(self.optimizer.iterations.numpy())

    def train_epochs(self):
        """Trains to the end of the recipe, from wherever the run is.

        Yields:
            After each epoch and its evaluation, dict of `epoch`, `loss`, `accuracy` (test split).
        """
        while self.step < self.total_steps:
            epoch = self.step // self.steps_per_epoch + 1
            start = time.monotonic()
            self.controller.train(epoch * self.steps_per_epoch, checkpoint_at_completion=False)
            self.train_seconds.assign_add(time.monotonic() - start)
            if epoch % self.recipe.checkpoint_epochs == 0 or self.step == self.total_steps:
                self.manager.save(checkpoint_number=self.step)
            metrics = self.evaluate()
            write_atomically(self._skipped_file, json.dumps(sorted(self.skipped.names)) + "\n")
            yield {"epoch": epoch, **metrics}

    def evaluate(self):
        """Loss, accuracy and number of examples of the test split, as floats."""
        return {name: float(value) for name, value in self.controller.evaluate().items()}

    def _train_dataset(self, start_step):
        return self.strategy.distribute_datasets_from_function(
            lambda context: input_pipeline.train_batches(
                self.data.train,
                self.model.preprocessing,
                self.recipe,
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


def set_determinism(recipe):
    """Seeds what is seeded globally, and makes operations repeatable if the recipe says so."""
    keras.utils.set_random_seed(recipe.seed)
    if recipe.deterministic:
        tf.config.experimental.enable_op_determinism()


def by_path(variables):
    """Keras variables as what `tf.train.Checkpoint` saves whole: TensorFlow variables by path.

    Given a Keras 3 model, `tf.train.Checkpoint` saves no layer that is kept in a list or dict.
    """
    holder = tf.Module()
    holder.variables_by_path = {variable.path: variable.value for variable in variables}
    return holder


def weights_sha256(model):
    """SHA-256 over path, dtype, shape and bytes of all weights, in the order of their paths."""
    digest = hashlib.sha256()
    for variable in sorted(model.weights, key=lambda v: v.path):
        values = np.ascontiguousarray(variable.numpy())
        digest.update(f"{variable.path} {values.dtype} {values.shape}".encode())
        digest.update(values.tobytes())
    return digest.hexdigest()


@contextlib.contextmanager
def orbit_log(path):
    """Sends what Orbit prints (a line a loop) to a log file, and leaves the terminal alone."""
    with open(path, "a", buffering=1) as log, contextlib.redirect_stdout(log):
        yield
