"""Is a network with paths better than a smaller network? Accuracy by multiply-adds, and by time.

python -m benchmarks.pareto --data-dir DIR --weights cifar_resnets.npz [--jobs 2] [--workdir DIR]
python -m benchmarks.pareto --measure times|images|headroom|cascade [--workdir DIR]
python -m benchmarks.pareto --table [--plot FILE] [--picture FILE] [--document FILE]

Every run starts from published weights and is fine-tuned with one schedule, that of the recipe
`cifar10_resnet56_path`, for `--epochs`: static ResNets, and paths and their control `learned_path`
at several targets, which also learn from the static run of the same network and seed. Runs go on
where they were stopped, in the order in which they tell most; each has a core of its own. A run
with a target is calibrated on training images, and evaluated at the threshold found. The test
images are used after a run's last epoch alone; `--validation` evaluates a fifth of the training
images instead (and trains on the others), to choose settings with.

The static networks learn from labels alone. The one that paths are compared with has a second run,
which learns from the static ResNet-56 too, as the paths do.

`--measure` takes the finished runs. `times`: inference at batch 1 and 128 on the test images, in
turns with the static ResNet-56, on a quiet machine. `images`: who takes what. `headroom`: whether
routers could choose better. `cascade`: with the static network for the images in doubt. Their
modules say more.
"""

import argparse
import concurrent.futures
import dataclasses
import importlib
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
from benchmarks.pareto_table import DECIDING, markdown, plot, summarize

RESULTS = ROOT / "benchmarks" / "results"
MEASURES = ("times", "images", "headroom", "cascade")  # each a module `pareto_...`
RECIPE, DATASET, EPOCHS = "cifar10_resnet56_path", "cifar10", 8
DTYPE = "dtype=mixed_bfloat16"  # 1.5 times as fast where the processor has AVX-512 BF16


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
    Run("resnet20_cifar", "chain", None, 1, "resnet56_cifar"),
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
        List of `accuracy_studies.Job`; a job that learns from another stands after it.
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
            if run.wiring == "learned_path":  # has the same path, and so one target, for all
                recipe = dataclasses.replace(recipe, macs_spread=0.0)
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
    parser.add_argument("--results", type=pathlib.Path, default=RESULTS, help="folder of the rows")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, on a core each")
    parser.add_argument("--validation", action="store_true", help="see above")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="a key of the recipe"
    )
    parser.add_argument("--only", type=int, metavar="N", help="only the first N runs of the plan")
    parser.add_argument(
        "--measure", choices=MEASURES, help="train nothing, measure what is trained"
    )
    parser.add_argument("--table", action="store_true", help="train nothing, show the rows")
    parser.add_argument("--plot", type=pathlib.Path, help="file for the picture (PNG)")
    parser.add_argument("--picture", type=pathlib.Path, help="cheapest and dearest images (PNG)")
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
        if args.measure:
            _measure_missing(jobs, args)
        elif not args.table:
            _train_missing(jobs, args)
        if args.picture:
            _draw(jobs, args)
        _show(jobs, args)
    except KeyboardInterrupt:
        sys.exit("Stopped: the same command goes on.")
    except (ValueError, OSError, concurrent.futures.BrokenExecutor) as error:
        sys.exit(f"benchmarks.pareto: {error}")


def _train_missing(jobs, args):
    rows = rows_file(args.results)
    todo = missing(jobs, read_rows(rows))
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
        for row in run_jobs(part, images, rows, args.jobs):
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


def _measure_missing(jobs, args):
    """Measures the finished runs that have no row of this kind."""
    module = _module(args.measure)
    wanted = [job for job in jobs if module.is_measured(job) and (job.workdir / WEIGHTS).exists()]
    path = rows_file(args.results, args.measure)
    for job in missing(wanted, read_rows(path)):
        figures = module.measure(job, images_file(args.workdir, DATASET))
        append_row(path, {**job.identity, **figures})
        print(figures, flush=True)


def _draw(jobs, args):
    from benchmarks import pareto_images

    for job in jobs:
        if pareto_images.is_measured(job) and (job.workdir / WEIGHTS).exists():
            figure = pareto_images.draw(job, images_file(args.workdir, DATASET))
            figure.savefig(args.picture, dpi=130)
            return
    raise FileNotFoundError(f"No finished run of paths in {args.workdir}")


def _module(measure):
    return importlib.import_module(f"benchmarks.pareto_{measure}")


def rows_file(results, measure=None):
    """Where the rows of the runs lie, or those of a measure, in the folder `results`."""
    return results / ("pareto.jsonl" if measure is None else f"pareto_{measure}.jsonl")


def rows_of(jobs, results, measure=None):
    """The rows of these jobs, or those of a measure of them, in the folder `results`."""
    wanted = {run_key(job.identity) for job in jobs}
    return [row for row in read_rows(rows_file(results, measure)) if run_key(row) in wanted]


def tables_of(jobs, results):
    """What a document shows of the rows of these jobs.

    Returns:
        Dict of the name of a mark to a table's lines; and the rows of `pareto_table.summarize`.
    """
    rows = {measure: rows_of(jobs, results, measure) for measure in (None, *MEASURES)}
    summary = summarize(rows[None], rows["times"])
    tables = {"pareto": markdown(summary)} if summary else {}
    for measure in MEASURES[1:]:  # times are in the first table
        if rows[measure]:
            tables[f"pareto_{measure}"] = _module(measure).table(rows[measure])
    return tables, summary


def _show(jobs, args):
    tables, summary = tables_of(jobs, args.results)
    if not summary:
        print(f"No row of the static ResNet-56 with these settings in {args.results}")
        return
    for lines in tables.values():
        print("\n".join(lines))
    if args.plot:
        plot(summary, rows_of(jobs, args.results, "cascade")).savefig(args.plot, dpi=130)
    if args.document:
        text = args.document.read_text()
        args.document.write_text(fill_in(text, tables))


if __name__ == "__main__":
    main()
