"""Keras callback that follows connectivity during `model.fit`."""

import os
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras import connectivity
from dgnet_keras.adjacencies import connectivity_model
from dgnet_keras.budget import Pressure, apply_pressure, check_target
from dgnet_keras.checks import check_preprocessed, is_number
from dgnet_keras.complexity import model_costs
from dgnet_keras.layers.wiring import BY_IMAGE, PATHS
from dgnet_keras.user_warnings import warn


class RouterHealthWarning(UserWarning):
    """The routers of a network have collapsed, or edges are dead; see `router_health`."""


class BudgetSchedule(keras.callbacks.Callback):
    """Moves a model's budget, and the noise of its paths' gates, while `model.fit` trains.

    The target comes down in a line from `start` to `model.macs_target`; until then blocks that few
    images take are kept alive; at the end there is no noise. See `budget.Pressure.at`. Of data that
    do not say how many batches they are, an epoch is as long as the one before; the first stands
    where it began.

    Args:
        start: target at the beginning, in (0, 1].
        fall: share of the training in which it comes down, in [0, 1].
        quiet: last share of the training, without noise, in [0, 1].
        floor: share of the images that a block is to be taken by at the beginning, in [0, 1]; it
            comes down to 0 in the first third.

    Raises:
        ValueError: for a value out of range; at the start of training, if the model has no
            `macs_target`, or there is but one epoch and nothing says how long it is.
    """

    def __init__(
        self, *, start: float = 1.0, fall: float = 0.5, quiet: float = 0.2, floor: float = 0.25
    ) -> None:
        super().__init__()
        check_target(start, "start")
        self._shape = {"fall": fall, "quiet": quiet, "floor": floor}
        for name, value in self._shape.items():
            if not is_number(value) or not 0 <= value <= 1:
                raise ValueError(f"`{name}` must be in [0, 1]. Received: {name}={value!r}")
        self._shape["start"] = start

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Checks that there is a budget."""
        models = [self.model, *self.model.layers]  # it may stand behind its preprocessing
        found = (m for m in models if getattr(m, "macs_target", None) is not None)
        budgeted = next(found, None)
        if budgeted is None:
            raise ValueError("BudgetSchedule needs a model with a `macs_target`. Received: None")
        self._budgeted: Any = budgeted
        self._epoch = self._done = 0
        self._steps = self.params.get("steps")
        if self._steps is None and self.params["epochs"] == 1:
            raise ValueError(
                "BudgetSchedule must know how long the training is: give `steps_per_epoch` to "
                "`fit`, or `tf.data.experimental.assert_cardinality` to the dataset. Received: one "
                "epoch of data of unknown length"
            )

    def on_epoch_begin(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes the epoch."""
        self._epoch = epoch

    def on_train_batch_begin(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Sets target, floor and noise."""
        part = min(batch / self._steps, 1.0) if self._steps else 0.0
        self._set((self._epoch + part) / self.params["epochs"])

    def on_train_batch_end(self, batch: int, logs: dict[str, Any] | None = None) -> None:
        """Counts the batches."""
        self._done = batch + 1

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Notes how long the epoch was, where the data does not say."""
        self._steps = self.params.get("steps") or self._done

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Leaves the target itself, and no noise."""
        self._set(1.0)

    def _set(self, progress):
        # A budget that was taken away while `fit` runs leaves the noise to be moved.
        target = self._budgeted.macs_target
        target = 1.0 if target is None else target
        apply_pressure(self._budgeted, Pressure.at(progress, target=target, **self._shape))


class ConnectivityMonitor(keras.callbacks.Callback):
    """Measures the connectivity of some images after every epoch; in the end warns of ill routers.

    Adds to the epoch's logs (so that `History` and `CSVLogger` have them; put the callback
    before these) `open_rate/<stage>`, share of edges open, mean over images; `router_entropy/
    <stage>`, mean over edges of the entropy in bits of whether an image has the edge open; and
    `distinct_paths`. With `log_dir`, these and the mean adjacency (as images) go to TensorBoard.
    At the end of the training of a `dynamic` or `path` network `connectivity.router_health` is
    asked, and what it finds is one `RouterHealthWarning`.

    Args:
        images: what the model takes (preprocessed), (count, height, width, channels); some
            hundreds of all classes, 256 are enough as a rule.
        log_dir: folder for TensorBoard, or None.
        patience: epochs of training that the routers' health is asked after: after fewer they may
            still be where they started.
        batch_size: images computed at a time.

    Raises:
        ValueError: if `images` is not an array of at least 2 images; at the start of training,
            if the model has no edges or takes other images.
    """

    def __init__(
        self,
        images: ArrayLike,
        *,
        log_dir: str | os.PathLike[str] | None = None,
        patience: int = 2,
        batch_size: int = 128,
    ) -> None:
        super().__init__()
        self.images = np.asarray(images)
        if self.images.ndim != 4 or len(self.images) < 2:
            raise ValueError(
                "`images` must be an array (count, height, width, channels) of at least 2. "
                f"Received: shape {self.images.shape}, {type(images).__name__}"
            )
        self.log_dir = log_dir
        self.patience = patience
        self.batch_size = batch_size
        self.findings: list[connectivity.Finding] = []
        self._writer: Any = None

    def on_train_begin(self, logs: dict[str, Any] | None = None) -> None:
        """Prepares the model that gives adjacency alone."""
        found = connectivity_model(self.model)
        if found is None:
            raise ValueError("ConnectivityMonitor needs a model with at least one edge.")
        self._connectivity: keras.Model = found
        check_preprocessed(self.images, self.model.input_shape[1:])
        self._last: tuple[int, dict[str, np.ndarray]] | None = None

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures, writes and warns."""
        found = self._connectivity.predict(self.images, batch_size=self.batch_size, verbose=0)
        if not all(np.isfinite(matrix).all() for matrix in found.values()):
            if self._last is None or self._last[1]:
                self._warn(epoch, "Edge weights are not finite: training has diverged.")
            self._last = epoch, {}
            return
        self._last = epoch, found
        metrics = connectivity.metrics(found)
        if logs is not None:
            logs.update(metrics)
        if self.log_dir is not None:
            self._write(epoch, metrics, found)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Asks for the routers' health, and closes the files."""
        if self._last and self._last[1] and self.model.wiring in BY_IMAGE:
            self._check(*self._last)
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _check(self, epoch, found):
        costs = model_costs(self.model, self.images.shape[1:3])
        self.findings = connectivity.router_health(
            found,
            is_path=self.model.wiring in PATHS,
            share=float(costs.shares(found, len(self.images)).mean()),
            target=self.model.macs_target,
        )
        if self.findings and epoch + 1 >= self.patience:
            self._warn(epoch, " ".join(finding.message for finding in self.findings))

    def _warn(self, epoch, message):
        warn(f"After epoch {epoch + 1}: {message}", RouterHealthWarning)

    def _write(self, epoch, metrics, found):
        import tensorflow as tf

        if self._writer is None:
            self._writer = tf.summary.create_file_writer(str(self.log_dir))
        with self._writer.as_default(step=epoch):
            for name, value in metrics.items():
                tf.summary.scalar(name, value)
            for name, matrices in found.items():
                heat_map = connectivity.heat_map(matrices.mean(axis=0))
                tf.summary.image(f"adjacency/{name}", heat_map[None])
        self._writer.flush()
