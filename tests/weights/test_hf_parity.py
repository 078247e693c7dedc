"""Live parity with transformers and sentence-transformers, in both directions."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from distilflax import models, weights
from distilflax.errors import UserError
from distilflax.settings import Compute, Student
from distilflax.text import tokenizer as text_tokenizer

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

# transformers and torch deprecate things of their own while they load.
pytestmark = [
    pytest.mark.parity,
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::FutureWarning"),
]

TOLERANCE = {"rtol": 0, "atol": 1e-4}
SIZES = {"vocab_size": 64, "max_position_embeddings": 24}
CONFIGS = {
    "bert": ("BertConfig", {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 4}),
    "distilbert": ("DistilBertConfig", {"dim": 16, "n_layers": 2, "n_heads": 4}),
}
FEED_FORWARD = {"bert": "intermediate_size", "distilbert": "hidden_dim"}
ACTIVATION = {"bert": "hidden_act", "distilbert": "activation"}
ARCHITECTURES = [
    ("bert", "BertModel"),
    ("bert", "BertForMaskedLM"),
    ("distilbert", "DistilBertModel"),
    ("distilbert", "DistilBertForMaskedLM"),
]


@pytest.fixture(autouse=True)
def quiet():
    transformers.utils.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()


def theirs(family, architecture, seed=0, **changes):
    """A model of transformers with random weights, far from an initialisation's."""
    kind, sizes = CONFIGS[family]
    values = {**SIZES, **sizes, FEED_FORWARD[family]: 24, **changes}
    model = getattr(transformers, architecture)(getattr(transformers, kind)(**values)).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
    return model


@pytest.fixture
def inputs():
    draw = np.random.default_rng(0)
    mask = (np.arange(9) < np.array([[9], [5], [2]])).astype(np.int64)
    ids = draw.integers(1, 64, mask.shape) * mask
    return ids, mask


def run_theirs(model, ids, mask):
    with torch.no_grad():
        out = model(torch.tensor(ids), torch.tensor(mask), output_hidden_states=True)
    found = [*out.hidden_states]
    found += [out.logits] if "logits" in out else []
    return [array.float().numpy()[mask > 0] for array in found]


def run_ours(checkpoint, ids, mask):
    params = jax.tree.map(jnp.asarray, checkpoint.params)
    # Not jitted: every operation is compiled once for all of these models.
    out = models.encode(
        checkpoint.encoder,
        Compute(),
        params["encoder"],
        jnp.asarray(ids),
        jnp.asarray(mask),
        outputs=("hidden_states",),
    )
    found = [*out["hidden_states"]]
    if "mlm_head" in params:
        hidden = models.mlm_transform(checkpoint.encoder, Compute(), params, found[-1])
        matrix, bias = models.decoder(params)
        found.append(hidden @ matrix.T + bias)
    return [np.asarray(x)[mask > 0] for x in found]


def assert_all_close(ours, reference):
    for a, b in zip(ours, reference, strict=True):
        np.testing.assert_allclose(a, b, **TOLERANCE)


def changes(family, activation="gelu", tied=True):
    return {ACTIVATION[family]: activation, "tie_word_embeddings": tied}


@pytest.mark.parametrize(("family", "architecture"), ARCHITECTURES)
@pytest.mark.parametrize(("activation", "tied"), [("gelu", True), ("gelu_new", False)])
def test_what_transformers_writes(tmp_path, inputs, family, architecture, activation, tied):
    model = theirs(family, architecture, **changes(family, activation, tied))
    model.save_pretrained(tmp_path)
    checkpoint = weights.load(tmp_path)
    if "MaskedLM" in architecture:
        assert ("decoder" in checkpoint.params["mlm_head"]) != tied
    assert_all_close(run_ours(checkpoint, *inputs), run_theirs(model, *inputs))


@pytest.mark.parametrize(("family", "architecture"), ARCHITECTURES)
def test_shards_that_transformers_writes(tmp_path, inputs, family, architecture):
    model = theirs(family, architecture)
    model.save_pretrained(tmp_path, max_shard_size="6KB")
    assert (tmp_path / "model.safetensors.index.json").is_file()
    assert_all_close(run_ours(weights.load(tmp_path), *inputs), run_theirs(model, *inputs))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_that_transformers_writes(tmp_path, inputs, family, dtype):
    architecture = "BertForMaskedLM" if family == "bert" else "DistilBertForMaskedLM"
    model = theirs(family, architecture).to(getattr(torch, dtype))
    model.save_pretrained(tmp_path)
    # Both then compute in float32, from the same rounded weights.
    assert_all_close(run_ours(weights.load(tmp_path), *inputs), run_theirs(model.float(), *inputs))


