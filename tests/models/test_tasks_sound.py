"""Models of sound: tasks on texts and images refuse them by name, and `forward` takes their arrays."""

from __future__ import annotations

import json
from typing import Any

import pytest
import transformers

from daskinfer.errors import CheckpointError
from daskinfer.models.tasks.build import build_task
from daskinfer.models.tasks.request import TaskRequest
from daskinfer.spec.recipe import ModelOptions

_WAVES = {
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "conv_dim": (16, 16),
    "conv_stride": (5, 4),
    "conv_kernel": (10, 4),
    "num_feat_extract_layers": 2,
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 2,
}
_WHISPER = {"d_model": 32, "encoder_layers": 1, "decoder_layers": 1, "vocab_size": 96}
_CLAP = {
    "window_size": 4,
    "num_mel_bins": 16,
    "spec_size": 32,
    "patch_stride": [4, 4],
    "hidden_size": 32,
    "depths": [2, 2],
    "num_attention_heads": [2, 2],
    "patch_embeds_hidden_size": 16,
}


def ask(task: str, architecture: str, settings: dict[str, Any]) -> TaskRequest:
    model_class: Any = getattr(transformers, architecture)
    config = {"model_type": model_class.config_class.model_type, "architectures": [architecture], **settings}
    return TaskRequest(task, ModelOptions(), architecture, {"config.json": json.dumps(config).encode()})


@pytest.mark.parametrize(
    ("task", "architecture", "settings"),
    [
        ("embed", "Wav2Vec2Model", _WAVES),
        ("embed", "HubertForSequenceClassification", _WAVES),
        ("embed", "Wav2Vec2ForXVector", _WAVES),
        ("embed", "WhisperModel", _WHISPER),
        ("embed", "ClapAudioModelWithProjection", _CLAP),
        ("classify", "WavLMForSequenceClassification", _WAVES),
        ("classify", "Wav2Vec2ForXVector", _WAVES),
        ("classify", "UniSpeechSatForAudioFrameClassification", _WAVES),
        ("classify", "ASTForAudioClassification", {}),
        ("classify", "WhisperForAudioClassification", _WHISPER),
    ],
)
def test_a_model_of_sound_is_refused_as_such(task: str, architecture: str, settings: dict[str, Any]) -> None:
    with pytest.raises(CheckpointError, match=f"{architecture} takes sound") as caught:
        build_task(ask(task, architecture, settings), "float32")
    assert "the task forward" in (caught.value.hint or "")
