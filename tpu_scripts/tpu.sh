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

tries=3        # of one command that can fail for a moment
patience=30    # looks in a row that gcloud or the hosts leave unanswered, before it is given up

die() { printf 'tpu.sh: error: %s\n' "$*" >&2; exit 2; }
say() { printf '%s %s\n' "$(date +%H:%M:%S)" "$*" >&2; }

# Run a command, or print it so that it can be pasted.
run() {
  if [ -n "$dry_run" ]; then printf '%q ' "$@"; echo; else "$@"; fi
}

tpus() { run gcloud compute tpus "$@" "${place[@]}"; }
on_hosts() { tpus tpu-vm ssh "$name" --worker="$1" --command="$2"; }

# Run what may be run twice until it succeeds, at most $tries times. Status 2 is an answer (a host's, or gcloud's to
# its arguments) and is not asked for again.
persist() {
  local attempt=1 status
  while true; do
    status=0
    "$@" || status=$?
    [ $status != 0 ] || return 0
    if [ $status = 2 ] || [ $attempt -ge $tries ]; then return $status; fi
    say "$1 failed with status $status (attempt $attempt of $tries)"
    attempt=$((attempt + 1))
    sleep "$pause"
  done
}

# Whether gcloud's words say that asking again is useless.
is_refusal() {
  case $1 in
    *PERMISSION_DENIED* | *UNAUTHENTICATED* | *INVALID_ARGUMENT* | *'gcloud auth login'* | *'Invalid value'*) return 0 ;;
  esac
  return 1
}

# Set `seen` to the state of the queued resource: NONE where gcloud says that there is none, UNKNOWN where it says
# nothing of it, as without network; `words` is then what it said.
seen='' words='' answered=''
look() {
  local attempt
  if [ -n "$dry_run" ]; then seen=ACTIVE; return; fi
  for ((attempt = 1; attempt <= tries; attempt++)); do
    [ $attempt = 1 ] || sleep "$pause"
    if words=$("${limited[@]}" gcloud compute tpus queued-resources describe "$name" "${place[@]}" \
      --format='value(state.state)' 2> "$scratch/words"); then
      seen=${words##*$'\n'}
      answered=1
      [ -n "$seen" ] || seen=UNKNOWN
      return 0
    fi
    words=$(tail -n 3 "$scratch/words")
    case $words in
      *NOT_FOUND* | *'was not found'* | *'does not exist'*) seen=NONE answered=1; return 0 ;;
    esac
    [ -n "$answered" ] || ! is_refusal "$words" || die "gcloud refused: $words"
  done
  seen=UNKNOWN
}

# Sleep until the next look; give up where one after the other has had no answer.
unanswered=0
wait_on() {
  unanswered=$((unanswered + 1))
  say "$1 (look $unanswered of $patience without an answer)"
  [ $unanswered -lt $patience ] || die "$1, $patience times in a row"
  sleep "$every"
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

# Ask for the slice once. What exists already is no failure: an earlier request may have arrived without its answer.
request() {
  [ -n "$runtime" ] || runtime=$(runtime_of "$type") || exit
  set -- queued-resources create "$name" --node-id="$name" --accelerator-type="$type" --runtime-version="$runtime"
  [ -z "$spot" ] || set -- "$@" --spot
  if [ -n "$dry_run" ]; then tpus "$@"; return; fi
  tpus "$@" 2> "$scratch/words" || {
    words=$(tail -n 3 "$scratch/words")
    case $words in *ALREADY_EXISTS* | *'already exists'*) return 0 ;; esac
    ! is_refusal "$words" || die "$name was not created: $words"
    return 1
  }
}

# From whatever state it is in to ACTIVE: what waits is waited for, what was preempted or failed is asked for again.
create() {
  local failures=0
  if [ -n "$dry_run" ]; then request; return; fi
  while true; do
    look
    case $seen in
      UNKNOWN) wait_on "gcloud does not say what $name is: $words"; continue ;;
      ACTIVE) unanswered=0; say "$name is there"; return 0 ;;
      NONE)
        [ $failures -lt $tries ] || die "$name was not created: $words"
        if request; then look; else say "the request failed: $words"; fi
        if [ "$seen" = ACTIVE ]; then continue; fi
        [ "$seen" != NONE ] || failures=$((failures + 1)) ;;
      SUSPENDED) say "$name was preempted (SUSPENDED); asking for it again"; delete; continue ;;
      FAILED)
        failures=$((failures + 1))
        if [ $failures -gt 1 ]; then
          gcloud compute tpus queued-resources describe "$name" "${place[@]}" --format='yaml(state)' >&2 || true
          die "$name was not created (state FAILED)"
        fi
        say "$name is FAILED; asking for it again"
        delete
        continue ;;
    esac
    unanswered=0
    say "$name: $seen"
    sleep "$every"
  done
}

