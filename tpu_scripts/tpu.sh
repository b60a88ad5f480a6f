#!/usr/bin/env bash
# Train on a Cloud TPU slice, from creating it to deleting it. `tpu.sh --help` says how.
set -euo pipefail

usage() {
  cat <<'TEXT'
usage: tpu.sh COMMAND --name NAME --zone ZONE [OPTIONS] [-- ARGUMENTS OF slmjax train]

commands, in the order of their use:
  create    ask for the slice as a queued resource and wait until it is there
  install   copy the committed tree of this clone to every host and install it (Python 3.12 in ~/venv)
  mount     mount the bucket on every host as ~/bucket (the image needs gcsfuse)
  train     start `slmjax train --distributed` on every host, detached; what follows -- is given to it
  logs      follow host 0's log
  status    say whether the slice is there and the training runs, ended, or failed
  watch     stay until the training has ended; when the slice is preempted, create, install, mount and train again
  fetch     copy a directory of the bucket here: --from runs/x --to runs/x
  delete    delete the slice and its queued resource; the bucket stays

options:
  --name NAME          of the slice
  --zone ZONE          such as us-west4-a
  --project PROJECT    default: gcloud's
  --type TYPE          accelerator type (default: v5litepod-16)
  --runtime VERSION    of the TPU VM (default: the one for the type)
  --spot               cheaper, may be taken away at any time
  --bucket BUCKET      a Cloud Storage bucket in the slice's region, best with hierarchical namespace, where renaming a
                       directory (a finished checkpoint) is one step
  --every SECONDS      between two looks of create and watch (default: 60)
  --from, --to         of fetch
  --dry-run            print the commands instead of running them

example:
  common=(--name slm --zone us-west4-a --type v5litepod-16 --spot --bucket my-bucket)
  tpu_scripts/tpu.sh watch "${common[@]}" -- --config configs/llama3_2_1b.py --workdir '~/bucket/runs/llama' \
      --config.data.cache_dir='~/bucket/corpus'
TEXT
}

die() { printf 'tpu.sh: error: %s\n' "$*" >&2; exit 2; }
say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

# Run a command, or print it so that it can be pasted.
run() {
  if [ -n "$dry_run" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

tpus() { run gcloud compute tpus "$@" "${place[@]}"; }
on_hosts() { tpus tpu-vm ssh "$name" --worker="$1" --command="$2"; }

state() {
  if [ -n "$dry_run" ]; then echo ACTIVE; return; fi
  gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='value(state.state)' 2>/dev/null || echo NONE
}

runtime_of() {
  case $1 in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v[234]-*) echo tpu-ubuntu2204-base ;;
    *) die "no runtime is known for the type $1: give --runtime" ;;
  esac
}

create() {
  local spot_flag=()
  [ -z "$spot" ] || spot_flag=(--spot)
  [ -n "$runtime" ] || runtime=$(runtime_of "$type")
  tpus queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime" \
    "${spot_flag[@]}"
  until [ "$(state)" = ACTIVE ]; do
    case $(state) in FAILED | SUSPENDED | NONE) die "$name was not created (state $(state))" ;; esac
    say "$name: $(state)"
    sleep "$every"
  done
  say "$name is there"
}

install() {
  local archive
  archive=$(mktemp -d)/slmjax.tgz
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  tpus tpu-vm scp "$archive" "$name:slmjax.tgz" --worker=all
  on_hosts all 'set -e; mkdir -p slmjax; tar -xzf slmjax.tgz -C slmjax; python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ~/venv
    ~/.local/bin/uv pip install --quiet --python ~/venv/bin/python -e "./slmjax[tpu]"'
}

mount_bucket() {
  [ -n "$bucket" ] || die 'mount needs --bucket'
  on_hosts all "set -e; mountpoint -q ~/bucket && exit 0; mkdir -p ~/bucket
    command -v gcsfuse > /dev/null || { echo 'gcsfuse is not on this image: install it on every host' >&2; exit 2; }
    gcsfuse --implicit-dirs --rename-dir-limit=100000 $(printf %q "$bucket") ~/bucket"
}

