"""One training step and one evaluation step, and the sums that metrics are made of."""

import time

import keras
import numpy as np
import orbit
import tensorflow as tf

from dgnet_keras import connectivity
from dgnet_keras.budget import Pressure, apply_pressure, doubt_of
from dgnet_keras.complexity import model_costs
from dgnet_keras.distillation import divergence
from dgnet_keras.layers.wiring import BY_IMAGE, PATHS
from dgnet_keras.weights import is_wiring_weight
from train.classification.losses import losses_of
from train.classification.optimizers import is_decayed


def _sums(losses, logits, batch):
    """What a replica adds to a loop's sums. `losses` are weighted."""
    label = tf.argmax(batch["target"], axis=-1) if "target" in batch else batch["label"]
    hits = tf.cast(tf.argmax(logits, axis=-1) == label, tf.float32)
    return {
        "loss": tf.reduce_sum(losses),
        "correct": tf.reduce_sum(hits * batch["weight"]),
        "weight": tf.reduce_sum(batch["weight"]),
    }


class Trainer(orbit.StandardTrainer):
    """Updates of the weights that are not frozen.

    Of every global batch, each replica takes its share in `recipe.accumulation_steps` parts. The
    loss is a mean over the global batch, so gradients are summed: over parts, then over replicas.

    Args:
        model: a classifier, made in the strategy's scope.
        variables: Keras variables that are trained.
        optimizer: a Keras optimizer, made in the strategy's scope.
        recipe: a `Recipe`.
        strategy: the `tf.distribute` strategy.
        dataset: distributed training batches.
        global_step: `tf.Variable` that counts updates.
        total_steps: updates of the whole recipe.
        teacher: a static classifier to learn from, or None.
    """

    def __init__(
        self,
        model,
        variables,
        optimizer,
        recipe,
        strategy,
        dataset,
        global_step,
        *,
        total_steps=1,
        teacher=None,
    ):
        super().__init__(dataset)
        self.total_steps = total_steps
        self.teacher = teacher
        self.model = model
        self.trained = variables
        self.optimizer = optimizer
        self.recipe = recipe
        self.strategy = strategy
        self.global_step = global_step
        names = ["loss", "correct", "weight"] + ["macs"] * (model.budget is not None)
        self.sums = {name: tf.Variable(0.0) for name in names}
        self.failed_step = tf.Variable(0, dtype=tf.int64)
        # Clipping needs the gradient of the whole batch; loss scaling needs all replicas to agree
        # whether it is finite.
        clips = recipe.clip_norm is not None or recipe.router_clip_norm is not None
        self.reduce_first = clips or recipe.dtype == "mixed_float16"
        self.decay = recipe.weight_decay if recipe.optimizer == "sgd" else 0.0

    def train_loop_begin(self):
        """Forgets the sums of the loop before."""
        for total in self.sums.values():
            total.assign(0.0)
        self._start = time.monotonic()

    def train_step(self, iterator):
        """One update from one global batch."""
        if self.recipe.macs_target is not None:
            progress = tf.cast(self.global_step, tf.float32) / self.total_steps
            apply_pressure(self.model, Pressure.at(progress, **self.recipe.schedule()))
        sums = self.strategy.run(self._update, args=(next(iterator),))
        for name, value in sums.items():
            reduced = self.strategy.reduce(tf.distribute.ReduceOp.SUM, value, axis=None)
            self.sums[name].assign_add(reduced)
        self.global_step.assign_add(1)
        if self.failed_step == 0 and not tf.math.is_finite(self.sums["loss"]):
            self.failed_step.assign(tf.cast(self.global_step, tf.int64))

    def _update(self, batch):
        parts = self.recipe.accumulation_steps
        gradients, sums = None, None
        for part in _split(batch, parts):
            # One after the other: the maps of one part are freed before the next needs them.
            with tf.control_dependencies(gradients or ()):
                new_gradients, new_sums = self._gradients(part)
            if gradients is None:
                gradients, sums = new_gradients, new_sums
            else:
                gradients = [a + b for a, b in zip(gradients, new_gradients, strict=True)]
                sums = {name: sums[name] + new_sums[name] for name in sums}
        self._apply(gradients)
        return sums

    def _gradients(self, batch):
        """Gradients of this part's share of the loss (scaled, in float16) and its sums."""
        wanted = None
        if self.teacher is not None:
            wanted = tf.stop_gradient(self.teacher(batch["image"], training=False))
        with tf.GradientTape() as tape:
            logits, budget, share = self._answer(batch["image"], wanted)
            losses = losses_of(logits, batch, self.recipe.label_smoothing) * batch["weight"]
            loss = tf.reduce_sum(losses) / self.recipe.batch_size
            if budget is not None:  # a mean over this part
                parts = self.strategy.num_replicas_in_sync * self.recipe.accumulation_steps
                loss += budget / parts
            if wanted is not None:
                loss += self.recipe.distill_weight * self._divergence(batch, wanted, logits)
            scaled = self.optimizer.scale_loss(loss)
        gradients = tape.gradient(scaled, [v.value for v in self.trained])
        gradients = [
            tf.zeros_like(v.value) if g is None else tf.convert_to_tensor(g)
            for g, v in zip(gradients, self.trained, strict=True)
        ]
        sums = _sums(losses, logits, batch)
        return gradients, sums if share is None else sums | {"macs": share * sums["weight"]}

    def _answer(self, images, wanted):
        """Logits; the budget's loss and the share of MACs, or None for both."""
        if self.model.budget is None:
            return self.model(images, training=True), None, None
        doubt = None if wanted is None else doubt_of(wanted)
        return self.model.call_with_budget(images, training=True, doubt=doubt)

    def _divergence(self, batch, wanted, logits):
        divergences = divergence(wanted, logits, self.recipe.distill_temperature)
        return tf.reduce_sum(divergences * batch["weight"]) / self.recipe.batch_size

    def _apply(self, gradients):
        # `apply` sums over replicas itself: what is the same on all of them is divided first.
        replicas = self.strategy.num_replicas_in_sync
        scale = self.optimizer.scale_loss(tf.ones(()))
        if self.reduce_first:
            context = tf.distribute.get_replica_context()
            gradients = context.all_reduce(tf.distribute.ReduceOp.SUM, gradients)
            gradients = self._clipped(gradients, scale)
            gradients = [g / replicas for g in gradients]
        if self.decay:
            gradients = [
                g + self.decay / replicas * scale * v.value if is_decayed(v) else g
                for g, v in zip(gradients, self.trained, strict=True)
            ]
        self.optimizer.apply(gradients, self.trained)

    def _clipped(self, gradients, scale):
        """The gradients, within the recipe's norms: the wiring's own, where it has one."""
        clip_norm, own = self.recipe.clip_norm, self.recipe.router_clip_norm
        wiring = [own is not None and is_wiring_weight(v.path) for v in self.trained]
        for limit, of_wiring in ((clip_norm, False), (own, True)):
            which = [k for k, is_wiring in enumerate(wiring) if is_wiring == of_wiring]
            if limit is not None and which:
                some = [gradients[k] for k in which]
                clipped, _ = tf.clip_by_global_norm(some, limit * scale)
                gradients = [
                    clipped[which.index(k)] if k in which else g for k, g in enumerate(gradients)
                ]
        return gradients

    def train_loop_end(self):
        """Means over the loop's examples.

        Raises:
            ValueError: if none of the loop's images could be decoded.
            FloatingPointError: if a loss was not finite; the message says at which step.
        """
        means = _means(self.sums, "training")
        if self.failed_step > 0:
            raise FloatingPointError(
                f"The loss is not finite at step {int(self.failed_step)}: training has diverged. "
                "Try a lower learning_rate, a longer warm-up or clip_norm."
            )
        seconds = time.monotonic() - self._start
        if "macs" in self.sums:
            means["share_of_macs"] = self.sums["macs"] / self.sums["weight"].read_value()
        return {
            **means,
            "examples": self.sums["weight"].read_value(),
            "learning_rate": self.optimizer.learning_rate,
            "images_per_second": float(self.sums["weight"]) / seconds,
        }


