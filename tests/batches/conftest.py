"""A corpus in memory, with what the pipeline asks of one on disk."""

import numpy as np
import pytest


class InMemory:
    """Sequences with ids that tell where they came from: 1000 * sequence + position."""

    def __init__(self, lengths, segments=None):
        self.lengths = np.asarray(lengths, np.int32)
        self.rows = [1000 * i + np.arange(n, dtype=np.int32) for i, n in enumerate(lengths)]
        self.segments = segments

    def gather(self, indices):
        return np.concatenate([np.zeros(0, np.int32), *(self.rows[i] for i in indices)])

    def gather_segments(self, indices):
        return np.concatenate([np.zeros(0, np.int32), *(self.segments[i] for i in indices)])


@pytest.fixture
def in_memory():
    return InMemory
