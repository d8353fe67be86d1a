"""The same forward pass again, in float64 numpy, from the files alone.

A reference that only one program computes may be wrong in a way that everybody then copies. This
one shares nothing with transformers: it parses safetensors and config.json itself, attends one
head at a time, and computes rope angles in float64.
"""

import json
import struct
from pathlib import Path

import numpy as np


def read_safetensors(path: Path) -> dict[str, np.ndarray]:
    """Tensors of one file; BF16 is widened to float32, exactly."""
    raw = path.read_bytes()
    (header_bytes,) = struct.unpack("<Q", raw[:8])
    header, body = json.loads(raw[8 : 8 + header_bytes]), raw[8 + header_bytes :]
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        bits = body[slice(*entry["data_offsets"])]
        match entry["dtype"]:
            case "BF16":
                flat = (np.frombuffer(bits, "<u2").astype(np.uint32) << 16).view(np.float32)
            case "F32":
                flat = np.frombuffer(bits, "<f4")
            case "I32":
                flat = np.frombuffer(bits, "<i4")
            case "U8":
                flat = np.frombuffer(bits, np.uint8)
        tensors[name] = flat.reshape(entry["shape"])
    return tensors


def read_weights(folder: Path) -> dict[str, np.ndarray]:
    index = folder / "model.safetensors.index.json"
    if not index.exists():
        return read_safetensors(folder / "model.safetensors")
    weight_map = json.loads(index.read_text())["weight_map"]
    weights = {}
    for file in sorted(set(weight_map.values())):
        weights |= {n: t for n, t in read_safetensors(folder / file).items() if weight_map[n] == file}
    assert weights.keys() == weight_map.keys()
    return weights


def mxfp4(blocks: np.ndarray, scales: np.ndarray) -> np.ndarray:
    """Blocks [..., 16] of two numbers a byte, the first in the lower half, and a power of two for each: [..., 32]."""
    magnitudes = np.array([0, 0.5, 1, 1.5, 2, 3, 4, 6])
    nibbles = np.stack([blocks & 15, blocks >> 4], axis=-1).reshape(*blocks.shape[:-1], 32)
    values = magnitudes[nibbles & 7] * np.where(nibbles & 8, -1.0, 1.0)
    return values * 2.0 ** (scales[..., None].astype(np.int64) - 127)


def silu(x: np.ndarray) -> np.ndarray:
    return x / (1 + np.exp(-x))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(-1, keepdims=True))
    return e / e.sum(-1, keepdims=True)


