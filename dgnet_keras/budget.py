"""Budget: a loss that brings the share of multiply-adds to a target, and how both change."""

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any, Self

import keras
import tensorflow as tf

from dgnet_keras.checks import is_number
from dgnet_keras.complexity import ModelCosts, model_costs
from dgnet_keras.layers.graph import GraphStage
from dgnet_keras.layers.path_router import PathGate

OWN_PART = 0.25  # of the budget's weight, that the images' own targets have


@dataclasses.dataclass(frozen=True)
class Pressure:
    """What a budget asks for at one moment of training; floats or scalar tensors.

    Attributes:
        target: share of MACs.
        noise: what the noise of paths' gates is multiplied by.
        floor: share of the images that each block is to be taken by, at least.
    """

    target: float | tf.Tensor
    noise: float | tf.Tensor
    floor: float | tf.Tensor

    @classmethod
    def at(
        cls,
        progress: float | tf.Tensor,
        *,
        target: float,
        start: float = 1.0,
        fall: float = 0.5,
        quiet: float = 0.2,
        floor: float = 0.25,
    ) -> Self:
        """The target comes down in a line, blocks are kept alive at first, noise ends early.

        Args:
            progress: share of the training that is over, in [0, 1]; float or scalar tensor.
            target: that is reached in the end.
            start: target at the beginning.
            fall: share of the training in which the target comes down.
            quiet: last share of the training, without noise.
            floor: of the beginning; it comes down to 0 in the first third.
        """
        progress = tf.cast(progress, tf.float32)
        fallen = tf.minimum(1.0, progress / fall) if fall else 1.0
        return cls(
            target=start + (target - start) * fallen,
            noise=tf.cast(progress < 1 - quiet, tf.float32),
            floor=floor * tf.maximum(0.0, 1 - 3 * progress),
        )


class Budget:
    """The loss `weight * (mean share of MACs - target)^2` of a model, and what it is made of.

    The share is over the static twin's multiply-adds. What is on counts, as `count_macs` of each
    image does. Its gradient is straight-through: of a path's node that of its choice, else an
    edge is open as much as its weight is of the largest. To it comes
    `weight * mean over blocks of max(0, floor - share of images that take the block)^2`. With
    several replicas the means are over all of them.

    With a spread, images have targets of their own too: from `target - spread` for the one of a
    batch (a replica's) that is least in doubt to `target + spread` for the one that is most, in
    order of doubt. For them comes `weight / 4 * mean over images of (share - own target)^2`. While
    the target comes down, the spread opens.

    Args:
        model: a backbone or classifier of this package.
        target: share of MACs, in (0, 1].
        weight: of the loss, at least 0.
        spread: half of the range of the images' own targets, in [0, 1); 0 is off.

    Attributes:
        target: float, share of MACs.
        current_target: variable, the target in force; a schedule moves it.
        weight: variable.
        spread: variable.
        floor: variable, see above; 0 at first.
        share: metric of Keras's loops, the mean share.

    Raises:
        ValueError: for a target that is none, or that the model cannot reach.
    """

    def __init__(
        self, model: keras.Model, target: float, weight: float, spread: float = 0.0
    ) -> None:
        with model.distribute_strategy.scope():
            self.current_target, self._last_target, self.weight, self.spread, self.floor = (
                keras.Variable(0.0, trainable=False, autocast=False, name=name)
                for name in ("macs_target", "last_target", "macs_weight", "macs_spread", "floor")
            )
            self.share = _MeanShare(name="share_of_macs")
        self.is_measuring = False
        self.set_target(model, target)
        self.set_weight(weight)
        self.set_spread(spread)

    def set_target(self, model: keras.Model, target: float) -> None:
        """Sets the target, at once in force, without a floor; or raises as the constructor."""
        check_target(target)
        check_reachable(model, target)
        self.target = float(target)
        self._last_target.assign(target)
        self.reset()

    def reset(self) -> None:
        """Has the target itself in force, and no floor: what a schedule ends with."""
        self.current_target.assign(self.target)
        self.floor.assign(0.0)

    def set_weight(self, weight: float) -> None:
        """Sets the weight; or raises as the constructor."""
        check_weight(weight)
        self.weight.assign(weight)

    def set_spread(self, spread: float) -> None:
        """Sets the spread; or raises as the constructor."""
        check_spread(spread)
        self.spread.assign(spread)

    @contextlib.contextmanager
    def measuring(self) -> Iterator[None]:
        """Inside, calls of the model update the metric `share`."""
        self.is_measuring = True
        try:
            yield
        finally:
            self.is_measuring = False

    def measure(
        self,
        costs: ModelCosts,
        found: Mapping[str, tf.Tensor],
        scales: Mapping[str, float],
        doubt: tf.Tensor | None = None,
    ) -> tuple[tf.Tensor, tf.Tensor]:
        """The loss, and the mean share of MACs of these images: two float32 scalars.

        The loss is of the images of all replicas, the share of those of this one.

        Args:
            costs: of the model, at the size of the images.
            found: the images' adjacency.
            scales: by graph, the largest edge weight.
            doubt: of each image, (batch,), of which the order counts; None leaves the images
                without targets of their own.
        """
        total, taken = tf.zeros([]), []
        for key, graph in costs.graphs.items():
            is_open = straight_through_mask(found[key], scales[key])
            total += graph.macs(is_open)
            taken.append(tf.reduce_mean(graph.is_on(is_open), axis=0)[1:])
        shares = (total + float(costs.elsewhere)) / float(costs.static)
        share = mean = tf.reduce_mean(shares)
        rates = tf.concat(taken, axis=0)
        if tf.distribute.get_strategy().num_replicas_in_sync > 1:
            context = tf.distribute.get_replica_context()
            mean, rates = context.all_reduce("MEAN", [share, rates])
        loss = tf.square(mean - self.current_target.value)
        loss += tf.reduce_mean(tf.square(tf.nn.relu(self.floor.value - rates)))
        if doubt is not None:
            part = OWN_PART * tf.cast(self.spread.value > 0, tf.float32)
            own = self._own_targets(tf.stop_gradient(doubt))
            loss += part * tf.reduce_mean(tf.square(shares - own))
        return self.weight.value * loss, share

    def _own_targets(self, doubt):
        """Of images in this doubt, (batch,)."""
        last = tf.cast(tf.maximum(tf.size(doubt) - 1, 1), tf.float32)
        rank = tf.cast(tf.argsort(tf.argsort(doubt, stable=True), stable=True), tf.float32) / last
        rank = tf.where(tf.size(doubt) > 1, rank, 0.5)  # one is in the middle
        target = self.current_target.value
        fallen = (1 - target) / tf.maximum(1 - self._last_target.value, 1e-6)
        return target + self.spread.value * tf.clip_by_value(fallen, 0.0, 1.0) * (2 * rank - 1)


