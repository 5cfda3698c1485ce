"""Is a network with paths better than a smaller network? Accuracy by multiply-adds, and by time.

python -m benchmarks.pareto --data-dir DIR --weights cifar_resnets.npz [--jobs 2] [--workdir DIR]
python -m benchmarks.pareto --time [--workdir DIR]
python -m benchmarks.pareto --images [--workdir DIR] [--picture FILE]
python -m benchmarks.pareto --table [--plot FILE] [--document FILE]

Every run starts from published weights and is fine-tuned with one schedule, that of the recipe
`cifar10_resnet56_path`, for `--epochs`: static ResNets, and paths and their control `learned_path`
at several targets, which also learn from the static run of the same network and seed. Runs go on
where they were stopped, in the order in which they tell most; each has a core of its own. A run
with a target is calibrated on training images, and evaluated at the threshold found. The test
images are used after a run's last epoch alone; `--validation` evaluates a fifth of the training
images instead (and trains on the others), to choose settings with.

The static networks learn from labels alone. The one that paths are compared with has a second run,
which learns from the static ResNet-56 too, as the paths do.

`--time` measures the finished runs at batch 1 and 128 on the test images, in turns with the static
ResNet-56: on a quiet machine. `--images` says who takes what: see `benchmarks/pareto_images.py`.
"""

import argparse
import concurrent.futures
import dataclasses
import os
import pathlib
import signal
import sys
import typing

os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")

from benchmarks.accuracy_runs import images_file, run_jobs, save_images
from benchmarks.accuracy_studies import VALIDATION, WEIGHTS, Job, missing, recipe_hash, run_key
from benchmarks.accuracy_table import append_row, fill_in, read_rows
from benchmarks.measure import ROOT
from benchmarks.pareto_table import markdown, plot, summarize

ROWS = ROOT / "benchmarks" / "results" / "pareto.jsonl"
TIMES = ROOT / "benchmarks" / "results" / "pareto_times.jsonl"
FOUND = ROOT / "benchmarks" / "results" / "pareto_images.jsonl"
RECIPE, DATASET, EPOCHS = "cifar10_resnet56_path", "cifar10", 8
DTYPE = "dtype=mixed_bfloat16"  # 1.5 times as fast where the processor has AVX-512 BF16

DECIDING = 0.55  # the share of the static ResNet-32


class Run(typing.NamedTuple):
    """What the runs of some seeds train.

    Attributes:
        model: a variant of `dgnet_keras.list_variants()`.
        wiring: `chain` is the static network.
        target: share of multiply-adds, or None.
        seeds: their number, from 0 on.
        teacher: the variant whose static run of the same seed it also learns from, or None.
    """

    model: str
    wiring: str
    target: float | None
    seeds: int
    teacher: str | None


