"""Is a network with paths better than a smaller network? Accuracy by multiply-adds, and by time.

python -m benchmarks.pareto --data-dir DIR --weights cifar_resnets.npz [--jobs 2] [--workdir DIR]
python -m benchmarks.pareto --time [--workdir DIR]
python -m benchmarks.pareto --table [--plot FILE] [--document FILE]

Every run starts from published weights and is fine-tuned with one schedule, that of the recipe
`cifar10_resnet56_path`, for `--epochs`: static ResNets, and paths and their control `learned_path`
at several targets, which also learn from the static run of the same network and seed. Runs go on
where they were stopped, in the order in which they tell most; each has a core of its own. A run
with a target is calibrated on training images, and evaluated at the threshold found. The test
images are used after a run's last epoch alone; `--validation` evaluates a fifth of the training
images instead (and trains on the others), to choose settings with.

The static networks learn from labels alone, also the smaller ones that paths are compared with.

`--time` measures the finished runs at batch 1 and 128 on the test images, in turns with the static
ResNet-56: on a quiet machine.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import signal
import sys

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.accuracy_runs import images_file, run_jobs, save_images
from benchmarks.accuracy_studies import VALIDATION, WEIGHTS, Job, missing, recipe_hash, run_key
from benchmarks.accuracy_table import append_row, fill_in, read_rows
from benchmarks.measure import ROOT
from benchmarks.pareto_table import markdown, plot, summarize

ROWS = ROOT / "benchmarks" / "results" / "pareto.jsonl"
TIMES = ROOT / "benchmarks" / "results" / "pareto_times.jsonl"
RECIPE, DATASET, EPOCHS = "cifar10_resnet56_path", "cifar10", 8

# Network, wiring, target and number of seeds; those that decide come first.
RUNS = (
    ("resnet56_cifar", "chain", None, 3),
    ("resnet32_cifar", "chain", None, 3),
    ("resnet56_cifar", "path", 0.55, 3),
    ("resnet56_cifar", "learned_path", 0.55, 3),
    ("resnet56_cifar", "path", 0.75, 3),
    ("resnet44_cifar", "chain", None, 1),
    ("resnet20_cifar", "chain", None, 1),
    ("resnet56_cifar", "path", 0.35, 1),
    ("resnet56_cifar", "learned_path", 0.75, 1),
    ("resnet56_cifar", "learned_path", 0.35, 1),
    ("resnet44_cifar", "path", 0.55, 1),
    ("resnet44_cifar", "path", 0.75, 1),
    ("resnet44_cifar", "learned_path", 0.75, 1),
)


def plan(weights, epochs, *, validation=False, overrides=(), workdir, runs=None):
    """The jobs, one seed of everything before the next seed.

    Args:
        weights: file that everything starts from.
        epochs: of every run.
        validation: whether a fifth of the training images takes the place of the test images.
        overrides: `key=value` strings, applied to the recipe.
        workdir: folder that every run has a folder in.
        runs: as `RUNS`, and these by default.

    Returns:
        List of `accuracy_studies.Job`; a job with a target stands after the static one that it
        learns from.
    """
    from train.classification.recipes import get_recipe

    share = f"validation={VALIDATION if validation else 0.0}"
    settings = (*overrides, f"epochs={epochs}", "evaluation_epochs=1000000", share)
    base = get_recipe(RECIPE, settings)
    runs, jobs, static = runs or RUNS, [], {}
    for seed in range(max(run[3] for run in runs)):
        for model, wiring, target, _ in (run for run in runs if seed < run[3]):
            recipe = dataclasses.replace(
                base, model=model, wiring=wiring, macs_target=target, seed=seed
            )
            if target is not None:
                recipe = dataclasses.replace(
                    recipe, distill_from=str(static[model, seed].workdir / WEIGHTS)
                )
            identity = {
                "dataset": DATASET,
                "split": "validation" if validation else "test",
                "model": model,
                "wiring": wiring,
                "macs_target": target,
                "seed": seed,
                "epochs": epochs,
                "overrides": list(overrides),
                "recipe_hash": recipe_hash(recipe),
                "init_from": pathlib.Path(weights).name,
            }
            folder = workdir / f"{identity['recipe_hash']}-{wiring}-{seed}"
            job = Job(identity, recipe, folder, pathlib.Path(weights))
            jobs.append(job)
            if wiring == "chain":
                static[model, seed] = job
    return jobs


def parse_args(argv=None):
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="python -m benchmarks.pareto",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--data-dir", help="folder with train/<class>/*.jpg and test/<class>/*.jpg")
    parser.add_argument("--weights", default="cifar_resnets.npz", help="published weights, .npz")
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--workdir", type=pathlib.Path, default=pathlib.Path("runs/pareto"))
    parser.add_argument("--rows", type=pathlib.Path, default=ROWS, help="JSON lines, one a run")
    parser.add_argument("--times", type=pathlib.Path, default=TIMES, help="likewise, of --time")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on a core each")
    parser.add_argument("--validation", action="store_true", help="see above")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the recipe"
    )
    parser.add_argument("--only", type=int, metavar="N", help="only the first N runs of the plan")
    parser.add_argument("--time", action="store_true", help="train nothing, measure times")
    parser.add_argument("--table", action="store_true", help="train nothing, show the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="file for the picture (PNG)")
    parser.add_argument("--document", type=pathlib.Path, help="Markdown file for the table")
    return parser.parse_args(argv)


def main(argv=None):
    """Trains or measures what is missing; shows the table."""
    args = parse_args(argv)
    if args.document and (args.set or args.validation or args.only or args.epochs != EPOCHS):
        sys.exit("benchmarks.pareto: --document is for all runs, without other settings")
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(143))
    try:
        jobs = plan(
            args.weights,
            args.epochs,
            validation=args.validation,
            overrides=tuple(args.set),
            workdir=args.workdir,
        )[: args.only]
        if args.time:
            _measure_missing(jobs, args)
        elif not args.table:
            _train_missing(jobs, args)
        _show(jobs, args)
    except KeyboardInterrupt:
        sys.exit("Stopped: the same command goes on.")
    except (ValueError, OSError, concurrent.futures.BrokenExecutor) as error:
        sys.exit(f"benchmarks.pareto: {error}")


def _train_missing(jobs, args):
    todo = missing(jobs, read_rows(args.rows))
    print(f"{len(jobs)} runs, {len(todo)} to do", flush=True)
    if not todo:
        return
    if not pathlib.Path(args.weights).exists():
        raise FileNotFoundError(f"No weights at {args.weights}: say where with --weights")
    images = images_file(args.workdir, DATASET)
    save_images(todo[0].recipe, args.data_dir, images)
    for part in _in_order(todo):
        for job in [job for job in part if not _can_start(job)]:
            print(f"left out, for it learns from no file: {job.recipe.distill_from}", flush=True)
            part.remove(job)
        for row in run_jobs(part, images, args.rows, args.jobs):
            share = row.get("share_of_macs", 1.0)
            print(
                f"{row['model']:<15}{row['wiring']:<13}{row['macs_target'] or '':<5} "
                f"seed {row['seed']}  {100 * row['test_accuracy']:.2f} %  share {share:.3f}  "
                f"{row['seconds']:.0f} s",
                flush=True,
            )


def _can_start(job):
    """Whether what the run learns from is there: not so where that run has diverged."""
    source = job.recipe.distill_from
    return source is None or pathlib.Path(source).exists()


def _in_order(jobs):
    """Lists of jobs that may run at one time: of each seed the static ones, and what needs them."""
    keys = [(job.recipe.seed, job.recipe.macs_target is not None) for job in jobs]
    return [[j for j, k in zip(jobs, keys, strict=True) if k == key] for key in sorted(set(keys))]


def _measure_missing(jobs, args):
    from benchmarks.pareto_times import measure_times

    finished = [job for job in jobs if (job.workdir / WEIGHTS).exists()]
    for job in missing(finished, read_rows(args.times)):
        row = {**job.identity, **measure_times(job, images_file(args.workdir, DATASET))}
        append_row(args.times, row)
        print(row, flush=True)


def table_of(jobs, rows, times):
    """`pareto_table.summarize` of the rows of these jobs, from the files `rows` and `times`."""
    wanted = {run_key(job.identity) for job in jobs}
    return summarize(
        *([row for row in read_rows(path) if run_key(row) in wanted] for path in (rows, times))
    )


def _show(jobs, args):
    table = table_of(jobs, args.rows, args.times)
    if not table:
        print(f"No row of the static ResNet-56 with these settings in {args.rows}")
        return
    print("\n".join(markdown(table)))
    if args.plot:
        plot(table).savefig(args.plot, dpi=130)
    if args.document:
        text = args.document.read_text()
        args.document.write_text(fill_in(text, {"pareto": markdown(table)}))


if __name__ == "__main__":
    main()
