"""Config files and overrides: types are those that stand there, and a mistake names its place."""

import sys
from pathlib import Path

import pytest
from ml_collections import ConfigDict

from slmjax.cli.shared.config_files import apply_override, load_config
from slmjax.data.config import SourceConfig
from slmjax.data.sft_config import ConversationSource, SftConfig
from slmjax.errors import UserError
from slmjax.models.families.registry import model_config
from slmjax.recipes.config import default_config, run_config


@pytest.fixture
def config():
    return default_config(model_config("smollm2-135m"))


@pytest.mark.parametrize(
    ("override", "value"),
    [
        ("training.tokens=2e9", 2_000_000_000),
        ("training.z_loss=0", 0.0),
        ("training.dtype=float32", "float32"),
        ("model.tie_embeddings=false", False),
        ("model.layer_pattern=('local', 'global')", ("local", "global")),
        ("data.tokenizer=1234", "1234"),
    ],
)
def test_values_take_the_type_of_what_they_replace(config, override, value):
    apply_override(config, f"--config.{override}")
    section, key = override.partition("=")[0].split(".")
    assert config[section][key] == value and type(config[section][key]) is type(value)


def test_one_budget_replaces_another_and_a_source_may_be_new(config):
    apply_override(config, "--config.training.steps=7")
    apply_override(config, "--config.data.sources.mine.path=a.txt")
    built = run_config(config)
    assert built.total_steps == 7 and built.data.sources["mine"].path == "a.txt"


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("training.stepz=1", "'steps'"),
        ("trainin.steps=1", "'training'"),
        ("training=1", "is a section"),
        ("training.steps", "has no value"),
        ("training.steps=1.5", "whole number"),
        ("training.steps=True", "whole number"),
        ("training.z_loss=much", "a number"),
        ("model.tie_embeddings=3", "True or False"),
        ("training.steps={[]: 1}", "whole number"),
        ("training.steps.x=1", "training.steps is a value and has no keys"),
    ],
)
def test_overrides_that_are_wrong(config, override, said):
    with pytest.raises(UserError, match=said):
        apply_override(config, f"--config.{override}")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("x = 1\n", "no function get_config"),
        ("def get_config(\n", "SyntaxError"),
        ("def get_config():\n    x = 1\n    return 1 / 0\n", "line 3, fails: ZeroDivisionError"),
        ("def get_config():\n    return 3\n", "must return a ConfigDict"),
    ],
)
def test_config_files_that_are_wrong(tmp_path, text, said):
    (tmp_path / "config.py").write_text(text)
    with pytest.raises(UserError, match=said):
        load_config(str(tmp_path / "config.py"), [])


def test_a_config_file_that_is_not_there(tmp_path):
    with pytest.raises(UserError, match="no config file"):
        load_config(str(tmp_path / "none.py"), [])


def test_a_config_file_is_run_and_overridden(tmp_path):
    (tmp_path / "config.py").write_text(
        "from ml_collections import ConfigDict\ndef get_config(): return ConfigDict({'a': {'b': 1}})\n"
    )
    config = load_config(str(tmp_path / "config.py"), ["--config.a.b=5"])
    assert isinstance(config, ConfigDict) and config.a.b == 5


def test_any_field_of_a_source_can_be_set_though_the_file_names_only_its_path(config):
    config.data.sources.books = {"path": "books.txt"}
    apply_override(config, "--config.data.sources.books.weight=4")
    apply_override(config, "--config.data.sources.more.path=more.txt")
    assert config.data.sources.books.to_dict() == {
        "path": "books.txt",
        "weight": 4.0,
        "format": "auto",
        "text_field": "text",
        "split": "",
    }
    assert config.data.sources.more.path == "more.txt"
    with pytest.raises(UserError, match=r"sources\.other names a source.*other\.path=x"):
        apply_override(config, "--config.data.sources.other=x")


def test_a_config_file_may_be_given_an_argument(tmp_path):
    file = tmp_path / "two.py"
    file.write_text(
        "from ml_collections import ConfigDict\ndef get_config(name='one'):\n    return ConfigDict({'name': name})\n"
    )
    assert load_config(str(file), []).name == "one"
    assert load_config(f"{file}:two", ["--config.name=three"]).name == "three"
    assert load_config(f"{file}:two", []).name == "two"
    with pytest.raises(UserError, match=r"no config file .*none\.py"):
        load_config(f"{tmp_path / 'none.py'}:two", [])


CONFIGS = Path(__file__).parents[2] / "configs"


