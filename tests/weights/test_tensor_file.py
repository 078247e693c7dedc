"""Damaged safetensors: one sentence each, never a crash, whatever the bytes."""

import json
import os
import random
import re
import tracemalloc

import numpy as np
import pytest
from safetensors.numpy import save_file

from distilflax import weights
from distilflax.errors import UserError
from distilflax.weights import tensor_file


def claim(shape, begin, end, dtype="F32"):
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_headers_of_a_sound_file(packed):
    path = packed({"__metadata__": {"format": "pt"}, "a": claim([2, 1], 0, 8)}, bytes(8))
    assert tensor_file.read_header(path) == {"a": tensor_file.Entry(path, "F32", (2, 1))}


@pytest.mark.parametrize(
    ("header", "size", "says"),
    [
        ({"a": claim([2], 0, 8)}, 7, "truncated"),
        ({"a": claim([2], 0, 8)}, 9, "1 bytes after its last tensor"),
        ({"a": claim([2], 0, 8), "b": claim([2], 4, 12)}, 12, "'b' overlaps 'a'"),
        ({"a": claim([2], 0, 8), "b": claim([1], 12, 16)}, 16, "'b' leaves a gap after 'a'"),
        ({"a": claim([2], 4, 12)}, 12, "'a' leaves a gap after the header"),
        ({"a": claim([3], 0, 8)}, 8, "shape 3 of F32"),
        ({"a": claim([2**62, 2**62], 0, 8)}, 8, "absurd"),
        ({"a": claim([2**62, 4], 0, 0)}, 0, "absurd"),
        ({"a": claim([10**12], 0, 4 * 10**12)}, 8, "truncated"),
        ({"a": claim([-2], 0, 8)}, 8, "whole numbers"),
        ({"a": claim([2.0], 0, 8)}, 8, "whole numbers"),
        ({"a": claim([True, 2], 0, 8)}, 8, "whole numbers"),
        ({"a": claim([1] * 200 + [2], 0, 8)}, 8, "whole numbers"),
        ({"a": claim("ab", 0, 8)}, 8, "whole numbers"),
        ({"a": claim([2], 8, 0)}, 8, "data_offsets"),
        ({"a": {**claim([2], 0, 8), "data_offsets": [0]}}, 8, "data_offsets"),
        ({"a": claim([2], 0, 8, dtype="F31")}, 8, "unknown dtype 'F31'"),
        ({"a": claim([2], 0, 8, dtype=["F32"])}, 8, "unknown dtype"),
        ({"a": [0, 8]}, 8, "described by"),
        ({"a": {"dtype": "F32"}}, 8, "described by"),
        ("[1, 2]", 0, "JSON object"),
        ('{"a": ', 0, "not valid JSON"),
        ("[" * 100_000, 0, "not valid JSON"),
        ('{"a": ' + "9" * 10_000 + "}", 0, "not valid JSON"),
    ],
)
def test_a_header_that_does_not_describe_its_file(packed, header, size, says):
    path = packed(header, bytes(size))
    with pytest.raises(UserError, match=r"model\.safetensors") as error:
        tensor_file.read_header(path)
    assert says in str(error.value)
    assert len(str(error.value)) < 600


def test_a_name_given_twice(packed):
    one = json.dumps(claim([1], 0, 4))
    with pytest.raises(UserError, match="gives 'a' twice"):
        tensor_file.read_header(packed(f'{{"a": {one}, "a": {one}}}', bytes(4)))


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 10**9, 3])
def test_an_absurd_header_length_takes_no_memory(packed, length):
    path = packed({"a": claim([1], 0, 4)}, bytes(4), length=length)
    tracemalloc.start()
    with pytest.raises(UserError):
        tensor_file.read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_a_header_as_long_as_its_absurdly_long_file_takes_no_memory(packed):
    path = packed("{", length=2**27 - 8)
    os.truncate(path, 2**27)  # sparse: it takes no disk either
    tracemalloc.start()
    with pytest.raises(UserError, match="absurd header of 134,217,720 bytes"):
        tensor_file.read_header(path)
    assert tracemalloc.get_traced_memory()[1] < 2**20
    tracemalloc.stop()


def test_every_truncation_of_a_file_is_one_sentence(golden, tmp_path):
    whole = (golden("bert")[0] / "model.safetensors").read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "model.safetensors"
    for size in [*range(0, header + 8, 29), *range(header, len(whole), 997), len(whole) - 1]:
        path.write_bytes(whole[:size])
        with pytest.raises(UserError):
            tensor_file.read_header(path)


def test_flipped_bytes_of_a_header_never_crash(golden, tmp_path):
    whole = bytearray((golden("distilbert")[0] / "model.safetensors").read_bytes())
    header = 8 + int.from_bytes(whole[:8], "little")
    path = tmp_path / "model.safetensors"
    draw = random.Random(0)
    refused = 0
    for _ in range(150):
        flipped = whole.copy()
        flipped[draw.randrange(header)] ^= 1 << draw.randrange(8)
        path.write_bytes(flipped)
        try:
            found = tensor_file.read_header(path)
            for _ in tensor_file.read(found.items()):
                pass
        except UserError:
            refused += 1
    # The rest changed a letter of a name, which `reader` then misses.
    assert refused > 50


