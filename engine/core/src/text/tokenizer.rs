//! The tokenizer of a model: text to ids by the `tokenizers` library, ids to bytes by a table.
//!
//! The library decides what a text's tokens are, because only it agrees with how the model was trained. It was not made
//! for hostile files, so its input is bounded and a panic in it becomes an error. Truncation and padding that a
//! tokenizer.json may ask for are switched off: a prompt is never cut silently.

use std::collections::HashSet;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::Path;
use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value};
use tokenizers::{DecoderWrapper, ModelWrapper, PostProcessorWrapper, PreTokenizerWrapper, TokenizerImpl};

use super::bounded_file::{describe, read, read_json_object};
use super::decoder::Decoder;
use super::masking::{Masking, Unmasking};
use super::{Detokenizer, TextError};

type Inner = TokenizerImpl<ModelWrapper, Unmasking, PreTokenizerWrapper, PostProcessorWrapper, DecoderWrapper>;

/// The largest known one (gpt-oss) has 28 MB.
const TOKENIZER_BYTES_MAX: u64 = 256 << 20;
pub(super) const CONFIG_BYTES_MAX: u64 = 16 << 20;
/// About four times what a context of a million tokens holds.
const ENCODE_BYTES_MAX: usize = 16 << 20;
/// A mark and its line breaks, where each character is a token.
const PROMPT_END_TOKENS: usize = 32;
/// Ids index a table; the largest vocabularies have 2^18.
const VOCAB_SIZE_MAX: usize = 1 << 24;

/// A model's tokenizer. Cheap to share by reference, never changed after it was read.
pub struct Tokenizer {
    inner: Inner,
    masking: Arc<Masking>,
    /// The first special token that masking cannot hide from this tokenizer's normaliser.
    unprotectable: Option<String>,
    decoder: Decoder,
    /// Bytes of token `id` are `piece_bytes[piece_ends[id - 1]..piece_ends[id]]`.
    piece_bytes: Vec<u8>,
    piece_ends: Vec<u32>,
    /// By id: absent ids have no text at all, special ones are left out of texts for people.
    kinds: Vec<Kind>,
    eos_token_ids: Vec<u32>,
    special_token_texts: Map<String, Value>,
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Absent,
    Text,
    Special,
}

/// The part of tokenizer.json that the library does not show.
#[derive(Deserialize)]
struct DecoderField {
    #[serde(default)]
    decoder: Value,
}