def write(directory, **modules):
    """Python files by name; returns the path of the one called config."""
    directory.mkdir(exist_ok=True)
    for name, text in modules.items():
        (directory / f"{name}.py").write_text(text)
    return str(directory / "config.py")


CONFIG = (
    "from ml_collections import ConfigDict\n{}\ndef get_config():\n    {}\n    return ConfigDict({{'value': {}}})\n"
)


def test_a_config_file_may_import_its_neighbours(tmp_path):
    """At its head and inside get_config; a neighbour's neighbour too."""
    head = write(tmp_path / "a", config=CONFIG.format("import sizes", "", "sizes.SIZE"), sizes="SIZE = 1")
    body = write(
        tmp_path / "b",
        config=CONFIG.format("", "import sizes", "sizes.SIZE"),
        sizes="from smaller import SIZE",
        smaller="SIZE = 2",
    )
    # Neither the modules nor the directory of the first are there for the second, and nothing stays behind.
    before = set(sys.modules), list(sys.path), list(sys.meta_path)
    assert [load_config(path, []).value for path in (head, body, head)] == [1, 2, 1]
    assert before == (set(sys.modules), list(sys.path), list(sys.meta_path))


def test_a_neighbour_is_not_taken_for_a_library(tmp_path):
    """A file that is called as a library, as a module of Python or as slmjax hides it from nobody."""
    own = "raise AssertionError('a neighbour was imported')"
    heading = "import colorsys, slmjax, wave\nfrom slmjax.data.config import DataConfig"
    for name in ("colorsys", "wave"):  # not imported yet by anything in this process
        sys.modules.pop(name, None)
    path = write(
        tmp_path, config=CONFIG.format(heading, "import colorsys", "wave.__file__"), slmjax=own, colorsys=own, wave=own
    )
    assert not load_config(path, []).value.startswith(str(tmp_path))


def test_a_package_beside_a_config_is_a_neighbour(tmp_path):
    write(tmp_path / "sizes", __init__="", small="SIZE = 5")
    path = write(tmp_path, config=CONFIG.format("from sizes.small import SIZE", "", "SIZE"))
    assert load_config(path, []).value == 5
    assert not {"sizes", "sizes.small"} & sys.modules.keys()


def test_what_was_found_elsewhere_outlives_the_config(tmp_path, monkeypatch):
    """As slmjax itself, which may lie beside a config of its own repository."""
    write(tmp_path, outlives_a_config="SIZE = 6")
    monkeypatch.syspath_prepend(tmp_path)
    path = write(tmp_path, config=CONFIG.format("import outlives_a_config as o", "", "o.SIZE"))
    assert load_config(path, []).value == 6
    assert sys.modules.pop("outlives_a_config").SIZE == 6


def test_a_mistake_in_a_neighbour_names_its_file_and_line(tmp_path):
    path = write(tmp_path, config=CONFIG.format("import sizes", "", "1"), sizes="x = 1\ny = x / 0\n")
    with pytest.raises(UserError, match=r"sizes\.py, line 2, fails: ZeroDivisionError: division by zero\.$"):
        load_config(path, [])
    with pytest.raises(UserError, match=r"config\.py, line 2, fails: ModuleNotFoundError: .*'nowhere'"):
        load_config(write(tmp_path, config=CONFIG.format("import nowhere", "", "1")), [])


def test_a_source_starts_from_the_defaults_of_its_kind_of_data(config):
    tuned = default_config(model_config("smollm2-135m"), data=SftConfig)
    for kind, of in ((SourceConfig, config), (ConversationSource, tuned)):
        apply_override(of, "--config.data.sources.new.path=a.jsonl")
        assert kind(**of.data.sources.new.to_dict()) == kind("a.jsonl")


@pytest.mark.parametrize("path", sorted(CONFIGS.rglob("*.py")), ids=lambda path: path.stem)
def test_every_config_that_ships_is_valid_and_points_at_nothing_outside(path):
    built = run_config(load_config(str(path), []))
    assert ".." not in path.read_text() and run_config(built.to_dict()) == built


@pytest.mark.parametrize("file", ["text2sql", "medical"])
def test_the_studies_configs_are_valid_with_every_argument(file):
    path = CONFIGS / "finetune" / f"{file}.py"
    with pytest.raises(UserError, match="choose one of ") as error:
        load_config(f"{path}:0000", [])
    names = str(error.value).rpartition("choose one of ")[2].rstrip(".").split(", ")
    assert len(names) > 1
    for name in names:
        run_config(load_config(f"{path}:{name}", []))
