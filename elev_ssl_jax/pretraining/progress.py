"""What a pre-training says: of itself at the start, and of its steps while they are taken."""

import math
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from tqdm import tqdm

from elev_ssl_jax import augment
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.pretraining.method import Method
from elev_ssl_jax.runtime import accelerators, flops
from elev_ssl_jax.runtime.batches import Arrays


def topology(config: Any, method: Method, mesh: Mesh, params: Any, few: Arrays) -> str:
    """Who computes what, and what goes between devices in each step; `few` are some chips."""
    size, devices = config.batch_size, mesh.size
    lines = [
        f"{jax.process_count()} process(es), {devices} device(s) ({jax.devices()[0].device_kind})"
        f" in a mesh of {dict(mesh.shape)}, computing in {method.model.dtype.name}",
        f"of each batch of {size}, {size // devices} chips on each device"
        + (f", {part // devices} at a time" if (part := config.microbatch_size) else ""),
    ]
    if devices > 1:
        of_two = sum(z.size * z.dtype.itemsize for z in embeddings(config, method, few))
        gradient = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        lines.append(
            f"each step gathers {size * of_two / 2e6:,.2f} MB of embeddings, forward and backward, "
            f"and sums {gradient / 1e6:,.1f} MB of gradient over the devices"
        )
    return "\n".join(lines)


def peak_rate(config: Any, method: Method, mesh: Mesh, few: Arrays) -> float | None:
    """Chips that a device could learn from in a second if it did nothing but the model's products.

    None for a device whose peak isn't known; `few` are some chips.
    """
    accelerator = accelerators.of_kind(mesh.devices.flat[0].device_kind)
    return accelerator and accelerator.tflops * 1e12 / flop_of_chip(config, method, few)


def flop_of_chip(config: Any, method: Method, few: Arrays) -> int:
    """Of the model's products, for one chip in one step; `few` are some chips.

    Their number is three times the forward pass's: the gradient takes one for each of the two
    factors.
    """
    return 3 * flops.count(partial(_outputs, config, method), _two(method, few)) // 2


def embeddings(config: Any, method: Method, few: Arrays) -> list[jax.ShapeDtypeStruct]:
    """What the loss compares with those of all other chips, of two chips; `few` are some."""
    shapes = jax.eval_shape(partial(_outputs, config, method), _two(method, few))
    return [leaf for name, leaf in shapes.items() if name.endswith("embeddings")]


def _outputs(config, method, batch):
    count = len(next(iter(batch.values())))
    with jax.named_scope("views"):
        inputs, _ = method.views(augment.sample_keys(config.seed, 0, count), batch, True)
    return method.model.init_with_output(jax.random.key(0), *inputs, train=True)[0]


def _two(method, few):
    return {name: jnp.asarray(few[name][:2]) for name in method.reads}


def overview(params: Any) -> str:
    """Parameters by part of the model."""
    counts = {
        part: sum(leaf.size for leaf in jax.tree.leaves(leaves)) for part, leaves in params.items()
    }
    counts["in all"] = sum(counts.values())
    return "\n".join(f"  {part:<20}{count:>12,} parameters" for part, count in counts.items())


@contextmanager
def open_log(
    config: Any,
    writer: Any,
    devices: int,
    first_step: int,
    total_steps: int,
    peak: float | None = None,
) -> Iterator["Log"]:
    """A log of the steps after `first_step`, with a progress bar; for `peak` see `peak_rate`."""
    with tqdm(
        total=total_steps * config.batch_size,
        initial=first_step * config.batch_size,
        unit=" images",
        unit_scale=True,
        desc="pre-training",
    ) as bar:
        yield Log(config, writer, bar, devices, first_step, peak)


class Log:
    """Metrics to the writer and the bar, one report late, so that no step waits for the host."""

    def __init__(
        self,
        config: Any,
        writer: Any,
        bar: tqdm,
        devices: int,
        first_step: int,
        peak: float | None,
    ):
        self.config, self.writer, self.bar = config, writer, bar
        self.devices, self.peak = devices, peak
        self.reported = first_step
        self.pending: tuple[int, dict[str, jax.Array]] | None = None
        self.clock: float | None = None  # starts after the first report, which the compiler delays

    def put(self, step: int, scalars: dict[str, jax.Array]) -> None:
        """Takes in what a step reports, and writes what the one before has."""
        self.flush()
        self.pending = step, scalars

    def flush(self) -> None:
        """Writes what is pending.

        Raises:
          InputError: The loss or its gradient is not finite.
        """
        if self.pending is None:
            return
        step, scalars = self.pending
        self.pending = None
        values = {name: float(value) for name, value in scalars.items()}
        images = (step - self.reported) * self.config.batch_size
        self.reported = step
        if not (math.isfinite(values["loss"]) and math.isfinite(values["gradient_norm"])):
            raise InputError(
                f"the loss is {values['loss']} at step {step}, its gradient's norm "
                f"{values['gradient_norm']}; lower optimizer.learning_rate "
                f"(it is {self.config.optimizer.learning_rate}) or look at the data's values; the "
                "last checkpoint is from before"
            )
        now = time.monotonic()
        if self.clock is not None:
            rate = images / (now - self.clock) / self.devices
            values["images_per_second_per_device"] = rate
            if self.peak:
                values["flop_utilization"] = rate / self.peak
        self.clock = now
        self.writer.write_scalars(step, values)
        self.bar.update(images)
        shown = {"loss": f"{values['loss']:.3f}"}
        if "elevation_rmse_m" in values:
            shown["elevation"] = f"{values['elevation_rmse_m']:.0f} m"
        self.bar.set_postfix(shown)

    def restart_clock(self) -> None:
        """Leaves out time that was not spent on steps."""
        self.clock = None
