"""The studies of `benchmarks.accuracy`: which runs belong to each, and which have a row."""

import dataclasses
import hashlib
import json
import pathlib

from benchmarks.accuracy_table import WIRINGS

VALIDATION = 0.2
SEEDS = dict(zip(WIRINGS, (8, 8, 8, 3, 3), strict=True))
IDENTITY = ("dataset", "split", "model", "wiring", "seed", "epochs", "recipe_hash", "init_from")
WEIGHTS = "final.weights.h5"
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
    # Three times the blocks of each stage, from scratch: is it the router that helps, or any graph?
    "cifar10_deep": Study(
        "cifar10",
        "cifar10_resnet20_fast",
        ("model=resnet56_cifar", "epochs=5"),
        {"dynamic": 3, "chain": 3, "learned": 3, "complete": 3},
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

    What is off (0, None, empty), or as it is without being set, does not count, nor what belongs to
    it, so that a new option leaves old rows valid; nor does how nodes that are off are left out,
    which changes no answer.
    """
    fields = {key: value for key, value in dataclasses.asdict(recipe).items() if value}
    fields["threshold"] = recipe.resolved_threshold
    idle = ["wiring", "seed", "skip", "skip_in_training"]
    if recipe.path_gradient == "all":
        idle.append("path_gradient")
    if recipe.macs_target is None:
        idle += ["macs_weight", "macs_start", "macs_fall", "macs_floor", "macs_spread", "noise_off"]
    if recipe.distill_from is None:
        idle += ["distill_weight", "distill_temperature"]
    else:
        fields["distill_from"] = True  # wherever it lies
    for key in idle:
        fields.pop(key, None)
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


def run_key(row):
    """What tells a run's row, or its `Job.identity`, from those of other runs: a tuple."""
    return tuple(row[name] for name in IDENTITY)


def missing(jobs, rows):
    """The jobs that have no row yet."""
    done = {run_key(row) for row in rows}
    return [job for job in jobs if run_key(job.identity) not in done]


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
