#!/usr/bin/env bash
# Make .venv hold exactly what the lock files say. Does nothing when it already does.
#   PYTHON      the interpreter to build it with (default: python3.11, else python3.12, python3)
#   TORCH_ARGS  more options for installing torch, such as --index-url of a CPU or CUDA build
set -euo pipefail
cd "$(dirname "$0")/.."

# One builder at a time: `make run` and `make test` may be started together.
if command -v flock >/dev/null; then
    exec 9<envs/requirements.lock
    flock 9
fi

# Tried by running them: a name on PATH may be a shim with no interpreter behind it. A .venv that
# exists keeps its interpreter, unless another is asked for by name.
probe='import sys; print(sys._base_executable); sys.exit(not (3, 11) <= sys.version_info[:2] < (3, 13))'
python=""
if [ -n "${PYTHON:-}" ]; then
    candidates=("$PYTHON")
else
    candidates=(.venv/bin/python python3.11 python3.12 python3)
fi
for candidate in "${candidates[@]}"; do
    if found=$("$candidate" -c "$probe" 2>/dev/null); then
        python=$found
        break
    fi
done
if [ -z "$python" ]; then
    echo "error: Python 3.11 or 3.12 is needed, and ${PYTHON:-none of python3.11, python3.12, python3} is not one." >&2
    echo "       Install it, or name one: make $(printf '%q' "${1:-run}") PYTHON=/path/to/python3.11" >&2
    exit 1
fi

# What the environment is made from. It is written into .venv as the last act of building it, so a
# build that was cut short, or made from other pins, does not pass for a finished one.
pins=$("$python" -c 'import sys; print("# python", *sys.version_info[:2])' &&
    cat envs/build.lock envs/requirements.lock envs/torch.txt)
pip=(.venv/bin/python -m pip --disable-pip-version-check --quiet --quiet)
# Python compiles what is imported when it is; pip would compile all 320 MB of sources first.
install=("${pip[@]}" install --no-compile)
if [ "$pins" != "$(cat .venv/built-from 2>/dev/null)" ] || ! .venv/bin/python -c '' 2>/dev/null; then
    echo "Setting up .venv with $("$python" --version): a few minutes the first time"
    rm -rf .venv
    "$python" -m venv .venv
    "${install[@]}" --require-hashes -r envs/build.lock
    echo "  packages of envs/requirements.lock"
    # Without build isolation: packages that come as source only are built by the pinned setuptools.
    "${install[@]}" --require-hashes --no-deps --no-build-isolation -r envs/requirements.lock
    echo "  torch"
    # TORCH_ARGS is a list of options, split on purpose.
    # shellcheck disable=SC2086
    "${install[@]}" ${TORCH_ARGS:-} -r envs/torch.txt
    "${pip[@]}" check
    printf '%s\n' "$pins" >.venv/built-from
fi

# The project itself, editable, so that .venv/bin/less-kv exists; again when its metadata changed.
if ! cmp -s pyproject.toml .venv/installed-from; then
    "${install[@]}" --no-deps --no-build-isolation --editable .
    cp pyproject.toml .venv/installed-from
fi
