"""Programs for TPUs, compiled where there is none."""

import importlib.util
import math
import subprocess
import sys

import jax
import numpy as np
import pytest

from elev_ssl_jax.errors import InputError
from elev_ssl_jax.forecast import forecast, report, topologies
from elev_ssl_jax.forecast.programs import of_run
from elev_ssl_jax.runtime import sharding

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("libtpu") is None,
    reason="pip install -e '.[tpu]' for programs of TPUs",
)


def chip(size=32):
    cells = (size // 3, size // 3)
    return {
        "image": jax.ShapeDtypeStruct((size, size, 3), np.uint16),
        "elevation": jax.ShapeDtypeStruct(cells, np.float32),
    }


COUNT = 50_000  # of chips: more than what the compiler may hold in the cores' own memory


@pytest.fixture(scope="module", autouse=True)
def libtpu():
    topologies.prepare()
    yield
    jax.config.update("jax_enable_compilation_cache", True)


class Kept:
    """A step whose program can be looked at, which takes half a minute to compile."""

    def __init__(self, lowered):
        self.lowered = lowered

    def compile(self, options):
        self.program = self.lowered.compile(options)
        return self.program


def plan(config, topology="v5e:2x2", slices=1, quick=True):
    mesh = topologies.make_mesh(topology, slices)
    stages = of_run(config, chip(), COUNT, 80, mesh)
    stages = [stage._replace(step=Kept(stage.step)) for stage in stages]
    return stages, forecast.forecast(stages, mesh, quick=quick)


def check_healthy(found):
    assert found["fits"]
    assert found["dataset_copies"] == 0
    assert found["serial_loops"] == 0


def test_where_no_libtpu_is_installed_they_are_skipped_and_still_known():
    code = "import sys; sys.modules['libtpu'] = None; import pytest; pytest.main(sys.argv[1:])"
    words = ("--collect-only", "-m", "", "-p", "no:cacheprovider", __file__)
    done = subprocess.run([sys.executable, "-c", code, *words], capture_output=True, text=True)
    assert "test_a_step_is_healthy[False]" in done.stdout, done.stdout + done.stderr


@pytest.mark.parametrize("quick", [True, False])
def test_a_step_is_healthy(tiny, quick):
    tiny.batch_size, tiny.model.encoder = 256, "resnet18"
    (stage,), found = plan(tiny, quick=quick)
    check_healthy(found)
    assert found["devices"] == 4
    assert found["device"] == "TPU v5e"
    # Every BatchNorm sums twice, forward and backward, and the loss gathers its keys.
    norms = sum("scale" in str(path) for path, _ in leaves(stage))
    assert found["collectives"]["all-reduce"]["count"] >= norms
    assert found["collectives"]["all-gather"]["count"] >= 1
    for traffic in found["collectives"].values():
        assert sum(traffic["parts"].values()) == pytest.approx(traffic["megabytes"])
    if quick:  # its program would take longer than the run's
        assert found["estimated_step_ms"] is None
        shown = report.screen(found | {"topology": "v5e:2x2", "slices": 1, "advice": []})
        assert "unknown" in shown
        assert "not estimated with --quick" in shown
        # What is chosen for a CPU would not be there: its max-pool, and float32.
        text = stage.step.program.as_text()
        assert "select-and-scatter" in text
        assert "bf16[" in text
    else:
        assert {"views", "encoder", "decoder", "loss", "optimizer"} <= found["parts_ms"].keys()
        assert found["chips_per_second"] == pytest.approx(256 / found["estimated_step_ms"] * 1e3)


def test_a_step_is_healthy_on_two_slices(tiny):
    tiny.batch_size, tiny.model.encoder = 256, "resnet18"
    (stage,), found = plan(tiny, slices=2)
    check_healthy(found)
    assert found["devices"] == 8
    assert found["model_flops_per_chip"] == stage.flop > 0


def test_slices_follow_one_another_in_the_mesh_of_a_run():
    devices = topologies._devices("v5e:2x2", 2)
    mesh = sharding.make_mesh(devices[::-1])
    order = [device.slice_index for device in mesh.devices]
    assert sorted(order) in (order, order[::-1])
    assert len({device.id for device in mesh.devices}) == 8
    planned = topologies.make_mesh("v5e:2x2").devices
    ring = sharding.make_mesh(topologies._devices("v5e:2x2", 1)).devices
    assert [device.id for device in planned] == [device.id for device in ring]


def test_what_a_compiler_that_refuses_says_is_read():
    for text, needed in (
        ("RESOURCE_EXHAUSTED: Ran out of memory. Used 31.29G of 31.25G hbm.", 31.29),
        ("Used 512.0M of 15.75G hbm", 0.5),
        ("TensorCore Hbm usage: 20.5GiB, exceeding available bytes: 15.75GiB", 20.5),
    ):
        assert forecast._needed(text) == pytest.approx(needed)
    assert forecast._needed("INTERNAL: something else") is None


def test_chips_as_they_are_would_be_copied():
    mesh = topologies.make_mesh("v5e:2x2")
    everywhere = sharding.replicated(mesh)
    chips = jax.ShapeDtypeStruct((COUNT, 32, 32, 3), np.uint16, sharding=everywhere)
    places = jax.ShapeDtypeStruct((64,), np.int32, sharding=everywhere)
    program = jax.jit(lambda chips, places: chips[places]).lower(chips, places).compile()
    assert forecast._copies(program.as_text(), COUNT * 32 * 32 * 3 * 2) > 0


def leaves(stage):
    return jax.tree_util.tree_leaves_with_path(stage.step.lowered.in_avals[0][0].params)


def test_chunks_of_the_loss_are_gathered_as_often_as_they_come(tiny):
    tiny.batch_size, tiny.objective.alpha = 256, 0.0
    _, whole = plan(tiny)
    tiny.loss.chunk_size = 64
    _, chunks = plan(tiny)
    assert chunks["serial_loops"] == 0  # they are written as loops
    few, many = (p["collectives"]["all-gather"] for p in (whole, chunks))
    assert many["count"] > few["count"]


def test_groups_of_batchnorm_as_many_as_devices_spare_their_sums(tiny):
    tiny.objective.alpha = 0.0
    _, whole = plan(tiny)
    tiny.model.batchnorm_groups = 4
    _, apart = plan(tiny)
    assert (
        apart["collectives"]["all-reduce"]["count"]
        < whole["collectives"]["all-reduce"]["count"] / 2
    )


@pytest.mark.parametrize("head", ["linear", "unet"])
def test_fine_tuning_gathers_its_chips_without_copies(tiny, head):
    tiny.task, tiny.finetune.head = "finetune", head
    tiny.finetune.frozen_epochs = 1
    stages, found = plan(tiny, quick=False)
    assert [s.devices for s in stages] == [1, 1]
    chips = COUNT * 32 * 32 * 3 * 2
    for facts in found["stages"]:
        assert facts["fits"]
        assert facts["serial_loops"] == 0
        assert {"loss", "optimizer"} <= facts["parts_ms"].keys()
        # The chips are among its arguments; a copy would be as large again.
        assert facts["memory_gib_per_device"] * 2**30 < 1.25 * chips
    assert found["hours"] == pytest.approx(sum(s["hours"] for s in found["stages"]))


def test_devices_share_the_batches_of_a_regression_as_the_run_will(tiny):
    tiny.task, tiny.finetune.head, tiny.finetune.frozen_epochs = "finetune", "regression", 0
    tiny.finetune.devices, tiny.batch_size = 4, 8
    (stage,), found = plan(tiny)
    assert stage.devices == 4
    assert found["fits"]
    assert found["collectives"]["all-reduce"]["count"] > 0


def test_a_regression_that_the_devices_cannot_share_is_refused(tiny):
    tiny.task, tiny.finetune.head, tiny.finetune.frozen_epochs = "finetune", "regression", 0
    tiny.batch_size = 8
    mesh = topologies.make_mesh("v5e:2x2")
    image = {"image": chip()["image"]}
    with pytest.raises(InputError, match=r"learns elevation, and .* has none"):
        of_run(tiny, image, COUNT, 80, mesh)
    for devices, message in ((3, "a multiple of the 3 devices"), (8, "is 8; there are 4")):
        tiny.finetune.devices = devices
        with pytest.raises(InputError, match=message):
            of_run(tiny, chip(), COUNT, 80, mesh)


def test_an_experiment_is_its_pretrainings_and_its_cells(tiny):
    tiny.task = "experiment"
    tiny.experiment.methods = ("random", "simclr")
    tiny.experiment.pretrain_seeds, tiny.experiment.seeds = 2, 3
    tiny.experiment.pretrain.batch_size = 8
    tiny.experiment.pretrain.epochs = 1
    stages, found = plan(tiny)
    assert [s.name for s in stages if "pre-training" in s.name] == ["simclr: pre-training"]
    pretraining = next(s for s in stages if "pre-training" in s.name)
    assert pretraining.steps == 2 * (COUNT // 8)
    # Of both methods, which one program serves; ten steps an epoch.
    (cells,) = (s for s in stages if s.name == "random, simclr: fine-tuning")
    assert cells.steps == 2 * math.ceil(2 * 3 * tiny.epochs * 10 / 4)
    assert found["fits"]


def test_of_a_studys_tasks_those_are_planned_that_train_something(tiny):
    tiny.task = "experiment"
    tiny.experiment.methods = ("random", "simclr", "statistics")
    tiny.experiment.tasks = ("probe", "linear", "knn")
    tiny.experiment.pretrain.batch_size = 8
    mesh = topologies.make_mesh("v5e:2x2")
    steps = {stage.name: stage.steps for stage in of_run(tiny, chip(), COUNT, 80, mesh)}
    frozen, full = (f"random, simclr: fine-tuning{what}" for what in (", frozen encoder", ""))
    assert steps.keys() == {"simclr: pre-training", frozen, full}
    # On other ground they are fine-tuned once more.
    tiny.data.transfer.name = "chips/other"
    more = {stage.name: stage.steps for stage in of_run(tiny, chip(), COUNT, 80, mesh)}
    assert more.keys() == steps.keys()
    assert more[full] == pytest.approx(2 * steps[full], abs=1)
    tiny.experiment.methods, tiny.experiment.tasks = ("random",), ("probe",)
    with pytest.raises(InputError, match="nothing is trained"):
        of_run(tiny, chip(), COUNT, 80, mesh)


def test_what_runs_in_one_process_is_not_planned_for_many_hosts(tiny):
    tiny.task = "finetune"
    mesh = topologies.make_mesh("v5e:4x4")
    with pytest.raises(InputError, match=r"in one process, .* but this topology has 4 hosts"):
        of_run(tiny, chip(), COUNT, 80, mesh)


def test_batches_and_groups_that_the_devices_cannot_share_are_refused(tiny):
    mesh = topologies.make_mesh("v5e:2x2")
    tiny.batch_size = 6
    with pytest.raises(InputError, match="batch_size is 6; it must be a multiple of 4 devices"):
        of_run(tiny, chip(), COUNT, 80, mesh)
    tiny.batch_size, tiny.model.batchnorm_groups = 12, 3
    with pytest.raises(InputError, match="batchnorm_groups is 3"):
        of_run(tiny, chip(), COUNT, 80, mesh)


def test_a_topology_has_as_many_devices_as_its_name_says():
    for kind, shapes in topologies.KNOWN.items():
        for shape in shapes:
            devices = math.prod(map(int, shape.split("x")))
            assert topologies.make_mesh(f"{kind}:{shape}").size == devices
            assert topologies.make_mesh(f"{kind}:{shape}", slices=2).size == 2 * devices


def test_topologies_that_are_unknown_are_refused_with_those_that_are_known(monkeypatch):
    for name in ("v5e:3x3", "h100:8", "v9"):
        with pytest.raises(InputError, match=f"--topology={name} .*v5e:1x1, 2x2, .*; v6e:1x1"):
            topologies.make_mesh(name)
    monkeypatch.setitem(sys.modules, "libtpu", None)
    with pytest.raises(InputError, match=r"elev_ssl_jax\[tpu\]"):
        topologies.make_mesh("v5e:2x2")