@pytest.mark.parametrize("dtype", ["float16", "bfloat16", "float32"])
def test_half_precision_becomes_float32(tmp_path, dtype):
    import jax.numpy as jnp

    values = np.array([[1.5, -2.0, 3.0e-3]]).astype(jnp.dtype(dtype))
    save_file({"a": values}, tmp_path / "model.safetensors")
    ((_, read),) = tensor_file.read(tensor_file.entries(tmp_path).items())
    assert read.dtype == np.float32
    np.testing.assert_array_equal(read, values.astype(np.float32))


@pytest.mark.parametrize("dtype", [np.int8, np.float64, np.int64])
def test_other_types_are_refused(tmp_path, dtype):
    save_file({"a": np.ones(3, dtype)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match=r"tensor 'a' is .*; weights must be F32, F16, BF16"):
        list(tensor_file.read(tensor_file.entries(tmp_path).items()))


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_values_that_are_not_finite_are_refused(tmp_path, bad):
    save_file({"a": np.array([1.0, bad], np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(UserError, match="tensor 'a' has values that are not finite"):
        list(tensor_file.read(tensor_file.entries(tmp_path).items()))


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    with pytest.raises(UserError, match=r"pickle \(pytorch_model.bin\).*save_pretrained"):
        tensor_file.entries(tmp_path)
    config = {"architectures": ["BertForSequenceClassification"]}
    (tmp_path / "config.json").write_text(json.dumps(config))
    # Another class would leave the head behind, and without one the tokenizer would stay.
    both = r"for c in \(BertForSequenceClassification, AutoTokenizer\)\]"
    with pytest.raises(UserError, match=rf"c\.from_pretrained\(\S+\)\.save_pretrained.* {both}"):
        tensor_file.entries(tmp_path)
    with pytest.raises(UserError, match=both):
        tensor_file.entries(tmp_path, tmp_path)


@pytest.mark.parametrize("inside", ["", "0_Transformer"])
def test_a_pickle_of_sentence_transformers_is_converted_with_its_pooling(tmp_path, inside):
    (tmp_path / inside).mkdir(exist_ok=True)
    (tmp_path / inside / "pytorch_model.bin").write_bytes(b"\x80\x04.")
    config = '{"model_type": "bert", "vocab_size": 8, "hidden_size": 4, "num_hidden_layers": 1, '
    config += '"num_attention_heads": 1, "intermediate_size": 4, "max_position_embeddings": 4}'
    (tmp_path / inside / "config.json").write_text(config)
    step = {"path": inside, "type": "sentence_transformers.models.Transformer"}
    (tmp_path / "modules.json").write_text(json.dumps([step]))
    says = re.escape(f'SentenceTransformer("{tmp_path}").save("NEW_FOLDER")')
    with pytest.raises(UserError, match=f"with sentence-transformers: {says}"):
        weights.load(tmp_path)


def test_no_weights_at_all(tmp_path):
    with pytest.raises(UserError, match=r"has no weights: expected model\.safetensors"):
        tensor_file.entries(tmp_path)


def sharded(folder, weight_map, shards):
    index = {"metadata": {"total_size": 8}, "weight_map": weight_map}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    for file, tensors in shards.items():
        save_file({name: np.ones(1, np.float32) for name in tensors}, folder / file)


def test_shards_are_one_model(tmp_path):
    sharded(
        tmp_path,
        {"a": "1.safetensors", "b": "2.safetensors"},
        {"1.safetensors": "a", "2.safetensors": "b"},
    )
    found = tensor_file.entries(tmp_path)
    assert {name: entry.file.name for name, entry in found.items()} == {
        "a": "1.safetensors",
        "b": "2.safetensors",
    }


@pytest.mark.parametrize(
    ("weight_map", "shards", "says"),
    [
        ({"a": "1.safetensors"}, {}, "lacks the shard 1.safetensors"),
        ({"a": "1.safetensors"}, {"1.safetensors": "b"}, "holds 'b'"),
        ({"a": "1.safetensors", "b": "1.safetensors"}, {"1.safetensors": "a"}, "lacks tensor 'b'"),
        (
            {"a": "1.safetensors", "b": "2.safetensors"},
            {"1.safetensors": "ab", "2.safetensors": "b"},
            "holds 'b'",
        ),
        ({"a": "../1.safetensors"}, {}, "outside the folder"),
        ({"a": "/etc/passwd"}, {}, "outside the folder"),
        ({"a": ".."}, {}, "outside the folder"),
        ({"a": "config.json"}, {}, "outside the folder"),
        ({"a": ["1.safetensors"]}, {}, "weight_map"),
        (["a"], {}, "weight_map"),
    ],
)
def test_an_index_that_does_not_fit_its_shards(tmp_path, weight_map, shards, says):
    sharded(tmp_path, weight_map, shards)
    with pytest.raises(UserError, match=says):
        tensor_file.entries(tmp_path)


def test_a_file_that_shrinks_after_its_header_was_read(packed):
    path = packed({"a": claim([2], 0, 8)}, bytes(8))
    found = tensor_file.read_header(path)
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(UserError, match="cannot be read"):
        list(tensor_file.read(found.items()))
