"""The checkpoints of the cases: MiniLM as `make demo` has it, and random weights in shapes that are in use."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
CLASSES = 1000


def find_minilm(work: Path) -> Path:
    """Return the folder of the demo's checkpoint."""
    script = ROOT / "recipes/minilm.py"
    return Path(subprocess.run([sys.executable, script], stdout=subprocess.PIPE, text=True, check=True).stdout.strip())


def make_vit(work: Path) -> Path:
    """Make a ViT-Ti/16 at 224 pixels."""
    import transformers

    make_config: Any = transformers.ViTConfig
    config = make_config(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        num_labels=CLASSES,
    )
    return _save_classifier(
        work / "vit", lambda: transformers.ViTForImageClassification(config), "ViTImageProcessorPil"
    )


def make_resnet(work: Path) -> Path:
    """Make a ResNet-18 at 224 pixels."""
    import transformers

    make_config: Any = transformers.ResNetConfig
    config = make_config(hidden_sizes=[64, 128, 256, 512], depths=[2, 2, 2, 2], layer_type="basic", num_labels=CLASSES)
    return _save_classifier(
        work / "resnet", lambda: transformers.ResNetForImageClassification(config), "ViTImageProcessorPil"
    )


def make_gpt2(work: Path) -> Path:
    """Make a decoder of GPT-2's kind with MiniLM's tokenizer: 6 layers of 384, 30,522 tokens."""
    import torch
    import transformers

    folder = work / "gpt2"
    if not folder.exists():
        torch.manual_seed(0)
        config = transformers.GPT2Config(
            vocab_size=30_522, n_positions=256, n_embd=384, n_layer=6, n_head=6, bos_token_id=101, eos_token_id=102
        )
        transformers.GPT2LMHeadModel(config).save_pretrained(folder)
        for name in ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt"):
            shutil.copy(find_minilm(work) / name, folder)
    return folder


def _save_classifier(folder: Path, build: Callable[[], Any], processor: str) -> Path:
    import torch
    import transformers

    if not folder.exists():
        torch.manual_seed(0)
        model = build().eval()
        pixels = torch.randn(4, 3, 224, 224)
        head = [layer for layer in model.modules() if isinstance(layer, torch.nn.Linear)][-1]
        with torch.inference_mode():
            spread = model(pixel_values=pixels).logits.std()
        with torch.no_grad():  # so that probabilities differ between classes, and errors show in them
            head.weight.mul_(3 / spread)
        model.save_pretrained(folder)
        getattr(transformers, processor)(size={"height": 224, "width": 224}).save_pretrained(folder)
    return folder
