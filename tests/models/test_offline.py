"""Whatever makes transformers read a configuration or build a model happens without a network."""

from __future__ import annotations

import socket
from typing import Any

import huggingface_hub
import pytest
from transformers import AutoConfig

from daskinfer.models import architecture
from daskinfer.models.architecture import build_model, make_config

TINY = {
    "model_type": "bert",
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_attention_heads": 1,
    "num_hidden_layers": 1,
    "vocab_size": 16,
}


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What hosts were looked for; none is found."""
    found: list[object] = []

    def refuse(host: object, *_: object, **__: object) -> None:
        found.append(host)
        raise OSError(f"no way to {host}")

    monkeypatch.setattr(socket, "getaddrinfo", refuse)
    return found


def reach_hub() -> None:
    huggingface_hub.model_info("somebody/backbone")


@pytest.mark.parametrize("step", ["instantiate", "AutoConfig"])
def test_no_step_reaches_a_hub(asked: list[object], monkeypatch: pytest.MonkeyPatch, step: str) -> None:
    """A model may fetch a backbone as it is made, and a configuration may name another one."""
    place: Any = AutoConfig if step == "AutoConfig" else architecture
    name = "from_pretrained" if step == "AutoConfig" else step
    before = getattr(place, name)
    tried: list[str] = []

    def reach_first(*given: Any, **more: Any) -> Any:
        tried.append(step)
        with pytest.raises(Exception, match=r"(?i)offline"):
            reach_hub()
        return before(*given, **more)

    monkeypatch.setattr(place, name, reach_first)
    make_config(TINY)
    build_model(TINY, "BertModel")
    assert tried and asked == []


def test_a_hub_would_be_asked_otherwise(asked: list[object]) -> None:
    with pytest.raises(Exception, match=r"(?i)no way to|connect|cannot"):
        reach_hub()
    assert asked
