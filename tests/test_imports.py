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
    *("checkpoints", "task", "engine", "report", "runner", "command_line", "imagenet", "preview"),
    *("coco_configs", "coco_data", "coco_scenes", "coco_task", "coco_export", "coco_report"),
    *("coco_runner", "coco"),
)


# The same for the package.
PACKAGE_ORDER = (
    *(
        "version",
        "transports",
        "serving",
        "serving_config",
        "preprocessing",
        "layers.devices",
        "layers.rebuild",
        "layers.normalization",
        "layers.gate",
        "layers.blocks",
        "layers.router",
        "layers.aggregation",
        "layers.wiring",
    ),
    *("layers.graph", "layers", "connectivity", "backbones.base"),
    *(f"backbones.{family}" for family in ("mobilenet_v2", "resnet", "resnext", "regnet")),
    *(
        "backbones",
        "convert",
        "optimizers",
        "classifier",
        "complexity",
        "signatures",
        "export",
        "visualize",
        "callbacks",
        "detection",
    ),
    *("commands", "commands.models", "commands.listing", "commands.plotting", "commands.serving"),
)


def imported_from(package, path):
    """Names of the modules of a package that a file imports, and of what it takes from it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.module == package:
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith(f"{package}."):
            names.add(node.module.removeprefix(f"{package}."))
    return names


def imported_from_train(path):
    return imported_from("train", path)


@pytest.mark.parametrize("name", PACKAGE_ORDER)
def test_the_modules_of_the_package_import_in_one_direction(name):
    path = ROOT / "dgnet_keras" / f"{name.replace('.', '/')}.py"
    if not path.exists():
        path = path.with_suffix("") / "__init__.py"
    allowed = set(PACKAGE_ORDER[: PACKAGE_ORDER.index(name)])
    families = {f"backbones.{f}" for f in ("mobilenet_v2", "resnet", "resnext", "regnet")}
    if name in families:
        allowed -= families
    assert imported_from("dgnet_keras", path) <= allowed


@pytest.mark.parametrize("name", [n for n in PACKAGE_ORDER if n != "detection"])
def test_model_garden_is_imported_by_detection_alone(name):
    path = ROOT / "dgnet_keras" / f"{name.replace('.', '/')}.py"
    path = path if path.exists() else path.with_suffix("") / "__init__.py"
    for node in ast.walk(ast.parse(path.read_text())):
        names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
        names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
        assert not {n.split(".")[0] for n in names} & {"tf_keras", "official"}, path


def test_every_module_of_the_package_has_its_place_in_the_order():
    root = ROOT / "dgnet_keras"
    files = [path.relative_to(root).with_suffix("") for path in root.rglob("*.py")]
    names = {".".join(path.parts).removesuffix(".__init__") for path in files}
    assert names - {"__init__", "__main__"} == set(PACKAGE_ORDER)


@pytest.mark.parametrize("name", TRAIN_ORDER)
def test_the_modules_of_training_import_in_one_direction(name):
    allowed = set(TRAIN_ORDER[: TRAIN_ORDER.index(name)])
    assert imported_from_train(ROOT / "train" / f"{name}.py") <= allowed


def test_the_package_does_not_import_training():
    for path in (ROOT / "dgnet_keras").rglob("*.py"):
        assert not imported_from_train(path), path
