#!/bin/sh
# What a machine with a GPU has to show, in a few minutes; stops at the first failure. Run it in the repository root:
#   sh benchmarks/gpu.sh [cuda|cpu] [FOLDER]
# With `cpu` every step runs without a GPU, to see that the script itself works. FOLDER (default runs/gpu) keeps the
# journal and the checkpoints, so that a second call goes on where the first one was stopped.
set -eu
device=${1:-cuda}
folder=${2:-runs/gpu}
python=${PYTHON:-python}
citrus="$python -c 'import sys; from citrus_tool.cli import main; sys.exit(main())'"
mkdir -p "$folder"

echo "== the same numbers on the GPU and on the CPU (skipped without CUDA)"
"$python" -m pytest -q tests/test_gpu.py

echo "== a certificate on $device against one on the CPU"
for where in cpu "$device"; do
    eval "$citrus" certify-uap models/digits_convtiny_citrus.onnx --eps 0.05 --limit 100 --bounds full --device "$where" \
        --run-dir "$folder/certify_$where" --json "$folder/certify_$where.json" --quiet
done
"$python" - "$folder/certify_cpu.json" "$folder/certify_$device.json" <<'END'
import json
import sys

one, other = (json.load(open(path)) for path in sys.argv[1:])
names = ("clean_correct", "ibp_certified", "individually_certified", "certified", "attacked")
differ = [f"{name}: {one[name]} and {other[name]}" for name in names if one[name] != other[name]]
differ += [f"group {g['indices']}" for g, h in zip(one["groups"], other["groups"]) if g["certified"] != h["certified"]]
sys.exit("the certificates differ in " + "; ".join(differ) if differ else 0)
END

echo "== train, export and certify on $device"
eval "$citrus" bench table1 --scale smoke --methods citrus-plus --device "$device" \
    --journal "$folder/journal.jsonl" --runs "$folder/bench" --quiet

echo "== training steps, images per second"
if [ "$device" = cuda ]; then
    "$python" benchmarks/train_step.py --device cuda --methods all --data cifar10 --architecture cnn7 --pgd-steps 8 \
        --literal-steps 0
fi
"$python" benchmarks/train_step.py --methods citrus,sabr,citrus-plus --data cifar10 --pgd-steps 2 --groups 5 --steps 2 \
    --literal-steps 0 --threads 1
