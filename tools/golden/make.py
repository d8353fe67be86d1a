#!/usr/bin/env python3
"""Golden data: run by hand, writes tests/golden/<family>/ (see tests/golden/README.md for every array).

    python3 -m venv .venv && .venv/bin/pip install -r tools/golden/requirements.txt
    .venv/bin/python tools/golden/make.py [FAMILY…]     write these families (default: all) and rope.json
    .venv/bin/python tools/golden/make.py --check       recompute what is committed, a second way
    .venv/bin/python tools/golden/lora.py [CASE…]       write these cases of lora/ (default: all)
    .venv/bin/python tools/golden/smollm2.py FILE.gguf  write tests/golden/smollm2/

The output is committed. Tests read it and need neither Python nor a network.
"""

import argparse
import itertools
import json
import platform
from pathlib import Path

import numpy
import safetensors
import torch
import transformers
from safetensors.torch import save_file

import checkpoint
import rope
import second_opinion
from families import FAMILIES, Family

GOLDEN = Path(__file__).resolve().parents[2] / "tests" / "golden"
MAX_FAMILY_BYTES = 1 << 20
GREEDY_PROMPT_LEN = 28
GREEDY_LEN = 32
# No decision of a reference may hang on rounding: an engine that adds in another order must still
# choose the same experts and the same tokens. Inputs are drawn until none does.
MIN_ROUTER_GAP = 2e-3
MIN_GREEDY_MARGIN = 2e-2


def load(folder: Path, dtype: torch.dtype) -> torch.nn.Module:
    options = {"dtype": dtype, "attn_implementation": "eager", "experts_implementation": "eager"}
    if "quantization_config" in json.loads((folder / "config.json").read_text()):
        # MXFP4 expanded by transformers: to BF16, which holds every value, and from there to the type asked for.
        options["quantization_config"] = transformers.Mxfp4Config(dequantize=True)
    model, info = transformers.AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True, **options)
    for what in ("missing_keys", "unexpected_keys", "mismatched_keys"):
        assert not info[what], f"{folder.name}: {what}: {info[what]}"
    return model.eval()


class Trace:
    """What one forward pass leaves behind: the residual stream, and what the routers saw and chose."""

    def __init__(self, model: torch.nn.Module, token_ids: torch.Tensor):
        self.hidden, self.router_logits, self.experts = [], [], []

        def keep_hidden(_module, _inputs, output):
            self.hidden.append((output[0] if isinstance(output, tuple) else output).detach()[0].clone())

        def keep_choice(_module, _inputs, output):
            self.router_logits.append(output[0].detach().clone())
            self.experts.append(output[2].detach().clone())

        decoder = model.model
        handles = [m.register_forward_hook(keep_hidden) for m in (decoder.embed_tokens, *decoder.layers)]
        handles += [
            m.register_forward_hook(keep_choice)
            for m in decoder.modules()
            if type(m).__name__.endswith("TopKRouter")
        ]
        with torch.no_grad():
            self.logits = model(token_ids[None], use_cache=False).logits[0].float()
        for handle in handles:
            handle.remove()

    def smallest_router_gap(self) -> float:
        """Smallest distance between neighbours among the k + 1 greatest router logits of any row."""
        gaps = [float("inf")]
        for logits, experts in zip(self.router_logits, self.experts, strict=True):
            top = logits.sort(dim=-1, descending=True).values[:, : experts.shape[1] + 1]
            gaps.append((top[:, :-1] - top[:, 1:]).min().item())
        return min(gaps)

    def rerouted(self, other: "Trace") -> float:
        """Share of rows, over all expert layers, for which the other run chose another set of experts."""
        ours, theirs = (torch.stack(t.experts).sort(dim=-1).values for t in (self, other))
        return (ours != theirs).any(dim=-1).float().mean().item()


def draw_tokens(family: Family, length: int, generator: torch.Generator) -> torch.Tensor:
    """bos, then ordinary tokens: every id from 8 up is ordinary in every family."""
    ids = torch.randint(8, family.config["vocab_size"], (length,), generator=generator)
    ids[0] = family.config["bos_token_id"]
    return ids


def trace_clear_cut(family: Family, model: torch.nn.Module, generator: torch.Generator) -> tuple[torch.Tensor, Trace]:
    """Token ids whose routing has no near ties, and their trace."""
    for _ in range(1000):
        token_ids = draw_tokens(family, family.num_tokens, generator)
        trace = Trace(model, token_ids)
        if trace.smallest_router_gap() >= MIN_ROUTER_GAP:
            return token_ids, trace
    raise AssertionError(f"{family.name}: no token ids without router ties")


