"""The files of sentence-transformers: both layouts read, steps that we cannot do refused."""

import dataclasses
import json
import re

import pytest

from distilflax.errors import UserError
from distilflax.weights import sentence
from distilflax.weights.sentence import SentenceFiles


@pytest.fixture
def folder(tmp_path):
    def write(files):
        for name, content in files.items():
            (tmp_path / name).parent.mkdir(exist_ok=True)
            (tmp_path / name).write_text(json.dumps(content))
        return tmp_path

    return write


def steps(*kinds):
    paths = {"Transformer": "", "Pooling": "1_Pooling", "Normalize": "2_Normalize"}
    prefix = "sentence_transformers.models."
    return [{"path": paths.get(kind, "x"), "type": prefix + kind} for kind in kinds]


def modalities(output):
    return {"text": {"method": "forward", "method_output_name": output}}


def cross_encoder(settings):
    return {
        "modules.json": steps("Transformer"),
        "config_sentence_transformers.json": {"model_type": "CrossEncoder"},
        "sentence_bert_config.json": settings,
    }


def test_a_folder_without_modules_is_no_sentence_encoder(folder):
    assert sentence.read(folder({}), 512) is None


@pytest.mark.parametrize(
    "files",
    [
        SentenceFiles(),
        SentenceFiles("cls", normalize=False, max_seq_length=77),
        SentenceFiles(normalize=False, similarity="dot"),
        SentenceFiles(prompts={"query": "query: "}, default_prompt="query"),
    ],
)
def test_what_files_writes_read_reads_back(folder, files):
    assert sentence.read(folder(sentence.files(files, hidden_size=8)), 512) == files


def test_a_prompt_is_the_one_of_that_name_and_the_default_without_one():
    named = SentenceFiles(prompts={"query": "q: ", "passage": "p: ", "document": "", "all": "a: "})
    assert named.prompt(sentence.QUERY) == named.prompt("query") == "q: "
    assert named.prompted(["a"], "query") == ["q: a"]
    assert named.prompt(sentence.DOCUMENT) == "p: "
    assert named.prompt() == named.prompt(("other",)) == ""
    default = dataclasses.replace(named, default_prompt="all")
    assert (default.prompt(), default.prompt(("other",))) == ("a: ", "")
    assert default.prompt(sentence.QUERY) == "q: "


def test_version_six_has_other_keys(folder):
    found = sentence.read(
        folder(
            {
                "modules.json": [
                    {"path": "", "type": "sentence_transformers.base.modules.x.Transformer"},
                    {"path": "1_Pooling", "type": "sentence_transformers.y.Pooling"},
                ],
                "1_Pooling/config.json": {"embedding_dimension": 8, "pooling_mode": "cls"},
                "sentence_bert_config.json": {
                    "transformer_task": "feature-extraction",
                    "modality_config": modalities("last_hidden_state"),
                    "module_output_name": "token_embeddings",
                    "unpad_inputs": False,
                },
                "tokenizer_config.json": {"model_max_length": 99},
            }
        ),
        512,
    )
    assert found == SentenceFiles("cls", normalize=False, max_seq_length=99)


def test_a_normalisation_of_the_vector_itself_may_say_so(folder):
    files = sentence.files(SentenceFiles(), 8)
    for config in (
        {},
        {"module_input_name": "sentence_embedding", "module_output_name": "sentence_embedding"},
        {"module_input_name": "sentence_embedding", "module_output_name": None},
    ):
        files["2_Normalize/config.json"] = config
        assert sentence.read(folder(files), 512) == SentenceFiles()


def test_settings_that_say_nothing_are_no_matter(folder):
    empty = {"model_args": {}, "processing_kwargs": None, "query_length": None, "do_lower_case": 0}
    files = sentence.files(SentenceFiles(max_seq_length=9), 8)
    files["sentence_bert_config.json"] |= empty
    assert sentence.read(folder(files), 512).max_seq_length == 9


