import pytest

from elev_ssl_jax.forecast.advice import advise
from elev_ssl_jax.forecast.programs import Stage

GIB = 2**30


def stage(**facts):
    known = {
        **{"name": "pre-training", "step": None, "gather": None, "steps": 100, "devices": 4},
        **{"batch_size": 1024, "params": 0, "flop": 0, "resident": 0},
    }
    return Stage(**known | facts)


def test_what_would_make_a_run_fit_goes_by_what_fills_the_memory(tiny):
    tiny.batch_size = 1024
    # 36 GiB that grow with the batch, where 16 less 4 for weights and chips are free: a third.
    weights = {"params": GIB // 16, "resident": 3 * GIB}
    advice = advise(tiny, "v5e:2x2", stage(**weights), needed=40, there=16)
    assert "config.microbatch_size=256, for a second forward pass" in advice
    assert "--topology=v5e:4x4" in advice
    # What runs on one device, or whose batch is a pre-training's own, is not advised so.
    for tiny.task in ("finetune", "experiment"):
        assert advise(tiny, "v5e:2x2", stage(**weights), needed=40, there=16) == []
    tiny.task = "pretrain"
    # The chips are what is too much, then the similarities.
    advice = advise(tiny, "v5e:2x2", stage(resident=3 * GIB), needed=18, there=16)
    assert "config.data.resident_gib=0, which streams the chips from the disk" in advice
    advice = advise(tiny, "v5e:2x2", stage(similarities=30 * GIB), needed=36, there=16)
    # Parts of the batch have as many similarities, and four devices are too few already.
    assert advice == ["config.loss.chunk_size=4096, or smaller", "--topology=v5e:4x4"]


@pytest.mark.parametrize("topology", ["v5e:16x16", "local"])
def test_nothing_is_said_where_nothing_is_known(tiny, topology):
    tiny.batch_size = 4
    assert advise(tiny, topology, stage(params=2 * GIB), needed=40, there=16) == []