def _split(batch, parts):
    """The batch in equal parts, each a dict like it."""
    if parts == 1:
        return [batch]
    columns = {key: tf.split(value, parts) for key, value in batch.items()}
    return [{key: column[k] for key, column in columns.items()} for k in range(parts)]


def _means(sums, split):
    weight = sums["weight"].read_value()
    if not weight.numpy():
        raise ValueError(f"None of these {split} images could be decoded.")
    return {"loss": sums["loss"] / weight, "accuracy": sums["correct"] / weight}


class Evaluator(orbit.StandardEvaluator):
    """Loss, accuracy and connectivity over the test split.

    Args:
        model: a classifier, made in the strategy's scope.
        recipe: a `Recipe`.
        strategy: the `tf.distribute` strategy.
        dataset: distributed batches of the test split.

    Attributes:
        findings: of `connectivity.router_health` in the last evaluation; none unless the wiring is
            `dynamic` or `path`.
    """

    def __init__(self, model, recipe, strategy, dataset):
        super().__init__(dataset)
        self.recipe = recipe
        self.strategy = strategy
        self.stages = dict(model.adjacency_outputs)
        self.costs = model_costs(model)
        self.findings = []
        self.model = keras.Model(model.input, {"logits": model.output, **self.stages})

    def eval_begin(self):
        """Starts new sums."""
        return {"sums": {}, "paths": set()}

    def eval_step(self, iterator):
        """Sums over one global batch; the weight of each image, and its adjacency by stage."""
        sums, weight, adjacency = self.strategy.run(self._evaluate, args=(next(iterator),))
        add = tf.distribute.ReduceOp.SUM
        return {
            "sums": {k: self.strategy.reduce(add, v, axis=None) for k, v in sums.items()},
            "weight": self.strategy.gather(weight, axis=0),
            "adjacency": {k: self.strategy.gather(v, axis=0) for k, v in adjacency.items()},
        }

    def _evaluate(self, batch):
        adjacency = self.model(batch["image"], training=False)
        logits = adjacency.pop("logits")
        losses = losses_of(logits, batch, self.recipe.label_smoothing)
        return _sums(losses * batch["weight"], logits, batch), batch["weight"], adjacency

    def eval_reduce(self, state, step_outputs):
        """Adds a step's sums (float64, on the host) and paths."""
        kept = step_outputs["weight"].numpy() > 0
        edges = {k: v.numpy()[kept].astype("float64") for k, v in step_outputs["adjacency"].items()}
        sums = {k: v.numpy().astype("float64") for k, v in step_outputs["sums"].items()}
        if edges:
            sums["macs"] = self.costs.shares(edges, int(kept.sum())).sum()
        for stage, weights in edges.items():
            sums[f"mean/{stage}"] = weights.sum(axis=0)
            sums[f"square/{stage}"] = np.square(weights).sum(axis=0)
            sums[f"open/{stage}"] = (weights > 0).sum(axis=0)
            sums[f"used/{stage}"] = connectivity.used_nodes(weights > 0).sum(axis=0)
        paths = np.packbits(connectivity.flat_edges(edges) > 0, axis=1) if edges else ()
        return {
            "sums": {name: value + state["sums"].get(name, 0) for name, value in sums.items()},
            "paths": state["paths"].union(path.tobytes() for path in paths),
        }

    def _edge_statistics(self, sums):
        def means(name):
            return {stage: sums[f"{name}/{stage}"] / sums["weight"] for stage in self.stages}

        mean, square = means("mean"), means("square")
        std = {s: np.sqrt(np.maximum(square[s] - mean[s] ** 2, 0)) for s in self.stages}
        return connectivity.EdgeStatistics(means("open"), mean, std, means("used"))

    def eval_end(self, state):
        """Means over the test split, as floats; mean adjacency goes to TensorBoard as images.

        Returns:
            Dict: `loss`, `accuracy`, `examples`; for networks with edges also `open_rate/<stage>`
            (share of the stage's edges that an image keeps open, on average),
            `router_entropy/<stage>` (mean over edges of the entropy, in bits, of whether an
            image has the edge open; 0 where all images agree), `distinct_paths` (number of
            different sets of open edges among the images) and `share_of_macs` (multiply-adds that
            an image computes over the static twin's, on average).

        Raises:
            ValueError: if none of the images could be decoded.
        """
        sums = state["sums"]
        weight = sums["weight"]
        if not weight:
            raise ValueError("None of these test images could be decoded.")
        metrics = {
            "loss": sums["loss"] / weight,
            "accuracy": sums["correct"] / weight,
            "examples": weight,
        }
        if self.stages:
            statistics = self._edge_statistics(sums)
            metrics |= connectivity.edge_metrics(statistics.open_rate)
            metrics["distinct_paths"] = len(state["paths"])
            metrics["share_of_macs"] = sums["macs"] / weight
            for stage, mean in statistics.mean_weight.items():
                heat_map = connectivity.heat_map(mean)
                tf.summary.image(f"adjacency/{stage}", heat_map[None])
            if self.recipe.wiring in BY_IMAGE:
                self.findings = connectivity.router_health(
                    statistics,
                    is_path=self.recipe.wiring in PATHS,
                    share=float(metrics["share_of_macs"]),
                    target=self.recipe.macs_target,
                )
        return {name: float(value) for name, value in metrics.items()}
