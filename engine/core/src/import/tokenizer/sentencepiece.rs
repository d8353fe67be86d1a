//! SentencePiece BPE (`tokenizer.ggml.model = llama`), as `tokenizer.json` of Llama 2 writes it.
//!
//! SentencePiece joins the neighbours whose union has the best score. `tokenizer.json` has an ordered
//! list of merges instead, so the list is derived: every way to cut a token in two tokens, the best
//! score first. The order among equal scores repeats transformers' `generate_merges`.

use serde_json::{Value, json};

use super::super::ImportError;
use super::super::gguf::Metadata;
use super::{Rules, Vocabulary, merges, token_type};

/// Longer tokens do not occur, and cutting one costs the square of its length.
const TOKEN_CHARS_MAX: usize = 512;

pub(super) fn rules(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Rules, ImportError> {
    const CHARSMAP: &str = "tokenizer.ggml.precompiled_charsmap";
    const WHITESPACE: &str = "tokenizer.ggml.remove_extra_whitespaces";
    if metadata.has(CHARSMAP) {
        return Err(ImportError::setting(CHARSMAP, "a normalisation table is not supported".to_owned()));
    }
    if metadata.bool(WHITESPACE)? == Some(true) {
        return Err(ImportError::setting(WHITESPACE, "removing extra spaces is not supported".to_owned()));
    }
    let add_prefix_space = metadata.bool("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let unk = vocabulary.unk.ok_or_else(|| ImportError::missing("tokenizer.ggml.unknown_token_id"))?;
    let merges = match merges(metadata, vocabulary)? {
        Some(merges) => merges,
        None => merges_from_scores(metadata, vocabulary)?,
    };

    let prepend = add_prefix_space.then(|| json!({"type": "Prepend", "prepend": "▁"}));
    let strip = add_prefix_space.then(|| json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    let spaces = json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"});
    let marks = json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "});
    let fallback = [marks, json!({"type": "ByteFallback"}), json!({"type": "Fuse"})];
    let normalizers: Vec<Value> = prepend.into_iter().chain([spaces]).collect();
    let decoders: Vec<Value> = fallback.into_iter().chain(strip).collect();
    Ok(Rules {
        normalizer: json!({"type": "Sequence", "normalizers": normalizers}),
        pre_tokenizer: Value::Null,
        decoder: json!({"type": "Sequence", "decoders": decoders}),
        merges,
        ignore_merges: false,
        unk_token: Some(vocabulary.token(unk).to_owned()),
        byte_fallback: Some(byte_fallback(vocabulary)?),
        add_bos: true,
    })
}

/// All 256 bytes have a token, or none has.
fn byte_fallback(vocabulary: &Vocabulary<'_>) -> Result<bool, ImportError> {
    let is_byte = |id: &u32| vocabulary.types.get(*id as usize) == Some(&token_type::BYTE);
    let bytes = (0..=255_u8).filter(|byte| vocabulary.ids.get(format!("<0x{byte:02X}>").as_str()).is_some_and(is_byte));
    match bytes.count() {
        256 => Ok(true),
        0 => Ok(false),
        found => {
            let reason = format!("{found} of 256 bytes have a token; all or none must");
            Err(ImportError::setting("tokenizer.ggml.tokens", reason))
        }
    }
}

fn merges_from_scores(metadata: &Metadata, vocabulary: &Vocabulary<'_>) -> Result<Vec<[String; 2]>, ImportError> {
    const SCORES: &str = "tokenizer.ggml.scores";
    let scores = metadata.f32s(SCORES)?.ok_or_else(|| ImportError::missing(SCORES))?;
    if scores.len() != vocabulary.types.len() {
        let reason = format!("{} scores for {} tokens", scores.len(), vocabulary.types.len());
        return Err(ImportError::setting(SCORES, reason));
    }
    if scores.iter().any(|score| score.is_nan()) {
        return Err(ImportError::setting(SCORES, "a score is not a number".to_owned()));
    }
    let mut cuts: Vec<(f32, usize, usize, &str, &str)> = Vec::new();
    for (id, token) in vocabulary.tokens.iter().take(vocabulary.len).enumerate() {
        // Only these are made of pieces; the others have names, not spellings.
        if !matches!(vocabulary.types[id], token_type::NORMAL | token_type::USER_DEFINED) {
            continue;
        }
        let chars = token.chars().count();
        if chars > TOKEN_CHARS_MAX {
            let reason = format!("token {id} has {chars} characters, more than {TOKEN_CHARS_MAX}");
            return Err(ImportError::setting("tokenizer.ggml.tokens", reason));
        }
        let first = cuts.len();
        for (index, (at, _)) in token.char_indices().enumerate().skip(1) {
            let (left, right) = token.split_at(at);
            if vocabulary.ids.contains_key(left) && vocabulary.ids.contains_key(right) {
                // Adding zero makes -0.0 and 0.0 equal, as they are in every other comparison.
                cuts.push((scores[id] + 0.0, index, chars - index, left, right));
            }
        }
        cuts[first..].sort_by_key(|(.., left, right)| (vocabulary.ids[left], vocabulary.ids[right]));
    }
    cuts.sort_by(|a, b| b.0.total_cmp(&a.0).then((b.1, b.2).cmp(&(a.1, a.2))));
    Ok(cuts.into_iter().map(|(.., left, right)| [left.to_owned(), right.to_owned()]).collect())
}
