"""The table of topologies for the program as it was before it was made for TPUs.

python benchmarks/topologies_before.py [--only v5e:2x2] [--method simclr_elev] \\
    [--csv benchmarks/results/topologies_before.csv]

Needs libtpu, no TPU, and the repository's history. Step and gather of that commit are compiled by
its own code, and what the compiler says of them is read as `topologies.py` has it read today.
It had no names for its views and its optimizer, whose time is in the rest.
"""

import os
import pickle
import subprocess
import sys
import tempfile
from pathlib import Path
from types import SimpleNamespace

ROOT = Path(__file__).resolve().parents[1]
COMMIT = "8759fa7"


def compile_both(config_name: str, topology: str, batch: str, out: str) -> None:
    """Writes what the compiler says; runs where the commit is checked out, with its code."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    from jax.experimental.topologies import get_topology_desc

    jax.default_backend = lambda: "tpu"  # its formulations are chosen by where it runs
    sys.path[:0] = [".", "configs"]
    from elev_ssl_jax.optimizer import make_optimizer
    from elev_ssl_jax.train_state import TrainState
    from elev_ssl_jax.train_step import make_train_step

    from elev_ssl_jax import augment, objective, sharding

    config = __import__(config_name).get_config()
    config.batch_size, count = int(batch), 39_720
    devices = get_topology_desc(platform="tpu", topology_name=topology).devices
    mesh = sharding.make_mesh(devices)
    everywhere, split = sharding.replicated(mesh), sharding.split(mesh)
    chip = {"image": ((100, 100, 3), np.uint16), "elevation": ((33, 33), np.float32)}
    model = objective.make_model(config, (33, 33))
    steps = count // config.batch_size
    optimizer, schedule = make_optimizer(
        config.optimizer, epochs=config.epochs, steps_per_epoch=steps, batch_size=config.batch_size
    )

    def init():
        keys = augment.sample_keys(config.seed, 0, 2)
        few = (jnp.zeros((2, *shape)) for shape, _ in chip.values())
        views = objective.make_views(config, keys, *few)
        variables = model.init(jax.random.key(config.seed), views.images, views.patches, train=True)
        return TrainState.create(variables, optimizer)

    def array(shape, kind, where):
        return jax.ShapeDtypeStruct(shape, kind, sharding=where)

    def chips(number, where):
        return {name: array((number, *shape), kind, where) for name, (shape, kind) in chip.items()}

    @jax.jit
    def gather(chips, plan, step):  # as its `pipeline.resident_batches` has it
        return jax.lax.with_sharding_constraint(
            jax.tree.map(lambda array: array[plan[step]], chips), split
        )

    state = jax.tree.map(lambda a: array(a.shape, a.dtype, everywhere), jax.eval_shape(init))
    train_step = make_train_step(config, model, optimizer, schedule, mesh)
    plan = array((steps, config.batch_size), jnp.int32, sharding.split(mesh, axis=1))
    lowered = (
        train_step.lower(state, chips(config.batch_size, split)),
        gather.lower(chips(count, everywhere), plan, array((), jnp.int32, everywhere)),
    )
    Path(out).write_bytes(pickle.dumps([_said(program) for program in lowered]))


def _said(lowered):
    """What the compiler says of a program, or why it gives up."""
    import jax

    try:
        program = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        return str(error)
    memory = program.memory_analysis()
    sizes = {name: getattr(memory, name) for name in dir(memory) if name.endswith("in_bytes")}
    return program.as_text(), sizes, {"bytes accessed": program.cost_analysis()["bytes accessed"]}


class _Compiled:
    """A program that has been compiled, as `forecast` asks for it."""

    def __init__(self, said):
        self._said = said

    def compile(self, _):
        import jax

        if isinstance(self._said, str):
            raise jax.errors.JaxRuntimeError(self._said)
        text, sizes, cost = self._said
        return SimpleNamespace(
            as_text=lambda: text,
            memory_analysis=lambda: SimpleNamespace(**sizes),
            cost_analysis=lambda: cost,
        )


def plan(checkout: str, config: str, topology: str, slices: int, batch: int) -> dict:
    """What `python -m elev_ssl_jax.plan` would say of the commit."""
    from elev_ssl_jax.forecast import topologies
    from elev_ssl_jax.forecast.forecast import forecast
    from elev_ssl_jax.forecast.programs import Stage

    with tempfile.TemporaryDirectory() as scratch:
        out = Path(scratch, "said")
        subprocess.run(
            [sys.executable, __file__, "--compile", config, topology, str(batch), str(out)],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": checkout, "JAX_PLATFORMS": "cpu"},
            check=True,
        )
        step, gather = map(_Compiled, pickle.loads(out.read_bytes()))
    mesh = topologies.make_mesh(topology)
    resident = 39_720 * (2 * 100 * 100 * 3 + 4 * 33 * 33)
    stage = Stage(
        name="pre-training",
        step=step,
        gather=gather,
        steps=200 * (39_720 // batch),
        devices=mesh.size,
        batch_size=batch,
        params=0,
        flop=0,  # not counted then
        resident=resident,
    )
    found = forecast([stage], mesh)
    return {"topology": topology, "slices": slices, **found, "flop_bound_ms": None}


def main() -> None:
    """The command."""
    sys.path.insert(0, str(ROOT))
    import topologies as table

    from elev_ssl_jax.forecast import topologies

    topologies.prepare()
    with tempfile.TemporaryDirectory() as folder:
        checkout = str(Path(folder, "before"))
        git = ("git", "-C", str(ROOT), "worktree")
        subprocess.run([*git, "add", "--detach", checkout, COMMIT], check=True)
        try:
            lines = [line for line in table.TOPOLOGIES if line[1] == 1]
            table.main(lines, lambda *line: plan(checkout, *line))
        finally:
            subprocess.run([*git, "remove", "--force", checkout], check=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--compile"]:
        compile_both(*sys.argv[2:])
    else:
        main()
