#!/usr/bin/env bash
# VNN-COMP: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS TIMEOUT
# Leaves sat (with its witness), unsat, unknown, timeout or error on the first line of RESULTS and exits 0, within
# TIMEOUT seconds whatever happens. ONNX may be a list of pairs: [('f', 'F.onnx'), ('g', 'G.onnx')].
set -uo pipefail
if [ "$#" -ne 6 ] || [ "$1" != v1 ]; then
    echo "usage: run_instance.sh v1 CATEGORY ONNX VNNLIB RESULTS TIMEOUT" >&2
    exit 1
fi
onnx=$3 vnnlib=$4 results=$5 timeout=$6
citrus=${CITRUS:-$(dirname "${BASH_SOURCE[0]}")/../.venv/bin/citrus}
case $onnx in
    "["*) network=$onnx ;;
    *) network=N=$onnx ;;
esac
echo timeout > "$results"
answer=$(mktemp "$results.XXXXXX")
trap 'rm -f "$answer"' EXIT
# citrus answers two seconds early; a second before the end it is killed
guard=$(awk -v t="$timeout" 'BEGIN { print (t > 4) ? t - 1 : 0.8 * t }')
timeout --signal=KILL "$guard" "$citrus" verify "$vnnlib" --network "$network" --timeout "$timeout" > "$answer"
status=$?
read -r word < "$answer" || word=
case $word in
    sat | unsat | unknown) mv -f "$answer" "$results" ;;
    timed-out) echo timeout > "$results" ;;
    *) if [ "$status" -eq 137 ]; then echo timeout > "$results"; else echo error > "$results"; fi ;;
esac
exit 0
