//! The file's vocabulary becomes `tokenizer.json` and `tokenizer_config.json`.
//!
//! A GGUF file holds tokens, merges and the *name* of a way to cut text, not the way itself. Cut a
//! little differently and every answer gets a little worse without any error. So only names whose
//! rules are known exactly are accepted, each with the rules of the original model's own
//! `tokenizer.json`, and what was written is loaded once by the library that will read it.

mod byte_level;
mod sentencepiece;

use std::collections::HashMap;

use serde::{Serialize, Serializer};
use serde_json::{Map, Value, json};

use super::ImportError;
use super::gguf::{Metadata, Strings};

const MERGES_MAX: usize = 1 << 22;

/// `tokenizer.ggml.token_type`.
mod token_type {
    pub(super) const NORMAL: i32 = 1;
    pub(super) const UNKNOWN: i32 = 2;
    pub(super) const CONTROL: i32 = 3;
    pub(super) const USER_DEFINED: i32 = 4;
    pub(super) const UNUSED: i32 = 5;
    pub(super) const BYTE: i32 = 6;
}

/// The tokenizer's files, and what other files say about it.
#[derive(Debug)]
pub(super) struct Tokenizer {
    pub(super) tokenizer_json: Vec<u8>,
    pub(super) tokenizer_config: Value,
    pub(super) bos: Option<u32>,
    /// Every token that ends a turn, the main one first.
    pub(super) eos: Vec<u32>,
    pub(super) pad: Option<u32>,
    pub(super) notes: Vec<String>,
}

/// Reads the tokenizer of a model with `vocab_size` rows in its embedding.
pub(super) fn read(
    metadata: &Metadata,
    vocab_size: u64,
    max_position_embeddings: u64,
) -> Result<Tokenizer, ImportError> {
    let vocabulary = Vocabulary::read(metadata, vocab_size)?;
    let mut notes = Vec::new();
    let rules = match metadata.string("tokenizer.ggml.model")? {
        Some("gpt2") => byte_level::rules(metadata, &vocabulary, &mut notes)?,
        Some("llama") => sentencepiece::rules(metadata, &vocabulary)?,
        None => return Err(ImportError::missing("tokenizer.ggml.model")),
        Some(other) => {
            let reason = format!("tokenizer `{other}` is not supported; gpt2 and llama are");
            return Err(ImportError::setting("tokenizer.ggml.model", reason));
        }
    };
    let add_bos = metadata.bool("tokenizer.ggml.add_bos_token")?.unwrap_or(rules.add_bos);
    let add_eos = metadata.bool("tokenizer.ggml.add_eos_token")?.unwrap_or(false);

    let tokenizer_json = TokenizerJson {
        version: "1.0",
        truncation: None,
        padding: None,
        added_tokens: vocabulary.added_tokens(),
        normalizer: rules.normalizer,
        pre_tokenizer: rules.pre_tokenizer,
        post_processor: post_processor(&vocabulary, add_bos, add_eos)?,
        decoder: rules.decoder,
        model: Bpe {
            kind: "BPE",
            dropout: None,
            unk_token: rules.unk_token,
            continuing_subword_prefix: None,
            end_of_word_suffix: None,
            fuse_unk: rules.byte_fallback.is_some(),
            byte_fallback: rules.byte_fallback.unwrap_or(false),
            ignore_merges: rules.ignore_merges,
            vocab: &vocabulary,
            merges: rules.merges,
        },
    };
    let tokenizer_json = serde_json::to_vec_pretty(&tokenizer_json)
        .map_err(|error| ImportError::Tokenizer { reason: error.to_string() })?;
    vocabulary.verify(&tokenizer_json)?;

    let mut config = Map::new();
    config.insert("tokenizer_class".to_owned(), json!("PreTrainedTokenizerFast"));
    config.insert("add_bos_token".to_owned(), json!(add_bos));
    config.insert("add_eos_token".to_owned(), json!(add_eos));
    // A padding token that is ordinary text would be cut out of texts as if it were special.
    let pad = vocabulary.pad.filter(|id| vocabulary.is_added(*id));
    for (name, id) in [("bos", vocabulary.bos), ("eos", vocabulary.eos), ("unk", vocabulary.unk), ("pad", pad)] {
        let token = id.filter(|id| vocabulary.is_added(*id)).map(|id| vocabulary.token(id));
        config.insert(format!("{name}_token"), json!(token));
    }
    config.insert("model_max_length".to_owned(), json!(max_position_embeddings));
    config.insert("clean_up_tokenization_spaces".to_owned(), json!(false));
    if let Some(template) = chat_template(metadata)? {
        config.insert("chat_template".to_owned(), template);
    } else {
        notes.push("the file has no chat template: `--chat` and the chat endpoints will need one".to_owned());
    }
    let added: Map<String, Value> =
        vocabulary.added_tokens().into_iter().map(|token| (token.id.to_string(), token.without_id())).collect();
    config.insert("added_tokens_decoder".to_owned(), Value::Object(added));

    let eos = vocabulary.eos.into_iter().chain(vocabulary.more_eos.iter().copied()).collect();
    let (bos, tokenizer_config) = (vocabulary.bos, Value::Object(config));
    Ok(Tokenizer { tokenizer_json, tokenizer_config, bos, eos, pad, notes })
}