# Those that decide come first.
RUNS = (
    Run("resnet56_cifar", "chain", None, 3, None),
    Run("resnet32_cifar", "chain", None, 3, None),
    Run("resnet56_cifar", "path", DECIDING, 3, "resnet56_cifar"),
    Run("resnet56_cifar", "learned_path", DECIDING, 3, "resnet56_cifar"),
    Run("resnet32_cifar", "chain", None, 3, "resnet56_cifar"),
    Run("resnet56_cifar", "path", 0.75, 3, "resnet56_cifar"),
    Run("resnet44_cifar", "chain", None, 1, None),
    Run("resnet20_cifar", "chain", None, 1, None),
    Run("resnet56_cifar", "path", 0.35, 1, "resnet56_cifar"),
    Run("resnet56_cifar", "learned_path", 0.75, 1, "resnet56_cifar"),
    Run("resnet56_cifar", "learned_path", 0.35, 1, "resnet56_cifar"),
    Run("resnet44_cifar", "path", 0.55, 1, "resnet44_cifar"),
    Run("resnet44_cifar", "path", 0.75, 1, "resnet44_cifar"),
    Run("resnet44_cifar", "learned_path", 0.75, 1, "resnet44_cifar"),
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
    settings = (DTYPE, *overrides, f"epochs={epochs}", "evaluation_epochs=1000000", share)
    base = get_recipe(RECIPE, settings)
    runs, jobs, static = runs or RUNS, [], {}
    for seed in range(max(run.seeds for run in runs)):
        for run in (run for run in runs if seed < run.seeds):
            recipe = dataclasses.replace(
                base, model=run.model, wiring=run.wiring, macs_target=run.target, seed=seed
            )
            if run.teacher is not None:
                recipe = dataclasses.replace(
                    recipe,
                    distill_from=str(static[run.teacher, seed].workdir / WEIGHTS),
                    distill_model=None if run.teacher == run.model else run.teacher,
                )
            identity = {
                "dataset": DATASET,
                "split": "validation" if validation else "test",
                "model": run.model,
                "wiring": run.wiring,
                "macs_target": run.target,
                "teacher": run.teacher,
                "seed": seed,
                "epochs": epochs,
                "overrides": list(overrides),
                "recipe_hash": recipe_hash(recipe),
                "init_from": pathlib.Path(weights).name,
            }
            folder = workdir / f"{identity['recipe_hash']}-{run.wiring}-{seed}"
            job = Job(identity, recipe, folder, pathlib.Path(weights))
            jobs.append(job)
            if run.teacher is None:
                static[run.model, seed] = job
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
    parser.add_argument("--found", type=pathlib.Path, default=FOUND, help="likewise, of --images")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on a core each")
    parser.add_argument("--validation", action="store_true", help="see above")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the recipe"
    )
    parser.add_argument("--only", type=int, metavar="N", help="only the first N runs of the plan")
    parser.add_argument("--time", action="store_true", help="train nothing, measure times")
    parser.add_argument("--images", action="store_true", help="train nothing, see who takes what")
    parser.add_argument("--table", action="store_true", help="train nothing, show the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="file for the picture (PNG)")
    parser.add_argument(
        "--picture", type=pathlib.Path, help="of --images: cheapest and dearest images (PNG)"
    )
    parser.add_argument("--document", type=pathlib.Path, help="Markdown file for the tables")
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
            _measure_times(jobs, args)
        elif args.images:
            _measure_images(jobs, args)
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
                f"from {row['teacher'] or 'labels':<15} "
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
    keys = [(job.recipe.seed, job.recipe.distill_from is not None) for job in jobs]
    return [[j for j, k in zip(jobs, keys, strict=True) if k == key] for key in sorted(set(keys))]


def _measure_times(jobs, args):
    from benchmarks.pareto_times import measure_times

    for job in _unmeasured(jobs, args.times):
        row = {**job.identity, **measure_times(job, images_file(args.workdir, DATASET))}
        append_row(args.times, row)
        print(row, flush=True)


def _measure_images(jobs, args):
    from benchmarks.pareto_images import measure_images
    from dgnet_keras.macs_figures import plot_cheap_and_dear

    for job in _unmeasured([j for j in jobs if j.recipe.wiring == "path"], args.found):
        figures, shown = measure_images(job, images_file(args.workdir, DATASET))
        append_row(args.found, {**job.identity, **figures})
        print(figures, flush=True)
        if args.picture:
            plot_cheap_and_dear(**shown, count=10).savefig(args.picture, dpi=130)


def _unmeasured(jobs, path):
    """The finished jobs that have no row in the file `path`."""
    finished = [job for job in jobs if (job.workdir / WEIGHTS).exists()]
    return missing(finished, read_rows(path))


def rows_of(jobs, path):
    """The rows of these jobs in a file."""
    wanted = {run_key(job.identity) for job in jobs}
    return [row for row in read_rows(path) if run_key(row) in wanted]


def tables_of(jobs, rows, times, found):
    """What a document shows of the rows of these jobs in three files.

    Returns:
        Dict of the name of a mark to a table's lines; and the rows of `pareto_table.summarize`.
    """
    from benchmarks import pareto_images

    summary = summarize(rows_of(jobs, rows), rows_of(jobs, times))
    tables = {"pareto": markdown(summary)} if summary else {}
    deciding = [row for row in rows_of(jobs, found) if row["macs_target"] == DECIDING]
    if deciding:
        tables["pareto_images"] = pareto_images.table(deciding)
    return tables, summary


def _show(jobs, args):
    tables, summary = tables_of(jobs, args.rows, args.times, args.found)
    if not summary:
        print(f"No row of the static ResNet-56 with these settings in {args.rows}")
        return
    for lines in tables.values():
        print("\n".join(lines))
    if args.plot:
        plot(summary).savefig(args.plot, dpi=130)
    if args.document:
        text = args.document.read_text()
        args.document.write_text(fill_in(text, tables))


if __name__ == "__main__":
    main()