install() {
  local archive="$scratch/slmjax.tgz"
  run git -C "$root" archive --format=tar.gz --output="$archive" HEAD
  persist tpus tpu-vm scp "$archive" "$name:slmjax.tgz" --worker=all || return
  persist on_hosts all 'set -e; mkdir -p slmjax; tar -xzf slmjax.tgz -C slmjax; python3 -m pip install --quiet --user uv
    ~/.local/bin/uv venv --quiet --allow-existing --python 3.12 ~/venv
    ~/.local/bin/uv pip install --quiet --python ~/venv/bin/python -e "./slmjax[tpu]"'
}

# A mount whose gcsfuse has died is a directory that cannot be listed; it is mounted anew.
mount_bucket() {
  [ -n "$bucket" ] || die 'mount needs --bucket'
  persist on_hosts all "set -e
    if mountpoint -q ~/bucket && ls ~/bucket > /dev/null 2>&1; then exit 0; fi
    fusermount -uz ~/bucket 2> /dev/null || true
    mkdir -p ~/bucket
    command -v gcsfuse > /dev/null || { echo 'gcsfuse is not on this image: install it on every host' >&2; exit 2; }
    gcsfuse --implicit-dirs --rename-dir-limit=100000 $(printf %q "$bucket") ~/bucket"
}

# On a host: `alive` succeeds while the training runs. A number is not enough: after a restart it may be another's.
# shellcheck disable=SC2016  # the host expands it
alive='alive() { tr "\0" " " < "/proc/$(cat ~/train.pid)/cmdline" | grep -q "slmjax train"; } 2> /dev/null'

# The exit status is left in ~/train.rc, so that a later look can tell a run that ended from one that was killed; the
# shell that writes it outlives a SIGTERM to both.
train() {
  [ ${#arguments[@]} -gt 0 ] || die 'train needs the arguments of slmjax train after --'
  local words='' word
  if [ -n "$bucket" ]; then
    mount_bucket || return
  else
    case "${arguments[*]}" in *'~/bucket'*) say 'without --bucket nothing is mounted at ~/bucket' ;; esac
  fi
  # A leading ~ means the host's home; everything else arrives as it was written.
  for word in "${arguments[@]}"; do
    # shellcheck disable=SC2088
    case $word in
      '~/'*) words+=" ~/$(printf %q "${word#\~/}")" ;;
      --*='~/'*) words+=" ${word%%=*}=\$HOME/$(printf %q "${word#*=\~/}")" ;;
      *) words+=" $(printf %q "$word")" ;;
    esac
  done
  # Asked twice, as after a connection that broke, it is started once.
  persist on_hosts all "$alive
    if alive; then echo 'the training runs here already' >&2; exit 0; fi
    cd ~/slmjax || exit 2
    rm -f ~/train.rc
    echo '--- started by tpu.sh' >> ~/train.log
    nohup setsid bash -c 'trap : TERM; ~/venv/bin/slmjax train --distributed \"\$@\" >> ~/train.log 2>&1
      echo \$? > ~/train.rc.new; mv ~/train.rc.new ~/train.rc' \
      train$words > /dev/null 2>&1 < /dev/null & echo \$! > ~/train.pid" || return
  say 'the training runs on every host; the command logs follows it'
}

