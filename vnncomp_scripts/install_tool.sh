#!/usr/bin/env bash
# VNN-COMP: install_tool.sh v1
# Installs citrus and its pinned dependencies into .venv of this checkout.
set -euo pipefail
[ "${1:-}" = v1 ] || { echo "usage: install_tool.sh v1" >&2; exit 1; }
cd "$(dirname "${BASH_SOURCE[0]}")/.."
make --no-print-directory install
.venv/bin/citrus --version
