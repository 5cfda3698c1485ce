"""Does instance-aware connectivity help? The same network under every wiring, paired by seed.

python -m benchmarks.accuracy [--study cifar10] --data-dir DIR [--jobs 2] [--workdir DIR]
python -m benchmarks.accuracy --table [--plot FILE]

Trains what is missing of a study (see `STUDIES`) and adds a row to `--rows` for each run that
finishes; the same command again goes on where it was stopped, within a run too. Runs of one seed
start from the same weights and see the same images in the same order with the same augmentation;
they differ in their wiring alone. A run has a core of its own (`--jobs` runs at a time): on one
core it repeats bit for bit, and two at a time take less than two after another on both cores.
The test images are used once a run, after its last epoch; `--validation` evaluates a fifth of the
training images instead (and trains on the others), to choose settings with.

The table gives means over seeds and the paired differences of `dynamic` with their 95 % intervals
(Student's t). `test_accuracy` in a row is the accuracy on the images of its `split`.
"""

import argparse
import concurrent.futures
import dataclasses
import hashlib
import json
import multiprocessing
import os
import pathlib
import shutil
import signal
import subprocess
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.accuracy_table import (
    WIRINGS,
    append_row,
    fill_in,
    markdown,
    plot,
    read_rows,
    summarize,
)

ROOT = pathlib.Path(__file__).parents[1]
ROWS = ROOT / "benchmarks" / "results" / "accuracy.jsonl"
VALIDATION = 0.2
SEEDS = dict(zip(WIRINGS, (8, 8, 8, 3, 3), strict=True))
IDENTITY = ("dataset", "split", "model", "wiring", "seed", "epochs", "recipe_hash", "init_from")
WEIGHTS = "final.weights.h5"
IMAGES = "images.npz"
OWN_KEYS = {  # keys of the recipe that the benchmark sets itself
    "wiring": "--wiring",
    "seed": "--seed",
    "validation": "--validation",
    "evaluation_epochs": "the benchmark, which evaluates once",
    "dataset": "--study",
}


@dataclasses.dataclass(frozen=True)
class Study:
    """A comparison of wirings.

    Attributes:
        dataset: its name in the rows.
        recipe: name of a recipe of `train.classification.recipes`.
        overrides: `key=value` strings that are applied to the recipe.
        seeds: dict of wiring to its number of seeds, 0, 1, ...
        init_from: None, or the study whose `chain` runs of the same seed are started from.
    """

    dataset: str
    recipe: str
    overrides: tuple[str, ...] = ()
    seeds: dict = dataclasses.field(default_factory=lambda: dict(SEEDS))
    init_from: str | None = None


STUDIES = {
    "cifar10": Study("cifar10", "cifar10_resnet20_fast"),
    "digits": Study("digits", "digits_resnet20"),
    # Twice and a half the blocks of each stage. As far as time allows: fewer seeds.
    "cifar10_deep": Study(
        "cifar10",
        "cifar10_resnet20_fast",
        ("model=resnet56_cifar",),
        {"dynamic": 3, "chain": 3, "learned": 3},
    ),
    # From the finished chain runs of `cifar10`, five epochs more: as they were, or as graphs that
    # start out as exactly that chain.
    "warm_start": Study(
        "cifar10",
        "cifar10_resnet20_fast",
        ("epochs=5", "learning_rate=0.02", "init=static"),
        {"dynamic": 8, "chain": 8},
        init_from="cifar10",
    ),
}


@dataclasses.dataclass(frozen=True)
class Job:
    """One run: what its row says before it has run, and where it works."""

    identity: dict
    recipe: object
    workdir: pathlib.Path
    init_from: pathlib.Path | None


def recipe_hash(recipe):
    """Short hash of all of a recipe but its wiring and seed.

    What is off (0, None, empty) does not count, so that a new option leaves old rows valid.
    """
    fields = {key: value for key, value in dataclasses.asdict(recipe).items() if value}
    del fields["wiring"]
    fields.pop("seed", None)
    return hashlib.sha256(json.dumps(fields, sort_keys=True).encode()).hexdigest()[:12]


