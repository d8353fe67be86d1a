"""What each golden family looks like: config.json, seed, and which weights its checkpoint holds.

Each family is as small as it can be while every feature of its architecture still changes the
logits: windows are shorter than the sequence, grouped heads are uneven, sizes are no multiple of a
vector register. Configs are spelled as published checkpoints spell them, and one
(`qwen3_moe_unnormed`) as transformers 5 writes them, because a loader meets both.
"""

from dataclasses import dataclass, field


@dataclass(frozen=True)
class Family:
    """One folder under tests/golden."""

    name: str
    config: dict
    seed: int
    num_tokens: int
    eos_token_ids: tuple[int, ...] = (2,)
    #: Standard deviation of the embedding. Where small, rms_norm_eps is felt in the first layer.
    embed_std: float = 0.25
    shards: int = 1
    #: Where biases exist, by projection.
    biased: tuple[str, ...] = field(default=())
    #: Per-head norm of q and k.
    qk_norm: bool = False
    #: As transformers writes what it computes with, config.json included: experts in stacks.
    fused: bool = False
    #: Config changes that each must move the logits far beyond the bound that engines are held to.
    misreadings: tuple[dict, ...] = ()

    @property
    def head_dim(self) -> int:
        return self.config.get("head_dim") or self.config["hidden_size"] // self.config["num_attention_heads"]

    @property
    def num_experts(self) -> int:
        return self.config.get("num_experts") or self.config.get("num_local_experts") or 0

    @property
    def moe_layers(self) -> list[int]:
        """Layers whose MLP is a router with experts; the others are dense."""
        if not self.num_experts:
            return []
        step = self.config.get("decoder_sparse_step", 1)
        dense = self.config.get("mlp_only_layers", [])
        return [i for i in range(self.config["num_hidden_layers"]) if i not in dense and (i + 1) % step == 0]


def _config(architecture: str, model_type: str, **fields) -> dict:
    return {
        "architectures": [architecture],
        "model_type": model_type,
        "attention_dropout": 0.0,
        "bos_token_id": 1,
        "eos_token_id": 2,
        "hidden_act": "silu",
        "initializer_range": 0.02,
        "max_position_embeddings": 512,
        "use_cache": True,
        **fields,
    }


def _tiny(architecture: str, model_type: str, max_position_embeddings: int, **fields) -> dict:
    sizes = {
        "vocab_size": 97, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
        "num_attention_heads": 4, "num_key_value_heads": 2, "head_dim": 16, "rms_norm_eps": 1e-5,
        "tie_word_embeddings": False, "max_position_embeddings": max_position_embeddings,
    }
    return _config(architecture, model_type) | sizes | fields | _HUB


_HUB = {"torch_dtype": "bfloat16", "transformers_version": "4.51.0"}

