"""Writes a tiny random checkpoint as the hub has them: names, order, BF16, shards, index.

transformers then *reads* it like any other. So its own conversion of names and dialects is part of
what the golden data fixes, and a mistake of ours in a name is an error here, not a silent zero.
"""

import json
import re
import tempfile
from pathlib import Path

import safetensors.torch
import torch
import transformers
from safetensors.torch import save_file

from families import Family

# Gains over 1/sqrt(fan_in): attention scores and router logits then spread by more than one, so that
# the softmax is far from uniform, and logits by about two. Greater gains make the network chaotic:
# with 1.5 in the MLP the error of a BF16 run doubles, and the golden bounds would say less.
GAIN = {
    "q_proj": 1.2, "k_proj": 1.2, "v_proj": 1.2, "o_proj": 1.2,
    "gate_proj": 1.2, "up_proj": 1.2, "down_proj": 1.0,
    "router": 1.5, "lm_head": 2.0,
}


def shapes(family: Family) -> dict[str, tuple[tuple[int, ...], str]]:
    """Tensor name -> (shape, kind) in the order of the published files."""
    c = family.config
    hidden, head_dim = c["hidden_size"], family.head_dim
    q_rows, kv_rows = c["num_attention_heads"] * head_dim, c["num_key_value_heads"] * head_dim
    tensors = {"model.embed_tokens.weight": ((c["vocab_size"], hidden), "embed")}

    def mlp(prefix: str, names: tuple[str, str, str], width: int) -> None:
        gate, up, down = names
        tensors[f"{prefix}.{gate}.weight"] = ((width, hidden), "gate_proj")
        tensors[f"{prefix}.{up}.weight"] = ((width, hidden), "up_proj")
        tensors[f"{prefix}.{down}.weight"] = ((hidden, width), "down_proj")

    for layer in range(c["num_hidden_layers"]):
        at = f"model.layers.{layer}"
        for proj, shape in {
            "q_proj": (q_rows, hidden), "k_proj": (kv_rows, hidden),
            "v_proj": (kv_rows, hidden), "o_proj": (hidden, q_rows),
        }.items():
            tensors[f"{at}.self_attn.{proj}.weight"] = (shape, proj)
            if proj in family.biased:
                tensors[f"{at}.self_attn.{proj}.bias"] = (shape[:1], "bias")
        if family.qk_norm:
            tensors[f"{at}.self_attn.q_norm.weight"] = ((head_dim,), "norm")
            tensors[f"{at}.self_attn.k_norm.weight"] = ((head_dim,), "norm")
        if layer not in family.moe_layers:
            mlp(f"{at}.mlp", ("gate_proj", "up_proj", "down_proj"), c["intermediate_size"])
        elif c["model_type"] == "gpt_oss":
            experts, width = family.num_experts, c["intermediate_size"]
            tensors[f"{at}.self_attn.sinks"] = ((c["num_attention_heads"],), "sinks")
            tensors[f"{at}.mlp.router.weight"] = ((experts, hidden), "router")
            tensors[f"{at}.mlp.router.bias"] = ((experts,), "bias")
            for proj, rows, cols in (("gate_up_proj", 2 * width, hidden), ("down_proj", hidden, width)):
                tensors[f"{at}.mlp.experts.{proj}_blocks"] = ((experts, rows, cols // 32, 16), "blocks")
                tensors[f"{at}.mlp.experts.{proj}_scales"] = ((experts, rows, cols // 32), "scales")
                tensors[f"{at}.mlp.experts.{proj}_bias"] = ((experts, rows), "bias")
        elif c["model_type"] == "mixtral":
            tensors[f"{at}.block_sparse_moe.gate.weight"] = ((family.num_experts, hidden), "router")
            for expert in range(family.num_experts):
                mlp(f"{at}.block_sparse_moe.experts.{expert}", ("w1", "w3", "w2"), c["intermediate_size"])
        else:
            tensors[f"{at}.mlp.gate.weight"] = ((family.num_experts, hidden), "router")
            for expert in range(family.num_experts):
                mlp(f"{at}.mlp.experts.{expert}", ("gate_proj", "up_proj", "down_proj"), c["moe_intermediate_size"])
        tensors[f"{at}.input_layernorm.weight"] = ((hidden,), "norm")
        tensors[f"{at}.post_attention_layernorm.weight"] = ((hidden,), "norm")
    tensors["model.norm.weight"] = ((hidden,), "norm")
    if not c["tie_word_embeddings"]:
        tensors["lm_head.weight"] = ((c["vocab_size"], hidden), "lm_head")
    return tensors


def weights(family: Family) -> dict[str, torch.Tensor]:
    """Random weights, BF16 or MXFP4, from the family's seed alone."""
    generator = torch.Generator().manual_seed(family.seed)

    def draw(shape: tuple[int, ...], kind: str) -> torch.Tensor:
        if kind == "blocks":
            return torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        if kind == "scales":
            # Uniform nibbles have an rms of 2.9: with these scales weights have one of 1.2 / sqrt(96).
            return torch.randint(121, 124, shape, generator=generator, dtype=torch.uint8)
        noise = torch.randn(shape, generator=generator, dtype=torch.float32)
        match kind:
            case "norm":
                value = 1.0 + 0.2 * noise
            case "bias":
                value = 0.4 * noise
            case "sinks":
                value = 1.0 + noise
            case "embed":
                value = family.embed_std * noise
            case _:
                value = GAIN[kind] / shape[-1] ** 0.5 * noise
        return value.to(torch.bfloat16)

    return {name: draw(shape, kind) for name, (shape, kind) in shapes(family).items()}


def write(family: Family, folder: Path) -> None:
    """Writes config.json, generation_config.json and the weights."""
    tensors = weights(family)
    for name, tensor in tensors.items():
        assert tensor.float().std() > 1e-3 and tensor.isfinite().all(), f"{name} is degenerate"
    write_json(folder / "config.json", family.config)
    eos = list(family.eos_token_ids) if len(family.eos_token_ids) > 1 else family.eos_token_ids[0]
    generation = {"_from_model_config": True, "bos_token_id": 1, "eos_token_id": eos}
    generation["transformers_version"] = family.config["transformers_version"]
    write_json(folder / "generation_config.json", generation)
    if family.shards == 1:
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
        return
    # Shards are cut by bytes, as the hub's are: the cut falls inside one layer's experts.
    total = sum(t.nbytes for t in tensors.values())
    shards, done = [{} for _ in range(family.shards)], 0
    for name, tensor in tensors.items():
        shards[min(done * family.shards // total, family.shards - 1)][name] = tensor
        done += tensor.nbytes
    weight_map = {}
    for number, shard in enumerate(shards, 1):
        file = f"model-{number:05}-of-{family.shards:05}.safetensors"
        save_file(shard, folder / file, metadata={"format": "pt"})
        weight_map |= dict.fromkeys(shard, file)
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    write_json(folder / "model.safetensors.index.json", index)


def write_fused(family: Family, folder: Path) -> None:
    """Writes what transformers saves of the model when it keeps the tensors that it computes with."""
    with tempfile.TemporaryDirectory() as published:
        published = Path(published)
        write(family, published)
        options = {"dtype": torch.bfloat16}
        if "quantization_config" in family.config:
            options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
        model = transformers.AutoModelForCausalLM.from_pretrained(published, **options)
        model.save_pretrained(folder, save_original_format=False)
    stacks = [n for n in safetensors.torch.load_file(folder / "model.safetensors") if n.endswith("gate_up_proj")]
    assert len(stacks) == len(family.moe_layers), f"{family.name}: {stacks}"


def write_json(path: Path, value: object) -> None:
    """Indented, but a list of numbers stays on one line. No JSON string holds a raw line break."""

    def one_line(found: re.Match) -> str:
        return " ".join(found[0].split()).replace("[ ", "[").replace(" ]", "]")

    text = json.dumps(value, indent=2, ensure_ascii=False)
    path.write_text(re.sub(r'\[\n[^\[\]{}"]*\]', one_line, text) + "\n", encoding="utf-8")