def plan(name, *, validation=False, overrides=(), workdir=pathlib.Path("runs/accuracy")):
    """The jobs of a study, one seed of every wiring before the next seed.

    Args:
        name: a key of `STUDIES`.
        validation: whether a fifth of the training images takes the place of the test images.
        overrides: `key=value` strings, applied after the study's.
        workdir: folder that every run has a folder in.

    Returns:
        List of `Job`.

    Raises:
        ValueError: for an unknown study, recipe key or value.
    """
    from dgnet_keras.checks import check_choice
    from train.classification.recipes import get_recipe

    check_choice("study", name, tuple(STUDIES))
    study = STUDIES[name]
    for item in overrides:
        if (key := item.partition("=")[0]) in OWN_KEYS:
            raise ValueError(f"`{key}` is set by {OWN_KEYS[key]}. Received: --set {item}")
    overrides = (*study.overrides, *overrides)
    share = f"validation={VALIDATION if validation else 0.0}"
    base = get_recipe(study.recipe, (*overrides, "evaluation_epochs=1000000", share))
    starts = {}
    if study.init_from is not None:
        sources = plan(study.init_from, validation=validation, workdir=workdir)
        starts = {job.identity["seed"]: job for job in sources if job.recipe.wiring == "chain"}
    jobs = []
    for seed in range(max(study.seeds.values())):
        for wiring in (w for w, count in study.seeds.items() if seed < count):
            recipe = dataclasses.replace(base, wiring=wiring, seed=seed)
            start = starts.get(seed)
            identity = {
                "study": name,
                "dataset": study.dataset,
                "split": "validation" if validation else "test",
                "model": recipe.model,
                "wiring": wiring,
                "seed": seed,
                "epochs": recipe.epochs,
                "overrides": list(overrides),
                "recipe_hash": recipe_hash(recipe),
                "init_from": start and f"{start.identity['recipe_hash']}-chain-{seed}",
            }
            folder = workdir / f"{identity['recipe_hash']}-{wiring}-{seed}"
            if start is not None:
                folder = folder.with_name(f"{folder.name}-from-{identity['init_from']}")
            jobs.append(Job(identity, recipe, folder, start and start.workdir / WEIGHTS))
    return jobs


def _key(row):
    return tuple(row[name] for name in IDENTITY)


def missing(jobs, rows):
    """The jobs that have no row yet."""
    done = {_key(row) for row in rows}
    return [job for job in jobs if _key(job.identity) not in done]


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
    last = run.history[-1]
    save_weights(run.model, job.workdir / WEIGHTS)
    counted = dg.count_macs(run.model)
    connectivity = ("open_rate/", "router_entropy/", "distinct_paths")
    return {
        **job.identity,
        "test_accuracy": last["accuracy"],
        "test_loss": last["loss"],
        "train_accuracy": last.get("train_accuracy"),
        "parameters": counted["parameters"],
        "macs": counted["macs"],
        "seconds": round(float(run.train_seconds.numpy()), 1),
        **{key: value for key, value in last.items() if key.startswith(connectivity)},
    }


def run_jobs(jobs, images, rows, parallel):
    """Runs jobs, `parallel` at a time on a core each, and appends their rows to the file `rows`.

    A run that diverges leaves no row, and is tried again next time.

    Yields:
        Each row as it is written.
    """
    commit = _commit()
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
                row = {**future.result(), "commit": commit}
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


def _commit():
    """The commit that is checked out, `+` where files differ from it; None outside of Git."""
    git = ["git", "-C", ROOT, "describe", "--always", "--dirty=+", "--exclude=*"]
    done = subprocess.run(git, capture_output=True, text=True)
    return done.stdout.strip() or None