def test_a_cross_encoder_of_version_six_has_no_vectors(folder):
    settings = {
        "transformer_task": "sequence-classification",
        "modality_config": modalities("logits"),
        "module_output_name": "scores",
    }
    assert sentence.read(folder(cross_encoder(settings)), 512) is None


def test_the_file_of_the_length_has_older_names_of_which_the_first_counts(folder):
    files = sentence.files(SentenceFiles(), 8)
    del files["sentence_bert_config.json"]
    files["sentence_xlnet_config.json"] = {"max_seq_length": 7}
    assert sentence.read(folder(files), 512).max_seq_length == 7
    files["sentence_roberta_config.json"] = {"max_seq_length": 9}
    assert sentence.read(folder(files), 512).max_seq_length == 9
    files["sentence_bert_config.json"] = {}  # says nothing
    assert sentence.read(folder(files), 512).max_seq_length == 9
    files["sentence_roberta_config.json"] = {"config_args": {"hidden_act": "relu"}}
    with pytest.raises(UserError, match=r"sentence_roberta_config\.json: config_args is"):
        sentence.read(folder(files), 512)


def test_vectors_are_compared_by_cosine_unless_the_files_say_otherwise(folder):
    files = sentence.files(SentenceFiles(normalize=False), 8)
    files["config_sentence_transformers.json"] = {"similarity_fn_name": None}
    found = sentence.read(folder(files), 512)
    assert (found.similarity, found.unit) == ("cosine", True)
    assert not dataclasses.replace(found, similarity="dot").unit


@pytest.mark.parametrize("limit", [10**30, 1e30, 513])
def test_the_length_never_exceeds_the_positions(folder, limit):
    files = sentence.files(SentenceFiles(), 8) | {"sentence_bert_config.json": {}}
    folder(files | {"tokenizer_config.json": {"model_max_length": limit}})
    assert sentence.read(folder({}), 512).max_seq_length == 512


