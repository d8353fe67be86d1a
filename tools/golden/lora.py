#!/usr/bin/env python3
"""Golden data of adapters: run by hand, writes tests/golden/lora/<case>/ beside the families that make.py wrote.

    .venv/bin/python tools/golden/lora.py [CASE…]

PEFT makes each adapter, saves it, and loads it again onto the float32 model of its family; what that model then computes
is the reference. Weights are random and large, so that one that is forgotten, transposed or scaled wrongly is far outside
of the bound that engines are held to.
"""

import argparse
import json
import shutil
from dataclasses import dataclass, field
from pathlib import Path

import peft
import torch
import transformers
from peft import LoraConfig, PeftModel, get_peft_model
from peft.tuners.lora import LoraLayer
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

import checkpoint
import make
from families import FAMILIES, Family

GOLDEN = make.GOLDEN / "lora"
NUM_TOKENS = 48
#: Deltas are this large beside random weights.
STRENGTH = 0.35
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
EXPERTS = ["mlp.experts.gate_up_proj", "mlp.experts.down_proj"]


@dataclass(frozen=True)
class Case:
    """One folder under tests/golden/lora."""

    name: str
    family: str
    seed: int
    config: dict = field(default_factory=dict)
    #: Type of the saved matrices.
    dtype: torch.dtype = torch.bfloat16
    #: Other cases and scales, to be used together; such a case has no adapter of its own.
    together: tuple[tuple[str, float], ...] = ()
    #: Name experts one by one, as transformers 4 did.
    one_by_one: bool = False


CASES = [
    Case("llama_attention", "llama", 9101, {"r": 8, "lora_alpha": 16, "target_modules": ATTENTION}),
    Case(
        "llama_mlp", "llama", 9102,
        {"r": 20, "lora_alpha": 10, "target_modules": r".*\.(?:gate_proj|up_proj|down_proj|q_proj)"},
        dtype=torch.float32,
    ),
    Case("llama_together", "llama", 9103, together=(("llama_attention", 0.75), ("llama_mlp", -0.5))),
    Case(
        "llama_saved", "llama", 9104,
        {
            "r": 4, "lora_alpha": 4, "target_modules": ["v_proj"],
            "modules_to_save": ["lm_head", "embed_tokens", "norm", "input_layernorm", "post_attention_layernorm"],
        },
    ),
    Case(
        "qwen3_patterns", "qwen3", 9201,
        {
            "r": 4, "lora_alpha": 8, "target_modules": ["q_proj", "down_proj", "up_proj"], "layers_to_transform": [1, 3],
            "rank_pattern": {"down_proj": 17, "layers.3.*up_proj": 2}, "alpha_pattern": {"q_proj": 3},
        },
        dtype=torch.float16,
    ),
    Case(
        "qwen3_rslora", "qwen3", 9202,
        {
            "r": 16, "lora_alpha": 12, "target_modules": "all-linear", "use_rslora": True,
            "modules_to_save": ["q_norm", "k_norm"],
        },
    ),
    Case(
        "qwen3_moe_experts", "qwen3_moe", 9301,
        {
            "r": 3, "lora_alpha": 6, "target_modules": ["q_proj", "o_proj"],
            "target_parameters": [*EXPERTS, "mlp.gate.weight"],
        },
    ),
    Case(
        "qwen3_moe_one_by_one", "qwen3_moe", 9302,
        {"r": 4, "lora_alpha": 8, "target_modules": ["gate_proj", "up_proj", "down_proj", "gate"]},
        dtype=torch.float32, one_by_one=True,
    ),
    Case("mixtral_down", "mixtral", 9401, {"r": 2, "lora_alpha": 2, "target_modules": ["k_proj"], "target_parameters": EXPERTS[1:]}),
    Case("gpt_oss_experts", "gpt_oss", 9501, {"r": 2, "lora_alpha": 4, "target_modules": ATTENTION, "target_parameters": [*EXPERTS, "mlp.router.weight"]}),
]


def base(family: Family) -> torch.nn.Module:
    return make.load(make.GOLDEN / family.name, torch.float32)


def randomize(model: torch.nn.Module, dtype: torch.dtype, generator: torch.Generator) -> None:
    """Draws all weights of the adapter, each a number of `dtype`."""

    def draw(shape: torch.Size, std: float) -> torch.Tensor:
        return (std * torch.randn(shape, generator=generator)).to(dtype).float()

    for module in model.modules():
        if not isinstance(module, LoraLayer):
            continue
        for name, a in module.lora_A.items():
            b, rank = module.lora_B[name], module.r[name]
            std = a.weight.shape[1] ** -0.5
            a.weight.data = draw(a.weight.shape, std)
            b.weight.data = draw(b.weight.shape, STRENGTH / (module.scaling[name] * rank**0.5))
    for name, parameter in model.named_parameters():
        if "modules_to_save" in name:
            around = parameter.data.mean() if parameter.dim() == 1 else 0.0
            parameter.data = (around + draw(parameter.shape, parameter.data.std().item() + 0.1)).to(dtype).float()


