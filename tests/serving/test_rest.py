"""Answers over REST that are none, or errors."""

import socket
import threading
import time

import pytest
from serving_helpers import IMAGE, METADATA, error_of

from dgnet_keras.serving import Client


@pytest.mark.parametrize(
    ("status", "code"), [(400, "INVALID_ARGUMENT"), (404, "NOT_FOUND"), (500, "UNKNOWN")]
)
def test_other_errors_are_not_tried_again(scripted, status, code):
    url, seen = scripted([(200, METADATA), (status, '{ "error": "it\\\'s \\"bad\\"" }')])
    error = error_of(Client(url, "m").predict, IMAGE)
    assert error.code == code
    assert 'it\'s "bad"' in str(error)
    assert len(seen) == 2


@pytest.mark.parametrize("body", ["<html>welcome</html>", "[1]", '{"predictions": []}'])
def test_an_answer_that_is_none_of_tensorflow_serving(scripted, body):
    url, _ = scripted([(200, body)])
    error = error_of(Client(url, "m").metadata)
    assert error.code == "INTERNAL"
    assert "Received" in str(error)


def test_a_server_that_answers_byte_by_byte_costs_the_timeout():
    is_over = threading.Event()
    with socket.create_server(("127.0.0.1", 0)) as listener:

        def trickle():
            connection, _ = listener.accept()
            with connection:
                while not is_over.wait(0.1):
                    connection.sendall(b"H")

        thread = threading.Thread(target=trickle)
        thread.start()
        client = Client(f"http://127.0.0.1:{listener.getsockname()[1]}", "birds", timeout=0.5)
        start = time.monotonic()
        error = error_of(client.status)
        assert time.monotonic() - start < 1
        assert error.code == "DEADLINE_EXCEEDED"
        is_over.set()
        thread.join()
