"""The scripts of docs/training.md, run with stand-ins for ssh, Slurm and Python."""

import json
import os
import pathlib
import re
import subprocess

import pytest

from train.configs import RECIPES, Recipe

TRAINING = pathlib.Path(__file__).parents[1] / "docs" / "training.md"
SCRIPTS = re.findall(r"```bash\n(.*?)```", TRAINING.read_text(), re.DOTALL)


def run(tmp_path, script, arguments=(), **programs):
    """Output of a bash script in a folder where the programs are found first."""
    (tmp_path / ".venv" / "bin").mkdir(parents=True)
    programs["python"] = 'echo "$TF_CONFIG"; echo "$@"'
    for name, body in programs.items():
        path = tmp_path / ".venv" / "bin" / name
        path.write_text(f"#!/usr/bin/env bash\n{body}\n")
        path.chmod(0o755)
    environment = {**os.environ, "PATH": f"{tmp_path}/.venv/bin:{os.environ['PATH']}"}
    return subprocess.run(
        ["bash", "-c", script, "script", *arguments],
        cwd=tmp_path,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    ).stdout.splitlines()


def check(lines, hosts):
    configs = [json.loads(line) for line in lines if line.startswith("{")]
    for config in configs:
        assert config["cluster"] == {"worker": [f"{host}:12345" for host in hosts]}
        assert config["task"]["type"] == "worker"
    assert sorted(c["task"]["index"] for c in configs) == list(range(len(hosts)))
    commands = [line for line in lines if line.startswith("-m train.imagenet")]
    assert len(commands) == len(hosts)
    assert all("--strategy multi_worker" in command for command in commands)


def test_the_launch_script_starts_each_worker_with_its_tf_config(tmp_path):
    lines = run(tmp_path, SCRIPTS[0], ["a", "b", "c"], ssh='bash -c "$2"')
    check(lines, ["a", "b", "c"])


def test_the_slurm_script_starts_each_worker_with_its_tf_config(tmp_path):
    srun = 'for i in 0 1; do SLURM_PROCID=$i "$@"; done'
    lines = run(tmp_path, SCRIPTS[1], scontrol="echo n1; echo n2", srun=srun)
    check(lines, ["n1", "n2"])


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_in_the_table(name):
    assert f"`{name}`" in TRAINING.read_text()


def test_the_documentation_names_keys_that_recipes_have():
    text = TRAINING.read_text()
    keys = set(re.findall(r"--set '?(\w+)=", text)) | set(re.findall(r"`(\w+)=[^`]+`", text))
    assert len(keys) > 5
    assert keys - {"key"} <= set(Recipe.__dataclass_fields__)
