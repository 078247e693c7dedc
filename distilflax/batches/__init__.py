"""Ids to batches: which sequences make a step, where they lie, and which words are masked."""
