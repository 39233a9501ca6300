"""The one table of settings, and where values come from."""

from __future__ import annotations

from pathlib import Path

import pytest
from support import run_child

from phi4_http import settings
from phi4_http.errors import InvalidRequest
from phi4_http.limits import Timeouts
from phi4_http.phi4.facts import SAMPLING
from phi4_http.reply.rescue import Rescue

_VALUES: dict[object, str] = {
    settings.whole: "7",
    settings.real: "0.5",
    settings.seconds: "9",
    settings.yes_no: "no",
    settings.text: "x",
}


def _given(setting: settings.Setting) -> str:
    return setting.choices[-1] if setting.choices else _VALUES[setting.kind]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A configuration file's place."""
    return tmp_path / "config.ini"


@pytest.mark.parametrize("setting", settings.SETTINGS, ids=lambda setting: setting.name)
def test_an_option_goes_before_a_variable_before_the_file_before_the_default(
    setting: settings.Setting, file: Path
) -> None:
    """Each setting has all four, and `config` says which it was."""
    file.write_text(f"[phi4_http]\n{setting.name} = {_given(setting)}\n", encoding="utf-8")
    here = {settings.FILE_VARIABLE: str(file)}
    said = settings.find([setting.field], here)[setting.field]
    assert said == (setting.read(_given(setting)), str(file))
    assert settings.find([setting.field], {**here, setting.variable: _given(setting)})[setting.field].origin == (
        setting.variable
    )
    assert settings.find([setting.field], {})[setting.field] == (setting.default, "default")


def test_config_shows_every_setting_and_where_it_came_from(file: Path) -> None:
    """Options, variables, file and defaults side by side."""
    file.write_text("[phi4_http]\ntop_k = 40\n", encoding="utf-8")
    ran = run_child(
        *("config", "--json", "--model", "mine"),
        PHI4_HTTP_CONFIG=str(file),
        PHI4_HTTP_URL="http://there:1",
        PHI4_HTTP_MODLE="x",
    )
    shown = {each["name"]: (each["value"], each["origin"]) for each in ran.objects}
    assert ran.code == 0
    assert list(shown) == [setting.name for setting in settings.SETTINGS]
    assert shown["model"] == ("mine", "--model")
    assert shown["url"] == ("http://there:1", "PHI4_HTTP_URL")
    assert shown["top-k"] == (40, str(file))
    assert shown["seed"] == (None, "default")
    assert "PHI4_HTTP_MODLE is no setting: did you mean PHI4_HTTP_MODEL?" in ran.err
    assert "http://there:1" in run_child("config", PHI4_HTTP_URL="http://there:1").out


def test_config_path_says_where_the_file_is_also_where_it_is_broken(file: Path) -> None:
    """It is how one finds what to mend."""
    file.write_text("nonsense", encoding="utf-8")
    assert run_child("config", "path", PHI4_HTTP_CONFIG=str(file)).out == f"{file}\n"
    assert run_child("config", PHI4_HTTP_CONFIG=str(file)).code == 2


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("[phi4_http]\nmodle = x\n", "'modle': did you mean model?"),
        ("[phi4_http]\ntoken = secret-1\n", "token-variable"),
        ("[other]\nmodel = x\n", "[other]"),
        ("[DEFAULT]\nmodel = x\n", "[DEFAULT]"),
        ("[phi4_http]\ntemperature = hot\n", "temperature: 'hot': it takes a number"),
        ("[phi4_http]\nsystem = maybe\n", "it takes auto, send or omit"),
        ("[phi4_http]\nmodel = a\nmodel = b\n", "model"),
        ("model = x\n", "section"),
        ("\udc80", "can't be read"),
    ],
)
def test_a_file_that_is_wrong_is_told_with_its_name(file: Path, content: str, said: str) -> None:
    """Nothing that it says is left out silently; a token in it is not repeated."""
    file.write_text(content, encoding="utf-8", errors="surrogateescape")
    with pytest.raises(InvalidRequest) as caught:
        settings.find(settings.BY_FIELD, {settings.FILE_VARIABLE: str(file)})
    assert str(file) in str(caught.value)
    assert said in str(caught.value)
    assert "secret-1" not in str(caught.value)


def test_a_file_that_is_named_must_be_there(file: Path) -> None:
    """One at the usual place need not."""
    with pytest.raises(InvalidRequest, match="no such file"):
        settings.find(["url"], {settings.FILE_VARIABLE: str(file)})
    assert settings.find(["url"], {"XDG_CONFIG_HOME": str(file.parent)})["url"].origin == "default"


def test_a_variable_that_is_empty_is_not_set_and_one_that_is_wrong_is_named() -> None:
    """An error names the variable."""
    assert settings.find(["model"], {"PHI4_HTTP_MODEL": ""})["model"].origin == "default"
    with pytest.raises(InvalidRequest, match="PHI4_HTTP_TOP_K: 'x': it takes a whole number"):
        settings.find(["top_k"], {"PHI4_HTTP_TOP_K": "x"})


def test_what_the_help_calls_default_is_the_default() -> None:
    """The table's words against the library's values."""
    for name, value in SAMPLING.items():
        assert float(settings.BY_FIELD[name].unset) == value
    assert settings.BY_FIELD["on_unclosed"].default == Rescue().on_unclosed
    assert settings.BY_FIELD["on_loop"].default == Rescue().on_loop
    assert Timeouts().first_byte is Timeouts().total is None


def test_without_a_file_the_reader_of_files_is_not_imported() -> None:
    """A question without settings pays nothing for them."""
    ran = run_child(
        "-c", "import sys, phi4_http.settings as s; s.find(s.BY_FIELD); print(sorted(sys.modules))", python=True
    )
    assert (ran.code, "'configparser'" in ran.out, "'difflib'" in ran.out) == (0, False, False)
