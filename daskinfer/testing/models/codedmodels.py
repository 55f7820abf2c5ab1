"""A tiny checkpoint that comes with code of its own, of an architecture that transformers does not know."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from daskinfer.models.remotecode import find_class
from daskinfer.testing.models.tinymodels import make_tiny

CODE = {
    "configuration_tiny.py": """
from transformers import PreTrainedConfig

class TinyConfig(PreTrainedConfig):
    model_type = "daskinfer-tiny"

    def __init__(self, vocab_size=64, hidden_size=32, layers=4, **rest):
        super().__init__(**rest)
        self.vocab_size, self.hidden_size, self.layers = vocab_size, hidden_size, layers
""",
    "blocks_tiny.py": """
from dataclasses import dataclass

import torch
from torch import nn
from transformers.utils import ModelOutput

@dataclass
class BlockOutput(ModelOutput):
    hidden: torch.Tensor | None = None

class Block(nn.Module):
    def __init__(self, width):
        super().__init__()
        self.norm, self.mix, self.out = nn.LayerNorm(width), nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, hidden, mask):
        mean = (self.norm(hidden) * mask).sum(1, keepdim=True) / mask.sum(1, keepdim=True)
        return BlockOutput(hidden=hidden + self.out(torch.tanh(self.mix(hidden) + mean)))
""",
    "modeling_tiny.py": """
from torch import nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput, SequenceClassifierOutput

from .blocks_tiny import Block
from .configuration_tiny import TinyConfig

class TinyBase(PreTrainedModel):
    config_class = TinyConfig
    base_model_prefix = "tiny"

class TinyModel(TinyBase):
    def __init__(self, config):
        super().__init__(config)
        self.embeddings = nn.Embedding(config.vocab_size, config.hidden_size)
        self.blocks = nn.ModuleList(Block(config.hidden_size) for _ in range(config.layers))
        self.post_init()

    def get_input_embeddings(self):
        return self.embeddings

    def forward(self, input_ids, attention_mask=None, **kwargs):
        hidden, mask = self.embeddings(input_ids), attention_mask[:, :, None].to(self.embeddings.weight.dtype)
        for block in self.blocks:
            hidden = block(hidden, mask).hidden
        return BaseModelOutput(last_hidden_state=hidden)

class TinyForSequenceClassification(TinyBase):
    def __init__(self, config):
        super().__init__(config)
        self.tiny = TinyModel(config)
        self.classifier = nn.Linear(config.hidden_size, config.num_labels)
        self.post_init()

    def get_input_embeddings(self):
        return self.tiny.embeddings

    def forward(self, input_ids, attention_mask=None, **kwargs):
        hidden = self.tiny(input_ids, attention_mask).last_hidden_state
        return SequenceClassifierOutput(logits=self.classifier(hidden[:, 0]))
""",
}
AUTO_MAP = {
    "AutoConfig": "configuration_tiny.TinyConfig",
    "AutoModel": "modeling_tiny.TinyModel",
    "AutoModelForSequenceClassification": "modeling_tiny.TinyForSequenceClassification",
}


def make_coded(directory: Path, *, seed: int = 0, labels: int = 3) -> Path:
    """Write a random classifier as `save_pretrained` lays it out, its code beside it.

    Parameters
    ----------
    directory
        Where to; made if missing.
    seed
        Of the weights.
    labels
        Number of classes.

    Examples
    --------
    >>> folder = make_coded(Path("coded"))
    >>> sorted(path.name for path in folder.glob("*.py"))
    ['blocks_tiny.py', 'configuration_tiny.py', 'modeling_tiny.py']
    """
    make_tiny(directory, "BertModel")  # for its tokenizer
    vocabulary = json.loads((directory / "config.json").read_text())["vocab_size"]
    code = {path: text.encode() for path, text in CODE.items()}
    listed = {"auto_map": AUTO_MAP}
    config_class, model_class = (
        find_class(listed, code, name) for name in ("AutoConfig", "TinyForSequenceClassification")
    )
    settings: Any = config_class(vocab_size=vocabulary, num_labels=labels, pad_token_id=0, **listed)
    model = model_class(settings)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    model.save_pretrained(directory)
    for path, data in code.items():
        (directory / path).write_bytes(data)
    return directory


@contextmanager
def copying_to(folder: Path) -> Iterator[Path]:
    """Inside, transformers copies the code that it runs to this folder, and knows of no other.

    Examples
    --------
    >>> from transformers import dynamic_module_utils
    >>> with copying_to(Path("code").absolute()) as folder:
    ...     dynamic_module_utils.HF_MODULES_CACHE == str(folder)
    True
    """
    cache = patch("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(folder))
    with cache, patch.object(sys, "path", sys.path.copy()):
        yield folder
        for name in [name for name in sys.modules if name.partition(".")[0] == "transformers_modules"]:
            del sys.modules[name]