def save(case: Case, folder: Path, generator: torch.Generator) -> None:
    """Writes adapter_config.json and adapter_model.safetensors."""
    family = next(f for f in FAMILIES if f.name == case.family)
    model = base(family)
    if case.one_by_one:
        tensors = one_by_one(family, case, generator)
        config = LoraConfig(task_type="CAUSAL_LM", inference_mode=True, **case.config)
    else:
        model = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", **case.config))
        randomize(model, case.dtype, generator)
        tensors = get_peft_model_state_dict(model)
        config = model.peft_config["default"]
        config.inference_mode = True
    config.base_model_name_or_path = case.family
    config.save_pretrained(folder)
    sort_lists(folder / "adapter_config.json")
    tensors = {name: tensor.to(case.dtype).contiguous().clone() for name, tensor in sorted(tensors.items())}
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


def sort_lists(path: Path) -> None:
    """PEFT keeps targets in sets, which have another order in every run."""
    config = json.loads(path.read_text())
    for name in ("target_modules", "target_parameters", "modules_to_save"):
        if isinstance(config.get(name), list):
            config[name].sort()
    checkpoint.write_json(path, config)


def one_by_one(family: Family, case: Case, generator: torch.Generator) -> dict[str, torch.Tensor]:
    """Pairs for the router, the dense layers' matrices and every third expert."""
    r, scaling = case.config["r"], case.config["lora_alpha"] / case.config["r"]
    tensors = {}
    for name, (shape, kind) in checkpoint.shapes(family).items():
        module = name.removesuffix(".weight")
        expert = int(module.split(".experts.")[1].split(".")[0]) if ".experts." in module else 0
        if kind not in ("gate_proj", "up_proj", "down_proj", "router") or expert % 3 != 0:
            continue
        out, cols = shape
        at = f"base_model.model.{module}"
        tensors[f"{at}.lora_A.weight"] = cols**-0.5 * torch.randn(r, cols, generator=generator)
        tensors[f"{at}.lora_B.weight"] = STRENGTH / (scaling * r**0.5) * torch.randn(out, r, generator=generator)
    return tensors


def merged(family: Family, case: Case) -> torch.nn.Module:
    """The model of a case that names experts one by one, with every product of a pair added to its weight."""
    model, scaling = base(family), case.config["lora_alpha"] / case.config["r"]
    tensors = load_file(GOLDEN / case.name / "adapter_model.safetensors")
    weights = model.state_dict()
    for name in [name for name in tensors if name.endswith(".lora_A.weight")]:
        module = name.removeprefix("base_model.model.").removesuffix(".lora_A.weight")
        delta = scaling * tensors[name.replace("lora_A", "lora_B")].double() @ tensors[name].double()
        if ".experts." in module:
            experts, rest = module.split(".experts.")
            expert, part = rest.split(".")
            stack = weights[f"{experts}.experts.{'down_proj' if part == 'down_proj' else 'gate_up_proj'}"][int(expert)]
            weight = {"down_proj": stack, "gate_proj": stack[: len(delta)], "up_proj": stack[-len(delta) :]}[part]
        else:
            weight = weights[f"{module}.weight"]
        weight.copy_((weight.double() + delta).float())
    return model


def adapted(case: Case) -> torch.nn.Module:
    """The base with the saved adapters of a case."""
    family = next(f for f in FAMILIES if f.name == case.family)
    if case.one_by_one:
        return merged(family, case)
    chosen = case.together or ((case.name, 1.0),)
    model = PeftModel.from_pretrained(base(family), GOLDEN / chosen[0][0], adapter_name=chosen[0][0])
    for name, _ in chosen[1:]:
        model.load_adapter(GOLDEN / name, adapter_name=name)
    model.base_model.set_adapter([name for name, _ in chosen])
    for module in model.modules():
        if isinstance(module, LoraLayer):
            for name, scale in chosen:
                if name in module.scaling:
                    module.scaling[name] *= scale
    return model.eval().base_model.model


def make_case(case: Case) -> dict:
    family = next(f for f in FAMILIES if f.name == case.family)
    folder = GOLDEN / case.name
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    generator = torch.Generator().manual_seed(case.seed)
    if not case.together:
        save(case, folder, generator)
    model, plain = adapted(case), base(family)
    for _ in range(1000):
        token_ids = make.draw_tokens(family, NUM_TOKENS, generator)
        trace = make.Trace(model, token_ids)
        if trace.smallest_router_gap() >= make.MIN_ROUTER_GAP:
            break
    else:
        raise AssertionError(f"{case.name}: no token ids without router ties")
    without = make.Trace(plain, token_ids).logits
    effect = make.rms(trace.logits - without) / make.rms(without)
    assert trace.logits.isfinite().all() and effect > 0.05, f"{case.name} changes logits by {effect}"
    save_file(
        {"token_ids": token_ids.to(torch.int32), "logits": trace.logits.float().contiguous()},
        folder / "reference.safetensors",
    )
    facts = {"family": case.family, "seed": case.seed, "effect": effect, "logits_rms": make.rms(trace.logits)}
    adapters = [{"name": name, "scale": scale} for name, scale in case.together or ((case.name, 1.0),)]
    versions = make.versions() | {"peft": peft.__version__}
    checkpoint.write_json(folder / "reference.json", {**facts, "adapters": adapters, "versions": versions})
    return {"case": case.name, "bytes": sum(f.stat().st_size for f in folder.iterdir()), **facts}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("cases", nargs="*", metavar="CASE", help="default: all")
    args = parser.parse_args()
    known = {case.name: case for case in CASES}
    if unknown := set(args.cases) - set(known):
        parser.error(f"no case {', '.join(sorted(unknown))}; there are {', '.join(known)}")
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    make.print_table([make_case(known[name]) for name in args.cases or known])


if __name__ == "__main__":
    main()
