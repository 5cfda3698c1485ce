import pytest

from benchmarks import exports

TINY = {"model": "resnet20_cifar", "size": 16, "spec": {"depths": [4, 4], "widths": [8, 16]}}


@pytest.mark.slow
def test_a_row_has_size_time_and_difference_of_every_file():
    names = [f"{w}/{k}" for w in exports.WIRINGS for k in exports.FORMATS]
    row = exports.measure_here(TINY, dict.fromkeys(names, 1))
    assert set(row["bytes"]) == set(row["differences"]) == set(row["milliseconds"]) == set(names)
    for name, difference in row["differences"].items():
        assert difference < (0.5 if name.endswith("int8") else 1e-4), name
    assert row["bytes"]["frozen/onnx"] < row["bytes"]["chain/onnx"]
    for kind in ("onnx", "litert"):
        assert row["bytes"][f"frozen/{kind}"] < row["bytes"][f"path/{kind}"]
    assert row["shares"]["frozen"] < 1
    assert abs(row["shares"]["path"] - exports.SHARE) < 0.1
    lines = exports.table([{"settings": TINY, **row}])
    assert len(lines) == 2 + len(exports.WIRINGS)
    assert len({line.count("|") for line in lines}) == 1
