r"""SimCLR+Elevation with batches of 256 to 32,768 chips: LARS, as SimCLR has it (arXiv 2002.05709).

for batch in 256 512 1024 2048 4096 8192 16384 32768; do
  python -m elev_ssl_jax.main --config=configs/large_batch.py:$batch --workdir=RUNS/$batch
done
python -m elev_ssl_jax.main --config=configs/large_batch.py:demo --workdir=RUN   # no data needed

A batch that doesn't fit into memory is computed in parts, with the same gradient:
--config.microbatch_size=2048 (over all devices). The rate grows linearly with the batch;
--config.optimizer.scaling=sqrt --config.optimizer.learning_rate=1.2 is SimCLR's other rule.
"""

from elev_ssl_jax.config import default, with_variant


def get_config(variant: str = ""):
    config = default()
    config.optimizer.name = "lars"
    config.optimizer.learning_rate = 0.3  # for 256 chips
    config.optimizer.scaling = "linear"
    config.optimizer.warmup_epochs = 10.0
    config.optimizer.weight_decay = 1e-6
    config.loss.chunk_size = 4096  # of up to 65,536 columns
    if variant.isdigit():
        config.batch_size = int(variant)
        return config
    config = with_variant(config, variant, "a number of chips, as :4096")
    if variant == "demo":
        config.batch_size = 256
    return config
