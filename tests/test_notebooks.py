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
    r"\"resnet20_cifar\"": r"\"resnet20_cifar\", depths=(3, 2), widths=(16, 32)",
    "EPOCHS, BATCH = 8": "EPOCHS, BATCH = 2",
    "EPOCHS, BATCH = 5": "EPOCHS, BATCH = 2",
    "epochs=12": "epochs=2",
    "epochs=20": "epochs=3",
    "rate(0.05, 12)": "rate(0.05, 2)",
    "rate(0.02, 20)": "rate(0.02, 3)",
    "(0, 4, 9, 14, 19)": "(0, 1, 2)",
    "turns=25": "turns=2",
    "np.linspace(-3, 3, 13)": "np.linspace(-3, 3, 3)",
    "np.linspace(-4, 4, 17)": "np.linspace(-4, 4, 3)",
}
NOTEBOOKS = sorted((pathlib.Path(__file__).parents[1] / "notebooks").glob("*.ipynb"))


@pytest.fixture(scope="module")
def few_images(tmp_path_factory):
    """A folder with the first images of each class of CIFAR-10; empty where there are none."""
    folder, counts = tmp_path_factory.mktemp("images"), {}
    archive = SHARED / "data" / "cifar10.tar.gz"
    if not archive.exists():  # then a notebook takes digits
        return folder
    with tarfile.open(archive) as files:
        for member in files:
            parts = pathlib.PurePath(member.name).parts
            if not member.isfile():
                continue
            counts[parts[1:3]] = counts.get(parts[1:3], 0) + 1
            if counts[parts[1:3]] <= PER_CLASS[parts[1]]:
                files.extract(member, folder, filter="data")
    return folder


def test_every_notebook_is_as_quick_as_it_can_be():
    texts = [path.read_text() for path in NOTEBOOKS]
    assert [whole for whole in QUICKER if not any(whole in text for text in texts)] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "path",
    [
        pytest.param(p, id=p.stem, marks=pytest.mark.xdist_group("images" if k < 2 else p.stem))
        for k, p in enumerate(NOTEBOOKS)
    ],
)
def test_the_notebook_runs_from_a_clean_kernel(path, tmp_path, few_images):
    text = path.read_text()
    for whole, quick in QUICKER.items():
        text = text.replace(whole, quick)
    notebook = nbformat.reads(text, as_version=4)
    for data in few_images.iterdir():
        (tmp_path / data.name).symlink_to(data)
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
