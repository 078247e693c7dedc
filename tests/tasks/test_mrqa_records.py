"""MRQA as `datasets` and the hub have it: flat records, and answers as an object of lists."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from distilflax.errors import UserError
from distilflax.tasks import Answering
from distilflax.tasks.records import Faults
from distilflax.tasks.squad import Answer

CONTEXT = "🎉 Anna lives in Paris, a city on a river. Paris is high!"
DETECTED = {
    "text": ["paris", "a city"],
    "char_spans": [{"start": [16, 42], "end": [20, 46]}, {"start": [23], "end": [28]}],
    "token_spans": [{"start": [4, 12], "end": [4, 12]}, {"start": [6], "end": [7]}],
}
ASKED = {
    "subset": "SQuAD",
    "context": CONTEXT,
    "qid": "q1",
    "question": "Where?",
    "detected_answers": DETECTED,
    "answers": ["PARIS", "a city"],
}


@pytest.fixture(params=["a.parquet", "a.jsonl"])
def read(request, tmp_path, write):
    """read(records, faults) -> the questions of a file of these."""

    def of(records, faults=None):
        path = tmp_path / request.param
        if path.suffix == ".parquet":
            pq.write_table(pa.Table.from_pylist(records), path)
        else:
            write(path.name, records)
        return Answering().read([path], faults or Faults())

    return of


def test_each_answer_is_at_its_own_characters(read):
    (found,) = read([ASKED])
    assert (found.id, found.context) == ("q1", CONTEXT)
    assert found.answers == (Answer(16, "Paris"), Answer(42, "Paris"), Answer(23, "a city"))
    # Beside an id it is something else.
    assert [question.id for question in read([ASKED | {"id": "x"}])] == ["x"]


def spans(*given):
    """The first answer alone, with other spans."""
    return {"text": ["paris"], "char_spans": list(given)}


@pytest.mark.parametrize(
    ("detected", "sentence"),
    [
        (spans({"start": [16], "end": [19]}), r"'q1': char_spans 16 to 19 point at 'Pari' but the"),
        (spans({"start": [16, 42], "end": [20]}), "'q1': an answer should be a text and pairs of"),
        (spans({"start": 16, "end": 20}), "'q1': an answer should be a text and pairs of whole"),
        (spans({"start": [16.0], "end": [20.0]}), "'q1': an answer should be a text and pairs of"),
        (spans({"start": [], "end": []}), "'q1': an answer should be a text and pairs of whole"),
        (spans({"start": [16]}), "'q1': an answer should be a text and pairs of whole numbers"),
        (spans(16), "'q1': an answer should be a text and pairs of whole numbers char_spans, not"),
        (spans(), r"'q1': `detected_answers` should have as many of `text` as of `char_spans`"),
        (DETECTED | {"text": "paris"}, "`detected_answers` should have as many of `text` as of"),
        # What has no answer that was found is not what has no answer.
        ({name: [] for name in DETECTED}, "none of its answers was detected in the text; leave"),
    ],
)
def test_what_is_no_list_of_spans_is_a_fault_of_its_record(read, detected, sentence):
    faulty = ASKED | {"detected_answers": detected}
    with pytest.raises(UserError, match=sentence):
        read([faulty])
    faults = Faults(skip=True)
    assert read([faulty], faults) == [] and faults.count == 1