# Set `found`: running, stopped (never begun, killed, or saved after a signal: to be started again), done, failed,
# or unreachable. Of all hosts: where one was restarted alone, the others wait for it for ever or end by a signal.
found='' asked_all=''
training() {
  if [ -n "$dry_run" ]; then found='done'; return; fi
  asked_all=$("${limited[@]}" gcloud compute tpus tpu-vm ssh "$name" --worker=all "${place[@]}" --command="$alive
    if alive; then runs=1; else runs=''; fi
    if [ -f ~/train.rc ]; then
      status=\$(cat ~/train.rc)
      if [ \"\$status\" -ge 128 ]; then echo killed; elif [ \"\$status\" != 0 ]; then echo \"failed \$status\"
      elif tac ~/train.log | sed '/^--- started by tpu.sh/q' | head -n 3 | grep -q 'goes on from there'; then echo stopped; else echo done; fi
    elif [ -n \"\$runs\" ]; then echo running; else echo stopped; fi" 2> /dev/null) || { found=unreachable; return; }
  local word
  found=''
  for word in stopped failed killed running 'done'; do
    if [ -z "$found" ] && grep -q "^$word" <<< "$asked_all"; then found=$word; fi
  done
  [ -n "$found" ] || found=unreachable
}

# End what still runs on some hosts: asked first, since it then saves.
stop() {
  persist on_hosts all "$alive
    if alive; then
      kill -TERM -- \"-\$(cat ~/train.pid)\"
      for second in \$(seq 60); do alive || exit 0; sleep 1; done
      kill -KILL -- \"-\$(cat ~/train.pid)\"
    fi"
}

# Begin the training, or begin it again where it saved, on hosts of which nothing is known: after a restart their mounts
# are gone, and a host that was replaced has nothing installed.
start() {
  if [ -n "$dry_run" ]; then
    install
  else
    stop || return
    local absent
    absent=$(persist on_hosts all '[ -x ~/venv/bin/slmjax ] && [ -d ~/slmjax ] || echo absent' 2> /dev/null) || return
    [ -z "$absent" ] || install || return
  fi
  train
}

watch() {
  [ ${#arguments[@]} -gt 0 ] || die 'watch needs the arguments of slmjax train after --'
  local kills=0 starts=0 status
  while true; do
    create
    training
    case $found in
      'done') say 'the training has ended'; [ -z "$dry_run" ] || start; return 0 ;;
      failed)
        persist on_hosts 0 'tail -n 30 ~/train.log' >&2 || true
        die "the training failed with status $(sed -n 's/^failed //p' <<< "$asked_all" | head -n 1)" ;;
      unreachable) wait_on "the hosts of $name do not answer"; continue ;;
      killed)
        kills=$((kills + 1))
        [ $kills -le 10 ] || die 'the training was killed ten times: see the command logs, and dmesg on the hosts'
        say 'the training was killed' ;;
    esac
    if [ "$found" = running ]; then
      starts=0
    else
      [ $starts -lt 10 ] || die 'the training was started ten times and never seen to run: see the command logs'
      say 'starting the training, where it saved last'
      status=0
      start || status=$?
      [ $status != 2 ] || die 'the training could not be started (see above)'
      if [ $status != 0 ]; then wait_on 'the training could not be started'; continue; fi
      starts=$((starts + 1))
    fi
    unanswered=0
    sleep "$every"
  done
}

fetch() {
  [ -n "$bucket" ] && [ -n "$from" ] && [ -n "$to" ] || die 'fetch needs --bucket, --from and --to'
  run mkdir -p "$to"
  persist run gcloud storage rsync --recursive "gs://$bucket/$from" "$to"
}

# Until nothing is left: what is being deleted is waited for, and nothing to delete is no failure.
delete() {
  local failures=0
  set -- queued-resources delete "$name" --force --quiet
  if [ -n "$dry_run" ]; then tpus "$@"; return; fi
  while true; do
    look
    case $seen in
      NONE) unanswered=0; say "$name is deleted"; return 0 ;;
      UNKNOWN) wait_on "gcloud does not say what $name is: $words"; continue ;;
      DELETING | SUSPENDING) say "$name: $seen" ;;
      *)
        if tpus "$@" 2> "$scratch/words"; then continue; fi
        words=$(tail -n 3 "$scratch/words")
        failures=$((failures + 1))
        [ $failures -lt $tries ] || die "$name was not deleted: $words"
        say "deleting failed: $words" ;;
    esac
    sleep "$every"
  done
}

# What the slice and its training are at this moment.
status() {
  look
  [ "$seen" != UNKNOWN ] || die "gcloud does not say what $name is: $words"
  found=unreachable
  if [ "$seen" = ACTIVE ]; then
    training
    [ "$found" != unreachable ] || { sleep "$pause"; training; }
  fi
  echo "slice: $seen"
  echo "training: $found"
}

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
[[ $every =~ ^[0-9]+(\.[0-9]+)?$ ]] || die "--every is $every: give seconds"
place=(--zone="$zone")
[ -z "$project" ] || place+=(--project="$project")
[ -n "$dry_run" ] || command -v gcloud > /dev/null || die 'gcloud is not installed; --dry-run works without it'

# Between two attempts at one command: a network that failed for a moment is back sooner than a slice is.
case $every in [0-4] | [0-4].*) pause=$every ;; *) pause=5 ;; esac
# gcloud can wait for ever for a host that was taken away (macOS has no timeout).
limited=(command)
[ -z "$(command -v timeout)" ] || limited=(timeout 120)
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT

case $command in
  mount) mount_bucket ;;
  logs) persist on_hosts 0 'tail -n 100 -F ~/train.log' ;;
  *) "$command" ;;
esac
