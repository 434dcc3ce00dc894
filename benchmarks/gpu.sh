#!/usr/bin/env bash
# All that a GPU can tell, in under nine minutes: tests that it can falsify, and measurements.
#
#   benchmarks/gpu.sh OUT
#
# leaves CSVs, a trace and what was printed in OUT. Needs jax with CUDA, flax, optax and PyTorch;
# what needs more (TensorFlow, ml_collections) is passed over where that is missing, and said.
set -uo pipefail
if [[ $# -ne 1 ]]; then
  echo "usage: benchmarks/gpu.sh OUT (a folder for the results)" >&2
  exit 2
fi
mkdir -p "$1" && out=$(realpath "$1") || exit
cd "$(dirname "$0")/.." || exit
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu} XLA_PYTHON_CLIENT_MEM_FRACTION=0.6
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-$out/cache}

step() { # NAME SECONDS COMMAND...: what it prints goes to NAME.log, a failure ends nothing
  local name=$1 seconds=$2 left=$((535 - SECONDS))
  shift 2
  if ((left < 10)); then
    echo "$name: passed over, the nine minutes are over" | tee -a "$out/summary.txt"
    return
  fi
  ((seconds > left)) && seconds=$left
  local start=$SECONDS
  timeout "$seconds" "$@" >"$out/$name.log" 2>&1
  echo "$name: exit $?, $((SECONDS - start)) s" | tee -a "$out/summary.txt"
}

{
  nvidia-smi --query-gpu=name,memory.total,driver_version --format=csv,noheader
  python -c "import jax, jaxlib; print('jax', jax.__version__, 'jaxlib', jaxlib.__version__)"
  git rev-parse HEAD 2>/dev/null
} >"$out/machine.txt" 2>&1

step tests 120 python -m pytest -q -x tests/test_losses.py tests/test_augment.py \
  tests/test_matching.py tests/models/test_layers.py tests/models/test_up_conv.py \
  tests/models/test_batch_norm.py
step pretrain_step 150 python benchmarks/pretrain_step.py --batch 256 --repeats 3 \
  --csv "$out/pretrain_step.csv"
step nt_xent 60 python benchmarks/nt_xent.py
step epoch 60 python benchmarks/epoch.py --chips 8192 --batch 256 --rounds 1 \
  --csv "$out/epoch.csv"
step run 100 python benchmarks/epoch.py --child ours --chips 39720 --batch 1024 --epochs 40 \
  --trace "$out/trace"
if python -c "import clu, rasterio, tensorflow" 2>/dev/null; then
  step demo 90 python -m elev_ssl_jax.main --config=configs/finetune_segmentation.py:demo \
    --workdir="$out/demo"
  step predict_scene 60 python benchmarks/predict_scene.py --run "$out/demo" --side 8000
  rm -rf "$out/demo"
else
  echo "predict_scene: passed over, without rasterio, clu or TensorFlow" | tee -a "$out/summary.txt"
fi
rm -rf "$out/cache"