def greedy(family: Family, model: torch.nn.Module, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """A prompt and its greedy continuation: no near ties, no end token, no loop from the start.

    Each step computes the whole sequence again, so that no cache is part of the reference.
    """
    for _ in range(2000):
        prompt = draw_tokens(family, GREEDY_PROMPT_LEN, generator)
        ids, margins = prompt, []
        while len(margins) < GREEDY_LEN:
            with torch.no_grad():
                top = model(ids[None], use_cache=False).logits[0, -1].topk(2)
            margin = (top.values[0] - top.values[1]).item()
            if margin < MIN_GREEDY_MARGIN or top.indices[0].item() in family.eos_token_ids:
                break
            margins.append(margin)
            ids = torch.cat([ids, top.indices[:1]])
        continuation = ids[GREEDY_PROMPT_LEN:]
        if len(margins) == GREEDY_LEN and continuation.unique().numel() >= GREEDY_LEN // 3:
            return {"greedy_prompt": prompt, "greedy": continuation, "greedy_margin": torch.tensor(margins)}
    raise AssertionError(f"{family.name}: no clear-cut greedy continuation")


def rms(x: torch.Tensor) -> float:
    return x.double().square().mean().sqrt().item()


def make(family: Family) -> dict:
    """Writes one family and returns its line of the table."""
    folder = GOLDEN / family.name
    folder.mkdir(parents=True, exist_ok=True)
    for old in folder.iterdir():
        old.unlink()
    (checkpoint.write_fused if family.fused else checkpoint.write)(family, folder)
    model = load(folder, torch.float32)
    # Only inputs are drawn from this one: weights have their own generator.
    generator = torch.Generator().manual_seed(family.seed + 1)
    token_ids, trace = trace_clear_cut(family, model, generator)
    # from_pretrained, not .to(bfloat16): the latter would also round the rope frequencies.
    trace_bf16 = Trace(load(folder, torch.bfloat16), token_ids)
    arrays = {
        "token_ids": token_ids,
        "hidden": torch.stack(trace.hidden),
        "logits": trace.logits,
        "logits_bf16": trace_bf16.logits,
        **greedy(family, model, generator),
    }
    if family.moe_layers:
        arrays |= {"router_logits": torch.stack(trace.router_logits), "experts": torch.stack(trace.experts)}
    arrays = {
        name: (a.to(torch.int32) if not a.is_floating_point() else a.float()).contiguous() for name, a in arrays.items()
    }
    facts = check_sane(family, arrays)
    if family.moe_layers:
        facts["smallest_router_gap"] = trace.smallest_router_gap()
        facts["bf16_flips"] = trace.rerouted(trace_bf16)
    save_file(arrays, folder / "reference.safetensors")
    checkpoint.write_json(
        folder / "reference.json",
        {
            "family": family.name,
            "seed": family.seed,
            "moe_layers": family.moe_layers,
            "versions": versions(),
            "arrays": {name: {"dtype": str(a.dtype)[6:], "shape": list(a.shape)} for name, a in arrays.items()},
            **facts,
        },
    )
    size = sum(f.stat().st_size for f in folder.iterdir())
    assert size < MAX_FAMILY_BYTES, f"{family.name} takes {size} bytes"
    return {"family": family.name, "bytes": size, **facts}


def check_sane(family: Family, arrays: dict[str, torch.Tensor]) -> dict:
    """Numbers that say whether this reference can tell a right engine from a wrong one."""
    c = family.config
    assert arrays["hidden"].shape == (c["num_hidden_layers"] + 1, family.num_tokens, c["hidden_size"])
    for name, array in arrays.items():
        assert array.isfinite().all(), f"{family.name}: {name} is not finite"
    for before, after in itertools.pairwise(arrays["hidden"]):
        assert rms(after - before) > 0.1 * rms(before), f"{family.name}: a layer adds next to nothing"
    facts = {
        "logits_rms": rms(arrays["logits"]),
        "bf16_error": rms(arrays["logits_bf16"] - arrays["logits"]) / rms(arrays["logits"]),
        "smallest_greedy_margin": arrays["greedy_margin"].min().item(),
    }
    assert 1.0 <= facts["logits_rms"] <= 4.0, f"{family.name}: logits spread {facts['logits_rms']}"
    # A bound of a twentieth of this error must lie above float32 noise.
    assert facts["bf16_error"] >= 2e-3, f"{family.name}: BF16 error {facts['bf16_error']}"
    if family.moe_layers:
        assert arrays["router_logits"].shape == (len(family.moe_layers), family.num_tokens, family.num_experts)
        assert arrays["experts"].shape[-1] == c["num_experts_per_tok"]
        for layer, experts in zip(family.moe_layers, arrays["experts"], strict=True):
            share = experts.flatten().bincount(minlength=family.num_experts) / experts.numel()
            assert share.min() > 0, f"{family.name}: layer {layer} never uses expert {share.argmin()}"
    return facts


def versions() -> dict[str, str]:
    return {
        "python": platform.python_version(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "numpy": numpy.__version__,
        "safetensors": safetensors.__version__,
    }


def print_table(rows: list[dict]) -> None:
    columns = list(dict.fromkeys(itertools.chain.from_iterable(rows)))
    print(*(f"{c:>22}" for c in columns))
    for row in rows:
        cells = (row.get(c, "") for c in columns)
        print(*(f"{c:>22.4g}" if isinstance(c, float) else f"{c:>22}" for c in cells))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("families", nargs="*", metavar="FAMILY", help="default: all")
    parser.add_argument("--check", action="store_true", help="write nothing, recompute what is there in float64")
    args = parser.parse_args()
    known = {f.name: f for f in FAMILIES}
    if unknown := set(args.families) - set(known):
        parser.error(f"no family {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    chosen = [known[name] for name in args.families or known]
    if args.check:
        second_opinion.check_rope(GOLDEN / "rope.json")
        print_table([second_opinion.check(GOLDEN / f.name, f.misreadings) for f in chosen])
        return
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    print_table([make(family) for family in chosen])
    checkpoint.write_json(GOLDEN / "rope.json", rope.tables())


if __name__ == "__main__":
    main()
