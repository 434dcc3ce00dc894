#!/usr/bin/env bash
# One run of N processes on this machine.
#
#   launch/local.sh N --config=configs/simclr_elev.py --workdir=RUN ...
#
# With NVIDIA GPUs each process takes one, process 0 the first. Without, each uses the processor, as
# DEVICES devices (default 1): a rehearsal of a larger machine. The first process speaks; when one
# ends by an error the others are stopped, and the same command goes on. PYTHON names another Python.
set -euo pipefail
if [[ ! ${1:-} =~ ^[1-9][0-9]*$ ]]; then
  echo "usage: launch/local.sh N --config=... --workdir=... (N processes)" >&2
  exit 2
fi
count=$1
shift
python=${PYTHON:-python}
port=$("$python" -c 'import socket; s = socket.socket(); s.bind(("", 0)); print(s.getsockname()[1])')
if command -v nvidia-smi > /dev/null && gpus=$(nvidia-smi --list-gpus | wc -l) && ((gpus > 0)); then
  if ((count > gpus)); then
    echo "error: $count processes, but only $gpus GPUs; start at most $gpus" >&2
    exit 2
  fi
else
  gpus=0
  export XLA_FLAGS="${XLA_FLAGS:-} --xla_force_host_platform_device_count=${DEVICES:-1}"
fi

children=()
trap 'kill "${children[@]}" 2> /dev/null || true' EXIT
for ((i = 0; i < count; i++)); do
  if ((gpus)); then export JAX_LOCAL_DEVICE_IDS=$i; fi
  "$python" -m elev_ssl_jax.main "$@" --coordinator="127.0.0.1:$port" --num_processes="$count" \
    --process_id="$i" &
  children+=($!)
done
for _ in "${children[@]}"; do
  status=0
  wait -n || status=$?
  if ((status)); then
    echo "a process ended with exit code $status; the same command goes on from the last checkpoint" >&2
    exit "$status"
  fi
done
