"""Rope frequencies as transformers computes them, for configs as published: tests/golden/rope.json."""

import numpy as np
import torch
from transformers import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

POSITIONS = [0, 1, 97, 4095]

CASES = {
    "default, SmolLM2": {"head_dim": 64, "max_position_embeddings": 8192, "rope_theta": 100000, "rope_scaling": None},
    "default, Qwen3-30B-A3B": {
        "head_dim": 128, "max_position_embeddings": 40960, "rope_theta": 1000000.0, "rope_scaling": None,
    },
    "linear, spelled `type`": {
        "head_dim": 128, "max_position_embeddings": 16384, "rope_theta": 10000.0,
        "rope_scaling": {"type": "linear", "factor": 4.0},
    },
    # Of a sequence that ends at the last of the positions.
    "dynamic, twice the length": {
        "head_dim": 128, "max_position_embeddings": 2048, "rope_theta": 10000.0,
        "rope_scaling": {"type": "dynamic", "factor": 2.0},
    },
    "dynamic, within the length": {
        "head_dim": 64, "max_position_embeddings": 4096, "rope_theta": 10000.0,
        "rope_scaling": {"rope_type": "dynamic", "factor": 4.0},
    },
    "llama3, Llama 3.1 8B": {
        "head_dim": 128, "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
    },
    "llama3, Llama 3.2 1B": {
        "head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 500000.0,
        "rope_scaling": {
            "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
            "original_max_position_embeddings": 8192, "rope_type": "llama3",
        },
    },
    "yarn, Qwen3 times 4": {
        "head_dim": 128, "max_position_embeddings": 131072, "rope_theta": 1000000.0,
        "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    },
    "yarn, original length left out": {
        "head_dim": 128, "max_position_embeddings": 32768, "rope_theta": 1000000.0,
        "rope_scaling": {"type": "yarn", "factor": 4.0},
    },
    "yarn without truncation, gpt-oss": {
        "head_dim": 64, "max_position_embeddings": 131072, "rope_theta": 150000,
        "rope_scaling": {
            "beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0, "original_max_position_embeddings": 4096,
            "rope_type": "yarn", "truncate": False,
        },
    },
    "yarn with mscale, DeepSeek-V3": {
        "head_dim": 64, "max_position_embeddings": 163840, "rope_theta": 10000,
        "rope_scaling": {
            "beta_fast": 32, "beta_slow": 1, "factor": 40, "mscale": 1.0, "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096, "type": "yarn",
        },
    },
    "yarn with unequal mscale": {
        "head_dim": 64, "max_position_embeddings": 163840, "rope_theta": 10000,
        "rope_scaling": {
            "factor": 40, "mscale": 1.0, "mscale_all_dim": 0.707,
            "original_max_position_embeddings": 4096, "rope_type": "yarn",
        },
    },
    "yarn with its own attention factor": {
        "head_dim": 64, "max_position_embeddings": 65536, "rope_theta": 1000000.0,
        "rope_scaling": {
            "attention_factor": 1.25, "beta_fast": 16.0, "beta_slow": 2.0, "factor": 8.0,
            "original_max_position_embeddings": 8192, "rope_type": "yarn",
        },
    },
}


def tables() -> dict:
    return {"positions": POSITIONS, "cases": [{"name": name, "config": c} | table(c) for name, c in CASES.items()]}


def table(config: dict) -> dict:
    llama = LlamaConfig(hidden_size=config["head_dim"] * 2, num_attention_heads=2, **config)
    rope = LlamaRotaryEmbedding(llama)
    cos, sin = rope(torch.zeros(1), torch.tensor([POSITIONS]))
    half = config["head_dim"] // 2
    return {
        "attention_factor": rope.attention_scaling,
        "inv_freq": shortest(rope.inv_freq),
        # Multiplied by the attention factor. transformers repeats each row; here it stands once.
        "cos": [shortest(row) for row in cos[0, :, :half]],
        "sin": [shortest(row) for row in sin[0, :, :half]],
    }


def shortest(values: torch.Tensor) -> list[float]:
    """float32 values with as few digits as name them exactly."""
    return [float(str(v)) for v in values.numpy().astype(np.float32)]
