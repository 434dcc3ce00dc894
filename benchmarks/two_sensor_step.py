"""One training step of Dual-SimCLR, with ResNets or Swin Transformers, here and in PyTorch.

python benchmarks/two_sensor_step.py [--encoder swin_t] [--batch 32] [--size 128] [--csv F]

The peer is `torch_two_sensors.py`, eager. Each side has a process of its own; they take turns, so
that ratios hold on a noisy machine where times don't.
"""

import argparse
import json
import resource
import statistics
import sys
import time

import numpy as np
from pretrain_step import Side, append, chip_name, make_parser

from elev_ssl_jax.runtime.huge_pages import use_huge_pages


def make_chips(size: int, count: int = 128) -> dict[str, np.ndarray]:
    """Chips of noise, an eighth larger than the squares that are cut out of them."""
    rng, side = np.random.default_rng(0), size + size // 8
    return {
        "s1": rng.uniform(-30, 0, (count, side, side, 2)).astype(np.float32),
        "s2": rng.integers(0, 6000, (count, side, side, 13)).astype(np.uint16),
    }


def ours(args):
    """A function that takes a step and returns its loss, and what is known of it."""
    use_huge_pages()  # as main does
    import jax
    import jax.numpy as jnp

    from elev_ssl_jax import augment, sensor_scale
    from elev_ssl_jax.config import two_sensors
    from elev_ssl_jax.pretraining import fusion
    from elev_ssl_jax.pretraining.step import make_train_step
    from elev_ssl_jax.runtime import batches, sharding
    from elev_ssl_jax.runtime.optimizer import make_optimizer
    from elev_ssl_jax.runtime.train_state import TrainState

    config, chips = two_sensors(), make_chips(args.size)
    config.model.encoder, config.model.width = args.encoder, args.width
    config.model.projection = ({"swin_t": 768, "resnet18": 512}[args.encoder], 128)
    config.batch_size, config.augment.crop_size = args.batch, args.size
    config.objective.temperature = 0.2
    config.optimizer.update(name="adamw", learning_rate=5e-4, weight_decay=0.0)
    config.data.update(sensor_scale.measure(config, chips))
    mesh = sharding.make_mesh(jax.devices()[:1])
    method = fusion.make(config, chips, mesh)
    optimizer, schedule = make_optimizer(
        config.optimizer, epochs=100, steps_per_epoch=4, batch_size=args.batch
    )

    @jax.jit
    def init():
        few = {name: jnp.asarray(chips[name][:2]) for name in method.reads}
        views = method.views(augment.sample_keys(0, 0, 2), few, True)
        variables = method.model.init(jax.random.key(0), *views.inputs, train=True)
        return TrainState.create(variables, optimizer)

    state = init()
    train_step = make_train_step(config, method, optimizer, schedule, mesh)
    stream = batches.resident_batches(chips, mesh, 0, args.batch, 0)
    compiled = train_step.lower(state, next(stream), 0).compile()

    def step():
        nonlocal state
        state, terms = compiled(state, next(stream), 0)
        return terms["loss"]

    return step, {"chip": jax.devices()[0].device_kind, "version": f"jax {jax.__version__}"}


def theirs(args):
    """Likewise, of the peer."""
    import torch
    from torch_two_sensors import make_step

    device = "cuda" if torch.cuda.is_available() else "cpu"
    torch.set_float32_matmul_precision("high")
    torch.backends.cudnn.benchmark = True
    chips = make_chips(args.size)
    step = make_step(chips, args.batch, device, args.width, args.size, args.encoder)
    return step, {"version": f"torch {torch.__version__}"}


def child(args) -> None:
    """Takes as many steps as each line of input says, and tells the seconds."""
    start = time.perf_counter()
    step, about = ours(args) if args.child == "ours" else theirs(args)
    for _ in range(2):
        float(step())
    about["seconds_to_start"] = time.perf_counter() - start
    print(json.dumps(about), flush=True)
    for line in sys.stdin:
        float(step())
        start = time.perf_counter()
        for _ in range(int(line)):
            loss = step()
        loss = float(loss)  # the device is done
        memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        answer = {"seconds": time.perf_counter() - start, "loss": loss, "memory": memory}
        print(json.dumps(answer), flush=True)


def main() -> None:
    """The command."""
    parser: argparse.ArgumentParser = make_parser(__doc__)
    parser.set_defaults(size=128)
    parser.add_argument("--encoder", choices=("resnet18", "swin_t"), default="resnet18")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=8, help="of each turn, about")
    args = parser.parse_args()
    if args.child:
        child(args)
        return
    more = [f"--{name}={getattr(args, name)}" for name in ("batch", "size", "width", "encoder")]
    sides = {name: Side(name, more, __file__) for name in ("ours", "eager")}
    steps = {n: max(1, round(args.seconds / side.run(1)["seconds"])) for n, side in sides.items()}
    rates: dict[str, list[float]] = {name: [] for name in sides}
    memory = {}
    for turn in range(args.repeats):
        for name, side in sides.items():
            answer = side.run(steps[name])
            rates[name].append(steps[name] * args.batch / answer["seconds"])
            memory[name] = answer["memory"]
        line = ", ".join(f"{name} {rate[-1]:.1f}" for name, rate in rates.items())
        print(f"turn {turn + 1}: chips/s {line}", flush=True)
    ratios = sorted(a / b for a, b in zip(rates["ours"], rates["eager"], strict=True))
    chip, peer = chip_name(sides["ours"].about["chip"]), sides["eager"].about["version"]
    middle = {name: statistics.median(values) for name, values in rates.items()}
    print(
        f"{chip}; {args.encoder}, batch {args.batch}, {args.size} pixels, width {args.width:g}: "
        f"ours is {statistics.median(ratios):.2f} times as fast as {peer}"
        f" ({ratios[0]:.2f}-{ratios[-1]:.2f}); "
        + ", ".join(f"{name} {memory[name] / 2**20:,.0f} MiB" for name in sides)
    )
    if args.csv:
        rows = [
            {
                "chip": chip,
                "encoder": args.encoder,
                "side": name,
                "version": side.about["version"],
                "batch": args.batch,
                "size": args.size,
                "width": args.width,
                "chips_per_second": f"{middle[name]:.1f}",
                "ours_over_it": f"{middle['ours'] / middle[name]:.2f}",
                "memory_mib": f"{memory[name] / 2**20:.0f}",
            }
            for name, side in sides.items()
        ]
        append(args.csv, rows)
    for side in sides.values():
        side.process.kill()


if __name__ == "__main__":
    main()