class _MeanShare(keras.metrics.Mean):
    """Of float32 under every policy: it is updated inside of a model's call, where Keras casts."""

    def add_variable(
        self,
        shape: Any,
        initializer: Any,
        dtype: Any = None,
        aggregation: str = "sum",
        name: str | None = None,
    ) -> keras.Variable:
        """As `keras.Metric.add_variable`, without casts."""
        return keras.Variable(
            initializer,
            shape=shape,
            dtype=dtype,
            trainable=False,
            autocast=False,
            aggregation=aggregation,
            synchronization="on_read",
            name=name,
        )


def straight_through_mask(matrix: tf.Tensor, edge_scale: float) -> tf.Tensor:
    """1 for an open edge, 0 for a closed one, with the gradient of `matrix / edge_scale`."""
    mass = tf.cast(matrix, tf.float32) / edge_scale
    is_open = tf.cast(matrix > 0, tf.float32)
    return is_open + (mass - tf.stop_gradient(mass))


def doubt_of(logits: tf.Tensor) -> tf.Tensor:
    """Entropy of the classes' probabilities in nats: (batch, classes) to float32 (batch,)."""
    log_p = tf.nn.log_softmax(tf.cast(logits, tf.float32))
    return -tf.reduce_sum(tf.exp(log_p) * log_p, axis=-1)


def check_target(target: float, name: str = "macs_target") -> None:
    """Raises `ValueError` unless it is in (0, 1]; `name` is what the message calls it."""
    if not is_number(target) or not 0 < target <= 1:
        raise ValueError(
            f"`{name}` must be in (0, 1], a share of the static twin's multiply-adds. "
            f"Received: {name}={target!r}"
        )


def check_weight(weight: float) -> None:
    """Raises `ValueError` unless it is a finite number of at least 0."""
    if not is_number(weight) or not 0 <= weight < float("inf"):
        raise ValueError(
            f"`macs_weight` must be a number of at least 0. Received: macs_weight={weight!r}"
        )


def check_spread(spread: float) -> None:
    """Raises `ValueError` unless it is in [0, 1)."""
    if not is_number(spread) or not 0 <= spread < 1:
        raise ValueError(
            "`macs_spread` must be in [0, 1), a share of the static twin's multiply-adds. "
            f"Received: macs_spread={spread!r}"
        )


def check_reachable(model: keras.Model, target: float) -> None:
    """Raises `ValueError` if a model has no gates, or always computes more than `target`."""
    if not any(stage.gates() for stage in stages_of(model)):
        raise ValueError(
            "A budget needs a wiring with gates and a stage of at least two blocks. "
            f"Received: wiring={model.wiring!r}, {model.name!r}"
        )
    least = model_costs(model).least_share
    if target < least:
        raise ValueError(
            f"The blocks that always run cost {least:.3f} of the static twin's multiply-adds: "
            f"less cannot be reached. Received: a target of {target}"
        )


def stages_of(model: keras.Model) -> list[GraphStage]:
    """The graph stages of a backbone or classifier, in order."""
    return [layer for layer in model.layers if isinstance(layer, GraphStage)]


def noise_states(model: keras.Model) -> dict[str, tf.Variable]:
    """By stage, what the noise of paths' gates is drawn from; not a weight of the model."""
    return {
        stage.name: gate.noise_state
        for stage in stages_of(model)
        for gate in stage.gates()
        if isinstance(gate, PathGate)
    }


def apply_pressure(model: keras.Model, pressure: Pressure) -> None:
    """Sets the target and floor in force, and the noise of paths' gates."""
    if model.budget is not None:
        model.budget.current_target.assign(pressure.target)
        model.budget.floor.assign(pressure.floor)
    for stage in stages_of(model):
        for gate in stage.gates():
            if isinstance(gate, PathGate):
                gate.noise.assign(pressure.noise)
