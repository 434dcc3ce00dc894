"""NT-Xent, value and gradient: ours, whole and in chunks, against lightly's on PyTorch.

pip install lightly
python benchmarks/nt_xent.py [--pairs 512 2048 8192] [--dim 128] [--chunk 512] [--rounds 3]
python benchmarks/nt_xent.py --pairs 65536 --only chunks --rounds 1     # minutes on a CPU

Each measurement is a process of its own, for its peak memory, which is that above what the process
had before the loss. In a round they come one after the other, and ratios are taken within a round,
so that they hold on a noisy machine where times don't. A pair is one similarity, of (2N)^2.
"""

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time

import numpy as np

VARIANTS = ("whole", "chunks", "lightly")
REPEATS = 3  # in a process; the fastest counts


def main() -> None:
    """Prints a line for each size and variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, nargs="+", default=[512, 2048, 8192])
    parser.add_argument("--dim", type=int, default=128)
    parser.add_argument("--chunk", type=int, default=512)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="+", default=VARIANTS, choices=VARIANTS)
    parser.add_argument("--measure", choices=VARIANTS, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.measure:
        print(json.dumps(_measure(args.measure, args.pairs[0], args.dim, args.chunk)))
        return
    print(f"{'N':>7} {'variant':<8} {'ns/pair':>8} {'peak MiB':>9}  time over lightly's (range)")
    for pairs in args.pairs:
        rounds = []
        for _ in range(args.rounds):
            rounds.append({name: _in_own_process(name, pairs, args) for name in args.only})
        for name in args.only:
            seconds = statistics.median(r[name]["seconds"] for r in rounds)
            peak = max(r[name]["peak_mib"] for r in rounds)
            line = f"{pairs:>7} {name:<8} {seconds / (2 * pairs) ** 2 * 1e9:>8.2f} {peak:>9.0f}"
            if "lightly" in args.only:
                ratios = [r[name]["seconds"] / r["lightly"]["seconds"] for r in rounds]
                line += f"  {statistics.median(ratios):.2f} ({min(ratios):.2f}-{max(ratios):.2f})"
            print(line, flush=True)
        if {"whole", "lightly"} <= set(args.only):
            values = [rounds[0][name]["value"] for name in args.only]
            assert np.allclose(values, values[0], rtol=1e-4), values


def _in_own_process(name, pairs, args):
    command = [sys.executable, __file__, f"--measure={name}", f"--pairs={pairs}"]
    command += [f"--dim={args.dim}", f"--chunk={args.chunk}"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        sys.exit(f"{name} with {pairs} pairs failed:\n{done.stderr[-2000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def _measure(name, pairs, dim, chunk):
    z1, z2 = np.random.default_rng(0).normal(size=(2, pairs, dim)).astype(np.float32)
    make = _make_lightly if name == "lightly" else _make_ours
    run = make(z1, z2, None if name == "whole" else chunk)
    before = _peak_mib()
    value = run()  # compiles
    seconds = []
    for _ in range(REPEATS if pairs < 50_000 else 1):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return {"value": value, "seconds": min(seconds), "peak_mib": _peak_mib() - before}


def _make_ours(z1, z2, chunk):
    import jax

    from elev_ssl_jax.losses import nt_xent

    step = jax.jit(jax.value_and_grad(lambda a, b: nt_xent(a, b, chunk_size=chunk), (0, 1)))
    arrays = jax.device_put((z1, z2))
    jax.block_until_ready(arrays)

    def run():
        value, gradients = step(*arrays)
        jax.block_until_ready(gradients)
        return float(value)

    return run


def _make_lightly(z1, z2, _):
    import torch
    from lightly.loss import NTXentLoss

    arrays = [torch.from_numpy(z).requires_grad_() for z in (z1, z2)]
    loss = NTXentLoss(temperature=0.5)

    def run():
        for array in arrays:
            array.grad = None
        value = loss(*arrays)
        value.backward()
        return value.item()

    return run


def _peak_mib():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
