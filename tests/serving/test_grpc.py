import pytest
import serving_helpers
from serving_helpers import IMAGE, error_of

from benchmarks.serving.model_server import ModelServer
from benchmarks.serving.served_models import Refused
from dgnet_keras.serving import Client, ServingError


@pytest.fixture(scope="module")
def server(tiny):
    with ModelServer(serving_helpers.config(tiny)) as server:
        yield server


def test_a_server_that_is_busy_is_asked_again(server, monkeypatch):
    tries, predict = [], server.models.predict

    def busy(request):
        tries.append(1)
        if len(tries) < 3:
            raise Refused("UNAVAILABLE", "busy")
        return predict(request)

    monkeypatch.setattr(server.models, "predict", busy)
    with Client(server.grpc_url, "m") as client:
        assert client.predict(IMAGE)["classes"].shape == (1,)
        assert len(tries) == 3
        with pytest.raises(ServingError, match="too dark"):
            client.call("fail", IMAGE)
        assert len(tries) == 4


def test_a_closed_client_says_so(server):
    client = Client(server.grpc_url, "m")
    client.close()
    error = error_of(client.predict, IMAGE)
    assert error.code == "CANCELLED"
    assert "closed" in str(error)