FAMILIES = [
    # Yi, SmolLM2: grouped heads, tied embeddings, head_dim not spelled out.
    Family(
        "llama",
        _config(
            "LlamaForCausalLM", "llama",
            vocab_size=211, hidden_size=48, intermediate_size=88, num_hidden_layers=4,
            num_attention_heads=6, num_key_value_heads=2, rms_norm_eps=1e-5,
            attention_bias=False, mlp_bias=False, pretraining_tp=1,
            rope_theta=100000, rope_scaling=None, rope_interleaved=False,
            tie_word_embeddings=True, **_HUB,
        ),
        seed=101, num_tokens=128,
        misreadings=(
            {"rope_theta": 110000},
        ),
    ),
    # One expert layer pattern of Qwen3-30B-A3B plus one dense layer; two shards that cut through a layer's experts.
    Family(
        "qwen3_moe",
        _config(
            "Qwen3MoeForCausalLM", "qwen3_moe",
            vocab_size=211, hidden_size=48, intermediate_size=72, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6,
            attention_bias=False, rope_theta=1000000.0, rope_scaling=None,
            use_sliding_window=False, sliding_window=None, max_window_layers=4,
            decoder_sparse_step=1, mlp_only_layers=[1], moe_intermediate_size=40,
            num_experts=8, num_experts_per_tok=3, norm_topk_prob=True,
            output_router_logits=False, router_aux_loss_coef=0.001,
            tie_word_embeddings=False, **_HUB,
        ),
        seed=201, num_tokens=96, embed_std=0.02, shards=2, qk_norm=True,
        misreadings=(
            {"norm_topk_prob": False},
            {"num_experts_per_tok": 2},
            {"num_experts_per_tok": 4},
            {"rms_norm_eps": 1e-5},
            {"rope_theta": 10000.0},
        ),
    ),
    # Llama 3.1: of 8 frequencies one is kept, one is blended, six are slowed; several end tokens.
    Family(
        "llama3",
        _config(
            "LlamaForCausalLM", "llama",
            vocab_size=259, hidden_size=64, intermediate_size=104, num_hidden_layers=3,
            num_attention_heads=4, num_key_value_heads=2, rms_norm_eps=1e-5,
            attention_bias=False, mlp_bias=False, pretraining_tp=1, rope_theta=500000.0,
            rope_scaling={
                "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
                "original_max_position_embeddings": 64, "rope_type": "llama3",
            },
            tie_word_embeddings=False, **_HUB,
        ) | {"eos_token_id": [2, 5, 7]},
        seed=301, num_tokens=128, eos_token_ids=(2, 5, 7), embed_std=0.05,
        misreadings=(
            {"rope_scaling": None},
            {"rope_theta": 10000.0},
        ),
    ),
    # Mistral 7B v0.1: every layer slides; one key-value head for all; a width of 40.
    Family(
        "mistral",
        _config(
            "MistralForCausalLM", "mistral",
            vocab_size=227, hidden_size=40, intermediate_size=72, num_hidden_layers=3,
            num_attention_heads=5, num_key_value_heads=1, rms_norm_eps=1e-5,
            rope_theta=10000.0, sliding_window=24, tie_word_embeddings=False, **_HUB,
        ),
        seed=401, num_tokens=112, embed_std=0.02,
        misreadings=(
            {"sliding_window": None},
            {"sliding_window": 23},
            {"sliding_window": 25},
            {"rms_norm_eps": 1e-6},
        ),
    ),
    # Qwen2: biases on q, k and v; the upper two of four layers slide.
    Family(
        "qwen2",
        _config(
            "Qwen2ForCausalLM", "qwen2",
            vocab_size=211, hidden_size=64, intermediate_size=88, num_hidden_layers=4,
            num_attention_heads=8, num_key_value_heads=2, rms_norm_eps=1e-6,
            rope_theta=1000000.0, use_sliding_window=True, sliding_window=32, max_window_layers=2,
            tie_word_embeddings=False, **_HUB,
        ),
        seed=501, num_tokens=112, embed_std=0.02, biased=("q_proj", "k_proj", "v_proj"),
        misreadings=(
            {"use_sliding_window": False},
            {"sliding_window": 31},
            {"sliding_window": 33},
            {"max_window_layers": 1},
            {"max_window_layers": 3},
            {"rms_norm_eps": 1e-5},
        ),
    ),
    # Qwen3 dense: QK-norm, 4 heads of 16 over a hidden size of 40, tied embeddings.
    Family(
        "qwen3",
        _config(
            "Qwen3ForCausalLM", "qwen3",
            vocab_size=251, hidden_size=40, intermediate_size=104, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-6,
            attention_bias=False, rope_theta=1000000, rope_scaling=None,
            use_sliding_window=False, sliding_window=None, max_window_layers=4,
            tie_word_embeddings=True, **_HUB,
        ),
        seed=601, num_tokens=112, qk_norm=True,
        misreadings=(
            {"rope_theta": 10000},
        ),
    ),
    # Expert weights that do not sum to one; every second layer dense; the dialect of transformers 5.
    Family(
        "qwen3_moe_unnormed",
        _config(
            "Qwen3MoeForCausalLM", "qwen3_moe",
            vocab_size=211, hidden_size=40, intermediate_size=56, num_hidden_layers=4,
            num_attention_heads=4, num_key_value_heads=1, head_dim=8, rms_norm_eps=1e-6,
            attention_bias=False, rope_parameters={"rope_theta": 10000.0, "rope_type": "default"},
            use_sliding_window=False, sliding_window=None,
            decoder_sparse_step=2, mlp_only_layers=[], moe_intermediate_size=24,
            num_local_experts=8, num_experts_per_tok=2, norm_topk_prob=False,
            output_router_logits=False, router_aux_loss_coef=0.001, pad_token_id=None,
            tie_word_embeddings=False, dtype="bfloat16", transformers_version="5.23.0",
        ),
        seed=701, num_tokens=96, embed_std=0.05, qk_norm=True,
        misreadings=(
            {"norm_topk_prob": True},
            {"num_experts_per_tok": 3},
        ),
    ),
    # Mixtral: its own tensor names, 2 of 4 experts.
    Family(
        "mixtral",
        _config(
            "MixtralForCausalLM", "mixtral",
            vocab_size=211, hidden_size=48, intermediate_size=56, num_hidden_layers=3,
            num_attention_heads=6, num_key_value_heads=3, rms_norm_eps=1e-5,
            rope_theta=1000000.0, sliding_window=None,
            num_local_experts=4, num_experts_per_tok=2,
            output_router_logits=False, router_aux_loss_coef=0.02,
            tie_word_embeddings=False, **_HUB,
        ),
        seed=801, num_tokens=96, embed_std=0.05,
        misreadings=(
            {"num_experts_per_tok": 1},
            {"num_experts_per_tok": 3},
            {"sliding_window": 64},
            {"rope_theta": 10000.0},
        ),
    ),
    # GPT-OSS: MXFP4 experts, sinks, biases everywhere, every second layer slides, YaRN without truncation. Sizes are
    # multiples of 32, of which no four make a whole group; the limit is so low that clamping is felt.
    Family(
        "gpt_oss",
        _config(
            "GptOssForCausalLM", "gpt_oss",
            vocab_size=211, hidden_size=96, intermediate_size=64, num_hidden_layers=4,
            num_attention_heads=6, num_key_value_heads=2, head_dim=16, rms_norm_eps=1e-5,
            attention_bias=True, rope_theta=150000, initial_context_length=64,
            rope_scaling={
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0, "original_max_position_embeddings": 64,
                "rope_type": "yarn", "truncate": False,
            },
            sliding_window=24,
            layer_types=["sliding_attention", "full_attention", "sliding_attention", "full_attention"],
            num_local_experts=6, num_experts_per_tok=2, experts_per_token=2, swiglu_limit=1.5,
            output_router_logits=False, router_aux_loss_coef=0.9,
            quantization_config={
                "modules_to_not_convert": [
                    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
                ],
                "quant_method": "mxfp4",
            },
            tie_word_embeddings=False, transformers_version="4.55.0.dev0",
        ),
        seed=905, num_tokens=96, embed_std=0.05, biased=("q_proj", "k_proj", "v_proj", "o_proj"),
        misreadings=(
            {"num_experts_per_tok": 1},
            {"num_experts_per_tok": 3},
            {"layer_types": ["full_attention"] * 4},
            {"layer_types": ["full_attention", "sliding_attention"] * 2},
            {"sliding_window": 23},
            {"sliding_window": 25},
            {"swiglu_limit": 7.0},
            {"swiglu_alpha": 1.0},
            {"rope_scaling": None},
            {"rms_norm_eps": 1e-6},
        ),
    ),
    # Beyond the length that a model was made for, with each way to stretch it: tiny models of two layers.
    Family(
        "rope_none",
        _tiny("LlamaForCausalLM", "llama", 32, rope_theta=10000.0, rope_scaling=None),
        seed=1001, num_tokens=96, embed_std=0.1,
        misreadings=({"rope_theta": 9000.0},),
    ),
    Family(
        "rope_linear",
        _tiny(
            "LlamaForCausalLM", "llama", 32, rope_theta=10000.0, rope_scaling={"type": "linear", "factor": 4.0},
            attention_bias=True,
        ),
        seed=1101, num_tokens=96, embed_std=0.1, biased=("q_proj", "k_proj", "v_proj", "o_proj"),
        misreadings=({"rope_scaling": None}, {"rope_scaling": {"type": "linear", "factor": 3.9}}),
    ),
    # Frequencies depend on the length of the sequence: 96 tokens of a model made for 64.
    Family(
        "rope_dynamic",
        _tiny(
            "LlamaForCausalLM", "llama", 64, rope_theta=10000.0, rope_scaling={"type": "dynamic", "factor": 2.0},
        ),
        seed=1201, num_tokens=96, embed_std=0.1,
        misreadings=(
            {"rope_scaling": None},
            {"rope_scaling": {"type": "dynamic", "factor": 2.2}},
            {"max_position_embeddings": 60},
        ),
    ),
    # Qwen's own advice for long texts; six query heads on one.
    Family(
        "rope_yarn",
        _tiny(
            "Qwen3ForCausalLM", "qwen3", 32, rope_theta=1000000.0, num_attention_heads=6, num_key_value_heads=1,
            rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        ),
        seed=1301, num_tokens=96, embed_std=0.1, qk_norm=True,
        misreadings=(
            {"rope_scaling": None},
            {"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64}},
            {"rope_scaling": {
                "rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32, "attention_factor": 1.0,
            }},
        ),
    ),
    # The same with a ramp that is not rounded and a factor of its own.
    Family(
        "rope_yarn_own",
        _tiny(
            "Qwen2ForCausalLM", "qwen2", 32, rope_theta=10000.0, use_sliding_window=False, sliding_window=None,
            rope_scaling={
                "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "truncate": False,
                "attention_factor": 1.25, "beta_fast": 4.0, "beta_slow": 0.5,
            },
        ),
        seed=1401, num_tokens=96, embed_std=0.1, biased=("q_proj", "k_proj", "v_proj"),
        misreadings=(
            {"rope_scaling": None},
            {"rope_scaling": {
                "rope_type": "yarn", "factor": 8.0, "original_max_position_embeddings": 32, "truncate": True,
                "attention_factor": 1.25, "beta_fast": 4.0, "beta_slow": 0.5,
            }},
        ),
    ),
    # What transformers 5 and training programs write: experts in stacks.
    Family(
        "qwen3_moe_fused",
        _tiny(
            "Qwen3MoeForCausalLM", "qwen3_moe", 512, rope_theta=10000.0, rope_scaling=None, attention_bias=True,
            use_sliding_window=True, sliding_window=20, max_window_layers=4,
            decoder_sparse_step=1, mlp_only_layers=[0], moe_intermediate_size=24, num_hidden_layers=3,
            num_experts=4, num_experts_per_tok=2, norm_topk_prob=True,
        ),
        seed=1503, num_tokens=96, embed_std=0.1, qk_norm=True, fused=True,
        biased=("q_proj", "k_proj", "v_proj", "o_proj"),
        misreadings=({"norm_topk_prob": False}, {"sliding_window": 21}, {"sliding_window": None}),
    ),
    Family(
        "mixtral_fused",
        _tiny(
            "MixtralForCausalLM", "mixtral", 512, rope_theta=10000.0, sliding_window=20,
            num_local_experts=4, num_experts_per_tok=2, intermediate_size=40,
        ),
        seed=1601, num_tokens=96, embed_std=0.1, fused=True,
        misreadings=({"num_experts_per_tok": 1}, {"sliding_window": 19}),
    ),
    Family(
        "gpt_oss_bf16",
        _tiny(
            "GptOssForCausalLM", "gpt_oss", 512, rope_theta=150000, initial_context_length=64, head_dim=16,
            num_attention_heads=4, intermediate_size=32, attention_bias=True,
            rope_scaling={
                "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0, "original_max_position_embeddings": 64,
                "rope_type": "yarn", "truncate": False,
            },
            sliding_window=20, layer_types=["sliding_attention", "full_attention"],
            num_local_experts=4, num_experts_per_tok=2, experts_per_token=2, swiglu_limit=1.5,
            quantization_config={
                "modules_to_not_convert": [
                    "model.layers.*.self_attn", "model.layers.*.mlp.router", "model.embed_tokens", "lm_head",
                ],
                "quant_method": "mxfp4",
            },
        ),
        seed=1701, num_tokens=96, embed_std=0.1, fused=True, biased=("q_proj", "k_proj", "v_proj", "o_proj"),
        misreadings=(
            {"num_experts_per_tok": 1}, {"sliding_window": 19}, {"swiglu_limit": 7.0},
        ),
    ),
]
