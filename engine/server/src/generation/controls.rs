//! Fields that decide how an answer is made, with the same names in all APIs of the OpenAI kind.
//!
//! Unknown fields are passed over. A field that is known and asks for what this version or this run cannot do is refused by
//! its name: an ignored `seed` or `repeat_penalty` would be noticed by nobody.

use std::collections::BTreeMap;
use std::num::NonZeroUsize;

use engine_core::config::ModelConfig;
use engine_core::sampler::{SamplingParams, TOP_LOGPROBS_MAX};
use engine_core::session::Priority;
use engine_core::text::StopStrings;
use serde::Deserialize;
use serde_json::Value;
use utoipa::ToSchema;

use crate::error::ApiError;
use crate::input::Input;
use crate::served::{ServedModel, Shared};

/// Most choices of a request.
const CHOICES_MAX: usize = 128;

/// How an answer is made.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct Controls {
    /// The model, or a loaded adapter; without it, the model.
    pub(crate) model: Option<String>,
    /// Most tokens of the answer; without it, or with -1, until the context is full.
    pub(crate) max_tokens: Option<i64>,
    /// The same under its newer name.
    pub(crate) max_completion_tokens: Option<i64>,
    /// From 0, the most probable token, to 100.
    pub(crate) temperature: Option<f32>,
    /// Draw among the fewest tokens that reach this probability; 1 is off.
    pub(crate) top_p: Option<f32>,
    /// Draw among this many most probable tokens; 0 and -1 are off.
    pub(crate) top_k: Option<i64>,
    /// Draw among tokens at least this fraction as probable as the best; 0 is off.
    pub(crate) min_p: Option<f32>,
    /// The same seed gives the same answer; without it, or with -1, answers differ.
    pub(crate) seed: Option<i64>,
    /// Texts that end the answer.
    pub(crate) stop: Option<OneOrMany>,
    /// Send the answer as it comes.
    pub(crate) stream: Option<bool>,
    /// What a stream has beside the answer.
    pub(crate) stream_options: Option<StreamOptions>,
    /// Answers to the same prompt.
    pub(crate) n: Option<i64>,
    /// Experts that each token goes through.
    pub(crate) experts_per_token: Option<i64>,
    /// `interactive` goes before `background`.
    #[schema(value_type = Option<String>)]
    pub(crate) priority: Option<Priority>,
    /// Divides the logits of tokens that were there; 1 is off.
    #[serde(alias = "repeat_penalty")]
    pub(crate) repetition_penalty: Option<f32>,
    /// Taken once from the logits of tokens that were generated, from -2 to 2.
    pub(crate) presence_penalty: Option<f32>,
    /// Taken from the logits of tokens as often as they were generated, from -2 to 2.
    pub(crate) frequency_penalty: Option<f32>,
    /// Added to the logits of tokens: ids with numbers from -100 to 100.
    #[schema(value_type = Option<Object>)]
    pub(crate) logit_bias: Option<BiasField>,
    /// The answer goes on to its limit: tokens that would end it get a bias of -100.
    pub(crate) ignore_eos: Option<bool>,
    /// Adapters by their number in `GET /lora-adapters`, each with a factor.
    pub(crate) lora: Option<Vec<AdapterChoice>>,
}

/// What a stream has beside the answer.
#[derive(Debug, Default, Deserialize, ToSchema)]
pub(crate) struct StreamOptions {
    /// A last chunk says how many tokens there were.
    pub(crate) include_usage: Option<bool>,
}

/// An adapter of a request.
#[derive(Debug, Deserialize, ToSchema)]
pub(crate) struct AdapterChoice {
    /// Its number.
    id: usize,
    /// Factor of what it adds.
    scale: f32,
}

/// Biases as OpenAI has them, or as llama-server has.
#[derive(Clone, Debug, Deserialize)]
#[serde(untagged, expecting = "an object of token ids with numbers, or a list of pairs of them")]
pub(crate) enum BiasField {
    ByToken(BTreeMap<String, f32>),
    Pairs(Vec<(u32, f32)>),
}