/// How text is cut and put together again.
struct Rules {
    normalizer: Value,
    pre_tokenizer: Value,
    decoder: Value,
    merges: Vec<[String; 2]>,
    ignore_merges: bool,
    unk_token: Option<String>,
    /// SentencePiece only: whether characters without a token become bytes.
    byte_fallback: Option<bool>,
    /// Whether texts begin with the bos token where the file does not say.
    add_bos: bool,
}

/// Tokens, their types and their roles.
struct Vocabulary<'a> {
    tokens: &'a Strings,
    /// How many tokens are written: trailing unused ones only pad the embedding.
    len: usize,
    types: Vec<i32>,
    ids: HashMap<&'a str, u32>,
    bos: Option<u32>,
    eos: Option<u32>,
    /// Further tokens that end a turn or a message.
    more_eos: Vec<u32>,
    unk: Option<u32>,
    pad: Option<u32>,
}

impl<'a> Vocabulary<'a> {
    fn read(metadata: &'a Metadata, vocab_size: u64) -> Result<Self, ImportError> {
        const TOKENS: &str = "tokenizer.ggml.tokens";
        const TYPES: &str = "tokenizer.ggml.token_type";
        let tokens = metadata.strings(TOKENS)?.ok_or_else(|| ImportError::missing(TOKENS))?;
        if tokens.is_empty() || tokens.len() as u64 > vocab_size {
            let reason = format!("{} tokens do not fit the {vocab_size} rows of the embedding", tokens.len());
            return Err(ImportError::setting(TOKENS, reason));
        }
        let types = metadata.i32s(TYPES)?.ok_or_else(|| ImportError::missing(TYPES))?;
        if types.len() != tokens.len() {
            let reason = format!("{} types for {} tokens", types.len(), tokens.len());
            return Err(ImportError::setting(TYPES, reason));
        }
        if let Some(found) = types.iter().find(|found| !(token_type::NORMAL..=token_type::BYTE).contains(*found)) {
            return Err(ImportError::setting(TYPES, format!("{found} is no token type")));
        }
        let len = types.iter().rposition(|found| *found != token_type::UNUSED).map_or(0, |last| last + 1);
        let mut ids = HashMap::with_capacity(len);
        for (id, token) in tokens.iter().take(len).enumerate() {
            if token.is_empty() {
                return Err(ImportError::setting(TOKENS, format!("token {id} is empty")));
            }
            if let Some(first) = ids.insert(token, id as u32) {
                return Err(ImportError::setting(TOKENS, format!("tokens {first} and {id} are both {token:?}")));
            }
        }
        let role = |key: &'static str| match metadata.count(key)? {
            Some(id) if id >= len as u64 => {
                Err(ImportError::setting(key, format!("{id} is not among the {len} tokens")))
            }
            id => Ok(id.map(|id| id as u32)),
        };
        let eos = role("tokenizer.ggml.eos_token_id")?;
        let mut more_eos: Vec<u32> = Vec::new();
        for key in ["tokenizer.ggml.eot_token_id", "tokenizer.ggml.eom_token_id"] {
            more_eos.extend(role(key)?.filter(|id| Some(*id) != eos && !more_eos.contains(id)));
        }
        Ok(Self {
            tokens,
            len,
            ids,
            bos: role("tokenizer.ggml.bos_token_id")?,
            eos,
            more_eos,
            unk: role("tokenizer.ggml.unknown_token_id")?,
            pad: role("tokenizer.ggml.padding_token_id")?,
            types,
        })
    }

    fn token(&self, id: u32) -> &'a str {
        self.tokens.get(id as usize).unwrap_or_default()
    }

    /// Special tokens never come from the pieces of a text, only from their whole name.
    fn is_special(&self, id: u32) -> bool {
        matches!(self.types.get(id as usize), Some(&(token_type::UNKNOWN | token_type::CONTROL)))
            || [self.bos, self.eos].contains(&Some(id))
            || self.more_eos.contains(&id)
    }

    fn is_added(&self, id: u32) -> bool {
        self.is_special(id) || self.types.get(id as usize) == Some(&token_type::USER_DEFINED)
    }

    fn added_tokens(&self) -> Vec<AddedToken<'a>> {
        let ids = (0..self.len as u32).filter(|id| self.is_added(*id));
        ids.map(|id| AddedToken {
            id,
            content: self.token(id),
            single_word: false,
            lstrip: false,
            rstrip: false,
            normalized: false,
            special: self.is_special(id),
        })
        .collect()
    }

    /// Whether `left` and `right` are tokens that merge into a token.
    fn can_merge(&self, left: &str, right: &str) -> bool {
        [left, right, &[left, right].concat()].iter().all(|part| self.ids.contains_key(*part))
    }

    /// Loads what was written and asks it for every added token.
    fn verify(&self, tokenizer_json: &[u8]) -> Result<(), ImportError> {
        let tokenizer = tokenizers::Tokenizer::from_bytes(tokenizer_json)
            .map_err(|error| ImportError::Tokenizer { reason: error.to_string() })?;
        for token in self.added_tokens() {
            if tokenizer.token_to_id(token.content) != Some(token.id) {
                let reason = format!("token {:?} does not keep its id {}", token.content, token.id);
                return Err(ImportError::Tokenizer { reason });
            }
        }
        Ok(())
    }
}