def studies_of(rows, *, overrides=(), split="test"):
    """Rows by study, in the order of `STUDIES`, each study's newest recipe.

    Args:
        rows: of all studies.
        overrides: `key=value` strings; only runs with exactly these are taken (none: a study's
            own runs).
        split: `"test"` or `"validation"`.
    """
    groups = {}
    for name in STUDIES:
        own = [row for row in rows if row["study"] == name and row["split"] == split]
        wanted = [*STUDIES[name].overrides, *overrides]
        own = [row for row in own if row["overrides"] == wanted]
        own = [row for row in own if row["recipe_hash"] == own[-1]["recipe_hash"]]
        if own:
            order = {wiring: k for k, wiring in enumerate(WIRINGS)}
            groups[name] = sorted(own, key=lambda row: (order[row["wiring"]], row["seed"]))
    return groups


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.accuracy",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--study", default="cifar10", choices=STUDIES)
    parser.add_argument("--data-dir", help="the data set's folder, see python -m train.imagenet")
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/accuracy"))
    parser.add_argument("--rows", type=pathlib.Path, default=ROWS, help="JSON lines, one a run")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on a core each")
    parser.add_argument("--validation", action="store_true", help="see above")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the recipe"
    )
    parser.add_argument(
        "--wiring", action="append", choices=SEEDS, help="only this wiring (repeatable)"
    )
    parser.add_argument("--seed", action="append", type=int, help="only this seed (repeatable)")
    parser.add_argument("--table", action="store_true", help="train nothing, show the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="file for the picture (PNG)")
    parser.add_argument(
        "--document",
        type=pathlib.Path,
        help="Markdown file to write the tables into (not with --set or --validation)",
    )
    return parser.parse_args(argv)


def main(argv=None):
    """Trains what is missing; shows the table."""
    args = parse_args(argv)
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        if not args.table:
            _train_missing(args)
        _show(args)
    except KeyboardInterrupt:
        sys.exit("Stopped: the same command goes on.")
    except (ValueError, OSError, concurrent.futures.BrokenExecutor) as error:
        sys.exit(f"benchmarks.accuracy: {error}")


def _show(args):
    split = "validation" if args.validation else "test"
    groups = studies_of(read_rows(args.rows), overrides=args.set, split=split)
    tables = {name: markdown(summarize(rows)) for name, rows in groups.items()}
    for name, rows in groups.items():
        print(f"\n{name}: {rows[0]['model']}, {rows[0]['epochs']} epochs\n")
        print("\n".join(tables[name]))
    if not groups:
        print(f"No rows on {split} images with these settings in {args.rows}")
    if args.plot and groups:
        plot(groups).savefig(args.plot, dpi=130)
    if args.document and not args.set and not args.validation:
        args.document.write_text(fill_in(args.document.read_text(), tables))


def _train_missing(args):
    jobs = plan(args.study, validation=args.validation, overrides=args.set, workdir=args.workdir)
    jobs = [job for job in jobs if not args.wiring or job.recipe.wiring in args.wiring]
    jobs = [job for job in jobs if not args.seed or job.recipe.seed in args.seed]
    if not jobs:
        raise ValueError(f"{args.study} has no run of --wiring {args.wiring} --seed {args.seed}")
    todo = missing(jobs, read_rows(args.rows))
    print(f"{args.study}: {len(jobs)} runs, {len(todo)} to do", flush=True)
    if not todo:
        return
    for job in todo:
        if job.init_from is not None and not job.init_from.exists():
            raise FileNotFoundError(
                f"No weights at {job.init_from}: run the study "
                f"{STUDIES[args.study].init_from!r} with the same --workdir first"
            )
    images = args.workdir / f"{STUDIES[args.study].dataset}-{IMAGES}"
    save_images(todo[0].recipe, args.data_dir, images)
    for row in run_jobs(todo, images, args.rows, args.jobs):
        print(
            f"{row['wiring']:<9}seed {row['seed']}  {100 * row['test_accuracy']:.2f} %  "
            f"{row['seconds']:.0f} s",
            flush=True,
        )


if __name__ == "__main__":
    main()