/// A text or a list of texts.
#[derive(Clone, Debug, Deserialize, ToSchema)]
#[serde(untagged, expecting = "a text or a list of texts")]
pub(crate) enum OneOrMany {
    /// One.
    One(String),
    /// Some.
    Many(Vec<String>),
}

impl OneOrMany {
    pub(crate) fn into_vec(self) -> Vec<String> {
        match self {
            Self::One(text) => vec![text],
            Self::Many(texts) => texts,
        }
    }
}

impl Controls {
    pub(crate) fn streams(&self) -> bool {
        self.stream.unwrap_or(false)
    }

    pub(crate) fn includes_usage(&self) -> bool {
        self.stream_options.as_ref().and_then(|options| options.include_usage).unwrap_or(false)
    }

    pub(super) fn sampling(&self, model: &ServedModel) -> Result<SamplingParams, ApiError> {
        let plain = model.sampling;
        let top_k = match self.top_k {
            None => plain.top_k,
            Some(top_k) if top_k >= -1 => usize::try_from(top_k).unwrap_or(0),
            Some(top_k) => {
                return Err(ApiError::field("top_k", format!("`top_k` is {top_k}, but it must be at least -1 (off)")));
            }
        };
        let params = SamplingParams {
            temperature: self.temperature.unwrap_or(plain.temperature),
            top_k,
            top_p: self.top_p.unwrap_or(plain.top_p),
            min_p: self.min_p.unwrap_or(plain.min_p),
            seed: plain.seed,
            repetition_penalty: self.repetition_penalty.unwrap_or(plain.repetition_penalty),
            presence_penalty: self.presence_penalty.unwrap_or(plain.presence_penalty),
            frequency_penalty: self.frequency_penalty.unwrap_or(plain.frequency_penalty),
        };
        params.validate().map_err(|error| ApiError::field(error.field, error.to_string()))?;
        Ok(params)
    }

    /// The seed, where one was given.
    pub(super) fn seed(&self) -> Option<u64> {
        self.seed.filter(|seed| *seed != -1).map(|seed| seed as u64)
    }

    pub(super) fn stop(&self) -> Result<Vec<String>, ApiError> {
        let stop = self.stop.clone().map(OneOrMany::into_vec).unwrap_or_default();
        StopStrings::new(stop.clone()).map_err(|error| ApiError::field("stop", error.to_string()))?;
        Ok(stop)
    }

    pub(crate) fn n(&self) -> Result<usize, ApiError> {
        match self.n.map_or(Ok(1), usize::try_from) {
            Ok(n) if (1..=CHOICES_MAX).contains(&n) => Ok(n),
            _ => Err(ApiError::field("n", format!("`n` must be from 1 to {CHOICES_MAX}"))),
        }
    }

    pub(super) fn logit_bias(&self, model: &ServedModel) -> Result<Vec<(u32, f32)>, ApiError> {
        let wrong = |token: &str| ApiError::field("logit_bias", format!("`{token}` is no token id of this model"));
        let mut biases = match &self.logit_bias {
            None => Vec::new(),
            Some(BiasField::Pairs(pairs)) => pairs.clone(),
            Some(BiasField::ByToken(map)) => {
                let pair = |(token, bias): (&String, &f32)| Ok((token.parse().map_err(|_| wrong(token))?, *bias));
                map.iter().map(pair).collect::<Result<_, ApiError>>()?
            }
        };
        let vocab_size = model.tokenizer.vocab_size().min(model.config.vocab_size);
        for (token, bias) in &biases {
            if *token as usize >= vocab_size {
                return Err(wrong(&token.to_string()));
            }
            if !(-100.0..=100.0).contains(bias) {
                return Err(ApiError::field("logit_bias", format!("{bias} for token {token} is not from -100 to 100")));
            }
        }
        if self.ignore_eos.unwrap_or(false) {
            let ends = model.eos.iter().filter(|token| (**token as usize) < vocab_size);
            biases.retain(|(token, _)| !model.eos.contains(token));
            biases.extend(ends.map(|token| (*token, -100.0)));
        }
        Ok(biases)
    }

