"""What the wheel and the sdist hold, and that the wheel works without the repository."""

import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import pytest

pytestmark = pytest.mark.xdist_group("packaging")  # what its fixtures make is made once
ROOT = pathlib.Path(__file__).parents[1]


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """Folder with the wheel and the sdist, made from a copy of the files that git knows."""
    folder = tmp_path_factory.mktemp("dist")
    listed = subprocess.run(
        ["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True, text=True
    ).stdout
    for name in filter(None, listed.split("\0")):
        if name.startswith("dgnet_keras/") or "/" not in name:
            (folder / "source" / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / "source" / name).write_bytes((ROOT / name).read_bytes())
    build = [sys.executable, "-m", "build", "--no-isolation", "--outdir", folder]
    subprocess.run([*build, folder / "source"], check=True, capture_output=True)
    return folder


@pytest.mark.slow
def test_the_wheel_holds_the_package_alone(built):
    (wheel,) = built.glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = files.namelist()
    assert {n.split("/")[0].split("-")[0] for n in names} == {"dgnet_keras"}
    modules = {str(p.relative_to(ROOT)) for p in (ROOT / "dgnet_keras").rglob("*.py")}
    assert modules <= set(names)
    assert {"dgnet_keras/py.typed", "dgnet_keras/timm_weights.csv"} <= set(names)


@pytest.mark.slow
def test_the_sdist_can_be_built_again(built):
    (sdist,) = built.glob("*.tar.gz")
    with tarfile.open(sdist) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert {"setup.cfg", "pyproject.toml", "README.md", "LICENSE"} <= names
    assert not any(n.startswith(("tests", "train", "benchmarks", "notebooks")) for n in names)


@pytest.mark.slow
def test_the_installed_wheel_lists_variants(built, tmp_path):
    (wheel,) = built.glob("*.whl")
    pip = [sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--target"]
    subprocess.run([*pip, tmp_path / "site", wheel], check=True, capture_output=True)
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "site")}

    listing = "list", "--pretrained", "--family", "mobilenet_v2"
    code = f"""
import runpy, sys, dgnet_keras
print(dgnet_keras.__file__, dgnet_keras.__version__)
sys.argv[1:] = {listing}
runpy.run_module("dgnet_keras", run_name="__main__")
"""
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    where, version, *listed = done.stdout.split()
    assert where.startswith(str(tmp_path / "site"))
    assert version in wheel.name
    assert "mobilenetv2_100" in " ".join(listed)
