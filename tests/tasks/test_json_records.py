"""Records out of JSON as data sets have it: arrays, lists of values, parts in one object."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilflax.errors import UserError
from distilflax.tasks import Classification, Tagging, records
from distilflax.tasks.records import Faults

NAMED = records.Table(("text", "intent"), flags="config.options.")
# As in CLINC150's data_full.json.
PARTS = {"oos_val": [["set a warning", "oos"]], "train": [["what", "translate"], ["a", "move"]]}
# As in SNIPS-NLU's own files.
NESTED = {"AddToPlaylist": [{"data": [{"text": "Add "}, {"text": "song", "entity": "item"}]}]}


def read(path, table=NAMED, faults=None):
    return [record.values for record in records.read(path, faults or Faults(), table)]


@pytest.mark.parametrize("indent", [None, 2])
def test_an_array_may_hold_lists_of_values(write, indent):
    path = write("train.json", json.dumps(PARTS["train"], indent=indent))
    found = Classification(header=NAMED.header, label="intent").read([path], Faults())
    assert [(e.text, e.label) for e in found] == [("what", "translate"), ("a", "move")]
    with pytest.raises(UserError, match=r"entry 1 is not a JSON .* as config\.options\.header\.$"):
        read(path, records.Table(flags="config.options."))
    faults = Faults(skip=True)
    path = write("train.json", json.dumps([["what"], ["a", "move"]], indent=indent))
    assert len(read(path, faults=faults)) == 1
    assert "entry 1 has 1 values but config.options.header names 2" in faults.first


@pytest.mark.parametrize("indent", [None, 2])
def test_an_object_of_parts_is_told_how_to_write(write, indent):
    path = write("data_full.json", json.dumps(PARTS, indent=indent))
    remedy = r"""`jq -c '\.\["train"\]\[\]' data_full\.json > train\.jsonl` does, and name their"""
    told = (
        rf"data_full\.json is one JSON object of lists \(oos_val, train\).* as {remedy} values as"
    )
    with pytest.raises(UserError, match=told):
        read(path)
    path = write("full.json", json.dumps(NESTED, indent=indent))
    with pytest.raises(
        UserError, match=r"\(AddToPlaylist\).* full\.json > AddToPl.*jsonl` does\.$"
    ):
        read(path)


def test_other_objects_are_records(write):
    record = {"tokens": ["a", "b"], "tags": ["O", "O"]}
    for indent in (None, 2):
        assert read(write("a.json", json.dumps(record, indent=indent))) == [record]
    assert read(write("a.json", [record, record])) == [record, record]
    faults = Faults(skip=True)
    assert read(write("a.json", '{"text":\n{"text": "x"}\n'), faults=faults) == [{"text": "x"}]
    assert "a.json line 1 is not JSON" in faults.first
    with pytest.raises(UserError, match=r"a\.json is not JSON"):
        read(write("a.json", '[\n{"text": "x"}\n'))


@pytest.mark.parametrize("depth", [1, 600])
def test_lists_in_a_list_of_tags_are_a_fault(write, depth):
    deep = "[" * depth + "1" + "]" * depth
    path = write("a.jsonl", f'{{"tokens": ["x", "y"], "tags": [0, {deep}]}}')
    with pytest.raises(UserError, match=r"line 1: 'tags' has a list in the list; give one tag"):
        Tagging(tag_names=("O", "B-a")).read([path], Faults())


def test_half_of_a_pair_in_a_label_can_be_saved(write):
    half = "joy\ud83d"
    labels = [{"text": "x", "label": half}, {"text": "y", "label": "b"}]
    lists = [{"text": "x", "label": [half, "b"]}, {"text": "y", "label": f"{half},b"}]
    tags = [{"tokens": ["x", "y"], "tags": [f"B-{half}", "O"]}]
    for task, content in (
        (Classification(), labels),
        (Classification(problem="multi"), lists),
        (Tagging(), tags),
    ):
        found = task.read([write("a.jsonl", content)], Faults())
        names = task.learn(found).labels
        assert {"joy?", "B-joy?"} & {*names}
        "".join(names).encode()


def test_half_of_a_pair_in_the_name_of_a_class_can_be_saved(tmp_path):
    features = {"label": {"_type": "ClassLabel", "names": ["joy\ud83d", "b"]}}
    noted = {b"huggingface": json.dumps({"info": {"features": features}})}
    table = pa.table({"text": ["x", "y"], "label": [0, 1]}).replace_schema_metadata(noted)
    pq.write_table(table, tmp_path / "a.parquet")
    found = Classification().read([tmp_path / "a.parquet"], Faults())
    assert Classification().learn(found).labels == ("joy?", "b")
