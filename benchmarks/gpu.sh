#!/usr/bin/env bash
# A quarter of an hour on a GPU, in parts that each end within their time and write JSON as they go:
#     benchmarks/gpu.sh truth|cost|train [FOLDER [ARGUMENTS OF THE TRAINER]]
# truth   does the GPU compute what the CPU does: rasterizers, steps, densification, resume      150 s
# cost    the rasterizers' time; steps by stage, the networks' calls by themselves, waits,
#         memory under the budgets                                                               150 s
# train   the embedded prior from the checkpoint in FOLDER/training, saved every 60 s            480 s
# PYTHON is an interpreter that imports splatgen, .venv/bin/python unless it is given; a torch that came with the
# machine needs this checkout on PYTHONPATH (benchmarks/README.md). The parts are independent: run what is wanted.
# LIMIT=N gives a part other seconds, TINY=1 small models (truth and cost on the CPU, too, train with
# DEVICE=cpu), TRAINER and MODEL another model to train.
set -euo pipefail
cd "$(dirname "$0")/.."
part=${1:-}
out=${2:-benchmarks/results}
read -ra python <<< "${PYTHON:-.venv/bin/python}"
mkdir -p "$out"
within() { timeout --kill-after=10 "$@"; }
case $part in
    truth)
        limit=${LIMIT:-150}
        within "$limit" "${python[@]}" benchmarks/gpu_truth.py ${TINY:+--tiny} \
            --seconds $((limit * 9 / 10)) --out "$out/gpu-truth.json"
        ;;
    cost)
        limit=${LIMIT:-150}
        what=(--settings sd15x4 mvdreamx4 --methods sds weighted-4 psd-every --budgets none 8gb 24gb --rounds 3)
        if [ -n "${TINY:-}" ]; then
            what=(--tiny --settings sd15x1 --methods sds psd-every --budgets none 8gb --rounds 1)
        fi
        first=$((limit / 5))
        within "$first" "${python[@]}" benchmarks/gpu_rasterizers.py ${TINY:+--tiny} \
            --seconds $((first * 2 / 3)) --out "$out/gpu-rasterizers.json" || echo "rasterizers: exit $?" >&2
        within $((limit - first)) "${python[@]}" benchmarks/models.py "${what[@]}" \
            --minutes "$(awk "BEGIN {print ($limit - $first) * 0.8 / 60}")" --out "$out/gpu-cost.json"
        ;;
    train)  # an interrupt saves a checkpoint and writes the weights
        within --signal=INT --preserve-status "${LIMIT:-480}" \
            "${python[@]}" -m "${TRAINER:-splatgen.worlds.toybox.train}" "${MODEL:-${TINY:+mini-}prior}" \
            --device "${DEVICE:-cuda}" --work "$out/training" --out "$out/trained" "${@:3}"
        ;;
    *)
        sed -n '2,11s/^# \{0,1\}//p' "$0" >&2
        exit 2
        ;;
esac