@pytest.mark.parametrize(("family", "architecture"), ARCHITECTURES)
@pytest.mark.parametrize("tied", [True, False])
def test_what_we_write(tmp_path, inputs, golden, family, architecture, tied):
    theirs(family, architecture, **changes(family, tied=tied)).save_pretrained(tmp_path / "in")
    checkpoint = weights.load(tmp_path / "in")
    folder = weights.save(
        tmp_path / "out",
        checkpoint.encoder,
        checkpoint.params,
        tokenizer_folder=golden("bert")[0],
    )
    head = "mlm_head" in checkpoint.params
    auto = transformers.AutoModelForMaskedLM if head else transformers.AutoModel
    model, notes = auto.from_pretrained(folder, output_loading_info=True)
    assert type(model).__name__ == architecture
    assert not any(notes[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert_all_close(run_theirs(model.eval(), *inputs), run_ours(checkpoint, *inputs))


def test_spare_embeddings_are_cut_off_as_the_refusal_says(tmp_path, inputs, golden):
    model = theirs("bert", "BertForMaskedLM", vocab_size=64 + 1000)
    words = text_tokenizer.load(golden("bert")[0])
    with pytest.raises(UserError, match=r"1,000 .* spare: .*model\.resize_token_embeddings\(64\)"):
        text_tokenizer.check_vocabulary(words, 64 + 1000, "it")
    before = run_theirs(model, *inputs)
    model.resize_token_embeddings(64)
    model.save_pretrained(tmp_path)
    checkpoint = weights.load(tmp_path)
    text_tokenizer.check_vocabulary(words, checkpoint.encoder.vocab_size, "it")
    before[-1] = before[-1][..., :64]
    assert_all_close(run_ours(checkpoint, *inputs), before)


@pytest.mark.parametrize("epsilon", [1e-12, 1e-3])
def test_a_student_loads_and_takes_what_its_tokenizer_gives(tmp_path, inputs, golden, epsilon):
    """Also where DistilBERT's fixed epsilon cannot hold it, so that BERT's form must."""
    theirs("bert", "BertForMaskedLM", layer_norm_eps=epsilon).save_pretrained(tmp_path / "teacher")
    teacher = weights.load(tmp_path / "teacher")
    encoder, params = weights.surgery.make_student(
        teacher.encoder, teacher.params, Student(num_layers=1), jax.random.key(0)
    )
    folder = weights.save(tmp_path / "student", encoder, params, tokenizer_folder=golden("bert")[0])
    student = weights.load(folder)
    assert (student.encoder, student.model_type) == (
        encoder,
        "distilbert" if epsilon == 1e-12 else "bert",
    )
    model = transformers.AutoModelForMaskedLM.from_pretrained(folder).eval()
    assert_all_close(run_theirs(model, *inputs), run_ours(student, *inputs))
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    with torch.no_grad():
        model(**tokenizer(["the small student", "reads."], return_tensors="pt", padding=True))


@pytest.mark.slow
@pytest.mark.parametrize("pooling", ["mean", "cls"])
@pytest.mark.parametrize("normalize", [True, False])
def test_what_we_write_loads_in_sentence_transformers(tmp_path, golden, pooling, normalize):
    sentence_transformers = pytest.importorskip("sentence_transformers")
    teacher = weights.load(golden("bert")[0])
    encoder, params = weights.surgery.make_student(
        teacher.encoder, {"encoder": teacher.params["encoder"]}, Student(num_layers=2),
        jax.random.key(0),
    )  # fmt: skip
    folder = weights.save(
        tmp_path / "student",
        encoder,
        params,
        tokenizer_folder=teacher.folder,
        sentence=weights.SentenceFiles(pooling, normalize, 12, {"query": "the "}),
    )
    model = sentence_transformers.SentenceTransformer(str(folder), device="cpu")
    assert model.max_seq_length == 12
    assert model.prompts["query"] == "the "
    texts = ["The small teacher reads.", "student", "model " * 40]
    tokens = model.tokenizer(texts, padding=True, truncation=True, max_length=12)
    mask = jnp.asarray(tokens["attention_mask"])
    out = models.encode(
        encoder,
        Compute(),
        jax.tree.map(jnp.asarray, params["encoder"]),
        jnp.asarray(tokens["input_ids"]),
        mask,
    )
    vectors = models.pool(out["last_hidden_state"], mask, pooling)
    vectors = models.normalize(vectors) if normalize else vectors
    np.testing.assert_allclose(model.encode(texts), vectors, **TOLERANCE)

    # What it writes in turn, in the layout of its own version, reads back as the same.
    model.save(str(tmp_path / "again"))
    again = weights.load(tmp_path / "again")
    assert again.fingerprint == weights.fingerprint(encoder, params)
    files = again.sentence
    assert (files.pooling, files.normalize, files.max_seq_length) == (pooling, normalize, 12)
    assert files.prompts["query"] == "the "


@pytest.mark.slow
def test_the_true_base_sizes_have_the_names_and_shapes_of_transformers():
    from distilflax.settings import Encoder
    from distilflax.weights import names

    for family, kind, architecture in (
        ("bert", "BertConfig", "BertForMaskedLM"),
        ("distilbert", "DistilBertConfig", "DistilBertForMaskedLM"),
    ):
        with torch.device("meta"):
            model = getattr(transformers, architecture)(getattr(transformers, kind)())
        encoder = Encoder(pooler=False)
        if family == "distilbert":
            encoder = Encoder(pooler=False, num_layers=6, type_vocab_size=0)
        prefix = names.BASE_PREFIX[family]
        expected = {
            tensor.name: tensor.shape
            for tensor in names.tensors(encoder, family, mlm_head=True, prefix=prefix)
        }
        assert {n: tuple(p.shape) for n, p in model.named_parameters()} == expected
