"""Keras callback that follows connectivity during `model.fit`."""

import os
from typing import Any

import keras
import numpy as np
from numpy.typing import ArrayLike

from dgnet_keras import connectivity
from dgnet_keras.adjacencies import connectivity_model
from dgnet_keras.checks import check_preprocessed
from dgnet_keras.user_warnings import warn


class RouterHealthWarning(UserWarning):
    """The routers of a network have collapsed, or edges are dead; see `router_health`."""


class ConnectivityMonitor(keras.callbacks.Callback):
    """Measures the connectivity of some images after every epoch, and warns of ill routers.

    Adds to the epoch's logs (so that `History` and `CSVLogger` have them; put the callback
    before these) `open_rate/<stage>`, share of edges open, mean over images; `router_entropy/
    <stage>`, mean over edges of the entropy in bits of whether an image has the edge open; and
    `distinct_paths`. With `log_dir`, these and the mean adjacency (as images) go to TensorBoard.
    For a `dynamic` network, `connectivity.router_health` is asked, and what it finds is a
    `RouterHealthWarning`, each kind once.

    Args:
        images: what the model takes (preprocessed), (count, height, width, channels); some
            hundreds of all classes, 256 are enough as a rule.
        log_dir: folder for TensorBoard, or None.
        patience: epoch of the first warning: before it routers may still be where they started.
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
        self._warned: set[str] = set()

    def on_epoch_end(self, epoch: int, logs: dict[str, Any] | None = None) -> None:
        """Measures, writes and warns."""
        found = self._connectivity.predict(self.images, batch_size=self.batch_size, verbose=0)
        if not all(np.isfinite(matrix).all() for matrix in found.values()):
            self._warn(epoch, "not_finite", "Edge weights are not finite: training has diverged.")
            return
        metrics = connectivity.metrics(found)
        if logs is not None:
            logs.update(metrics)
        if self.log_dir is not None:
            self._write(epoch, metrics, found)
        if self.model.wiring == "dynamic":
            self._check(epoch, found)

    def on_train_end(self, logs: dict[str, Any] | None = None) -> None:
        """Closes the files."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None

    def _check(self, epoch, found):
        self.findings = connectivity.router_health(found)
        if epoch + 1 < self.patience:
            return
        for finding in self.findings:
            self._warn(epoch, finding.kind, finding.message)

    def _warn(self, epoch, kind, message):
        if kind not in self._warned:
            self._warned.add(kind)
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
