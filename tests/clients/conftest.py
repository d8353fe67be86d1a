"""A server for the clients of this folder, started once and ended with them.

`NIGHTMONK` is the program, `NIGHTMONK_MODEL` the folder of a chat model that speaks English in ChatML. The template of such
a small model knows no tools, so it gets one that does. The server has a key file and a state folder of its own: nothing of
the user's is touched.
"""

import json
import os
import pathlib
import re
import subprocess
import threading
from dataclasses import dataclass

import pytest

STARTS_WITHIN_SECONDS = 120
KEY = "sk-nightmonk-clients"
TEMPLATE = pathlib.Path(__file__).parent.parent / "golden/templates/qwen2_5"


@dataclass
class Server:
    url: str
    key: str
    model: str


def with_tools(source, folder):
    """The same model, with a template that writes and reads calls of tools."""
    folder.mkdir()
    for file in source.iterdir():
        if file.name != "tokenizer_config.json":
            (folder / file.name).symlink_to(file)
    config = json.loads((source / "tokenizer_config.json").read_text())
    config["chat_template"] = (TEMPLATE / "chat_template.jinja").read_text()
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return folder


@pytest.fixture(scope="session")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("server")
    key_file = folder / "key"
    key_file.write_text(KEY)
    key_file.chmod(0o600)
    model = with_tools(pathlib.Path(os.environ["NIGHTMONK_MODEL"]).resolve(), folder / "model")
    command = [os.environ["NIGHTMONK"], "serve", "-m", str(model), "--port", "0", "--api-key-file", str(key_file)]
    command += ["--ctx-size", "4096", "--parallel", "4"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
    address, said = [], []
    ready = threading.Event()

    def listen():
        for line in process.stderr:
            said.append(line)
            if found := re.search(r"http://[\d.:]+", line):
                address.append(found[0])
            if line.startswith("ready"):
                ready.set()
        ready.set()

    threading.Thread(target=listen, daemon=True).start()
    ready.wait(STARTS_WITHIN_SECONDS)
    if process.poll() is not None or not address:
        process.kill()
        pytest.fail("the server did not start:\n" + "".join(said))
    yield Server(address[0], KEY, model.name)
    process.terminate()
    assert process.wait(60) == 0, "the server did not end well:\n" + "".join(said)
