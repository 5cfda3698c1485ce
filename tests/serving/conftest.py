"""Servers of small models, which the tests of the client share."""

import http.server
import shutil
import threading

import pytest

ROWS = {1: "resnet_cifar_split", 2: "resnet_basic"}
LABELS = {1: ["a", "b", "ö"], 2: ["d", "e", "f"]}


@pytest.fixture(scope="session")
def bird_models():
    """Two rows of the catalog, by version."""
    from catalog import create, randomize

    return {v: randomize(create(row, input_shape=(16, 16, 3))) for v, row in ROWS.items()}


@pytest.fixture(scope="session")
def birds(bird_models, tmp_path_factory):
    """Folder with the exports of `bird_models`, without the warm-up that a server would replay."""
    import dgnet_keras as dg

    folder = tmp_path_factory.mktemp("birds")
    for version, model in bird_models.items():
        labels = LABELS[version]
        exported = dg.export_saved_model(model, folder, version=version, labels=labels)
        shutil.rmtree(exported / "assets.extra")
    return folder


@pytest.fixture(scope="session")
def server(birds):
    """Serves both versions of `birds`."""
    import serving_helpers

    from benchmarks.serving.model_server import ModelServer

    labels = {"stable": 1, "canary": 2}
    with ModelServer(serving_helpers.config(birds, "birds", [1, 2], labels)) as server:
        yield server


@pytest.fixture(scope="session")
def tiny(tmp_path_factory):
    """Folder of a model of `serving_helpers` in version 2."""
    import serving_helpers

    folder = tmp_path_factory.mktemp("tiny")
    serving_helpers.save(folder, 2)
    return folder


@pytest.fixture
def images(rng):
    return rng.integers(0, 256, (3, 20, 30, 3), "uint8")


@pytest.fixture
def scripted():
    """Function of a list of (HTTP status, body): the URL of a server of these, and what it saw."""
    servers = []

    def start(answers):
        seen, answers = [], list(answers)

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                seen.append(self.path)
                status, body = answers.pop(0)
                self.send_response(status)
                self.end_headers()
                self.wfile.write(body.encode())

            def do_POST(self):
                self.rfile.read(int(self.headers["Content-Length"]))
                self.do_GET()

            def log_message(self, *args):
                pass

        server = http.server.HTTPServer(("127.0.0.1", 0), Handler)
        servers.append(server)
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        return f"http://127.0.0.1:{server.server_address[1]}", seen

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()
