"""What `import dgnet_keras` loads, and which module may import which."""

import ast
import pathlib
import subprocess
import sys

import pytest

ROOT = pathlib.Path(__file__).parents[1]

HEAVY = ("tf_keras", "official", "keras_cv", "matplotlib", "sklearn", "orbit")


def loaded_by(statement):
    code = f"import sys; {statement}; print(' '.join({{m.split('.')[0] for m in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


def test_importing_the_package_adds_no_optional_dependency():
    added = loaded_by("import tensorflow, keras, dgnet_keras")
    added -= loaded_by("import tensorflow, keras")
    assert not added & set(HEAVY)
    assert "dgnet_keras" in added


# Each module may import those before it (docs/training.md describes what the parts do).
TRAIN_ORDER = (
    *("configs", "datasets", "augmentation", "input_pipeline", "strategies", "optimizers"),
    *("checkpoints", "task", "engine", "report", "runner", "imagenet", "preview"),
)


def imported_from_train(path):
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == "train":
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("train."):
            names.add(node.module.removeprefix("train."))
    return names


@pytest.mark.parametrize("name", TRAIN_ORDER)
def test_the_modules_of_training_import_in_one_direction(name):
    allowed = set(TRAIN_ORDER[: TRAIN_ORDER.index(name)])
    assert imported_from_train(ROOT / "train" / f"{name}.py") <= allowed


def test_the_package_does_not_import_training():
    for path in (ROOT / "dgnet_keras").rglob("*.py"):
        assert not imported_from_train(path), path
