import json

import pytest

from benchmarks import accuracy_studies


def test_runs_of_a_study_differ_in_wiring_and_seed_alone():
    jobs = accuracy_studies.plan("cifar10")
    assert len(jobs) == 30
    assert len({job.identity["recipe_hash"] for job in jobs}) == 1
    assert len({job.workdir for job in jobs}) == 30
    assert {job.recipe.validation for job in jobs} == {0.0}
    changed = accuracy_studies.plan("cifar10", overrides=["threshold=0.2"])
    assert changed[0].identity["recipe_hash"] != jobs[0].identity["recipe_hash"]
    held_out = accuracy_studies.plan("cifar10", validation=True)
    assert {job.identity["split"] for job in held_out} == {"validation"}


def test_a_warm_start_begins_with_the_chain_of_its_seed():
    jobs = accuracy_studies.plan("cifar10")
    chains = {job.recipe.seed: job for job in jobs if job.recipe.wiring == "chain"}
    for job in accuracy_studies.plan("warm_start"):
        assert job.init_from == chains[job.recipe.seed].workdir / accuracy_studies.WEIGHTS
        assert job.recipe.init == "static"


@pytest.mark.parametrize("item", ["validation=0.3", "seed=2", "wiring=chain", "dataset=digits"])
def test_keys_that_the_benchmark_sets_are_refused(item):
    with pytest.raises(ValueError, match=f"is set by .*{item}"):
        accuracy_studies.plan("cifar10", overrides=[item])


def test_a_finished_run_is_not_planned_again():
    jobs = accuracy_studies.plan("digits")
    rows = [json.loads(json.dumps(jobs[3].identity))]
    left = accuracy_studies.missing(jobs, rows)
    assert [job.workdir for job in left] == [j.workdir for j in jobs[:3] + jobs[4:]]
