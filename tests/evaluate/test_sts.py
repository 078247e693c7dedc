import json
import re

import numpy as np
import pytest

from distilflax.errors import UserError
from distilflax.evaluate import sts

HEADER = "sentence1\tsentence2\tscore"


def write(path, *rows):
    path.write_text("\n".join(rows) + "\n", encoding="utf-8")
    return path


def test_equal_values_share_their_mean_rank():
    assert sts.ranks(np.array([10.0, 20.0, 10.0, 30.0])).tolist() == [1.5, 3.0, 1.5, 4.0]


def test_spearman_is_one_for_any_rising_function():
    x = np.array([3.0, 1.0, 2.0, 7.0])
    assert sts.spearman(x, np.exp(x)) == pytest.approx(1.0)
    assert sts.spearman(x, -(x**3)) == pytest.approx(-1.0)
    assert sts.pearson(x, np.exp(x)) < 0.99


def test_correlation_with_a_constant_is_zero():
    x = np.array([1.0, 2.0, 3.0])
    assert sts.spearman(x, np.ones(3)) == sts.pearson(np.ones(3), x) == 0.0


def test_agrees_with_scipy_with_ties():
    stats = pytest.importorskip("scipy.stats")
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=200).round(1), rng.integers(0, 6, 200).astype(float)
    assert sts.spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    assert sts.pearson(x, y) == pytest.approx(stats.pearsonr(x, y).statistic)


def test_compared_with_itself_everything_is_kept():
    rng = np.random.default_rng(0)
    x, scores = rng.normal(size=50), rng.normal(size=50)
    same = sts.compare_spearman(x + scores, x + scores, scores)
    assert same.difference == (0.0, 0.0, 0.0)
    assert same.retention == (1.0, 1.0, 1.0)


def test_reads_columns_by_name_and_quotes_as_letters(tmp_path):
    write(
        tmp_path / "test.tsv",
        "genre\tscore\tsentence1\tsentence2",
        'news\t4.5\tHe said "no.\tHe refused.\r',
        "",
        "news\t0\tA dog.\tA théorème.",
    )
    pairs = sts.read_pairs(tmp_path)
    assert pairs.first == ('He said "no.', "A dog.")
    assert pairs.second == ("He refused.", "A théorème.")
    assert pairs.scores.tolist() == [4.5, 0.0]


def test_other_formats_are_read_too(tmp_path):
    rows = [{"sentence1": "a", "sentence2": "b", "score": n, "genre": "x"} for n in (1, 2.5)]
    write(tmp_path / "test.jsonl", *map(json.dumps, rows))
    write(tmp_path / "other.csv", "sentence1,sentence2,score", '"a",b,1', "a,b,2.5")
    for path in (tmp_path, tmp_path / "other.csv"):
        assert sts.read_pairs(path).scores.tolist() == [1.0, 2.5]


@pytest.mark.parametrize(
    ("rows", "sentence"),
    [
        (["a\tb", "1\t2"], "has no column 'sentence1'"),
        ([HEADER, "a\tb\t1", "c\td"], "line 3 has 2 columns but the first line names 3"),
        ([HEADER, "a\tb\thigh"], "line 2 has the score 'high', which is not a number"),
        ([HEADER, "a\tb\tnan"], "line 2 has the score 'nan', which is not a number"),
        ([HEADER, "a\tb\t1"], "has 1 pairs; a correlation needs at least two"),
    ],
)
def test_malformed_files_are_answered_with_the_line(tmp_path, rows, sentence):
    path = write(tmp_path / "pairs.tsv", *rows)
    with pytest.raises(UserError, match=re.escape(sentence)) as error:
        sts.read_pairs(path)
    assert str(path) in str(error.value)


def test_missing_and_undecodable_files_are_errors(tmp_path):
    with pytest.raises(UserError, match=r"no file .*test\.tsv"):
        sts.read_pairs(tmp_path)
    (tmp_path / "test.tsv").write_bytes(HEADER.encode() + b"\n\xff\xfe\t\t1\n")
    with pytest.raises(UserError, match=r"test\.tsv line 2 is not UTF-8"):
        sts.read_pairs(tmp_path)
