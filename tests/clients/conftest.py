"""A server for the clients of this folder, started once and ended with them.

`NIGHTMONK` is the program, `NIGHTMONK_MODEL` the folder of a chat model that speaks English. The server gets a key file
and a state folder of its own, so nothing of the user's is touched.
"""

import os
import re
import subprocess
import threading
from dataclasses import dataclass

import pytest

STARTS_WITHIN_SECONDS = 120
KEY = "sk-nightmonk-clients"


@dataclass
class Server:
    url: str
    key: str
    model: str


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    key_file = folder / "key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    model = os.environ["NIGHTMONK_MODEL"]
    command = [os.environ["NIGHTMONK"], "serve", "-m", model, "--port", "0", "--api-key-file", str(key_file)]
    command += ["--ctx-size", "4096", "--parallel", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    address, said = [], []
    ready = threading.Event()

    def listen():
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://[\d.:]+", line):
                address.append(found[0])
            # It listens before its model is in memory.
            if line.startswith("ready"):
                ready.set()
        ready.set()

    threading.Thread(target=listen, daemon=True).start()
    ready.wait(STARTS_WITHIN_SECONDS)
    if not address:
        process.kill()
        pytest.fail("the server did not start:\n" + "".join(said))
    yield Server(address[0], KEY, os.path.basename(os.path.normpath(model)))
    process.terminate()
    assert process.wait(60) == 0, "the server did not end well:\n" + "".join(said)
