import pathlib
import tarfile

import nbformat
import pytest
from conftest import SHARED
from nbclient import NotebookClient

PER_CLASS = {"train": 60, "test": 30}  # fewer than the notebook's own, for a quick run
# The same for what notebooks make or repeat; as the JSON of a cell has it.
QUICKER = {
    r"\"epochs=14\"": r"\"epochs=2\"",
    "train=256, validation=32": "train=32, validation=16",
}
NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


def extract_some(archive, folder):
    """The first images of each class of CIFAR-10."""
    counts = {}
    with tarfile.open(archive) as files:
        for member in files:
            parts = pathlib.PurePath(member.name).parts
            if not member.isfile():
                continue
            counts[parts[1:3]] = counts.get(parts[1:3], 0) + 1
            if counts[parts[1:3]] <= PER_CLASS[parts[1]]:
                files.extract(member, folder, filter="data")


@pytest.mark.slow
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_runs_from_a_clean_kernel(path, tmp_path):
    text = path.read_text()
    for whole, quick in QUICKER.items():
        text = text.replace(whole, quick)
    notebook = nbformat.reads(text, as_version=4)
    archive = SHARED / "data" / "cifar10.tar.gz"
    if "cifar10" in path.read_text() and archive.exists():  # otherwise it takes digits
        extract_some(archive, tmp_path)
    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_is_saved_with_its_outputs(path):
    cells = [c for c in nbformat.read(path, as_version=4).cells if c.cell_type == "code"]
    data = [o.data for c in cells for o in c.outputs if "data" in o]
    assert any("image/png" in shown for shown in data)
    figures = [shown for shown in data if shown.get("text/plain", "").startswith("<Figure ")]
    assert all("image/png" in figure for figure in figures)
    assert not [o for c in cells for o in c.outputs if o.output_type == "error"]
    assert [c.execution_count for c in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda p: p.stem)
def test_the_notebook_is_short_and_says_first_what_it_comes_to(path):
    cells = nbformat.read(path, as_version=4).cells
    assert len(cells) <= 20
    assert "At the end you have" in cells[0].source.replace("\n", " ")