    pub(super) fn max_tokens(&self, model: &ServedModel, prompt: usize, prompt_field: &str) -> Result<usize, ApiError> {
        let asked = |name: &'static str, value: Option<i64>| match value {
            None | Some(-1) => Ok(None),
            Some(value) => match usize::try_from(value) {
                Ok(value) => Ok(Some(value)),
                Err(_) => Err(ApiError::field(name, format!("`{name}` is {value}, but it must be at least 0"))),
            },
        };
        let older = asked("max_tokens", self.max_tokens)?;
        let asked = asked("max_completion_tokens", self.max_completion_tokens)?.or(older);
        let room = model.ctx_size.saturating_sub(prompt);
        match asked {
            // A prompt that leaves no room for a single token has no answer.
            None if room == 0 => Err(ApiError::context(prompt, 1, model.ctx_size, prompt_field)),
            None => Ok(model.max_tokens.unwrap_or(room).min(room)),
            Some(asked) if asked > room => Err(ApiError::context(prompt, asked, model.ctx_size, prompt_field)),
            Some(asked) => Ok(asked),
        }
    }

    pub(super) fn experts_per_token(&self, model: &ServedModel) -> Result<Option<NonZeroUsize>, ApiError> {
        let Some(asked) = self.experts_per_token else { return Ok(None) };
        let most = experts_per_token_max(&model.config);
        match usize::try_from(asked).ok().and_then(NonZeroUsize::new) {
            Some(experts) if experts.get() <= most => Ok(Some(experts)),
            _ => {
                let why = match most {
                    0 => "this model has no experts".into(),
                    most => format!("{asked} were asked for, but requests of this run may have from 1 to {most}"),
                };
                Err(ApiError::unsupported("experts_per_token", why))
            }
        }
    }

    pub(super) fn adapters(&self, shared: &Shared) -> Result<Vec<(String, f32)>, ApiError> {
        let of_model = shared.adapters_of(self.model.as_deref())?;
        let Some(chosen) = &self.lora else { return Ok(of_model) };
        let loaded = shared.adapters();
        let mut adapters: Vec<(String, f32)> = Vec::new();
        for AdapterChoice { id, scale } in chosen {
            let Some(adapter) = loaded.get(*id) else {
                return Err(ApiError::field(
                    "lora",
                    format!("there is no adapter number {id}; {} are loaded", loaded.len()),
                ));
            };
            if !scale.is_finite() || adapters.iter().any(|(name, _)| *name == adapter.name) {
                return Err(ApiError::field("lora", "each adapter may be named once, with a finite scale"));
            }
            adapters.push((adapter.name.clone(), *scale));
        }
        adapters.retain(|(_, scale)| *scale != 0.0);
        Ok(adapters)
    }
}

/// So many probable tokens, or an error.
pub(crate) fn check_top_logprobs(top: Option<usize>, field: &str) -> Result<(), ApiError> {
    match top {
        Some(top) if top > TOP_LOGPROBS_MAX => {
            Err(ApiError::field(field, format!("`{field}` is {top}, but it may be up to {TOP_LOGPROBS_MAX}")))
        }
        _ => Ok(()),
    }
}

/// Most experts of a token that a request may ask for.
pub(crate) fn experts_per_token_max(config: &ModelConfig) -> usize {
    config.sparse_layers().map(|(_, sparse)| sparse.most_experts_per_tok).min().unwrap_or(0)
}

/// Whether a value asks for nothing.
type Neutral = fn(&Value) -> bool;

fn is_false(value: &Value) -> bool {
    matches!(value, Value::Bool(false))
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Array(list) => list.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}

fn is_zero(value: &Value) -> bool {
    value.as_f64() == Some(0.0)
}

fn is_one(value: &Value) -> bool {
    value.as_f64() == Some(1.0)
}

