#!/usr/bin/env bash
# One run on all workers of a Cloud TPU slice, which is made if it isn't there.
#
#   NAME=elev ZONE=us-east5-b TYPE=v5litepod-64 launch/tpu_pod.sh --config=configs/simclr_elev.py \
#     --workdir=/mnt/runs/simclr_elev --config.data.dir=/mnt/runs/tfds ...
#
# NAME, ZONE and TYPE say which slice; VERSION its software (default tpu-ubuntu2204-base); SPOT=1
# asks for one that may be preempted; BUCKET=name mounts that Cloud Storage bucket at /mnt/runs on
# every worker by gcsfuse, for data and runs (a Filestore share mounted there does as well; runs may
# also be gs:// themselves). A slice that is
# preempted is made again, and the run goes on from its last checkpoint. At the end the slice stays:
# gcloud compute tpus tpu-vm delete "$NAME" --zone="$ZONE"
set -euo pipefail
if [[ $# -eq 0 || -z ${NAME:-} || -z ${ZONE:-} || -z ${TYPE:-} ]]; then
  echo "usage: NAME=... ZONE=... TYPE=... launch/tpu_pod.sh --config=... --workdir=/mnt/runs/..." >&2
  exit 2
fi
cd "$(dirname "$0")/.."
tpu() { gcloud compute tpus tpu-vm "$1" "$NAME" --zone="$ZONE" "${@:2}"; }
on_all() { tpu ssh --worker=all --command="$1"; }
state() { tpu describe --format='value(state)' 2> /dev/null || echo ABSENT; }

make_ready() {
  case $(state) in
    READY) ;;
    PREEMPTED | TERMINATED | STOPPED)
      tpu delete --quiet
      make_ready
      return
      ;;
    *)
      local spot=()
      if [[ ${SPOT:-0} == 1 ]]; then spot=(--spot); fi
      tpu create --accelerator-type="$TYPE" --version="${VERSION:-tpu-ubuntu2204-base}" "${spot[@]}"
      ;;
  esac
  # The tracked files as they are, and an environment of Python 3.11 to 3.13.
  git ls-files -z | tar --null --files-from=- -czf "$archive"
  gcloud compute tpus tpu-vm scp "$archive" "$NAME:elev_ssl_jax.tar.gz" --zone="$ZONE" --worker=all
  on_all "
    set -e
    mkdir -p ~/elev_ssl_jax
    tar -xzf ~/elev_ssl_jax.tar.gz -C ~/elev_ssl_jax
    python3 -m uv --version > /dev/null 2>&1 || python3 -m pip install --quiet --user uv
    cd ~/elev_ssl_jax
    [ -d .venv ] || python3 -m uv venv --quiet --python 3.12 .venv
    python3 -m uv pip install --quiet --python .venv -e '.[tpu,cloud]'
    if [ -n '${BUCKET:-}' ] && ! mountpoint --quiet /mnt/runs; then
      sudo mkdir -p /mnt/runs && sudo chown \$USER /mnt/runs
      gcsfuse --implicit-dirs '${BUCKET:-}' /mnt/runs
    fi
  "
}

archive=$(mktemp --suffix=.tar.gz)
trap 'rm -f "$archive"' EXIT
command=$(printf '%q ' .venv/bin/python -m elev_ssl_jax.main "$@")
while true; do
  make_ready
  if on_all "cd ~/elev_ssl_jax && $command"; then exit 0; fi
  if [[ $(state) == READY ]]; then
    echo "the run ended by an error, see above; the same command goes on" >&2
    exit 1
  fi
  echo "the slice was preempted; making it again" >&2
done
