//! What each token adds to the text, as bytes.
//!
//! A token is bytes, not text: one emoji can be four tokens. The decoders of today's models give each token its bytes
//! whatever stands beside it, save at the very start of the text, so a table built once at load replaces decoding a
//! window of ids again for every token: constant cost, and the pieces of a stream are by construction the pieces of the
//! whole. Decoders that look at their neighbours (WordPiece, CTC) belong to other kinds of models and are refused.
//!
//! One difference to the `tokenizers` library is meant: where its ByteFallback meets one invalid byte it gives up the
//! whole run of byte tokens, which would take back characters that were already shown. Here what is valid stays.

use serde_json::{Map, Value};

/// How tokens become bytes: `decoder` of tokenizer.json, reduced to steps.
#[derive(Debug, PartialEq)]
pub(super) struct Decoder {
    steps: Vec<Step>,
    /// This many of this byte are dropped from the start of the text.
    pub(super) strip: Option<(u8, usize)>,
    /// In the first token, this character is dropped instead of becoming a space (Metaspace).
    pub(super) first_token_drops: Option<char>,
}

#[derive(Debug, PartialEq)]
enum Step {
    ByteLevel,
    Replace { pattern: String, content: String },
    ByteFallback,
}

impl Decoder {
    /// Errors name what is not supported.
    pub(super) fn new(decoder: &Value) -> Result<Self, String> {
        let mut this = Self { steps: Vec::new(), strip: None, first_token_drops: None };
        this.add(decoder, 0)?;
        Ok(this)
    }

    fn add(&mut self, decoder: &Value, depth: usize) -> Result<(), String> {
        let Value::Object(fields) = decoder else { return Err("none".into()) };
        let kind = fields.get("type").and_then(Value::as_str).unwrap_or("without a type");
        // After Strip only the start of the whole text is known, no longer that of a token.
        if self.strip.is_some() {
            return Err(format!("{kind} after Strip"));
        }
        match kind {
            "Sequence" if depth == 0 => {
                let steps = fields.get("decoders").and_then(Value::as_array).ok_or("Sequence without decoders")?;
                steps.iter().try_for_each(|step| self.add(step, depth + 1))?;
            }
            "ByteLevel" => self.steps.push(Step::ByteLevel),
            "ByteFallback" => self.steps.push(Step::ByteFallback),
            "Fuse" => {}
            "Replace" => {
                let pattern = fields.get("pattern").and_then(|p| p.get("String")).and_then(Value::as_str);
                let content = fields.get("content").and_then(Value::as_str);
                match (pattern, content) {
                    (Some(pattern), Some(content)) if !pattern.is_empty() => {
                        self.steps.push(Step::Replace { pattern: pattern.into(), content: content.into() });
                    }
                    _ => return Err("Replace with something else than a string pattern".into()),
                }
            }
            "Strip" => {
                let [start, stop] = ["start", "stop"].map(|name| fields.get(name).and_then(Value::as_u64));
                let content = single_char(fields, "content").and_then(|c| u8::try_from(c).ok()).filter(u8::is_ascii);
                match (content, start, stop) {
                    (Some(content), Some(start), Some(0)) => self.strip = Some((content, start as usize)),
                    _ => return Err("Strip of something else than leading ASCII characters".into()),
                }
            }
            "Metaspace" => {
                let replacement = single_char(fields, "replacement").ok_or("Metaspace without a replacement")?;
                let scheme = fields.get("prepend_scheme").and_then(Value::as_str);
                // Before `prepend_scheme` there was `add_prefix_space`, true unless given.
                let legacy = fields.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
                if scheme.map_or(legacy, |scheme| scheme != "never") {
                    self.first_token_drops = Some(replacement);
                }
                self.steps.push(Step::Replace { pattern: replacement.into(), content: " ".into() });
            }
            other => return Err(other.into()),
        }
        Ok(())
    }