impl Tokenizer {
    /// Reads `tokenizer.json` and, if present, `tokenizer_config.json`.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let path = dir.join("tokenizer.json");
        let bytes = read(&path, TOKENIZER_BYTES_MAX)?.ok_or_else(|| TextError::Missing {
            path: path.clone(),
            help: "a checkpoint in Hugging Face's layout has it beside its weights; if only `tokenizer.model` is there, \
                   convert it with transformers (AutoTokenizer … save_pretrained)",
        })?;
        let config_path = dir.join("tokenizer_config.json");
        let config = read_json_object(&config_path, CONFIG_BYTES_MAX)?.unwrap_or_default();
        Self::new(&path, &bytes, &config_path, config)
    }

    fn new(path: &Path, bytes: &[u8], config_path: &Path, config: Map<String, Value>) -> Result<Self, TextError> {
        let malformed = |reason: String| TextError::Malformed { path: path.to_owned(), reason };
        // The library indexes and unwraps while it builds a vocabulary; nothing of ours is half-changed by a panic.
        let mut inner: Inner = catch_unwind(|| serde_json::from_slice(bytes))
            .map_err(|_| TextError::Panicked { during: "reading tokenizer.json" })?
            .map_err(|error| malformed(error.to_string()))?;
        let DecoderField { decoder } = serde_json::from_slice(bytes).map_err(|error| malformed(error.to_string()))?;
        let decoder = Decoder::new(&decoder)
            .map_err(|decoder| TextError::UnsupportedDecoder { path: path.to_owned(), decoder })?;

        inner.with_padding(None);
        inner.with_truncation(None).map_err(|error| malformed(error.to_string()))?;

        let specials: Vec<String> = {
            let added = inner.get_added_vocabulary().get_added_tokens_decoder();
            let mut specials: Vec<_> = added.values().filter(|t| t.special).map(|t| t.content.clone()).collect();
            specials.sort_unstable();
            specials
        };
        let too_varied = || malformed("its special tokens begin with thousands of different characters".into());
        let masking = Arc::new(Masking::new(specials).ok_or_else(too_varied)?);
        let then = inner.get_normalizer().and_then(|n| n.then.clone());
        catch_unwind(AssertUnwindSafe(|| {
            inner.with_normalizer(Some(Unmasking { masking: masking.clone(), then })).map(|_| ())
        }))
        .map_err(|_| TextError::Panicked { during: "reading tokenizer.json" })?
        .map_err(|error| malformed(error.to_string()))?;

        let ids: HashSet<u32> = inner.get_vocab(true).into_values().collect();
        let vocab_size = ids.iter().max().map_or(0, |&id| id as usize + 1);
        if vocab_size == 0 || vocab_size > VOCAB_SIZE_MAX {
            return Err(malformed(format!("its largest id is not in 0..{VOCAB_SIZE_MAX}")));
        }
        let mut this = Self {
            inner,
            masking,
            unprotectable: None,
            decoder,
            piece_bytes: Vec::new(),
            piece_ends: Vec::with_capacity(vocab_size),
            kinds: vec![Kind::Absent; vocab_size],
            eos_token_ids: Vec::new(),
            special_token_texts: Map::new(),
        };
        for id in 0..vocab_size as u32 {
            if let Some(token) = ids.contains(&id).then(|| this.inner.id_to_token(id)).flatten() {
                let special = this.inner.get_added_vocabulary().is_special_token(&token);
                this.kinds[id as usize] = if special { Kind::Special } else { Kind::Text };
                this.piece_bytes.extend(this.decoder.bytes(&token));
            }
            let end = u32::try_from(this.piece_bytes.len()).map_err(|_| malformed("its tokens are too long".into()))?;
            this.piece_ends.push(end);
        }
        this.read_config(config_path, config)?;
        this.unprotectable = this.first_unprotectable()?;
        Ok(this)
    }

    fn read_config(&mut self, path: &Path, config: Map<String, Value>) -> Result<(), TextError> {
        for (field, value) in config {
            if !field.ends_with("_token") {
                continue;
            }
            let text = match &value {
                Value::Null | Value::Bool(_) => continue, // `add_bos_token` and the like
                Value::String(text) => Some(text.as_str()),
                Value::Object(token) => token.get("content").and_then(Value::as_str),
                _ => None,
            };
            let Some(text) = text else {
                let found = describe(&value);
                return Err(TextError::Field { path: path.to_owned(), field, expected: "a string or a token", found });
            };
            if field == "eos_token" {
                self.eos_token_ids.extend(self.inner.token_to_id(text));
            }
            self.special_token_texts.insert(field, text.into());
        }
        Ok(())
    }

    /// Tries on every special token whether its quoted text stays text.
    fn first_unprotectable(&self) -> Result<Option<String>, TextError> {
        for special in self.masking.specials() {
            let ids = self.encode_masked(&self.masking.mask(special))?;
            if ids.iter().any(|&id| self.is_special(id)) {
                return Ok(Some(special.clone()));
            }
        }
        Ok(None)
    }

    /// Ids of a text in which control tokens count, such as a rendered prompt. With `add_special` the tokenizer's
    /// post-processor adds what it adds (usually a begin-of-text token); chat templates write it themselves.
    pub fn encode(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        self.encode_as_is(&self.masking.escape(text), add_special)
    }

    /// Ids of a text that comes from somebody else: `<|im_end|>` in it becomes the characters `<`, `|`, … and never the
    /// token.
    pub fn encode_text_only(&self, text: &str) -> Result<Vec<u32>, TextError> {
        self.check_protectable()?;
        self.encode_masked(&self.masking.mask(text))
    }

    /// Ids of a text some parts of which went through [`Masking::mask`].
    pub(super) fn encode_masked(&self, masked: &str) -> Result<Vec<u32>, TextError> {
        self.encode_as_is(masked, false)
    }

    pub(super) fn check_protectable(&self) -> Result<(), TextError> {
        self.unprotectable.clone().map_or(Ok(()), |token| Err(TextError::Unprotectable { token }))
    }

    fn encode_as_is(&self, text: &str, add_special: bool) -> Result<Vec<u32>, TextError> {
        if text.len() > ENCODE_BYTES_MAX {
            return Err(TextError::TextTooLong { bytes: text.len(), max_bytes: ENCODE_BYTES_MAX });
        }
        // Regular expressions of the pre-tokenizer may give up on some texts, and the library unwraps that. Encoding
        // only reads, but for a cache behind a lock.
        catch_unwind(AssertUnwindSafe(|| self.inner.encode_fast(text, add_special)))
            .map_err(|_| TextError::Panicked { during: "encoding a text" })?
            .map(|encoding| encoding.get_ids().to_vec())
            .map_err(|error| TextError::Encode { reason: error.to_string() })
    }

    /// The text of ids: what [`Detokenizer`] gives piece by piece.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String, TextError> {
        let mut detokenizer = Detokenizer::new(self, skip_special);
        let mut text = String::new();
        for &id in ids {
            text += &detokenizer.push(id)?;
        }
        Ok(text + &detokenizer.finish())
    }

    /// The last characters of a prompt, control tokens with them: whether a template has opened the thoughts, a
    /// [`SpeechParser`](super::SpeechParser) sees there.
    pub fn decode_end(&self, ids: &[u32]) -> Result<String, TextError> {
        self.decode(&ids[ids.len().saturating_sub(PROMPT_END_TOKENS)..], false)
    }

    /// One more than the largest id. The model's own `vocab_size` is often larger; those rows are padding and must not be
    /// sampled.
    pub fn vocab_size(&self) -> usize {
        self.kinds.len()
    }

    /// What the token adds to a text, not always whole characters; `None` if no token has this id.
    pub fn token_bytes(&self, id: u32) -> Option<&[u8]> {
        let index = id as usize;
        self.kinds.get(index).filter(|&&kind| kind != Kind::Absent)?;
        let start = index.checked_sub(1).map_or(0, |before| self.piece_ends[before] as usize);
        Some(&self.piece_bytes[start..self.piece_ends[index] as usize])
    }

    /// The token as tokenizer.json spells it (`Ġhello`).
    pub fn token_text(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a token that is spelled like this in tokenizer.json.
    pub fn token_id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Control tokens, which texts for people leave out. `<think>` and `<tool_call>` are not special in most models.
    pub fn is_special(&self, id: u32) -> bool {
        self.kinds.get(id as usize) == Some(&Kind::Special)
    }

    /// The end-of-sequence token that tokenizer_config.json names. generation_config.json may know more:
    /// [`GenerationDefaults::stop_token_ids`](super::GenerationDefaults::stop_token_ids) joins them.
    pub fn eos_token_ids(&self) -> &[u32] {
        &self.eos_token_ids
    }

    pub(super) fn masking(&self) -> &Masking {
        &self.masking
    }

    pub(super) fn decoder(&self) -> &Decoder {
        &self.decoder
    }
}

impl std::fmt::Debug for Tokenizer {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Tokenizer").field("vocab_size", &self.vocab_size()).finish_non_exhaustive()
    }
}