@pytest.mark.parametrize(
    ("config", "length"),
    [
        ({"max_len": 20}, 20),
        ({"model_max_length": 10**30, "max_len": 20}, 512),
        ({"model_max_length": 30, "max_len": 20}, 30),
    ],
)
def test_the_length_has_an_older_name_which_counts_for_less(folder, config, length):
    assert sentence.longest(folder({"tokenizer_config.json": config}), 512) == length


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        (
            {"modules.json": steps("Transformer", "Pooling", "Dense")},
            "steps Transformer, Pooling, Dense; supported",
        ),
        ({"modules.json": steps("Transformer")}, "supported are"),
        ({"modules.json": {}}, "JSON array"),
        ({"modules.json": ["Transformer"]}, "list of steps"),
        (
            {"modules.json": [{"path": "", "type": "custom_st.Transformer"}, *steps("Pooling")]},
            "steps custom_st.Transformer, Pooling; supported",
        ),
        (
            {"modules.json": [*steps("Transformer"), {"path": "../x", "type": "a.Pooling"}]},
            "outside the folder",
        ),
        *(
            (
                {"modules.json": [*steps("Transformer"), {**steps("Pooling")[0], "path": path}]},
                "cannot be the name of a file",
            )
            for path in ("1\0", "1\ud800")
        ),
        ({"1_Pooling/config.json": {"pooling_mode_max_tokens": True}}, r"\['max'\]; supported"),
        (
            {
                "1_Pooling/config.json": {
                    "pooling_mode_mean_tokens": True,
                    "pooling_mode_cls_token": True,
                }
            },
            "supported are mean and cls, alone",
        ),
        ({"1_Pooling/config.json": {"pooling_mode": {"a": 1}}}, "supported are mean and cls"),
        ({"1_Pooling/config.json": {"include_prompt": False}}, "prompts are left out"),
        ({"sentence_bert_config.json": {"max_seq_length": 0}}, "max_seq_length is 0"),
        ({"sentence_bert_config.json": {"max_seq_length": "9"}}, "max_seq_length is '9'"),
        ({"config_sentence_transformers.json": {"prompts": ["q"]}}, "texts by name"),
        ({"config_sentence_transformers.json": {"default_prompt_name": "q"}}, "one of them"),
        ({"config_sentence_transformers.json": {"default_prompt_name": []}}, "one of them"),
        (
            {"config_sentence_transformers.json": {"similarity_fn_name": "euclidean"}},
            "similarity_fn_name is 'euclidean'; supported are cosine and dot",
        ),
        ({"config_sentence_transformers.json": {"truncate_dim": 8}}, "truncate_dim cuts vectors"),
        *(
            ({"sentence_bert_config.json": {key: value}}, f"{key} is .*{re.escape(remedy)}")
            for key, value, remedy in (
                ("query_length", 8, "remove it"),
                ("processing_kwargs", {"text": {"max_length": 6}}, "remove it"),
                ("tokenizer_args", {"model_max_length": 6}, "remove it"),
                ("processor_kwargs", {"model_max_length": 6}, "remove it"),
                ("config_args", {"hidden_act": "relu"}, "remove it"),
                ("model_args", {"num_hidden_layers": 1}, "remove it"),
                ("transformer_task", "fill-mask", 'set it to "feature-extraction"'),
                ("transformer_task", "sequence-classification", 'set it to "feature-extraction"'),
                ("module_output_name", "sentence_embedding", 'set it to "token_embeddings"'),
                ("modality_config", modalities(["hidden_states", 1]), 'set it to {"text"'),
            )
        ),
        (
            cross_encoder({"transformer_task": "feature-extraction"}),
            'transformer_task is .*set it to "sequence-classification"',
        ),
        (cross_encoder({"processing_kwargs": {"text": {"max_length": 6}}}), "processing_kwargs is"),
        *(
            ({"2_Normalize/config.json": config}, "normalises .*; supported is sentence_embedding")
            for config in (
                {"module_input_name": "token_embeddings"},
                {"module_input_name": None},
                {"module_output_name": "unit"},
            )
        ),
        (
            {
                "modules.json": steps("Transformer"),
                "config_sentence_transformers.json": {
                    "model_type": "CrossEncoder",
                    "prompts": {"q": "find "},
                    "default_prompt_name": "q",
                },
            },
            "a prompt before the queries of a cross-encoder",
        ),
    ],
)
def test_what_cannot_be_represented_is_refused(folder, changes, says):
    files = sentence.files(SentenceFiles(), hidden_size=8) | changes
    with pytest.raises(UserError, match=says):
        sentence.read(folder(files), 512)


@pytest.mark.parametrize("inside", ["", ".", "0_Transformer"])
def test_the_encoder_is_where_the_first_step_is(folder, inside):
    files = sentence.files(SentenceFiles("cls", False, 9), 8)
    files["modules.json"][0]["path"] = inside
    files[f"{inside or '.'}/{sentence.LENGTH}"] = files.pop(sentence.LENGTH)
    path = folder(files)
    assert sentence.encoder_folder(path) == path / inside
    assert sentence.read(path, 512) == SentenceFiles("cls", False, 9)


@pytest.mark.parametrize("first", [[], ["StaticEmbedding", "Normalize"]])
def test_a_first_step_that_is_no_encoder_is_refused(folder, first):
    with pytest.raises(UserError, match=r"modules\.json lists the steps .*; supported are"):
        sentence.encoder_folder(folder({"modules.json": steps(*first)}))


def test_an_unknown_pooling_or_similarity():
    with pytest.raises(UserError, match="similarity is 'angle'; choose from cosine, dot"):
        SentenceFiles(similarity="angle")
    with pytest.raises(UserError, match="pooling is 'mena'; choose from mean, cls; did you mean"):
        SentenceFiles("mena")
