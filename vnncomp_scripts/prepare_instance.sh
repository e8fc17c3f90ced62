#!/usr/bin/env bash
# VNN-COMP: prepare_instance.sh v1 CATEGORY ONNX VNNLIB
# Checks that the files are there and brings the program into the disk cache. Analyses nothing. Not zero: the instance
# is skipped.
set -euo pipefail
if [ "$#" -ne 4 ] || [ "$1" != v1 ]; then
    echo "usage: prepare_instance.sh v1 CATEGORY ONNX VNNLIB" >&2
    exit 1
fi
onnx=$3 vnnlib=$4
citrus=${CITRUS:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/citrus}
[ -r "$vnnlib" ] || { echo "prepare_instance.sh: $vnnlib cannot be read" >&2; exit 1; }
case $onnx in
    "["*) ;; # several networks; verify names the one that is missing
    *) [ -r "$onnx" ] || { echo "prepare_instance.sh: $onnx cannot be read" >&2; exit 1; } ;;
esac
"$citrus" verify --help > /dev/null