# The exit status is left in ~/train.rc, so that a later look can tell a run that ended from one that was killed.
train() {
  [ ${#arguments[@]} -gt 0 ] || die 'train needs the arguments of slmjax train after --'
  local words='' word
  # A leading ~ means the host's home; everything else arrives as it was written.
  for word in "${arguments[@]}"; do
    # shellcheck disable=SC2088
    case $word in
      '~/'*) words+=" ~/$(printf %q "${word#\~/}")" ;;
      --*='~/'*) words+=" ${word%%=*}=\$HOME/$(printf %q "${word#*=\~/}")" ;;
      *) words+=" $(printf %q "$word")" ;;
    esac
  done
  on_hosts all "cd ~/slmjax; rm -f ~/train.rc
    nohup bash -c '~/venv/bin/slmjax train --distributed \"\$@\" >> ~/train.log 2>&1; echo \$? > ~/train.rc' \
      train$words > /dev/null 2>&1 < /dev/null & echo \$! > ~/train.pid"
  say 'training was started on every host; the command logs follows it'
}

# running, stopped (saved after a signal, to be started again), done, or failed: of the training on host 0.
training() {
  if [ -n "$dry_run" ]; then echo 'done'; return; fi
  local answer
  # shellcheck disable=SC2016  # the host expands it
  answer=$(on_hosts 0 'if [ ! -f ~/train.rc ]; then kill -0 "$(cat ~/train.pid)" && echo running || echo stopped
    elif [ "$(cat ~/train.rc)" != 0 ]; then echo failed
    elif tail -n 3 ~/train.log | grep -q "goes on from there"; then echo stopped
    else echo done; fi' 2>/dev/null) || answer=unreachable
  printf '%s\n' "$answer" | tail -n 1
}

launch() { create; install; [ -z "$bucket" ] || mount_bucket; train; }

watch() {
  if [ "$(state)" != ACTIVE ] || [ -n "$dry_run" ]; then launch; fi
  while true; do
    local seen
    seen=$(state)
    if [ "$seen" != ACTIVE ]; then
      say "$name was lost (state $seen); asking for it again"
      [ "$seen" = NONE ] || delete
      launch
    fi
    case $(training) in
      'done') say 'the training has ended'; return 0 ;;
      failed) on_hosts 0 'tail -n 30 ~/train.log' >&2; die "the training failed with status $(on_hosts 0 'cat ~/train.rc')" ;;
      stopped) say 'the training stopped; starting it again where it saved'; train ;;
    esac
    sleep "$every"
  done
}

fetch() {
  [ -n "$bucket" ] && [ -n "$from" ] && [ -n "$to" ] || die 'fetch needs --bucket, --from and --to'
  run mkdir -p "$to"
  run gcloud storage rsync --recursive "gs://$bucket/$from" "$to"
}

delete() { tpus queued-resources delete "$name" --force --quiet; }

name='' zone='' project='' type=v5litepod-16 runtime='' spot='' bucket='' every=60 from='' to='' dry_run=''
arguments=()
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
command=${1:---help}
case $command in
  -h | --help) usage; exit 0 ;;
  create | install | mount | train | logs | status | watch | fetch | delete) shift ;;
  *) die "there is no command $command (see tpu.sh --help)" ;;
esac
while [ $# -gt 0 ]; do
  case $1 in
    --) shift; arguments=("$@"); break ;;
    -h | --help) usage; exit 0 ;;
    --spot) spot=1; shift ;;
    --dry-run) dry_run=1; shift ;;
    --name | --zone | --project | --type | --runtime | --bucket | --every | --from | --to)
      [ $# -gt 1 ] || die "$1 needs a value"
      printf -v "${1#--}" '%s' "$2"; shift 2 ;;
    *) die "there is no option $1 (see tpu.sh --help)" ;;
  esac
done
if [ "$command" != fetch ]; then
  [ -n "$name" ] && [ -n "$zone" ] || die "$command needs --name and --zone"
fi
place=(--zone="$zone")
[ -z "$project" ] || place+=(--project="$project")
[ -n "$dry_run" ] || command -v gcloud > /dev/null || die 'gcloud is not installed; --dry-run works without it'

case $command in
  mount) mount_bucket ;;
  logs) on_hosts 0 'tail -n 100 -F ~/train.log' ;;
  status) echo "slice: $(state)"; echo "training: $(training)" ;;
  *) "$command" ;;
esac
