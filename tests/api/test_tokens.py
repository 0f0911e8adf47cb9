"""Token counts that need no network, and the bound that no tokenizer exceeds."""

from __future__ import annotations

import hashlib
import socket
import sys
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from swe_infer.api.tokens import EstimatedCounter, byte_bound, counter_of
from swe_infer.types import ApiModel, Prompt


def test_without_a_local_vocabulary_counts_are_estimates_without_network_access(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        counter = counter_of(ApiModel(name="gpt-4o"), "openai")
        proxy.setblocking(False)
        with pytest.raises(BlockingIOError):  # nobody has called
            proxy.accept()
    assert not counter.exact
    assert counter.name == "characters / 3.3"
    assert counter(Prompt("a" * 33, "b" * 32)) == 66 // 3.3 + 1


def test_a_damaged_vocabulary_falls_back_to_the_estimate(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    # A proxy that refuses keeps the test off the network.
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    address = "https://openaipublic.blob.core.windows.net/encodings/o200k_base.tiktoken"
    (tmp_path / hashlib.sha1(address.encode()).hexdigest()).write_bytes(b"not a vocabulary")
    assert not counter_of(ApiModel(name="gpt-4o"), "openai").exact


def test_without_tiktoken_a_cached_vocabulary_gives_one_hint_what_to_install(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    monkeypatch.setitem(sys.modules, "tiktoken.model", None)  # its import fails, as if it were not installed
    monkeypatch.setenv("TIKTOKEN_CACHE_DIR", str(tmp_path))
    assert isinstance(counter_of(ApiModel(name="gpt-4o"), "openai"), EstimatedCounter)
    assert not caplog.messages
    address = "https://openaipublic.blob.core.windows.net/encodings/cl100k_base.tiktoken"
    (tmp_path / hashlib.sha1(address.encode()).hexdigest()).touch()
    for _ in range(2):
        assert isinstance(counter_of(ApiModel(name="gpt-4o"), "openai"), EstimatedCounter)
    assert [line for line in caplog.messages if "pip install 'swe_infer[tiktoken]'" in line] == caplog.messages
    assert len(caplog.messages) == 1


def test_a_model_of_another_vendor_is_never_counted_with_openai_s_vocabulary() -> None:
    assert isinstance(counter_of(ApiModel(name="gpt-4o"), "anthropic"), EstimatedCounter)


@given(st.text(), st.text())
def test_the_byte_bound_covers_normalised_text(system: str, user: str) -> None:
    import unicodedata

    bound = byte_bound(Prompt(system, user))
    for form in ("NFC", "NFKC"):
        texts = (unicodedata.normalize(form, text) for text in (system, user))
        assert bound >= sum(len(text.encode("utf-8", "surrogatepass")) for text in texts)


def test_the_byte_bound_counts_extra_body_fields() -> None:
    prompt = Prompt(None, "x")
    assert byte_bound(prompt, {"tools": ["y" * 1000]}) >= byte_bound(prompt) + 1000
