#!/usr/bin/env bash
# Fails when the committed stubs are not what proto/ gives.
set -euo pipefail
cd "$(dirname "$0")/.."
fresh=$(mktemp -d)
trap 'rm -rf "$fresh"' EXIT
mkdir -p "$fresh/punnet/v1"
tools/generate_stubs.sh "$fresh"
diff -r -x __pycache__ punnet/v1 "$fresh/punnet/v1" || { echo "The stubs are stale: run make proto" >&2; exit 1; }