def rope_frequencies(config: dict, dim: int, length: int) -> tuple[np.ndarray, float]:
    """(radians per position [dim / 2], factor of cos and sin) of a sequence, either dialect of config.json."""
    rope = config.get("rope_parameters") or {"rope_theta": config["rope_theta"]} | (config.get("rope_scaling") or {})
    theta = rope["rope_theta"]
    frequencies = float(theta) ** (-np.arange(0, dim, 2) / dim)
    original = rope.get("original_max_position_embeddings", config["max_position_embeddings"])
    match rope.get("rope_type", rope.get("type", "default")):
        case "default":
            return frequencies, 1.0
        case "linear":
            return frequencies / rope["factor"], 1.0
        case "dynamic":
            # A base such that the slowest pair turns as much in the sequence as it did in the longest one of training.
            longest = config["max_position_embeddings"]
            stretch = max(rope["factor"] * max(length, longest) / longest - (rope["factor"] - 1), 1)
            return frequencies * stretch ** (-np.arange(0, dim, 2) / (dim - 2)), 1.0
        case "llama3":
            # Turns over the original context: many turns stay, few are slowed, between is blended.
            turns = original * frequencies / (2 * np.pi)
            low, high = rope["low_freq_factor"], rope["high_freq_factor"]
            keep = np.clip((turns - low) / (high - low), 0, 1)
            return keep * frequencies + (1 - keep) * frequencies / rope["factor"], 1.0
        case "yarn":
            # As llama3, but the blend is linear in the index of the frequency.
            def index_of(turns: float) -> float:
                return dim * np.log(original / (turns * 2 * np.pi)) / (2 * np.log(theta))

            low, high = index_of(rope.get("beta_fast", 32)), index_of(rope.get("beta_slow", 1))
            if rope.get("truncate", True):
                low, high = np.floor(low), np.ceil(high)
            low, high = max(low, 0), min(high, dim - 1)
            keep = 1 - np.clip((np.arange(dim // 2) - low) / max(high - low, 0.001), 0, 1)
            blended = keep * frequencies + (1 - keep) * frequencies / rope["factor"]

            def mscale(weight: float) -> float:
                return 0.1 * weight * np.log(rope["factor"]) + 1

            if "attention_factor" in rope:
                return blended, rope["attention_factor"]
            if rope.get("mscale") and rope.get("mscale_all_dim"):
                return blended, mscale(rope["mscale"]) / mscale(rope["mscale_all_dim"])
            return blended, mscale(1.0)
        case other:
            raise ValueError(f"rope type {other}")


class Model:
    """One checkpoint, any family. `changes` misreads its config on purpose."""

    def __init__(self, folder: Path, changes: dict | None = None):
        c = json.loads((folder / "config.json").read_text()) | (changes or {})
        self.config = c
        self.weights = {}
        stored = read_weights(folder)
        for name, tensor in stored.items():
            if name.endswith("experts.gate_up_proj") or name.endswith("experts.down_proj"):
                self.unstack(name, tensor.astype(np.float64))
            elif name.endswith("_blocks"):
                rows = mxfp4(tensor, stored[name.replace("_blocks", "_scales")])
                self.weights[name.removesuffix("_blocks")] = rows.reshape(*rows.shape[:-2], -1)
            elif not name.endswith("_scales"):
                self.weights[name] = tensor.astype(np.float64)
        self.heads, self.kv_heads = c["num_attention_heads"], c["num_key_value_heads"]
        self.head_dim = c.get("head_dim") or c["hidden_size"] // self.heads
        self.eps = c["rms_norm_eps"]

    def unstack(self, name: str, stack: np.ndarray) -> None:
        """Experts of one tensor: in GPT-OSS with inputs as rows, elsewhere the rows of gate before those of up."""
        if self.config["model_type"] == "gpt_oss":
            self.weights[name] = stack.swapaxes(1, 2)
            return
        at, parts = name.rsplit(".", 1)
        parts = ["gate_proj", "up_proj"] if parts == "gate_up_proj" else ["down_proj"]
        for expert, matrices in enumerate(stack):
            for part, matrix in zip(parts, np.split(matrices, len(parts)), strict=True):
                self.weights[f"{at}.{expert}.{part}.weight"] = matrix

    def window(self, layer: int) -> int | None:
        c = self.config
        if "layer_types" in c:
            return c["sliding_window"] if c["layer_types"][layer] == "sliding_attention" else None
        if c["model_type"] in ("mistral", "mixtral"):
            return c.get("sliding_window")
        if c.get("use_sliding_window") and (c["model_type"] == "qwen3_moe" or layer >= c["max_window_layers"]):
            return c["sliding_window"]
        return None

    def is_moe(self, layer: int) -> bool:
        routers = ("mlp.gate", "mlp.router", "block_sparse_moe.gate")
        return any(f"model.layers.{layer}.{router}.weight" in self.weights for router in routers)

    def linear(self, x: np.ndarray, name: str) -> np.ndarray:
        y = x @ self.weights[f"{name}.weight"].T
        return y + self.weights[f"{name}.bias"] if f"{name}.bias" in self.weights else y

    def norm(self, x: np.ndarray, name: str) -> np.ndarray:
        return x / np.sqrt((x * x).mean(-1, keepdims=True) + self.eps) * self.weights[f"{name}.weight"]

    def rotate(self, x: np.ndarray) -> np.ndarray:
        """Half-split rope on [n, heads, head_dim]: pairs (i, i + head_dim / 2) as complex numbers."""
        first, second = np.split(x, 2, axis=-1)
        turns = self.attention_factor * np.exp(1j * np.arange(len(x))[:, None] * self.frequencies)
        turned = (first + 1j * second) * turns[:, None]
        return np.concatenate([turned.real, turned.imag], axis=-1)

    def attention(self, x: np.ndarray, layer: int) -> np.ndarray:
        at, n = f"model.layers.{layer}.self_attn", len(x)
        q, k, v = (self.linear(x, f"{at}.{p}_proj").reshape(n, -1, self.head_dim) for p in "qkv")
        if f"{at}.q_norm.weight" in self.weights:
            q, k = self.norm(q, f"{at}.q_norm"), self.norm(k, f"{at}.k_norm")
        q, k = self.rotate(q), self.rotate(k)
        distance = np.arange(n)[:, None] - np.arange(n)
        visible = (distance >= 0) & (distance < (self.window(layer) or n))
        out = np.empty_like(q)
        for head in range(self.heads):
            kv = head * self.kv_heads // self.heads
            scores = q[:, head] @ k[:, kv].T / np.sqrt(self.head_dim)
            scores = np.where(visible, scores, -np.inf)
            if f"{at}.sinks" in self.weights:
                # One more place to attend to, which holds nothing.
                scores = np.concatenate([scores, np.full((n, 1), self.weights[f"{at}.sinks"][head])], axis=1)
            out[:, head] = softmax(scores)[:, :n] @ v[:, kv]
        return self.linear(out.reshape(n, -1), f"{at}.o_proj")

    def mlp(self, x: np.ndarray, at: str, names: tuple[str, str, str]) -> np.ndarray:
        gate, up, down = (f"{at}.{name}" for name in names)
        return self.linear(silu(self.linear(x, gate)) * self.linear(x, up), down)

    def clamped_expert(self, x: np.ndarray, at: str, expert: int) -> np.ndarray:
        """GPT-OSS: gate and up are the even and the odd rows of one matrix."""
        w = {name: self.weights[f"{at}.{name}"][expert] for name in ("gate_up_proj", "down_proj")}
        b = {name: self.weights[f"{at}.{name}_bias"][expert] for name in ("gate_up_proj", "down_proj")}
        gate, up = (w["gate_up_proj"] @ x + b["gate_up_proj"]).reshape(-1, 2).T
        limit, alpha = self.config["swiglu_limit"], self.config.get("swiglu_alpha", 1.702)
        gate, up = np.minimum(gate, limit), np.clip(up, -limit, limit)
        return w["down_proj"] @ ((up + 1) * gate / (1 + np.exp(-alpha * gate))) + b["down_proj"]

    def experts(self, x: np.ndarray, layer: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(sum over the chosen experts, router logits, chosen experts, greatest first)."""
        mixtral = self.config["model_type"] == "mixtral"
        own = f"model.layers.{layer}.block_sparse_moe.gate.weight" in self.weights
        at = f"model.layers.{layer}.{'block_sparse_moe' if own else 'mlp'}"
        names = ("w1", "w3", "w2") if own else ("gate_proj", "up_proj", "down_proj")
        gpt_oss = self.config["model_type"] == "gpt_oss"
        logits = self.linear(x, f"{at}.router" if gpt_oss else f"{at}.gate")
        share = softmax(logits)
        chosen = np.argsort(-logits, axis=-1, kind="stable")[:, : self.config["num_experts_per_tok"]]
        y = np.zeros_like(x)
        for row, picks in enumerate(chosen):
            weights = share[row, picks]
            if mixtral or gpt_oss or self.config["norm_topk_prob"]:
                weights = weights / weights.sum()
            for expert, weight in zip(picks, weights, strict=True):
                if gpt_oss:
                    y[row] += weight * self.clamped_expert(x[row], f"{at}.experts", expert)
                else:
                    y[row] += weight * self.mlp(x[row], f"{at}.experts.{expert}", names)
        return y, logits, chosen

    def forward(self, token_ids: np.ndarray) -> dict[str, np.ndarray]:
        """The arrays of reference.safetensors that one pass gives."""
        self.frequencies, self.attention_factor = rope_frequencies(self.config, self.head_dim, len(token_ids))
        x = self.weights["model.embed_tokens.weight"][token_ids]
        hidden, router_logits, chosen = [x], [], []
        for layer in range(self.config["num_hidden_layers"]):
            at = f"model.layers.{layer}"
            x = x + self.attention(self.norm(x, f"{at}.input_layernorm"), layer)
            inner = self.norm(x, f"{at}.post_attention_layernorm")
            if self.is_moe(layer):
                y, logits, picks = self.experts(inner, layer)
                router_logits.append(logits)
                chosen.append(picks)
            else:
                y = self.mlp(inner, f"{at}.mlp", ("gate_proj", "up_proj", "down_proj"))
            x = x + y
            hidden.append(x)
        head = "model.embed_tokens" if self.config["tie_word_embeddings"] else "lm_head"
        arrays = {"hidden": np.stack(hidden), "logits": self.linear(self.norm(x, "model.norm"), head)}
        if router_logits:
            arrays |= {"router_logits": np.stack(router_logits), "experts": np.stack(chosen)}
        return arrays


def relative_error(got: np.ndarray, want: np.ndarray) -> float:
    """rms(got - want) / rms(want)."""
    return float(np.sqrt(np.square(got - want).mean() / np.square(want).mean()))


#: Measured: below 1.1e-6 in every family, which is float32 noise. The engine's bound is 1e-4.
MAX_ERROR = 1e-5
#: A misread config must be this far off, or the golden data could not tell.
MIN_MISREAD = 1e-3


def check_rope(path: Path) -> None:
    """Recomputes rope.json; fails with the first case that differs."""
    tables = json.loads(path.read_text())
    for case in tables["cases"]:
        frequencies, attention_factor = rope_frequencies(
            case["config"], case["config"]["head_dim"], tables["positions"][-1] + 1
        )
        np.testing.assert_allclose(case["inv_freq"], frequencies, rtol=1e-6, err_msg=case["name"])
        np.testing.assert_allclose(case["attention_factor"], attention_factor, rtol=1e-12, err_msg=case["name"])
        # An angle inherits the relative error of its frequency: 4095 radians are known to 1e-3.
        angles = np.outer(tables["positions"], frequencies)
        slack = 4e-7 * angles + 4e-7
        for name, function in (("cos", np.cos), ("sin", np.sin)):
            off = np.abs(np.array(case[name]) - attention_factor * function(angles))
            assert (off <= slack * attention_factor).all(), f"{case['name']}: {name} is off by {off.max():.1e}"


def check(folder: Path, misreadings: tuple[dict, ...]) -> dict:
    """Recomputes one committed family; fails with the first array that differs."""
    reference = read_safetensors(folder / "reference.safetensors")
    model = Model(folder)
    again = model.forward(reference["token_ids"])
    row = {"family": folder.name}
    for name, array in again.items():
        if name == "experts":
            assert (array == reference[name]).all(), f"{folder.name}: other experts"
            continue
        row[name] = relative_error(array, reference[name])
        assert row[name] <= MAX_ERROR, f"{folder.name}: {name} differs by {row[name]:.2e}"
    # Greedy, all steps at once: the last prompt row predicts the first token, and so on.
    prompt, greedy = reference["greedy_prompt"], reference["greedy"]
    logits = model.forward(np.concatenate([prompt, greedy]))["logits"][len(prompt) - 1 : -1]
    assert (logits.argmax(-1) == greedy).all(), f"{folder.name}: another greedy continuation"
    best = np.sort(logits, axis=-1)
    assert np.abs(best[:, -1] - best[:, -2] - reference["greedy_margin"]).max() < 1e-4, f"{folder.name}: margins differ"
    nearest = float("inf")
    for changes in misreadings:
        wrong = relative_error(Model(folder, changes).forward(reference["token_ids"])["logits"], reference["logits"])
        assert wrong >= MIN_MISREAD, f"{folder.name}: {changes} changes the logits by {wrong:.2e} only"
        nearest = min(nearest, wrong)
    return row | {"nearest misreading": nearest}
