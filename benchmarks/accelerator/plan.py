"""What the accelerator's benchmark does, in the order in which its answers are worth most."""

import dataclasses

NETWORKS = {"resnet50": 224, "mobilenetv2_100": 224, "resnext50_32x4d": 224, "regnetx_016": 224}
CPU_NETWORKS = {
    "resnet20_cifar": (32, 128),
    "mobilenetv2_100": (224, 8),
    "resnet50": (224, 8),
    "regnetx_016": (224, 8),
}
SMALL_NETWORK, SMALL_SIZE = "resnet20_cifar", 16
# Blocks that always run are 0.36 of ResNet-50, so less than that is for the deep narrow network.
SHARES = {("resnet50", 224): (0.8, 0.65, 0.5, 0.4), ("resnet56_cifar", 32): (1.0, 0.5, 0.3)}
BATCH, LARGE_BATCH = 32, 256
AMP = "mixed_float16"

# What can differ from one device to another: layers, gradients, XLA, 16 bits; exact warm start;
# skipping against dense, `MirroredStrategy`; SavedModel.
TESTS = (
    "tests/layers/test_gate.py",
    "tests/layers/test_aggregation.py",
    "tests/layers/test_normalization.py",
    "tests/layers/test_path.py",
    "tests/layers/test_router.py",
    "tests/layers/test_rows.py",
    "tests/layers/test_graph.py",
    "tests/test_static_init.py",
    "tests/test_skipping.py",
    "tests/test_budget.py",
    "tests/serving/test_export.py",
)
SMALL_TESTS = ("tests/layers/test_gate.py",)


@dataclasses.dataclass(frozen=True)
class Group:
    """What one process measures, so that a fault ends no more than that.

    Attributes:
        kind: `"networks"` or `"pipeline"`, the module that measures, or `"tests"`.
        settings: list of dicts, each of a row; of tests, the files.
        limit_s: seconds that it may take; what is left then is left for the next call.
    """

    kind: str
    settings: list
    limit_s: float = 200


def row(model, size, mode, batch, dtype=AMP, xla=False, share=1.0):
    """Settings of a network's row."""
    return {
        "part": "networks",
        "model": model,
        "size": size,
        "mode": mode,
        "batch": batch,
        "dtype": dtype,
        "xla": xla,
        "share": share,
    }


def _input(size):
    return Group("pipeline", [{"part": "input", "size": size}], 60)


def _rows(modes_and_batches, **settings):
    """A group for each family's network."""
    return [
        Group("networks", [row(model, size, *pair, **settings) for pair in modes_and_batches])
        for model, size in NETWORKS.items()
    ]


def plan():
    """List of `Group`, the first the most wanted."""
    both = [("inference", BATCH), ("train", BATCH)]
    shares = [
        Group(
            "networks",
            [
                row(*network, mode, batch, share=share)
                for share in wanted
                for mode, batch in (("inference", LARGE_BATCH), ("train", BATCH))
            ],
        )
        for network, wanted in SHARES.items()
    ]
    return [
        *_rows(both),
        Group("tests", list(TESTS), 180),
        *shares,
        _input(224),
        *_rows([("inference", 1), ("inference", LARGE_BATCH)]),
        *_rows(both, xla=True),
        *_rows(both, dtype="mixed_bfloat16"),
        *_rows(both, dtype="float32"),
        *_rows([("train", LARGE_BATCH)]),
    ]


def cpu_plan():
    """Of a CPU: networks in float32, at batches that it can do."""
    return [
        Group(
            "networks",
            [
                row(model, size, mode, images, "float32")
                for mode, images in (("inference", batch), ("train", batch), ("inference", 1))
            ],
            600,
        )
        for model, (size, batch) in CPU_NETWORKS.items()
    ]


def small_plan():
    """A little of each part."""
    network = (SMALL_NETWORK, SMALL_SIZE)
    rows = [
        row(*network, "inference", 1, "float32"),
        row(*network, "inference", 2, "float32", xla=True),
        row(*network, "train", 4, "float32", share=0.5),
        row(*network, "inference", 2, "mixed_bfloat16", share=0.5),
    ]
    return [Group("networks", rows), Group("tests", list(SMALL_TESTS)), _input(SMALL_SIZE)]
