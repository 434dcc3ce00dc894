import json
import shutil

import jax
import numpy as np
import optax
import pytest

from elev_ssl_jax.config import default
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.runtime import checkpoint, sharding
from elev_ssl_jax.runtime.train_state import TrainState

# What Orbax leaves behind when a read fails half way.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")


def make_state(seed=0):
    rng = np.random.default_rng(seed)
    params = {"encoder": {"kernel": rng.normal(size=(40, 30)).astype(np.float32)}}
    variables = {"params": params, "batch_stats": {"encoder": {"mean": np.ones(7, np.float32)}}}
    return TrainState.create(variables, optax.adamw(1e-3))


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    run = tmp_path_factory.mktemp("run")
    about = checkpoint.describe(default(), steps=0, shapes={"image": (32, 32, 3)})
    with checkpoint.open_checkpoints(run, 1) as checkpoints:
        checkpoint.save(checkpoints, make_state(), about)
    return run


def restored(run):
    """Everything, both ways, or the one line that says what to do."""
    with checkpoint.open_checkpoints(run, 1) as checkpoints:
        state, about = checkpoint.restore_latest(checkpoints, make_state(1), sharding.make_mesh())
    loaded = checkpoint.load(run)
    assert loaded.about == about
    return jax.device_get((state, loaded.variables)), about


def files_of(run):
    folder = run / "checkpoints" / "0"
    return sorted(path.relative_to(run) for path in folder.rglob("*") if path.is_file())


def same(one, other):
    leaves = [jax.tree.leaves(tree) for tree in (one, other)]
    return all(np.array_equal(a, b) for a, b in zip(*leaves, strict=True))


DAMAGE = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "missing": lambda path: path.unlink(),
    "text": lambda path: path.write_text("not what it was"),
}


def told(run, whole):
    """What is said of a run with a damaged checkpoint, or "" if it comes back as it was."""
    try:
        values, about = restored(run)
    except InputError as error:
        return str(error)
    assert about == whole[1]
    assert same(values, whole[0])
    return ""


@pytest.mark.parametrize("damage", DAMAGE)
def test_damage_is_told_in_one_line_or_does_no_harm(saved, tmp_path, damage):
    whole, lines = restored(saved), []
    for number, file in enumerate(files_of(saved)):
        run = tmp_path / str(number)
        shutil.copytree(saved, run)
        DAMAGE[damage](run / file)
        lines.append(told(run, whole))
    assert any(lines)
    for line in filter(None, lines):
        assert "delete that folder" in line or "another program" in line
        assert "\n" not in line
        assert len(line) < 500


def test_a_flipped_bit_is_noticed(saved, tmp_path, rng):
    whole, lines = restored(saved), []
    files = files_of(saved)
    sizes = np.array([(saved / file).stat().st_size for file in files], float)
    for number in range(24):
        run = tmp_path / str(number)
        shutil.copytree(saved, run)
        path = run / files[rng.choice(len(files), p=sizes / sizes.sum())]
        content = bytearray(path.read_bytes())
        content[rng.integers(len(content))] ^= 1 << int(rng.integers(8))
        path.write_bytes(content)
        lines.append(told(run, whole))
    assert any(lines)


