"""`tf.distribute` strategies by name, and which process writes what."""

import contextlib
import json
import os
import signal
import sys

import tensorflow as tf

from dgnet_keras.checks import check_choice
from dgnet_keras.user_warnings import warn

STRATEGIES = ("one_device", "mirrored", "multi_worker", "tpu")


def make_strategy(name):
    """A `tf.distribute` strategy.

    Args:
        name: `"one_device"` (the first GPU, or the CPU), `"mirrored"` (all GPUs, or all logical
            CPU devices, of this host), `"multi_worker"` (all hosts of `TF_CONFIG`) or `"tpu"` (the
            TPU of this machine, or that of the environment variable `TPU_NAME`).

    Raises:
        ValueError: for an unknown name, `"multi_worker"` without a `TF_CONFIG` that names workers,
            or `"tpu"` where none answers.
    """
    check_choice("strategy", name, STRATEGIES)
    if name == "multi_worker":
        return _multi_worker_strategy()
    if name != "tpu" and len(_workers()) > 1:
        warn(
            f"TF_CONFIG names {len(_workers())} workers, but the strategy {name!r} trains on this "
            "host alone, and each of them would write into the same workdir: expected --strategy "
            "multi_worker."
        )
    if name == "tpu":
        return _tpu_strategy()
    if name == "one_device":
        return one_device()
    devices = tf.config.list_logical_devices("GPU") or tf.config.list_logical_devices("CPU")
    return tf.distribute.MirroredStrategy([device.name for device in devices])


def one_device():
    """The strategy of the first GPU, or of the CPU."""
    gpus = tf.config.list_logical_devices("GPU")
    return tf.distribute.OneDeviceStrategy("/gpu:0" if gpus else "/cpu:0")


def _workers():
    """Addresses of the workers in the environment variable TF_CONFIG, chief first."""
    text = os.environ.get("TF_CONFIG") or "{}"
    try:
        cluster = json.loads(text).get("cluster") or {}
        return [address for kind in ("chief", "worker") for address in cluster.get(kind, ())]
    except (ValueError, AttributeError, TypeError) as error:
        raise ValueError(
            "The environment variable TF_CONFIG must be JSON such as "
            '{"cluster": {"worker": ["host0:2222", "host1:2222"]}, "task": {"type": "worker", '
            f'"index": 0}}}}. Received: {text!r} ({error})'
        ) from error


def _multi_worker_strategy():
    workers = _workers()
    if not workers:
        raise ValueError(
            "The strategy 'multi_worker' needs the environment variable TF_CONFIG, which names the "
            "workers of the cluster and which of them this process is. "
            f"Received: {os.environ.get('TF_CONFIG')!r}"
        )
    print(f"Waiting for all workers of TF_CONFIG: {', '.join(workers)}", file=sys.stderr)
    with _interruptible():
        # Before anything else asks for devices: collectives are set up at program start-up.
        return tf.distribute.MultiWorkerMirroredStrategy()


@contextlib.contextmanager
def _interruptible():
    """Within the context Ctrl-C ends the process at once.

    TensorFlow waits for the other workers in C++, where no signal handler of Python's runs. (It
    takes SIGTERM itself, and heeds it only later.)
    """
    try:
        before = signal.signal(signal.SIGINT, signal.SIG_DFL)
    except ValueError:  # not in the main thread
        yield
        return
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


def _tpu_strategy():
    address = os.environ.get("TPU_NAME", "local")
    try:
        resolver = tf.distribute.cluster_resolver.TPUClusterResolver(tpu=address)
        if address != "local":
            tf.config.experimental_connect_to_cluster(resolver)
        tf.tpu.experimental.initialize_tpu_system(resolver)
    except (ValueError, RuntimeError, tf.errors.OpError) as error:
        reason = str(error).strip().splitlines()
        raise ValueError(
            f"The strategy 'tpu' needs a TPU and a TensorFlow built for it. None answers at "
            f"{address!r} (TPU_NAME): {reason[0] if reason else type(error).__name__}"
        ) from error
    return tf.distribute.TPUStrategy(resolver)


def is_chief(strategy):
    """Whether this process writes what a run leaves behind."""
    resolver = strategy.cluster_resolver
    return resolver is None or not resolver.task_type or resolver.task_id == 0


def averaging(strategy, variables):
    """A function that makes every replica's copy of the variables the mean over replicas.

    Batch normalisation that is not synchronised leaves other statistics on each replica: without
    this a checkpoint would hold those of the first, and evaluation would use all of them.

    Args:
        strategy: a `tf.distribute` strategy.
        variables: TensorFlow variables.
    """
    if strategy.num_replicas_in_sync == 1:
        return lambda: None

    def average():
        context = tf.distribute.get_replica_context()
        values = [tf.identity(v) for v in variables]
        means = context.all_reduce(tf.distribute.ReduceOp.MEAN, values)
        for variable, mean in zip(variables, means, strict=True):
            variable.assign(mean)

    return tf.function(lambda: strategy.run(average))


def agreement(strategy):
    """A function of a bool that says whether it is true in any process; all must call it."""
    if not isinstance(strategy, tf.distribute.MultiWorkerMirroredStrategy):
        return lambda flag: flag

    @tf.function
    def total(flag):
        return strategy.reduce(
            tf.distribute.ReduceOp.SUM, strategy.run(tf.identity, args=(flag,)), axis=None
        )

    return lambda flag: bool(total(tf.constant(float(flag))) > 0)


@contextlib.contextmanager
def moved(strategy, variables, finalize):
    """Within the context the variables have the values that `finalize()` gives them."""
    with strategy.scope():
        values = [v.numpy() for v in variables]
        finalize()
    try:
        yield
    finally:
        with strategy.scope():
            for variable, value in zip(variables, values, strict=True):
                variable.assign(value)
