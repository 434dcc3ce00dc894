"""What every run stands on: devices, processes, batches, checkpoints, the optimizer, the CPU."""
