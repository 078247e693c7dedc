"""The step and the loop, and what they stand on: shardings, optimizer, checkpoints, metrics."""
