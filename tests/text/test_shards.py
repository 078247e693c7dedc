import pickle

import datasets
import numpy as np
import pytest

from distilflax.text import shards

CLS, PAD = 2, 0


@pytest.fixture
def rows():
    draw = np.random.default_rng(0)
    return [[CLS, *draw.integers(5, 300, draw.integers(1, 30)).tolist(), 3] for _ in range(500)]


@pytest.fixture
def written(rows, tmp_path, monkeypatch):
    """Small batches and shards, so that every boundary is crossed."""
    monkeypatch.setattr(shards.SequenceWriter, "_batch", 300)
    monkeypatch.setattr(shards, "_SHARD_BATCHES", 5)
    with shards.SequenceWriter(tmp_path, "train", 300) as writer:
        writer.write(rows)
        names = writer.close()
    assert len(names) > 3
    return writer, [tmp_path / name for name in names]


def test_sequences_come_back_in_order(rows, written):
    writer, paths = written
    sequences = shards.Sequences(paths, CLS)
    assert len(sequences) == writer.sequences == len(rows)
    assert [ids.tolist() for ids in sequences] == rows
    assert sequences[0].dtype == np.int32
    assert sequences[-1].tolist() == rows[-1]
    assert sequences.lengths.tolist() == [len(row) for row in rows]
    assert sequences.lengths.dtype == np.int32
    with pytest.raises(IndexError):
        sequences[len(rows)]


def test_what_is_read_may_be_changed_without_touching_the_disk(rows, written):
    sequences = shards.Sequences(written[1], CLS)
    sequences[3][:] = 0
    assert sequences[3].tolist() == rows[3]


def test_counts_and_digest_follow_the_rows(rows, written, tmp_path):
    writer, _ = written
    flat = np.concatenate(rows)
    assert (writer.counts == np.bincount(flat, minlength=300)).all()
    with shards.SequenceWriter(tmp_path, "other", 300) as other:
        other.write([*rows[:-1], rows[-1][::-1]])
        other.close()
    assert other.digest() != writer.digest()


def test_gather_gives_the_ids_of_rows_in_any_order(rows, written):
    sequences = shards.Sequences(written[1], CLS)
    indices = np.random.default_rng(1).integers(0, len(rows), 200)
    tokens = sequences.gather(indices)
    assert tokens.dtype == np.int32
    assert tokens.tolist() == [token for index in indices for token in rows[index]]
    assert sequences.gather(indices[:0]).shape == (0,)
    for wrong in (-1, len(rows)):
        with pytest.raises(IndexError):
            sequences.gather(np.array([0, wrong]))


def test_segments_count_the_passages_of_each_sequence_from_one(tmp_path):
    rows = [[CLS, 9, 3, CLS, 8, 8, 3, CLS, 7, 3], [CLS, 9, 3], [CLS, 8, 3, CLS, 7, 3]]
    with shards.SequenceWriter(tmp_path, "packed", 300) as writer:
        writer.write(rows)
        paths = [tmp_path / name for name in writer.close()]
    sequences = shards.Sequences(paths, CLS)
    expected = [[1, 1, 1, 2, 2, 2, 2, 3, 3, 3], [1, 1, 1], [1, 1, 1, 2, 2, 2]]
    assert [sequences.segments(i).tolist() for i in range(3)] == expected
    order = [2, 0, 1, 2]
    gathered = sequences.gather_segments(np.array(order))
    assert gathered.dtype == np.int32
    assert gathered.tolist() == [segment for i in order for segment in expected[i]]


def test_large_vocabularies_keep_their_ids(tmp_path):
    with shards.SequenceWriter(tmp_path, "wide", 250_002) as writer:
        writer.write([[CLS, 65_536, 250_001, 3]])
        paths = [tmp_path / name for name in writer.close()]
    assert shards.Sequences(paths, CLS)[0].tolist() == [CLS, 65_536, 250_001, 3]


def test_datasets_opens_a_shard_and_workers_get_paths_only(rows, written):
    _, paths = written
    first = datasets.Dataset.from_file(str(paths[0]))
    assert first[0]["ids"] == rows[0]
    sequences = shards.Sequences(paths, CLS)
    sent = pickle.dumps(sequences)
    assert len(sent) < 4000
    assert pickle.loads(sent)[7].tolist() == rows[7]


def test_documents_come_back(tmp_path, monkeypatch):
    monkeypatch.setattr(shards.DocumentWriter, "_batch", 40)
    texts = [f"document {i}\n\nwith ünïcode" for i in range(20)]
    with shards.DocumentWriter(tmp_path, "documents") as writer:
        writer.write(texts)
        paths = [tmp_path / name for name in writer.close()]
    documents = shards.Documents(paths)
    assert list(documents) == texts and documents[-1] == texts[-1]
    assert list(pickle.loads(pickle.dumps(documents))) == texts


def test_nothing_written_is_nothing_read(tmp_path):
    with shards.SequenceWriter(tmp_path, "train", 300) as writer:
        assert writer.close() == []
    empty = shards.Sequences([], CLS)
    assert len(empty) == 0 and empty.lengths.shape == (0,) and empty.lengths.dtype == np.int32
