import json
import shutil

import jax
import numpy as np
import pytest

from elev_ssl_jax.data import synthetic
from elev_ssl_jax.errors import InputError
from elev_ssl_jax.inference import model as inference
from elev_ssl_jax.pretraining import loop, measures
from elev_ssl_jax.runtime import accelerators, checkpoint, sharding


class Writer:
    """Keeps what it is given."""

    def __init__(self):
        self.scalars = {}

    def write_scalars(self, step, scalars):
        self.scalars.setdefault(step, {}).update(scalars)

    def flush(self):
        pass


class Stop(Exception):
    """A run is killed."""


class Stopping(Writer):
    """Kills a run when it reports a step."""

    def __init__(self, step):
        super().__init__()
        self.last = step

    def write_scalars(self, step, scalars):
        if step == self.last:
            raise Stop


def final_state(workdir):
    manager = checkpoint.open_checkpoints(workdir, 2)
    with manager:
        return manager.restore(manager.latest_step())


@pytest.fixture
def tiny(tiny):
    return tiny


@pytest.fixture
def data(chips, batch_mesh, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", lambda: batch_mesh(2))
    heldout = {k: v[:10] for k, v in chips.items()}
    heldout["block"] = np.array([f"b{i // 2}" for i in range(10)])
    return loop.Data(chips, heldout, chips, {k: v[5:] for k, v in chips.items()})


def test_a_run_learns_reports_and_resumes_to_the_same_bits(tiny, data, tmp_path, capsys):
    whole, parts, writer = tmp_path / "whole", tmp_path / "parts", Writer()
    tiny.epochs = 3
    scores = loop.pretrain(tiny, whole, data, writer)

    steps = [step for step, values in writer.scalars.items() if "loss" in values]
    assert steps == [1, 2, 3, 4, 5, 6]
    assert writer.scalars[6]["elevation_loss"] < writer.scalars[1]["elevation_loss"]
    assert writer.scalars[6]["images_per_second_per_device"] > 0
    assert json.loads((whole / "results.json").read_text()) == pytest.approx(scores)
    assert {"elevation_rmse_m", "contrastive_top1", "feature_std", "probe_accuracy"} <= set(scores)
    # Of probes that learn and choose on other chips, with intervals over five blocks.
    for kind in ("probe", "knn"):
        ends = [scores[f"{kind}_accuracy{end}"] for end in ("_low", "", "_high")]
        assert sorted(ends) == ends
        assert f"random_{kind}_accuracy" in scores
    for picture in ("views.png", "elevation.png"):
        assert (whole / picture).stat().st_size > 10_000
    model = inference.load(whole)
    predicted, true = model.elevation(data.heldout["image"]), data.heldout["elevation"]
    errors, train_mean = measures.ElevationErrors(), np.nanmean(data.train["elevation"])
    errors.add(predicted, true)
    for name, value in errors.scores(float(train_mean)).items():
        assert scores[name] == pytest.approx(value, rel=1e-4, abs=1e-4)
    assert writer.scalars[6]["elevation_relief_rmse_m"] == scores["elevation_relief_rmse_m"]
    spread = measures.FeatureSpread()
    spread.add(model.features(data.heldout["image"]))
    assert spread.score() == pytest.approx(scores["feature_std"], rel=1e-3)
    printed = capsys.readouterr().out
    assert "leaves out 4 chips" in printed
    assert "elevation RMSE" in printed
    assert "no relief" in printed

    # Stopped within the second epoch, so that the last checkpoint is of the first.
    with pytest.raises(Stop):
        loop.pretrain(tiny, parts, data, Stopping(3))
    resumed = Writer()
    loop.pretrain(tiny, parts, data, resumed)
    assert "going on after step 2 of 6" in capsys.readouterr().out
    assert min(resumed.scalars) == 3
    jax.tree.map(np.testing.assert_array_equal, final_state(parts), final_state(whole))


def test_a_run_starts_from_another_and_goes_on_without_it(tiny, data, tmp_path, capsys):
    first, second, parts = (tmp_path / name for name in ("first", "second", "parts"))
    tiny.epochs, tiny.objective.alpha = 1, 0.0
    before = loop.pretrain(tiny, first, data, Writer())
    tiny.objective.alpha, tiny.epochs = 0.5, 2
    tiny.init_from = str(first)
    after = loop.pretrain(tiny, second, data, Writer())
    printed = capsys.readouterr().out
    assert "starting from weights: first after 2 steps" in printed
    assert "the weights that it started from" in printed
    # What it started from tells as much as the first one ended with.
    for name in ("probe_accuracy", "knn_macro_f1"):
        assert after[f"start_{name}"] == before[name]
        assert after[f"random_{name}"] == before[f"random_{name}"]
    saved = checkpoint.load(second)
    assert saved.about["origin"]["run"] == "first"
    assert saved.about["origin"]["checksum"] == checkpoint.load(first).about["checksum"]
    stems = [
        np.asarray(final_state(run)["params"]["encoder"]["block1_conv1"]["kernel"])
        for run in (first, second)
    ]
    assert 0 < np.abs(stems[1] - stems[0]).max() < 0.05  # four steps of Adam from there

    with pytest.raises(Stop):
        loop.pretrain(tiny, parts, data, Stopping(3))
    shutil.rmtree(first)
    assert loop.pretrain(tiny, parts, data, Writer()) == after
    jax.tree.map(np.testing.assert_array_equal, final_state(parts), final_state(second))
    with pytest.raises(InputError, match="first has no checkpoint"):
        loop.pretrain(tiny, tmp_path / "third", data, Writer())
    assert not (tmp_path / "third").exists()


def test_going_on_for_longer_says_what_the_rate_does_and_for_less_is_refused(
    tiny, data, tmp_path, capsys
):
    tiny.objective.alpha = 1.0
    loop.pretrain(tiny, tmp_path, data, Writer())
    capsys.readouterr()
    tiny.epochs = 4
    longer = Writer()
    loop.pretrain(tiny, tmp_path, data, longer)
    printed = capsys.readouterr().out
    # Of a cosine that had come to its end, half of one twice as long.
    assert "epochs was 2 and is 4: the learning rate changes here from 0 to 0.0005" in printed
    assert longer.scalars[5]["learning_rate"] == pytest.approx(5e-4)
    before = (tmp_path / "config.json").read_text()
    tiny.epochs = 1
    with pytest.raises(InputError, match=r"config.epochs is 1, but .* learned for 4 already"):
        loop.pretrain(tiny, tmp_path, data, Writer())
    assert (tmp_path / "config.json").read_text() == before


def test_other_data_under_the_same_names_are_refused(tiny, data, tmp_path):
    tiny.epochs, tiny.objective.alpha = 1, 1.0
    loop.pretrain(tiny, tmp_path, data, Writer())
    for role in ("train", "heldout"):
        chips = getattr(data, role)
        other = data._replace(**{role: {**chips, "image": chips["image"] + 1}})
        with pytest.raises(InputError, match=f"other data .{role}: "):
            loop.pretrain(tiny, tmp_path, other, Writer())


def test_nothing_is_compiled_after_the_first_epoch(tiny, data, tmp_path):
    compiled, after = [], {}
    jax.monitoring.register_event_duration_secs_listener(
        lambda event, seconds, **_: compiled.append(event) if "mlir" in event else None
    )

    class Counting(Writer):
        def write_scalars(self, step, scalars):
            after[step] = len(compiled)

    tiny.epochs, tiny.log.eval_every_epochs = 3, 1
    loop.pretrain(tiny, tmp_path, data, Counting())
    assert after[2] > 0  # the first epoch's scores
    assert after[2] == after[3] == after[4] == after[5]  # its loss is written when step 6 is done


class Report:
    """A number of a step, which says when it is waited for."""

    def __init__(self, step, events):
        self.step, self.events = step, events

    def __float__(self):
        self.events.append(("read", self.step))
        return 1.0


def test_no_step_waits_for_the_host(tiny, data, tmp_path, monkeypatch):
    # What a step reports is read when those up to the next report have been handed out.
    events, make = [], loop.make_train_step

    def counting(*args):
        real = make(*args)

        def step(state, batch, seed):
            number = sum(kind == "step" for kind, _ in events) + 1
            events.append(("step", number))
            state, scalars = real(state, batch, seed)
            return state, dict.fromkeys(scalars, Report(number, events))

        return step

    monkeypatch.setattr(loop, "make_train_step", counting)
    tiny.epochs, tiny.log.every_steps = 6, 3
    tiny.checkpoint.every_epochs = tiny.log.eval_every_epochs = 100
    loop.pretrain(tiny, tmp_path, data, Writer())
    seen = list(dict.fromkeys(events))
    assert [n for kind, n in seen if kind == "read"] == [3, 6, 9, 12]
    for step in (3, 6, 9):
        assert seen.index(("read", step)) > seen.index(("step", step + 3))


def test_steps_are_traced_when_asked_for(tiny, data, tmp_path, capsys):
    tiny.epochs = 4
    loop.pretrain(tiny, tmp_path, data, Writer(), profile=2)
    assert "trace of steps 4 to 5" in capsys.readouterr().out
    (trace,) = tmp_path.glob("profile/plugins/profile/*/*.xplane.pb")
    seen = trace.read_bytes()
    assert all(name in seen for name in (b"views", b"encoder", b"decoder", b"loss", b"optimizer"))
    # A run that ends before the last of them leaves what there is.
    loop.pretrain(tiny, tmp_path / "short", data, Writer(), profile=1000)
    assert [*(tmp_path / "short").glob("profile/plugins/profile/*/*.xplane.pb")]


def test_the_log_has_the_share_of_the_devices_peak_where_that_is_known(
    tiny, data, tmp_path, monkeypatch
):
    writer = Writer()
    loop.pretrain(tiny, tmp_path / "unknown", data, writer)
    assert not any("flop_utilization" in values for values in writer.scalars.values())
    known = accelerators.Accelerator("known", 0.5, 1, 1)
    monkeypatch.setattr(accelerators, "of_kind", lambda kind: known)
    loop.pretrain(tiny, tmp_path / "known", data, writer)
    values = [v for v in writer.scalars.values() if "flop_utilization" in v]
    assert values
    for scalars in values:
        # Two devices, three views of an encoder of an eighth of the width, and its decoder.
        flop = 0.5e12 * scalars["flop_utilization"] / scalars["images_per_second_per_device"]
        assert 1e6 < flop < 1e8


@pytest.mark.parametrize(
    ("alpha", "scored"), [(0.0, "contrastive_top1"), (1.0, "elevation_rmse_m")]
)
def test_one_branch_alone_is_scored_by_what_it_learns(tiny, data, tmp_path, alpha, scored):
    tiny.epochs, tiny.objective.alpha = 1, alpha
    scores = loop.pretrain(tiny, tmp_path, data, Writer())
    assert scored in scores
    assert len({"contrastive_top1", "elevation_rmse_m"} & set(scores)) == 1
    assert (tmp_path / "elevation.png").exists() == (alpha == 1)


def test_few_steps_on_high_mountains_beat_their_mean(tiny, batch_mesh, tmp_path, monkeypatch):
    monkeypatch.setattr(sharding, "make_mesh", lambda: batch_mesh(1))
    images, elevation = [], []
    for seed in range(17):
        image, dem, _ = synthetic.make_scene(seed, 99)
        image = np.moveaxis(image, 0, -1)
        for row, column in np.ndindex(3, 3):
            top, left = 33 * row, 33 * column
            images.append(image[top : top + 33, left : left + 33])
            elevation.append(dem[top // 3 : top // 3 + 11, left // 3 : left // 3 + 11])
    arrays = {"image": np.stack(images), "elevation": np.stack(elevation) + 1900}  # 2,000-4,300 m
    train, heldout = (
        {k: v[part] for k, v in arrays.items()} for part in (slice(118), slice(118, 153))
    )
    train["elevation"][7, :4] = np.nan
    tiny.batch_size, tiny.epochs, tiny.objective.alpha = 24, 15, 1.0  # 60 steps
    scores = loop.pretrain(tiny, tmp_path, loop.Data(train, heldout), Writer())
    assert scores["elevation_rmse_m"] < scores["elevation_rmse_of_train_mean_m"]


def test_a_loss_that_is_not_finite_ends_the_run_and_is_not_saved(tiny, data, tmp_path):
    tiny.optimizer.learning_rate = 1e30
    with pytest.raises(InputError, match=r"optimizer.learning_rate"):
        loop.pretrain(tiny, tmp_path, data, Writer())
    for folder in (tmp_path / "checkpoints").glob("[0-9]*"):
        manager = checkpoint.open_checkpoints(tmp_path, 2)
        state = manager.restore(int(folder.name))
        assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(state["params"]))


def test_a_checkpoint_of_another_model_is_refused(tiny, data, tmp_path):
    tiny.epochs = 1
    loop.pretrain(tiny, tmp_path, data, Writer())
    tiny.model.projection = (32, 8)
    (tmp_path / "config.json").write_text(tiny.to_json_best_effort())  # the checkpoint must tell
    with pytest.raises(
        InputError, match=r"projection/.* is .* there and .* here.*another --workdir"
    ):
        loop.pretrain(tiny, tmp_path, data, Writer())


def test_data_that_do_not_fit_are_refused(tiny, data, tmp_path):
    def refused(config, data, message):
        with pytest.raises(InputError, match=message):
            loop.pretrain(config, tmp_path / "run", data, Writer())
        assert not (tmp_path / "run").exists()

    empty = {**data.train, "elevation": np.full((20, 11, 11), np.nan, np.float32)}
    refused(tiny, data._replace(train=empty), "no elevation in any of 20 chips")
    refused(tiny, data._replace(heldout=empty), "no elevation at all")
    without = {name: data.train[name] for name in ("image", "label")}
    refused(tiny, data._replace(train=without), r"objective.alpha is 0.5, but .* has no elevation")
    larger = {**data.heldout, "image": np.zeros((10, 64, 64, 3), np.uint16)}
    refused(tiny, data._replace(heldout=larger), r"image .* is \(32, 32, 3\), and .* \(64, 64, 3\)")
    for field, value, message in (
        ("batch_size", 21, "only 20 chips"),
        ("batch_size", 12, "multiple of 8 devices"),
        ("data.rgb", (0, 1, 3), "config.data.rgb"),
        ("data.inputs", ("s2",), "names 's2', which .* doesn't have; it has image and elevation"),
        ("data.value_range", ((0.0, 1.0), (2.0, 3.0)), "is of 2 bands; image of .* have 3"),
        ("data.std", (1.0, 2.0), "data.std is of 2 bands"),
        ("data.nodata", (1.0, 2.0), "data.nodata has 2 values"),
    ):
        config = tiny.copy_and_resolve_references()
        config.update_from_flattened_dict({field: value})
        refused(config, data, message)
