"""Model Garden's training and evaluation loops, of a detector whose backbone may have a budget."""

import contextlib

import tensorflow as tf
from official.core import base_trainer

from dgnet_keras.budget import Pressure, apply_pressure


class Trainer(base_trainer.Trainer):
    """Model Garden's; with a budget it moves target and noise, and says the mean share of MACs.

    The share of an evaluation is over the images of its batches: with several replicas some images
    come twice.

    Args:
        recipe: a `DetectionRecipe`.
        params: of `garden.experiment` of that recipe.
        *args: further arguments of Model Garden's.
        **kwargs: likewise.
    """

    def __init__(self, recipe, params, *args, **kwargs):
        super().__init__(params, *args, **kwargs)
        self.schedule = recipe.schedule()
        self.total_steps = params.trainer.train_steps

    @property
    def _backbone(self):
        return self.model.backbone.backbone

    @property
    def _budget(self):
        return self._backbone.budget

    def _measuring(self):
        return contextlib.nullcontext() if self._budget is None else self._budget.measuring()

    def train_loop_begin(self):
        """Forgets the figures of the loop before."""
        super().train_loop_begin()
        self._reset()

    def train_step(self, iterator):
        """One update from one global batch."""
        if self._budget is not None:
            progress = tf.cast(self.global_step, tf.float32) / self.total_steps
            schedule = {**self.schedule, "target": self._budget.target}
            apply_pressure(self._backbone, Pressure.at(progress, **schedule))
        with self._measuring():
            super().train_step(iterator)

    def train_loop_end(self):
        """Dict of the loop's figures."""
        return {**super().train_loop_end(), **self._share()}

    def eval_begin(self):
        """Forgets the figures of the evaluation before."""
        super().eval_begin()
        self._reset()

    def eval_step(self, iterator):
        """Detections in one global batch."""
        with self._measuring():
            return super().eval_step(iterator)

    def eval_end(self, aggregated_logs=None):
        """Dict of the evaluation's figures."""
        return {**super().eval_end(aggregated_logs), **self._share()}

    def _reset(self):
        if self._budget is not None:
            self._budget.share.reset_state()

    def _share(self):
        return {} if self._budget is None else {"share_of_macs": self._budget.share.result()}
