#!/usr/bin/env bash
# install.sh FOLDER: abc-rag with its server in a virtual environment, from the checkout that this script is in.
# TORCH_INDEX is where torch comes from; empty for pip's own index, which has CUDA. PYTHON picks the interpreter.
set -euo pipefail
cd "$(dirname "$0")/../.."
venv=$1
"${PYTHON:-python3}" -m venv "$venv"
pip() { "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-cache-dir -c constraints.txt "$@"; }
# torch comes first and by itself: resolved together with the rest, some indexes would give a newer build with CUDA.
pip ${TORCH_INDEX:+--index-url "$TORCH_INDEX"} torch
pip ".[server,documents,generate,heif]"
"$venv/bin/abc-rag" serve --help > /dev/null