    /// The bytes that a token with this text stands for, anywhere but at the start.
    pub(super) fn bytes(&self, token: &str) -> Vec<u8> {
        let mut text = token.to_owned();
        for step in &self.steps {
            match step {
                Step::Replace { pattern, content } => text = text.replace(pattern, content),
                Step::ByteFallback => {
                    if let Some(byte) = byte_token(&text) {
                        return vec![byte];
                    }
                }
                Step::ByteLevel => {
                    // Added tokens are plain text and may hold characters that stand for no byte.
                    let bytes: Option<Vec<u8>> = text.chars().map(byte_of_char).collect();
                    return bytes.unwrap_or_else(|| text.into_bytes());
                }
            }
        }
        text.into_bytes()
    }
}

fn single_char(fields: &Map<String, Value>, name: &str) -> Option<char> {
    let mut chars = fields.get(name)?.as_str()?.chars();
    chars.next().filter(|_| chars.next().is_none())
}

/// `<0x0A>` is the byte 10.
fn byte_token(token: &str) -> Option<u8> {
    let digits = token.strip_prefix("<0x")?.strip_suffix('>')?;
    (digits.len() == 2 && digits.bytes().all(|b| b.is_ascii_hexdigit()))
        .then(|| u8::from_str_radix(digits, 16).ok())
        .flatten()
}

/// GPT-2's byte alphabet: printable Latin-1 characters stand for themselves, the other 68 bytes, in order, for U+0100 on.
fn byte_of_char(c: char) -> Option<u8> {
    match u32::from(c) {
        code @ (0x21..=0x7E | 0xA1..=0xAC | 0xAE..=0xFF) => Some(code as u8),
        code @ 0x100..=0x143 => {
            let index = (code - 0x100) as u8;
            Some(match index {
                0..=0x20 => index,
                0x21..=0x42 => index - 0x21 + 0x7F,
                _ => 0xAD,
            })
        }
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn every_byte_has_exactly_one_character() {
        let mut seen = [0; 256];
        for code in 0..0x200 {
            if let Some(byte) = char::from_u32(code).and_then(byte_of_char) {
                seen[usize::from(byte)] += 1;
            }
        }
        assert_eq!(seen, [1; 256]);
    }

    #[test]
    fn byte_level_tokens_are_bytes_and_added_tokens_are_text() {
        let decoder = Decoder::new(&json!({"type": "ByteLevel"})).expect("supported");
        assert_eq!(decoder.bytes("Ġhi"), b" hi");
        assert_eq!(decoder.bytes("Ð"), [0xD0]);
        assert_eq!(decoder.bytes("<｜end｜>"), "<｜end｜>".as_bytes());
    }

    #[test]
    fn sentencepiece_tokens_are_text_or_one_byte() {
        let decoder = Decoder::new(&json!({"type": "Sequence", "decoders": [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
            {"type": "Strip", "content": " ", "start": 1, "stop": 0},
        ]}))
        .expect("supported");
        assert_eq!(decoder.bytes("▁a▁b"), b" a b");
        assert_eq!(decoder.bytes("<0xE2>"), [0xE2]);
        assert_eq!(decoder.bytes("<0xZZ>"), b"<0xZZ>");
        assert_eq!(decoder.bytes("<0x+1>"), b"<0x+1>");
        assert_eq!(decoder.strip, Some((b' ', 1)));
    }

    #[test]
    fn decoders_that_look_around_are_refused_by_name() {
        for (decoder, name) in [
            (json!(null), "none"),
            (json!({"type": "WordPiece", "prefix": "##", "cleanup": true}), "WordPiece"),
            (json!({"type": "Strip", "content": " ", "start": 0, "stop": 1}), "Strip"),
            (json!({"type": "Replace", "pattern": {"Regex": "a+"}, "content": ""}), "Replace"),
            (json!({"type": "Sequence", "decoders": [{"type": "Sequence", "decoders": []}]}), "Sequence"),
        ] {
            let error = Decoder::new(&decoder).expect_err(name);
            assert!(error.contains(name), "{error}");
        }
    }
}
