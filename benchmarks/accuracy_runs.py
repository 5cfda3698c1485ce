"""Running the jobs of `benchmarks.accuracy`: their images, each run, several at a time."""

import concurrent.futures
import dataclasses
import multiprocessing
import os
import pathlib
import shutil
import sys

from benchmarks.accuracy_studies import WEIGHTS
from benchmarks.accuracy_table import append_row
from benchmarks.measure import commit


def images_file(workdir, dataset):
    """Where the runs of a workdir find the decoded images of a data set."""
    return workdir / f"{dataset}-images.npz"


def save_images(recipe, data_dir, path):
    """Loads a recipe's data and, unless it is there, writes it decoded to `path` (.npz).

    Raises:
        ValueError: if `path` holds other data.
    """
    import numpy as np

    from train.classification import datasets

    source = f"{recipe.dataset} {data_dir and pathlib.Path(data_dir).resolve()}"
    if path.exists():
        with np.load(path) as parts:
            if (there := str(parts["source"])) != source:
                raise ValueError(f"{path} holds the images of {there!r}, not of {source!r}")
        return
    data = datasets.load_data(dataclasses.replace(recipe, validation=0.0), data_dir)
    parts = {"class_names": np.array(data.class_names), "source": np.array(source)}
    for name, split in (("train", data.train), ("test", data.test)):
        split = split.decoded()
        parts |= {f"{name}_images": split.images, f"{name}_labels": split.labels}
    path.parent.mkdir(parents=True, exist_ok=True)
    scratch = path.with_suffix(f".{os.getpid()}.npz")
    np.savez(scratch, **parts)
    os.replace(scratch, path)


def load_images(recipe, path):
    """What `save_images` wrote, as `ImageData`, with the recipe's validation images held out."""
    import numpy as np

    from train.classification import datasets

    with np.load(path) as parts:
        data = datasets.ImageData(
            tuple(parts["class_names"].tolist()),
            *(
                datasets.Split(parts[f"{name}_labels"], images=parts[f"{name}_images"])
                for name in ("train", "test")
            ),
        )
    return datasets.with_validation(data, recipe)


def train_once(job, images, cores=None):
    """Trains one job to its end and returns its row. To be called in a process of its own.

    Args:
        job: a `Job`.
        images: file of `save_images`.
        cores: queue that a core is taken from while the job runs, or None to use all.
    """
    core = None if cores is None else cores.get()
    if core is not None:  # before TensorFlow counts the cores
        os.sched_setaffinity(0, {core})
    try:
        return _train_once(job, images)
    finally:
        if core is not None:
            cores.put(core)


def _train_once(job, images):
    import dgnet_keras as dg
    from train.classification.run import ClassificationRun, configure
    from train.loop import orbit_log
    from train.strategies import make_strategy
    from train.weights import save_weights

    data = load_images(job.recipe, images)
    configure(job.recipe)
    run = ClassificationRun(job.recipe, data, make_strategy("one_device"), job.init_from)
    run.restore(job.workdir)
    job.workdir.mkdir(parents=True, exist_ok=True)
    with orbit_log(job.workdir / "train.log"):
        for _ in run.train_epochs():
            pass
        run.finish()
        budget = _calibrated(run)
    last = {**run.history[-1], **budget.pop("metrics", {})}
    save_weights(run.model, job.workdir / WEIGHTS)
    counted = dg.count_macs(run.model)
    connectivity = ("open_rate/", "router_entropy/", "distinct_paths", "share_of_macs")
    return {
        **job.identity,
        **budget,
        "test_accuracy": last["accuracy"],
        "test_loss": last["loss"],
        "train_accuracy": last.get("train_accuracy"),
        "parameters": counted["parameters"],
        "macs": counted["macs"],
        "seconds": round(float(run.train_seconds.numpy()), 1),
        **{key: value for key, value in last.items() if key.startswith(connectivity)},
    }


def _calibrated(run):
    """Of a run with a budget the static twin's multiply-adds, and what its calibration found."""
    from dgnet_keras.complexity import model_costs
    from train.classification.calibration import calibrate_run

    if run.recipe.macs_target is None:
        return {}
    return {"static_macs": model_costs(run.model).static, **calibrate_run(run)}


def run_jobs(jobs, images, rows, parallel):
    """Runs jobs, `parallel` at a time on a core each, and appends their rows to the file `rows`.

    A run that diverges leaves no row, and is tried again next time.

    Yields:
        Each row as it is written.
    """
    checked_out = commit()
    context = multiprocessing.get_context("spawn")
    available = sorted(os.sched_getaffinity(0))
    with (
        context.Manager() as manager,
        concurrent.futures.ProcessPoolExecutor(
            parallel, mp_context=context, max_tasks_per_child=1
        ) as pool,
    ):
        cores = manager.Queue()
        for k in range(parallel):
            cores.put(available[k % len(available)])
        futures = {pool.submit(train_once, job, images, cores): job for job in jobs}
        for future in _completed(futures):
            try:
                row = {**future.result(), "commit": checked_out}
            except FloatingPointError as error:  # the others go on
                print(f"{futures[future].workdir}: {error}", file=sys.stderr)
                continue
            append_row(rows, row)
            _tidy(futures[future].workdir)
            yield row


def _completed(futures):
    """The futures as they finish; whatever stops this process stops its workers."""
    try:
        yield from concurrent.futures.as_completed(futures)
    except BaseException:
        for future in futures:
            future.cancel()
        for process in multiprocessing.active_children():
            process.terminate()
        raise


def _tidy(workdir):
    """Removes what a finished run needs no more. Not before its row is written."""
    for name in ("checkpoints", "tensorboard"):
        shutil.rmtree(workdir / name, ignore_errors=True)
    (workdir / "best.weights.h5").unlink(missing_ok=True)
