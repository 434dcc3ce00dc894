import itertools

import jax
import numpy as np
import pytest

from elev_ssl_jax.runtime import batches, sharding


class Records:
    """Random-access records over arrays, like a source.Split."""

    def __init__(self, arrays):
        self.data = arrays

    def __len__(self):
        return len(self.data["image"])

    def __getitem__(self, i):
        return {name: array[i] for name, array in self.data.items()}

    def nbytes(self, *names):
        return sum(self.data[name].nbytes for name in names)

    def arrays(self, *names):
        return {name: self.data[name] for name in names}


def test_plan_is_a_permutation_that_depends_on_seed_and_epoch_alone():
    plan = batches.epoch_plan(1, 2, 23, 5)
    assert plan.shape == (4, 5)
    assert len(np.unique(plan)) == 20
    assert plan.min() >= 0
    assert plan.max() < 23
    np.testing.assert_array_equal(plan, batches.epoch_plan(1, 2, 23, 5))
    assert not np.array_equal(plan, batches.epoch_plan(1, 3, 23, 5))
    assert not np.array_equal(plan, batches.epoch_plan(2, 2, 23, 5))


def test_every_chip_is_left_out_at_times_and_used_at_others():
    used = [np.unique(batches.epoch_plan(0, epoch, 7, 5)) for epoch in range(40)]
    counts = np.bincount(np.concatenate(used), minlength=7)
    assert counts.min() > 15
    assert counts.max() < 40


@pytest.mark.parametrize("first_step", [0, 3])
def test_stream_and_resident_give_identical_batches(chips, first_step):
    records, mesh, names = Records(chips), sharding.make_mesh(), ("image", "elevation")
    settings = {"seed": 5, "batch_size": 8, "first_step": first_step}
    resident, how = batches.make_batches(records, names, mesh, resident_gib=1, **settings)
    assert how.startswith("resident")
    streamed, how = batches.make_batches(records, names, mesh, resident_gib=0, **settings)
    assert how.startswith("streamed")
    plan = np.concatenate([batches.epoch_plan(5, epoch, 20, 8) for epoch in range(6)])
    for step, (a, b) in enumerate(itertools.islice(zip(resident, streamed, strict=False), 7)):
        rows = plan[first_step + step]
        assert set(a) == set(b) == {"image", "elevation"}
        for name, ours in a.items():
            assert ours.dtype == b[name].dtype == chips[name].dtype
            np.testing.assert_array_equal(ours, chips[name][rows])
            np.testing.assert_array_equal(b[name], chips[name][rows])
            assert ours.sharding == b[name].sharding
            assert ours.addressable_shards[0].data.shape[0] == 8 // len(jax.devices())


def test_in_order_every_chip_comes_once_from_arrays_and_from_records(chips):
    mesh = sharding.make_mesh()
    for source in (chips, Records(chips)):
        got = list(batches.in_order(source, ("image", "label"), mesh, 16))
        assert [count for _, count in got] == [16, 4]
        for name in ("image", "label"):
            parts = [np.asarray(batch[name])[:count] for batch, count in got]
            np.testing.assert_array_equal(np.concatenate(parts), chips[name])
            assert len(got[1][0][name]) == 16  # one compiled program


def test_rows_are_the_arrays_that_they_are_made_of(rng):
    for arrays in (rng.integers(0, 9, (5, 3, 7, 2), np.uint8), rng.random((5, 128), np.float32)):
        rows = batches.Rows.of(arrays)
        assert rows.rows.shape[1] % 128 == 0
        np.testing.assert_array_equal(rows, arrays)
        np.testing.assert_array_equal(rows[np.array([3, 0, 3])], arrays[[3, 0, 3]])
        np.testing.assert_array_equal(rows[1:3], arrays[1:3])
        placed = jax.device_put(rows)
        np.testing.assert_array_equal(
            jax.jit(lambda r: r[np.array([4, 1])])(placed), arrays[[4, 1]]
        )
        with pytest.raises(TypeError):
            iter(rows)
