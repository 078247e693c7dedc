import pytest

from distilflax.errors import UserError
from distilflax.text import sources


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "sub").mkdir()
    (tmp_path / "b.txt").write_text("from b\n")
    (tmp_path / "sub" / "a.jsonl").write_text('{"text": "from a"}\n')
    (tmp_path / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / ".hidden.txt").write_text("hidden\n")
    return tmp_path


def test_a_folder_gives_its_text_files_and_nothing_else(folder):
    assert list(sources.read(str(folder))) == ["from b", "from a"]


def test_globs_and_lists_keep_their_order(folder):
    both = f"{folder}/**/*.jsonl, {folder}/b.txt"
    assert list(sources.read(both)) == ["from a", "from b"]


@pytest.mark.parametrize(
    ("named", "message"),
    [
        ("nothing/here.txt", "'nothing/here.txt' in data.sources is no file or folder"),
        ("nothing/*.txt", r"No file matches 'nothing/\*.txt'"),
        (" , ", "data.sources names nothing"),
        ("hf:wikitext", "lacks its split; write hf:NAME"),
    ],
)
def test_what_does_not_exist_is_refused_before_reading(named, message):
    with pytest.raises(UserError, match=message):
        sources.read(named)


def test_a_folder_without_text(tmp_path):
    with pytest.raises(UserError, match="holds no text files"):
        sources.read(str(tmp_path))


def test_what_a_notebook_keeps_beside_the_text_is_none(tmp_path):
    for name in (".ipynb_checkpoints/a-checkpoint.txt", "a.txt", ".hidden/b.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(f"{name}\n")
    assert list(sources.read(str(tmp_path))) == ["a.txt"]
    assert list(sources.read(str(tmp_path / ".hidden"))) == [".hidden/b.txt"]


def test_links_to_folders_are_followed_once(tmp_path):
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "b.txt").write_text("from b\n")
    data = tmp_path / "data"
    (data / "sub").mkdir(parents=True)
    (data / "a.txt").write_text("from a\n")
    (data / "link").symlink_to(tmp_path / "other")
    (data / "again").symlink_to(tmp_path / "other")
    (data / "sub" / "loop").symlink_to(data)
    assert sorted(sources.read(str(data))) == ["from a", "from b"]
    with pytest.raises(UserError, match="are folders, and no file"):
        sources.read(str(data / "s*"))
    (data / "c.txt").symlink_to(tmp_path / "nowhere")
    (source,) = (one for one in sources.resolve(str(data)) if one.path.name == "c.txt")
    with pytest.raises(UserError, match="There is no file"):
        source.identity()


def test_identity_changes_with_the_file(folder):
    (source,) = sources.resolve(str(folder / "b.txt"))
    before = source.identity()
    assert source.identity() == before
    (folder / "b.txt").write_text("from b, and more\n")
    assert source.identity() != before


def test_a_data_set_through_datasets(tmp_path):
    data = tmp_path / "data"
    data.mkdir()
    (data / "train.csv").write_text("text,label\nhello,1\n ,1\nthere,0\n")
    named = f"hf:{data}@train"
    (source,) = sources.resolve(named, tmp_path / "cache")
    assert list(source.documents("text")) == ["hello", "there"]
    assert source.identity() == sources.resolve(named, tmp_path / "cache")[0].identity()
    assert (tmp_path / "cache" / "datasets").is_dir()
    with pytest.raises(UserError, match=r"no column 'txt'.*did you mean 'text'"):
        list(source.documents("txt"))
    with pytest.raises(UserError, match="'label' holds 1, not text"):
        list(source.documents("label"))
    with pytest.raises(UserError, match='Unknown split "test"'):
        list(sources.read(f"hf:{data}@test", cache=tmp_path / "cache"))


def test_a_data_set_with_a_script_of_its_own_is_one_sentence(tmp_path, monkeypatch):
    import datasets

    def load_dataset(*_, **__):
        raise RuntimeError("Dataset scripts are no longer supported, but found books.py")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    with pytest.raises(UserError, match=r"hf:no/books comes with a script of its own.*Parquet"):
        list(sources.read("hf:no/books@train", cache=tmp_path))


def test_a_hub_that_cannot_be_reached_is_one_sentence(tmp_path):
    with pytest.raises(UserError, match="hf:no/such:thing is not in the cache and the hub cannot"):
        list(sources.read("hf:no/such:thing@train", cache=tmp_path))
