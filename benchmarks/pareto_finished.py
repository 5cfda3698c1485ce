"""A finished run of `benchmarks.pareto`, loaded to be measured."""

import dataclasses
import functools

from benchmarks.accuracy_runs import load_images
from benchmarks.accuracy_studies import WEIGHTS, recipe_hash
from benchmarks.pareto_table import BASE

BATCH = 500


class Finished:
    """The network of a finished run and the images that judge it.

    Args:
        job: of `benchmarks.pareto.plan`, with its weights in its workdir.
        images: file of `benchmarks.accuracy_runs.save_images`.
        dtype: of the network, in place of the run's.

    Attributes:
        class_names: of the data.
        pixels: uint8 (images, height, width, channels).
        labels: int (images,).
        model: the network, at the threshold that the run was calibrated to.
        inputs: preprocessed images.
    """

    def __init__(self, job, images, dtype=None):
        import numpy as np

        self.job = job
        data = load_images(job.recipe, images)
        self.recipe = dataclasses.replace(job.recipe, dtype=dtype or job.recipe.dtype)
        self.class_names = data.class_names
        self.pixels, self.labels = data.test.images, data.test.labels
        self.model = self._create(self.recipe)
        self.model.load_weights(job.workdir / WEIGHTS)  # the threshold is one of them
        self.inputs = np.asarray(self.model.preprocessing(self.pixels))

    def _create(self, recipe):
        from train.classification.model import create_model

        return create_model(recipe, len(self.class_names))

    def static(self, trained=True):
        """The static ResNet-56 of the same seed, or one that is not trained.

        It is what a run with a teacher has learned from, but for those that learned from another.
        """
        changes = {"wiring": "chain", "macs_target": None, "distill_from": None}
        recipe = dataclasses.replace(self.recipe, model=BASE, distill_model=None, **changes)
        network = self._create(recipe)
        if trained:
            run = dataclasses.replace(recipe, dtype=self.job.recipe.dtype)
            folder = f"{recipe_hash(run)}-chain-{run.seed}"
            network.load_weights(self.job.workdir.parent / folder / WEIGHTS)
        return network

    def predict(self, network):
        """Logits of the images, (images, classes)."""
        return network.predict(self.inputs, batch_size=BATCH, verbose=0)

    @functools.cached_property
    def adjacency(self):
        """Dict of stage to the images' adjacency; empty for a static network."""
        import dgnet_keras as dg

        if self.recipe.wiring == "chain":
            return {}
        return dg.adjacency(self.model, self.inputs, batch_size=BATCH)

    @functools.cached_property
    def macs(self):
        """Multiply-adds of each image, int64 (images,)."""
        import numpy as np

        from dgnet_keras.complexity import model_costs

        costs = model_costs(self.model)
        if not self.adjacency:
            return np.full(len(self.labels), costs.static, "int64")
        return costs.of_images(self.adjacency, len(self.labels)).numpy()

    @property
    def shares(self):
        """Multiply-adds of each image over those of the static twin, (images,)."""
        from dgnet_keras.complexity import model_costs

        return self.macs / model_costs(self.model).static

    @property
    def taken(self):
        """Of paths, bool (images, blocks): which of the blocks after a stage's first are taken."""
        import numpy as np

        # An edge leads into a node that is taken, and always into the output.
        columns = [matrix.sum(axis=1)[:, 1:-1] > 0 for matrix in self.adjacency.values()]
        return np.concatenate(columns, axis=1)
