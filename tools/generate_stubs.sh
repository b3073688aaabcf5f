#!/usr/bin/env bash
# Writes the Python stubs of proto/ below the folder $1.
set -euo pipefail
cd "$(dirname "$0")/.."
bin=.venv-proto/bin
PATH="$PWD/$bin:$PATH" "$bin/python" -m grpc_tools.protoc -Iproto \
  --python_out="$1" --grpc_python_out="$1" --mypy_out="$1" --mypy_grpc_out="$1" proto/punnet/v1/*.proto
touch "$1/punnet/v1/__init__.py"
