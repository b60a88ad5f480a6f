#!/usr/bin/env bash
# What a GPU computes and how fast, in one command and ten minutes. `on_gpu.sh --help` says how.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: on_gpu.sh [OPTIONS]

Checks the GPU against the CPU and measures it, the most important first. Needs Python, a driver and jax with CUDA, and
no network: other packages that are missing are taken from a directory of wheels that was carried along. Every result is
appended to DIR/results.jsonl the moment it is there, so that a killed run keeps what it measured; DIR/summary.md is the
same as tables. What there is no time for is skipped with a line that says so: --only runs it another time.

options:
  --output DIR      where results.jsonl, summary.md and log.txt go (default: runs/gpu)
  --wheels DIR      wheels of packages that the machine lacks (default: wheels)
  --minutes N       all in (default: 9.5); nothing is begun that would take longer
  --only NAMES      of the parts, separated by commas
  --dry-run         tiny sizes, on the CPU: whether everything runs; its numbers mean nothing
  --help            this text

parts, in their order:
  correctness  the machine; attention against float32 on the CPU; isolation of documents; training steps; attention's speed
  training     tokens/s and MFU of 0.35B, 1.1B and 3B
  torch        the same sizes in transformers under torch.compile and SDPA, where torch is there
  lora         LoRA on Llama-3.2-3B
  decoding     tokens/s at batch 1, 16 and 128
  default      training again, with the default remat policy

PYTHON names the interpreter (default: python3). The status is 0 when no check failed and no part broke.

The wheels, for Python 3.12, where there is a network:
  python3 -m pip download --no-deps --only-binary=:all: --python-version 3.12 --platform manylinux_2_28_x86_64 \
      --platform manylinux2014_x86_64 -d wheels grain array_record portpicker ml_collections tensorboardX

example:
  bash benchmarks/on_gpu.sh --output runs/gpu && cat runs/gpu/summary.md
TEXT
}

die() { printf 'on_gpu.sh: error: %s\n' "$*" >&2; exit 2; }

root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
here=$root/benchmarks/gpu
parts=(correctness training torch lora decoding default)
python=${PYTHON:-python3} output=$root/runs/gpu wheels=$root/wheels minutes=9.5 only='' dry_run=''
while [ $# -gt 0 ]; do
  case $1 in
    --help) usage; exit 0 ;;
    --dry-run) dry_run=--dry-run; shift; continue ;;
    --output | --wheels | --minutes | --only) [ $# -gt 1 ] || die "$1 needs a value" ;;
    *) die "$1 is not an option: see --help" ;;
  esac
  case $1 in
    --output) output=$2 ;;
    --wheels) wheels=$2 ;;
    --minutes) minutes=$2 ;;
    --only) only=$2 ;;
  esac
  shift 2
done
[[ $minutes =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--minutes $minutes is not a number"
for name in ${only//,/ }; do
  [[ " ${parts[*]} " == *" $name "* ]] || die "--only $name is not a part: they are ${parts[*]}"
done

deadline=$("$python" -c 'import sys, time; print(int(time.time() + 60 * float(sys.argv[1])))' "$minutes")
mkdir -p "$output"
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}:$scratch/site PYTHONUNBUFFERED=1 PYTHONDONTWRITEBYTECODE=1
export TF_CPP_MIN_LOG_LEVEL=${TF_CPP_MIN_LOG_LEVEL:-2}
if [ -n "$dry_run" ]; then
  export JAX_PLATFORMS=cpu JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$scratch/compiled}
  export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=0
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"
else
  # The CPU beside it is what the GPU is held against.
  export JAX_PLATFORMS=cuda,cpu XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.92}
fi
"$python" "$here/environment.py" --wheels "$wheels" --target "$scratch/site" ${dry_run:+"$dry_run"}

note() { "$python" "$here/reporting.py" note "$output" --part "$1" --status "$2" --reason "$3"; }

# Run a part in a process of its own: its memory is given back, and what it breaks is its own.
run() {
  local name=$1 script=$2 left status=0
  shift 2
  if [ -n "$only" ] && [[ ",$only," != *",$name,"* ]]; then return; fi
  left=$((deadline - $(date +%s)))
  if [ "$left" -lt 15 ]; then
    note "$name" skipped "$left s are left"
    return
  fi
  timeout --kill-after=5 "$left" "$python" "$here/$script" --output "$output" --deadline "$deadline" ${dry_run:+"$dry_run"} "$@" \
    2>> "$output/log.txt" || status=$?
  case $status in
    0) ;;
    124 | 137) note "$name" skipped "the time was up in the midst of it" ;;
    *) note "$name" error "exit status $status: $(tail -n 1 "$output/log.txt")" ;;
  esac
}

run correctness correctness.py
run training mfu.py --kind fast
run torch torch_peer.py
run lora mfu.py --kind lora
run decoding decode.py
run default mfu.py --kind default
"$python" "$here/reporting.py" summarize "$output"
