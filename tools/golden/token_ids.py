#!/usr/bin/env python3
"""Ids that transformers' tokenizers give 10,000 lines: writes tests/golden/tokenizers/expected.json.

    tools/golden/fetch_tokenizers.py && .venv/bin/python tools/golden/token_ids.py

A line is made of fragments by a generator that is a few lines in any language (tests/tokenizers.rs
has it in Rust), so neither lines nor ids need to be kept: a digest of every hundred lines tells
where the first difference is.
"""

import json
import struct

import tokenizers
import transformers
from transformers import AutoTokenizer

from checkpoint import write_json
from fetch_tokenizers import PACKAGES, TARGET
from make import GOLDEN

FOLDER = GOLDEN / "tokenizers"
LINES = 10_000
LINES_A_DIGEST = 100
MASK = (1 << 64) - 1

FRAGMENTS = (
    """the and of with what they hive winter honey queen night report notes paragraph understanding
    internationalisation Don't it's we'll I'm THEY'RE naïve café über Straße señor Ångström
    и в на что пчела улей зимой мёд ночью заметка отчёт понимание переписывали высокопревосходительство ЁЖИК
    Калибровка поста №5 съёмка бір таңба україна ї є ґ
    日本語 中文字符 한국어 عربي עברית हिन्दी ไทย ελληνικά ქართული Հայերեն
    0 1 7 12 007 123 1234 12345 1234567890 3.14159 1e-5 0xFF 2026-11-22 23:30 10% 1/2 ½ ² Ⅷ ٣٤
    . , ; : ! ? ... -- — – - _ ( ) [ ] { } < > / \\ | " ' ` ~ @ # $ % ^ & * + = « » “ ” ‘ ’ … № § ° € £ → ≤ ∑
    fn let mut impl -> => :: println! &'a #[derive(Debug)] == != += <= && || // /* */ ```rust </div> <b> &amp; https://example.org/a?b=c#d
    def return self.x __init__ lambda None snake_case camelCase SCREAMING_CASE kebab-case x86_64 v2.0.1 a@b.org
    😀 🐝 👩‍🚀 🇫🇷 ❤️ 👍🏽 ﬁ ﬂ Å é ё й
    <|im_start|> <|im_end|> <|endoftext|> <think> </think> <tool_call> </tool_call> <tool_response>
    <|start|> <|channel|> <|message|> <|end|> <|return|> <|call|> <|constrain|> <|im_ im_end|> <|not_a_token|> <s> </s> [INST]"""
).split() + [
    " ", "  ", "   ", "       ", "\t", "\t\t", "\n", "\n\n", "\n\n\n", "\r\n", " \n", "\n ", "\u00a0", "\u3000", "\u200b",
    "\ufeff", "e\u0301", "и\u0306", "\u0301", "\u0000", "\u001f", "\u007f", "\u2028", "\ufffd", "aaaaaaaaaaaaaaaaaaaaaaaa",
    "================", "................", "          \n          ",
]  # fmt: skip
# First and last of: ASCII, Latin, Cyrillic, Arabic, Indic, CJK, Hangul, emoji, private use, far planes.
RANGES = [[0x20, 0x7E], [0xA1, 0x24F], [0x400, 0x52F], [0x600, 0x6FF], [0x900, 0xDFF], [0x4E00, 0x9FFF], [0xAC00, 0xD7A3],
          [0x1F300, 0x1FAFF], [0xE000, 0xE0FF], [0x20000, 0x2A6DF]]  # fmt: skip


class SplitMix64:
    def __init__(self, seed):
        self.state = seed

    def below(self, limit):
        self.state = (self.state + 0x9E3779B97F4A7C15) & MASK
        z = self.state
        z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) & MASK
        z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) & MASK
        return (z ^ (z >> 31)) % limit


def line(index):
    random = SplitMix64(index)
    text = ""
    for _ in range(1 + random.below(16)):
        kind = random.below(16)
        if kind == 0:
            first, last = RANGES[random.below(len(RANGES))]
            text += chr(first + random.below(last - first + 1))
        else:
            text += (" " if kind < 8 else "") + FRAGMENTS[random.below(len(FRAGMENTS))]
    return text


def digest(pieces):
    """64-bit FNV-1a."""
    hash = 0xCBF29CE484222325
    for piece in pieces:
        for byte in piece:
            hash = ((hash ^ byte) * 0x100000001B3) & MASK
    return f"{hash:016x}"


def words(numbers):
    return struct.pack(f"<{len(numbers)}I", *numbers)


def main():
    lines = [line(index) for index in range(LINES)]
    expected = {
        "versions": {"tokenizers": tokenizers.__version__, "transformers": transformers.__version__},
        "lines": digest(text.encode() for text in lines),
        "models": {},
    }
    for name in PACKAGES:
        tokenizer = AutoTokenizer.from_pretrained(TARGET / name)
        ids = tokenizer(lines, add_special_tokens=False)["input_ids"]
        chunks = [ids[start : start + LINES_A_DIGEST] for start in range(0, LINES, LINES_A_DIGEST)]
        # A line's ids follow their number, so that lines cannot trade tokens.
        digests = [digest(words([len(one), *one]) for one in chunk) for chunk in chunks]
        expected["models"][name] = {"tokens": sum(map(len, ids)), "digests": digests}
        print(name, type(tokenizer).__name__, expected["models"][name]["tokens"], "tokens")
    FOLDER.mkdir(exist_ok=True)
    write_json(FOLDER / "fragments.json", {"fragments": FRAGMENTS, "ranges": RANGES})
    write_json(FOLDER / "expected.json", expected)


if __name__ == "__main__":
    main()
