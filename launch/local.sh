#!/usr/bin/env bash
# Train on this machine, on all its GPUs, or on CPU ranks where it has none. All arguments go to the trainer:
#
#   launch/local.sh                                        # the demo
#   RANKS=2 CONFIG=configs/cifar10.yaml launch/local.sh --data.root DIR
#   MAX_RESTARTS=3 RUN_DIR=runs/weekend launch/local.sh    # the same command again resumes
#
# Knobs, by environment variable:
#   RANKS            processes to start; by default one per GPU, of those in CUDA_VISIBLE_DEVICES, and 4 without any
#   MAX_RESTARTS     how often a run that failed starts again from its newest checkpoint, by default 0
#   CONFIG           the YAML file; by default what --config says, and configs/digits.yaml without one
#   RUN_DIR          the run folder, by default one that does not exist yet
#   OMP_NUM_THREADS  CPU threads of each rank, by default an even share
#   PYTHON           by default the checkout's .venv/bin/python, and python3 without one
set -euo pipefail

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
gpus=$( (nvidia-smi --list-gpus 2>/dev/null || true) | grep -c '^GPU ' || true)
if [ "$gpus" -gt 0 ] && [ -n "${CUDA_VISIBLE_DEVICES+set}" ]; then
    gpus=0
    IFS=, read -ra visible <<<"${CUDA_VISIBLE_DEVICES// /}"
    for device in "${visible[@]}"; do
        [[ $device == [0-9]* || $device == GPU-* || $device == MIG-* ]] || break # as CUDA, which stops at -1
        gpus=$((gpus + 1))
    done
fi
ranks=${RANKS:-$((gpus > 0 ? gpus : 4))}
share=$(($(nproc) / ranks))
export OMP_NUM_THREADS=${OMP_NUM_THREADS:-$((share > 0 ? share : 1))}
# Kernels are loaded before the first message: one that is first used while NCCL waits for another rank waits for NCCL.
export CUDA_MODULE_LOADING=${CUDA_MODULE_LOADING:-EAGER}
[[ " $* " == *" --config"[\ =]* ]] || CONFIG=${CONFIG:-$root/configs/digits.yaml}
python=$root/.venv/bin/python
[ -x "$python" ] || python=python3

exec "${PYTHON:-$python}" -m torch.distributed.run --standalone --nproc-per-node="$ranks" \
    --max-restarts="${MAX_RESTARTS:-0}" -m sidpar.train ${CONFIG:+--config "$CONFIG"} \
    ${RUN_DIR:+--run.dir "$RUN_DIR"} "$@"
