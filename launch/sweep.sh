#!/usr/bin/env bash
# One training per YAML file and seed: a SLURM job each or, without SLURM, one after the other on this machine.
#
#   SEEDS="0 1 2" launch/sweep.sh configs/a.yaml configs/b.yaml -- --optim.epochs 50
#   SBATCH="--nodes=2 --gpus-per-node=8" launch/sweep.sh --dry-run configs/*.yaml     # only says what it would start
#
# What follows -- goes to every training. Each has its own run folder, SWEEP_DIR/<file>-seed<seed>, and is named after it;
# the same command again goes on with what is not complete. Ctrl-C, or SIGTERM to this script, asks the training that is
# under way on this machine to leave a checkpoint, and starts no other.
#
# Knobs, by environment variable:
#   SEEDS      by default the one that the YAML file says
#   SWEEP_DIR  where the run folders are, by default runs/sweep
#   LOCAL      yes, or no (SLURM); by default yes where there is no sbatch
#   SBATCH     options of sbatch, for every job
# and those of launch/slurm.sbatch or launch/local.sh, which start the trainings.
set -euo pipefail

fail() {
    echo "sweep.sh: error: $*" >&2
    exit 2
}

launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
sweep=${SWEEP_DIR:-runs/sweep}
dry_run=''
configs=()
while [ $# -gt 0 ]; do
    case $1 in
        --) shift && break ;;
        --dry-run) dry_run=yes ;;
        -*) fail "$1: flags of the trainer come after --" ;;
        *) configs+=("$1") ;;
    esac
    shift
done
[ ${#configs[@]} -gt 0 ] || fail "name at least one YAML file"
here=${LOCAL:-$(command -v sbatch >/dev/null && echo no || echo yes)}
read -ra seeds <<<"${SEEDS:-}"
read -ra options <<<"${SBATCH:-}"

names=() failed=()
for config in "${configs[@]}"; do
    [ -f "$config" ] || fail "$config is no file"
    for seed in "${seeds[@]:-}"; do # once, empty, without seeds
        name=$(basename "$config" .yaml)${seed:+-seed$seed}
        for other in "${names[@]}"; do
            [ "$other" != "$name" ] || fail "two trainings would be named $name: rename $config"
        done
        names+=("$name")
    done
done

# Ask the training to stop, wait until it has, and end with this status.
stop() {
    trap '' INT TERM HUP # it is asked once
    running=$(jobs -p)
    echo "sweep.sh: asked to stop; the same command goes on with what is not complete" >&2
    [ -z "$running" ] || kill -TERM "$running" || true # it may just have ended
    wait
    exit "$1"
}
trap 'stop 130' INT
trap 'stop 143' TERM
trap 'stop 129' HUP

# Print a command as it can be typed, and run it unless this is a dry run. In the background, as bash hears no signal
# while it waits for a command in the foreground; by set -m in a process group of its own, which Ctrl-C does not reach.
start() {
    printf '%q ' "$@"
    echo
    [ -z "$dry_run" ] || return 0
    set -m
    "$@" &
    set +m
    wait $!
}

for config in "${configs[@]}"; do
    for seed in "${seeds[@]:-}"; do
        name=$(basename "$config" .yaml)${seed:+-seed$seed}
        folder=$sweep/$name
        command=("$launch/local.sh")
        if [ "$here" != yes ]; then
            [ -n "$dry_run" ] || mkdir -p "$folder" # SLURM does not make the folder of its log
            command=(sbatch "${options[@]}" --job-name="$name" --output="$folder/slurm-%j.out" "$launch/slurm.sbatch")
        fi
        start env RUN_DIR="$folder" "${command[@]}" --config "$config" ${seed:+--run.seed "$seed"} "$@" || failed+=("$name")
    done
done
[ ${#failed[@]} -eq 0 ] || {
    echo "sweep.sh: error: ${#failed[@]} of ${#names[@]} failed: ${failed[*]}" >&2
    exit 1
}
