"""Training a tiny model for a moment."""

import keras
import numpy as np
from catalog import images


def fit(model, jit_compile):
    """Trains a model on eight images; the loss falls, and every kernel has changed."""
    before = [v.numpy() for v in model.trainable_variables]
    model.compile(
        keras.optimizers.SGD(0.05, momentum=0.5),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        jit_compile=jit_compile,
    )
    labels = np.arange(8) % 3
    history = model.fit(images(8), labels, batch_size=4, epochs=4, verbose=0).history["loss"]
    assert np.isfinite(history).all()
    assert history[-1] < history[0]
    changed = {
        v.path
        for v, old in zip(model.trainable_variables, before, strict=True)
        if not np.array_equal(v, old)
    }
    kernels = {v.path for v in model.trainable_variables if v.name == "kernel"}
    if model.backbone.wiring != "random":  # there, a node may have no way to the output
        assert kernels <= changed
