"""The docs: scripts run, commands and tables checked, links followed, all of it built."""

import json
import os
import pathlib
import re
import shlex
import subprocess
import sys

import pytest
from catalog import create

import dgnet_keras as dg
from benchmarks import speed_markdown
from dgnet_keras.__main__ import parse_args
from train import imagenet
from train.classification.recipes import RECIPES, Recipe

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


def test_the_script_for_one_machine_starts_two_workers(tmp_path):
    lines = run(tmp_path, SCRIPTS[2])
    configs = [json.loads(line) for line in lines if line.startswith("{")]
    assert sorted(c["task"]["index"] for c in configs) == [0, 1]
    assert all(len(set(c["cluster"]["worker"])) == 2 for c in configs)
    (command,) = {line for line in lines if line.startswith("-m")}
    args = imagenet.parse_args(shlex.split(command)[2:])
    assert args.strategy == "multi_worker"


@pytest.mark.parametrize("name", RECIPES)
def test_every_recipe_is_in_the_table(name):
    assert f"`{name}`" in TRAINING.read_text()


def test_the_documentation_names_keys_that_recipes_have():
    text = TRAINING.read_text()
    keys = set(re.findall(r"--set '?(\w+)=", text)) | set(re.findall(r"`(\w+)=[^`]+`", text))
    assert len(keys) > 5
    assert keys - {"key"} <= set(Recipe.__dataclass_fields__)


def commands(module):
    """Arguments of each command of a module in the README and the docs, with the file's name."""
    root = TRAINING.parents[1]
    found = []
    for path in (root / "README.md", *sorted((root / "docs").glob("*.md"))):
        text = path.read_text().replace("\\\n", " ")
        for line in re.findall(rf"^\.venv/bin/python -m {module} (.*)$", text, re.MULTILINE):
            found.append((path.name, shlex.split(line, comments=True)))
    return found


@pytest.mark.parametrize(
    ("name", "arguments"), commands("dgnet_keras"), ids=lambda x: x if isinstance(x, str) else x[0]
)
def test_commands_of_the_docs_are_ones_that_there_are(name, arguments):
    assert callable(parse_args(arguments).run)


def test_the_docs_of_serving_name_the_signatures_and_files_of_an_export(tmp_path):
    text = (TRAINING.parent / "serving.md").read_text()
    exported = dg.export_saved_model(create("resnet_basic", input_shape=(16, 16, 3)), tmp_path)
    card = json.loads((exported / "model_card.json").read_text())
    for name, inputs in card["signatures"].items():
        (row,) = (line for line in text.splitlines() if line.startswith(f"| `{name}` |"))
        assert all(f"`{entry['name']}`" in row for entry in inputs)
    for path in exported.rglob("*"):
        if path.is_file() and path.parent.name != "variables":
            assert str(path.relative_to(exported)) in text


def test_the_table_of_serving_is_the_benchmarks():
    root = TRAINING.parents[1]
    text = (root / "docs" / "serving.md").read_text()
    for row in json.loads((root / "benchmarks" / "results" / "serving.json").read_text()):
        one, many = row["batch_1"], row["batch_32"]
        figures = [
            f"{1000 * one['seconds']['dynamic']:.0f}",
            *(f"{one[key]:.2f}" for key in ("dynamic_to_chain", "dynamic_to_predict")),
            f"{many['images_per_second']['dynamic']:.1f}",
            *(f"{many[key]:.2f}" for key in ("dynamic_to_chain", "dynamic_to_predict")),
        ]
        assert f"| `{row['model']}` | {' | '.join(figures)} |" in text


RESULTS = TRAINING.parents[1] / "benchmarks" / "results"


@pytest.mark.parametrize("path", sorted(RESULTS.glob("speed_*.json")), ids=lambda path: path.stem)
def test_the_tables_of_performance_are_the_benchmarks(path):
    text = (TRAINING.parent / "performance.md").read_text()
    for line in speed_markdown.lines(json.loads(path.read_text())):
        assert line in text


def test_the_overview_of_cost_is_the_benchmarks():
    text = (TRAINING.parent / "performance.md").read_text()
    rows = json.loads((RESULTS / "speed_models_onednn.json").read_text())
    for line in speed_markdown.overview(rows):
        assert line in text


def test_the_figures_of_the_readme_are_those_of_the_docs():
    text = " ".join((TRAINING.parents[1] / "README.md").read_text().split())
    rows = json.loads((RESULTS / "speed_models_onednn.json").read_text())
    ratios = [line.split(" | ") for line in speed_markdown.overview(rows)]
    for column, sentence in ((2, "takes {} to {} % longer"), (3, "inference {} to {} %")):
        more = [round(100 * float(row[column])) - 100 for row in ratios]
        assert sentence.format(min(more), max(more)) in text
    results = (TRAINING.parent / "results.md").read_text()
    for wiring, name in (("dynamic", "dynamic"), ("chain", "static"), ("learned", "with one")):
        accuracy = re.search(rf"\| `{wiring}` \| 8 \| ([\d.]+) ±", results)[1]
        assert f"{accuracy} % {name}" in text


ROOT = TRAINING.parents[1]


def anchors(path):
    """Anchors of the headings of a Markdown file, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", path.read_text(), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", h.lower()).replace(" ", "-") for h in headings}


@pytest.mark.parametrize("name", ["README.md", "CONTRIBUTING.md", "CHANGELOG.md"])
def test_links_to_files_and_headings_lead_somewhere(name):
    text = re.sub(r"```.*?```", "", (ROOT / name).read_text(), flags=re.DOTALL)
    for link in re.findall(r"\]\(([^)]+)\)", text):
        target, _, anchor = link.partition("#")
        if target.startswith("https:"):
            continue  # what is elsewhere cannot be looked up everywhere
        path = ROOT / target if target else ROOT / name
        assert path.exists(), link
        assert not anchor or anchor in anchors(path), link


@pytest.mark.slow
def test_the_documentation_builds_without_a_warning(tmp_path):
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    pages = "".join(page.read_text() for page in (tmp_path / "api").glob("*.html"))
    documented = set(re.findall(r'<h2 id="([\w.]+)"', pages))
    names = {f"dgnet_keras.{name}" for name in dg.__all__ if callable(getattr(dg, name))}
    assert names <= documented
    assert "edge_scale" in pages