def test_a_checksum_that_has_lost_its_name_is_damage(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    held = [run / file for file in files_of(saved) if b'"checksum"' in (run / file).read_bytes()]
    for path in held:
        path.write_bytes(path.read_bytes().replace(b'"checksum"', b'"check{um"'))
    assert held
    with pytest.raises(InputError, match=r"checkpoints/0 is damaged \(its numbers are not"):
        checkpoint.load(run)


def test_a_save_that_was_killed_is_no_checkpoint(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    finished = run / "checkpoints" / "0"
    finished.rename(run / "checkpoints" / "4.orbax-checkpoint-tmp")
    assert checkpoint.steps(run) == []
    with pytest.raises(InputError, match="has no checkpoint"):
        checkpoint.load(run)
    state = make_state(1)
    with checkpoint.open_checkpoints(run, 1) as checkpoints:
        again, about = checkpoint.restore_latest(checkpoints, state, sharding.make_mesh())
    assert again is state
    assert about == {}


def test_nothing_is_compiled_to_save_what_several_devices_hold(tmp_path, batch_mesh):
    # Orbax would, a program for each device's part of each array.
    held = jax.device_put(np.ones((8, 16), np.float32), sharding.replicated(batch_mesh(8)))
    state = TrainState.create({"params": {"encoder": held}, "batch_stats": {}}, optax.sgd(0.1))
    about = checkpoint.describe(default(), steps=0, shapes={"image": (32, 32, 3)})
    compiled = []
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "mlir" in event else None
    )
    with checkpoint.open_checkpoints(tmp_path, 1) as checkpoints:
        checkpoint.save(checkpoints, state, about)
    assert not compiled
    with checkpoint.open_checkpoints(tmp_path, 1) as checkpoints:
        again, _ = checkpoint.restore_latest(checkpoints, state, sharding.make_mesh())
    assert same(again, state)
    assert len(again.params["encoder"].sharding.device_set) == 8


@pytest.mark.parametrize("name", ["adamw", "adam", "lars"])
def test_what_every_optimizer_keeps_is_checked_and_comes_back(tmp_path, name):
    make = {"adamw": optax.adamw, "adam": optax.adam, "lars": optax.lars}[name]
    state = TrainState.create(make_state().variables, make(1e-3))
    about = checkpoint.describe(default(), steps=0, shapes={"image": (32, 32, 3)})
    with checkpoint.open_checkpoints(tmp_path, 1) as checkpoints:
        checkpoint.save(checkpoints, state, about)
    with checkpoint.open_checkpoints(tmp_path, 1) as checkpoints:
        again, _ = checkpoint.restore_latest(checkpoints, state, sharding.make_mesh())
    assert same(again, state)
    assert same(checkpoint.load(tmp_path).variables, state.variables)


@pytest.mark.parametrize(
    ("number", "said"), [(None, "an earlier"), (1, "an earlier"), (3, "a lat")]
)
def test_checkpoints_of_other_versions_are_refused(tmp_path, number, said):
    about = checkpoint.describe(default(), steps=0, shapes={"image": (32, 32, 3)})
    about["format"] = number
    if number is None:
        del about["format"]
    with checkpoint.open_checkpoints(tmp_path, 1) as checkpoints:
        checkpoint.save(checkpoints, make_state(), about)
    with pytest.raises(InputError, match=r"another version.*another --workdir"):
        restored(tmp_path)
    with pytest.raises(InputError, match="another version"):
        checkpoint.load(tmp_path)


@pytest.mark.parametrize(
    ("error", "raised", "said"),
    [
        (PermissionError(13, "Permission denied"), InputError, "see to its permissions"),
        (ValueError("PERMISSION_DENIED: reading params"), InputError, "see to its permissions"),
        (RuntimeError("RESOURCE_EXHAUSTED: out of memory"), RuntimeError, "out of memory"),
    ],
)
def test_what_is_not_damage_is_not_called_so(saved, monkeypatch, error, raised, said):
    def fail(*_, **__):
        raise error

    monkeypatch.setattr("orbax.checkpoint.CheckpointManager.restore", fail)
    with pytest.raises(raised, match=said) as told:
        checkpoint.load(saved)
    assert "damaged" not in str(told.value)


def test_a_damaged_checkpoint_is_no_reason_for_pages(saved, tmp_path, caplog):
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    for path in run.rglob("_CHECKPOINT_METADATA"):
        path.write_bytes(b"")
    told(run, restored(saved))
    assert caplog.text == ""


def test_an_array_that_is_not_to_be_read_is_damage(saved, tmp_path):
    run = tmp_path / "run"
    shutil.copytree(saved, run)
    (path,) = run.rglob("_METADATA")
    found = json.loads(path.read_text())
    next(iter(found["tree_metadata"].values()))["value_metadata"]["skip_deserialize"] = True
    path.write_text(json.dumps(found))
    with pytest.raises(InputError, match=r"is damaged .*; delete that folder"):
        checkpoint.load(run)


def test_shapes_are_read_as_before_there_were_several_sensors_too():
    older = {"image_shape": [32, 32, 3], "elevation_shape": [11, 11]}
    shapes = {"image": (32, 32, 3), "elevation": (11, 11)}
    assert checkpoint.shapes_of(older) == shapes
    about = checkpoint.describe(default(), steps=0, shapes=shapes)
    assert checkpoint.shapes_of(about) == shapes
