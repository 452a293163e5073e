"""Flags, configuration files and defaults become one set of settings."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest

from amopo.cli.errors import UsageError
from amopo.cli.options import UNSET, Option, options_of, parse

OPTIONS = [
    Option("model", str, "which model", required=True),
    Option("learning_rate", float, "the rate", default=0.1),
    Option("names", list[str], "some names", default=UNSET),
    Option("fast", bool, "be fast", default=False),
    Option("rare", int, "hardly ever", default=1, important=False),
]


def settings(*argv: str):
    return parse("try", "Tries.", OPTIONS, argv)


def test_flags_may_be_written_with_dashes_or_underscores():
    for flag in ("--learning-rate", "--learning_rate"):
        assert settings("--model", "m", flag, "0.5").learning_rate == 0.5
    assert settings("--model=m", "--learning-rate=0.5").learning_rate == 0.5


def test_defaults_hold_where_nothing_is_given():
    found = settings("--model", "m")
    assert found.values == {
        "model": "m",
        "learning_rate": 0.1,
        "fast": False,
        "rare": 1,
        "quiet": False,
        "debug": False,
    }
    assert found.given == {"model"}


def test_switches_need_no_value():
    assert settings("--model=m", "--fast").fast is True
    assert settings("--model=m", "--fast", "false").fast is False


def test_flags_win_over_the_file_and_the_file_over_defaults(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("model: from-file\nlearning-rate: 5e-5\nnames: [x, y]\n", encoding="utf-8")
    found = settings("--config", str(config), "--model", "from-flag")
    assert (found.model, found.learning_rate, found.names) == ("from-flag", 5e-5, ["x", "y"])
    assert found.given == {"model", "learning_rate", "names", "config"}
    assert settings("--config", str(config)).model == "from-file"


def test_an_empty_file_gives_nothing(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_text("# nothing\n", encoding="utf-8")
    assert settings("--config", str(config), "--model=m").given == {"model", "config"}


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["--modle", "m"], "unknown flag --modle; did you mean --model?"),
        (["--learning_rat=1", "--model=m"], "unknown flag --learning_rat; did you mean --learning-rate?"),
        (["--zzz"], "unknown flag --zzz"),
        (["--mod", "m"], "unknown flag --mod; did you mean --model?"),
        (["m"], "unexpected argument 'm'; settings are given as --name VALUE"),
        (["--learning-rate", "fast", "--model=m"], "--learning-rate: a number is needed, not 'fast'"),
        ([], "amopo try needs --model: which model"),
        (["--model"], "argument --model: expected one argument"),
        (["--model=m", "--config", "not-there.yaml"], "--config: not-there.yaml is not a file"),
    ],
)
def test_a_wrong_command_line_is_refused_in_one_line(argv, message):
    with pytest.raises(UsageError) as caught:
        settings(*argv)
    assert str(caught.value) == message


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("modle: m", "unknown key 'modle'; did you mean model?"),
        ("config: other.yaml", "unknown key 'config'"),
        ("learning_rate: fast", "learning_rate: a number is needed, not 'fast'"),
        ("learning_rate: 1\nlearning-rate: 2", "learning_rate is given twice"),
        ("- a\n- b", "must hold keys with values (name: value), not list"),
        ("model: [unclosed\nrate: 1", "line 2: not valid YAML"),
        ("model: !!python/object/apply:os.getcwd []", "line 1: not valid YAML"),
    ],
)
def test_a_wrong_file_is_refused_in_one_line(tmp_path, text, message):
    config = tmp_path / "c.yaml"
    config.write_text(text, encoding="utf-8")
    with pytest.raises(UsageError) as caught:
        settings("--config", str(config), "--model", "m")
    assert message in str(caught.value) and str(config) in str(caught.value) and "\n" not in str(caught.value)


def test_a_file_that_is_not_text_is_refused(tmp_path):
    config = tmp_path / "c.yaml"
    config.write_bytes(b"model: \xff\xfe")
    with pytest.raises(UsageError, match="not UTF-8 text"):
        settings("--config", str(config))


@dataclass
class Config:
    rate: float = field(default=0.3, metadata={"help": "The rate. It has a long explanation with 100%% detail."})
    names: list[str] = field(default_factory=list)
    steps: int | None = None
    hidden: int = 0
    computed: int = field(default=0, init=False)


def test_a_dataclass_gives_one_option_per_field_the_important_first():
    options = options_of(Config, important=["steps", "rate"], exclude=["hidden"])
    assert [option.name for option in options] == ["steps", "rate", "names"]
    assert [option.important for option in options] == [True, True, False]
    # defaults stay with the dataclass, so that only what is given reaches it
    assert all(option.default is UNSET for option in options)
    found = parse("try", "", options, ["--rate", "1e-3", "--names", "a,b"])
    assert {name: found.values[name] for name in found.given} == {"rate": 1e-3, "names": ["a", "b"]}


def test_help_shows_the_important_and_help_all_the_rest(capsys):
    options = [*OPTIONS, *options_of(Config, important=["rate"], exclude=["names"])]
    for flag, expected in (("--help", False), ("--help-all", True)):
        with pytest.raises(SystemExit) as stop:
            parse("try", "Tries.", options, [flag])
        assert stop.value.code == 0
        page = capsys.readouterr()
        assert "usage: amopo try [options]" in page.out and page.err == ""
        assert "--model" in page.out and "The rate (default: 0.3)" in page.out and "%%" not in page.out
        assert ("--rare" in page.out) is expected
        assert ("--help-all" in page.out) is not expected
