"""Inference time of finished runs of `benchmarks.pareto`, in turns with the static ResNet-56."""

from benchmarks.measure import environment, paired_ratios
from benchmarks.pareto_finished import Finished
from train.turns import in_turns

BATCHES = {"1": 48, "128": 2}  # batch to number of batches of test images
REPEATS = 21


def is_measured(job):
    """Every run is."""
    return True


def measure(job, images, repeats=REPEATS):
    """Times a run's network over the static ResNet-56, on images of the split that judged it.

    Args:
        job: of `benchmarks.pareto.plan`, with its weights in its workdir.
        images: file of `accuracy_runs.save_images`.
        repeats: timed turns, each of all batches.

    Returns:
        Dict of `time`: dict of batch, as a string, to the median ratio of a turn; `quartiles`,
        likewise; and `environment`.
    """
    import numpy as np
    import tensorflow as tf

    run = Finished(job, images, dtype="float32")
    networks = {"own": run.model, "static": run.static(trained=False)}
    count = max(int(b) * n for b, n in BATCHES.items())
    pixels = run.inputs[np.random.default_rng(0).permutation(len(run.inputs))[:count]]
    medians, quartiles = {}, {}
    for batch, count in BATCHES.items():
        size = int(batch)
        batches = [tf.constant(pixels[i * size : (i + 1) * size]) for i in range(count)]
        steps = {name: _step(network, batches) for name, network in networks.items()}
        times = in_turns(steps, dict.fromkeys(steps, repeats))
        found = paired_ratios(times, [("own", "static")])["own/static"]
        medians[batch], quartiles[batch] = found["median"], found["quartiles"]
    return {"time": medians, "quartiles": quartiles, "environment": environment()}


def _step(model, batches):
    import tensorflow as tf

    signature = tf.TensorSpec((None, *batches[0].shape[1:]), tf.float32)
    answer = tf.function(
        lambda x: model(x, training=False), input_signature=[signature], autograph=False
    )

    def step():
        for batch in batches:
            answer(batch).numpy()

    return step
