import pickle
import sys

import pytest

from dgnet_keras.serving import Client, ServingError
from dgnet_keras.serving.errors import AnswerMismatch


@pytest.mark.parametrize("kind", [ServingError, AnswerMismatch])
def test_an_error_goes_through_pickle(kind):
    error = pickle.loads(pickle.dumps(kind("NOT_FOUND", "no", reached=False)))
    assert type(error) is kind
    assert (error.code, str(error), error.reached) == ("NOT_FOUND", "no", False)


@pytest.mark.parametrize(
    ("package", "url"),
    [
        ("requests", "http://localhost:8501"),
        ("tensorflow_serving.apis.prediction_service_pb2_grpc", "grpc://localhost:8500"),
    ],
)
def test_a_missing_package_is_named_with_its_extra(monkeypatch, package, url):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ImportError, match=rf"{package}.*pip install '\.\[serving\]'"):
        Client(url, "birds")
