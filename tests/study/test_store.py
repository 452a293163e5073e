"""Results on disk: whole or not there, and only of the same study."""

from __future__ import annotations

import pytest

from amopo.study.store import Store


def test_a_result_comes_back_as_it_was_saved(tmp_path):
    store = Store(tmp_path, {"steps": 2, "names": ("a", "b")})
    assert store.load(1, "mean") is None
    store.save(1, "mean", {"values": [1.0, 2.5]})
    found = Store(tmp_path, {"steps": 2, "names": ("a", "b")}).load(1, "mean")
    assert found["values"] == [1.0, 2.5] and (found["seed"], found["method"]) == (1, "mean")
    assert store.load(2, "mean") is None and store.load(1, "simpo") is None


def test_a_result_of_other_settings_is_refused_with_what_differs(tmp_path):
    Store(tmp_path, {"steps": 2, "beta": 2.0}).save(1, "mean", {})
    with pytest.raises(ValueError, match=r"seed-1.mean\.json was made with beta=2\.0, this study has beta=1\.0; name"):
        Store(tmp_path, {"steps": 2, "beta": 1.0}).load(1, "mean")
    with pytest.raises(ValueError, match="this study has draws=4"):
        Store(tmp_path, {"steps": 2, "beta": 2.0, "draws": 4}).load(1, "mean")


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"values": []}'])
def test_a_file_that_is_no_result_is_named(tmp_path, text):
    store = Store(tmp_path, {})
    store.save(1, "mean", {})
    store.path(1, "mean").write_text(text)
    with pytest.raises(ValueError, match=r"mean\.json is no result of a study; delete it"):
        store.load(1, "mean")


def test_a_write_that_is_cut_short_leaves_what_was_there(tmp_path, monkeypatch):
    store = Store(tmp_path, {})
    store.save(1, "mean", {"values": [1]})

    def killed(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("amopo.study.store.os.replace", killed)
    with pytest.raises(KeyboardInterrupt):
        store.save(1, "mean", {"values": [2]})
    with pytest.raises(KeyboardInterrupt):
        store.save(1, "simpo", {"values": [2]})
    assert store.load(1, "mean")["values"] == [1] and store.load(1, "simpo") is None