fn never(_: &Value) -> bool {
    false
}

fn is_text_only(value: &Value) -> bool {
    value.as_array().is_some_and(|list| list.iter().all(|entry| entry == "text"))
}

/// Told by those APIs whose answers have a place for it.
const ROUTER: &str = "return_router";

/// Fields that some server of this kind has, and this version has not: the name, when it asks for nothing, and what to do.
const UNSUPPORTED: [(&str, Neutral, &str); 31] = [
    ("audio", never, "this server gives text only"),
    ("modalities", is_text_only, "this server gives text only"),
    ("functions", is_empty, "this older field is not read; send `tools`"),
    ("function_call", |value| value == "none", "this older field is not read; send `tool_choice`"),
    ("web_search_options", never, "this server opens no connections"),
    ("suffix", is_empty, "text is not filled in here; leave the field out"),
    ("best_of", is_one, "send `n` and choose yourself"),
    ("use_beam_search", is_false, "tokens are drawn; there is no beam search"),
    ("prompt_embeds", never, "send text or tokens"),
    ("truncate_prompt_tokens", never, "a prompt is never cut; send a shorter one"),
    ("n_keep", is_zero, "a context is never shifted; send a shorter prompt"),
    ("n_discard", is_zero, "a context is never shifted; send a shorter prompt"),
    ("min_tokens", is_zero, "an answer may end at any token"),
    ("min_keep", is_zero, "leave the field out"),
    ("stop_token_ids", is_empty, "send texts, in `stop`"),
    ("typical_p", is_one, "there is no such filter here; `min_p` is"),
    ("tfs_z", is_one, "there is no such filter here; `min_p` is"),
    (
        "top_n_sigma",
        |value| value.as_f64().is_some_and(|value| value <= 0.0),
        "there is no such filter here; `min_p` is",
    ),
    ("xtc_probability", is_zero, "there is no such filter here"),
    ("mirostat", is_zero, "there is no such way of drawing here"),
    ("dynatemp_range", is_zero, "the temperature is one number here"),
    ("dry_multiplier", is_zero, "there is no such penalty here"),
    ("samplers", is_empty, "the order is top_k, top_p, min_p, temperature"),
    (ROUTER, is_false, "the experts of tokens are told by `/v1/chat/completions` and `/v1/completions`"),
    (
        "rope_freq_base",
        never,
        "rotary frequencies are those of the whole run: start the server with `--rope-freq-base`",
    ),
    ("rope_freq_scale", never, "rotary frequencies are those of the whole run: start the server with `--rope-scale`"),
    ("rope_scaling", never, "rotary frequencies are those of the whole run: start the server with `--rope-scaling`"),
    ("rope_scale", never, "rotary frequencies are those of the whole run: start the server with `--rope-scale`"),
    ("yarn_orig_ctx", never, "rotary frequencies are those of the whole run: start the server with `--yarn-orig-ctx`"),
    ("rope", never, "rotary frequencies are those of the whole run: start the server with the flags `--rope-…`"),
    ("image_data", is_empty, "this server reads text only"),
];

/// Refuses the first field that asks for what there is not, by name.
pub(crate) fn refuse_unsupported(input: &Input) -> Result<(), ApiError> {
    refuse_unsupported_of(|name| input.field(name), "")
}

/// The same where answers tell what routers chose.
pub(crate) fn refuse_unsupported_but_router(input: &Input) -> Result<(), ApiError> {
    refuse_unsupported_of(|name| if name == ROUTER { None } else { input.field(name) }, "")
}

/// The same for fields that stand under a `prefix`.
pub(crate) fn refuse_unsupported_of<'v>(
    field: impl Fn(&str) -> Option<&'v Value>,
    prefix: &str,
) -> Result<(), ApiError> {
    for (name, is_neutral, help) in UNSUPPORTED {
        if field(name).is_some_and(|value| !value.is_null() && !is_neutral(value)) {
            return Err(ApiError::unsupported(format!("{prefix}{name}"), help));
        }
    }
    Ok(())
}