impl Serialize for Vocabulary<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(self.tokens.iter().take(self.len).zip(0_u32..))
    }
}

#[derive(Serialize)]
struct AddedToken<'a> {
    id: u32,
    content: &'a str,
    single_word: bool,
    lstrip: bool,
    rstrip: bool,
    normalized: bool,
    special: bool,
}

impl AddedToken<'_> {
    fn without_id(&self) -> Value {
        json!({
            "content": self.content,
            "lstrip": self.lstrip,
            "normalized": self.normalized,
            "rstrip": self.rstrip,
            "single_word": self.single_word,
            "special": self.special,
        })
    }
}

#[derive(Serialize)]
struct TokenizerJson<'a> {
    version: &'a str,
    truncation: Option<()>,
    padding: Option<()>,
    added_tokens: Vec<AddedToken<'a>>,
    normalizer: Value,
    pre_tokenizer: Value,
    post_processor: Value,
    decoder: Value,
    model: Bpe<'a>,
}

#[derive(Serialize)]
struct Bpe<'a> {
    #[serde(rename = "type")]
    kind: &'a str,
    dropout: Option<f32>,
    unk_token: Option<String>,
    continuing_subword_prefix: Option<&'a str>,
    end_of_word_suffix: Option<&'a str>,
    fuse_unk: bool,
    byte_fallback: bool,
    ignore_merges: bool,
    vocab: &'a Vocabulary<'a>,
    merges: Vec<[String; 2]>,
}

/// Puts bos before and eos after a text, as the file asks.
fn post_processor(vocabulary: &Vocabulary<'_>, add_bos: bool, add_eos: bool) -> Result<Value, ImportError> {
    let needed = |wanted: bool, id: Option<u32>, key: &'static str| match id {
        _ if !wanted => Ok(None),
        Some(id) => Ok(Some(id)),
        None => Err(ImportError::missing(key)),
    };
    let bos = needed(add_bos, vocabulary.bos, "tokenizer.ggml.bos_token_id")?;
    let eos = needed(add_eos, vocabulary.eos, "tokenizer.ggml.eos_token_id")?;
    if bos.is_none() && eos.is_none() {
        return Ok(Value::Null);
    }
    let special = |id: u32, type_id: u32| json!({"SpecialToken": {"id": vocabulary.token(id), "type_id": type_id}});
    let around = |sequence: &str, type_id: u32| {
        let text = json!({"Sequence": {"id": sequence, "type_id": type_id}});
        let (bos, eos) = (bos.map(|id| special(id, type_id)), eos.map(|id| special(id, type_id)));
        bos.into_iter().chain([text]).chain(eos).collect::<Vec<_>>()
    };
    let (single, second) = (around("A", 0), around("B", 1));
    let pair: Vec<&Value> = single.iter().chain(&second).collect();
    let tokens: Map<String, Value> = bos
        .into_iter()
        .chain(eos)
        .map(|id| {
            let token = vocabulary.token(id);
            (token.to_owned(), json!({"id": token, "ids": [id], "tokens": [token]}))
        })
        .collect();
    Ok(json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": tokens}))
}

/// One template as text, or all of them with their names where the file has several.
fn chat_template(metadata: &Metadata) -> Result<Option<Value>, ImportError> {
    const KEY: &str = "tokenizer.chat_template";
    let default = metadata.string(KEY)?;
    let mut named = Vec::new();
    for key in metadata.keys() {
        if let Some(name) = key.strip_prefix("tokenizer.chat_template.") {
            named.push(json!({"name": name, "template": metadata.string(key)?}));
        }
    }
    Ok(match default {
        _ if named.is_empty() => default.map(|template| json!(template)),
        _ => {
            let default = default.map(|template| json!({"name": "default", "template": template}));
            Some(Value::Array(default.into_iter().chain(named).collect()))
        }
    })
}

/// The file's merges, each checked against the vocabulary.
fn merges(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Option<Vec<[String; 2]>>, ImportError> {
    const MERGES: &str = "tokenizer.ggml.merges";
    let Some(lines) = metadata.strings(MERGES)? else { return Ok(None) };
    if lines.len() > MERGES_MAX {
        return Err(ImportError::setting(MERGES, format!("{} merges are too many", lines.len())));
    }
    let merge = |(index, line): (usize, &str)| match line.split_once(' ') {
        Some((left, right)) if vocabulary.can_merge(left, right) => Ok([left.to_owned(), right.to_owned()]),
        _ => {
            let reason = format!("merge {index}, {line:?}, is not two tokens that make a third");
            Err(ImportError::setting(MERGES, reason))
        }
    };
    lines.iter().enumerate().map(merge).collect::<Result<Vec<_>, _>>().map(Some)
}
