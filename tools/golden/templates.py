#!/usr/bin/env python3
"""Prompts as transformers writes them: tests/golden/templates/conversations.json and NAME/expected.json.

    .venv/bin/python tools/golden/templates.py

Each template beside its tokenizer_config.json meets twelve conversations, each with every set of
options that means something to it. Where a template refuses a conversation, what it says is the
expectation. Where the templates come from stands in tests/golden/templates/README.md.
"""

import json
from datetime import datetime

import jinja2
from transformers.utils import chat_template_utils

from checkpoint import write_json
from make import GOLDEN

FOLDER = GOLDEN / "templates"
NOW = datetime(2026, 11, 22, 23, 30)


class Frozen(datetime):
    @classmethod
    def now(cls, tz=None):
        return NOW


chat_template_utils.datetime = Frozen


def tool(name, description, properties, required):
    parameters = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": description, "parameters": parameters}}


SEARCH = tool(
    "search_notes",
    "Finds notes.\n  Words in any language: «пчёлы», <b>&'\"",
    {
        # A key that is also a method of Python's dict.
        "items": {"type": "array", "items": {"type": "string"}, "description": " words "},
        "k": {"type": "integer", "default": 3, "minimum": 1},
        "sort": {"type": "string", "enum": ["date", "имя"], "description": "order"},
        "filter": {"type": "object", "properties": {"after": {"type": ["string", "null"]}}},
    },
    ["items"],
)
READ = tool("read_note", "Читает заметку целиком.", {"path": {"type": "string"}, "exact": {"type": "boolean"}}, ["path"])
CLOCK = {"type": "function", "function": {"name": "clock", "description": "The time.", "parameters": {"type": "object", "properties": {}}}}


def said(role, content, **more):
    return {"role": role, "content": content, **more}


def call(index, name, **arguments):
    return {"id": f"call{index:05}", "type": "function", "function": {"name": name, "arguments": arguments}}


def result(index, name, content):
    return said("tool", content, name=name, tool_call_id=f"call{index:05}")


FIND = call(1, "search_notes", items=["пчёлы", "<b>&'\"\\"], k=3, filter={"z": True, "after": None, "f": 0.1})

CONVERSATIONS = [
    ("a question", None, [said("user", "Сколько весит улей зимой?")]),
    ("a system message", None, [said("system", "Отвечай кратко. Be terse."), said("user", "What is a hive?")]),
    (
        "several turns",
        None,
        [
            said("system", " You keep bees.\n"),
            said("user", "  Что такое улей?\t\n"),
            said("assistant", "Дом пчёл. 🐝👩‍👩‍👧"),
            said("user", "e\u0301 <b>&amp;'\"{{ x }} {% if %}\u001f"),
        ],
    ),
    ("nothing said, and code", None, [said("user", ""), said("assistant", "```py\nif a < 1:\n\treturn\n```\n"), said("user", "\n")]),
    ("tools are offered", [SEARCH, CLOCK], [said("system", "Use tools."), said("user", "Найди пчёл.")]),
    ("a tool has answered", [SEARCH], [said("user", "Найди пчёл."), said("assistant", "", tool_calls=[FIND]), result(1, "search_notes", "[1, 2]")]),
    (
        "a tool was used",
        [SEARCH, READ],
        [
            said("system", "Use tools."),
            said("user", "Найди пчёл."),
            said("assistant", "Сейчас посмотрю.", tool_calls=[FIND]),
            result(1, "search_notes", '{"path": "Пасека.md", "n": 1.5}'),
            said("assistant", "Вот: Пасека.md"),
            said("user", "Спасибо!"),
        ],
    ),
    (
        "two calls at once",
        [SEARCH, READ],
        [
            said("user", "Compare them."),
            said("assistant", "", tool_calls=[call(1, "read_note", path="a.md", exact=True), call(2, "read_note", path="б.md", exact=False)]),
            result(1, "read_note", "first"),
            result(2, "read_note", "второй\nв две строки"),
        ],
    ),
    (
        "thoughts of an earlier turn",
        None,
        [said("user", "2 + 2?"), said("assistant", "4", reasoning_content="\nСложу два и два.\n"), said("user", "And 3 + 3?")],
    ),
    (
        "thoughts before a call",
        [SEARCH, CLOCK],
        [
            said("user", "Который час, и где пчёлы?"),
            said("assistant", "", reasoning_content="First the clock.", tool_calls=[call(1, "clock")]),
            result(1, "clock", "23:30"),
            said("assistant", "", reasoning_content="Now the bees.", tool_calls=[FIND | {"id": "call00002"}]),
            result(2, "search_notes", "[]"),
        ],
    ),
    (
        "thoughts inside an answer",
        None,
        [said("user", "q"), said("assistant", "<think>\nhm\n</think>\n\nanswer"), said("user", "again"), said("assistant", "so\n")],
    ),
    (
        "control tokens are quoted",
        None,
        [
            said("system", "<|im_end|>[/INST]<|eot_id|>"),
            said("user", "Note: <|im_start|>system [INST] <|start|> </s> <tool_response> [TOOL_CALLS] <|end|>"),
            said("assistant", "<tool_call>"),
            said("user", "<tool_response>\nnot one\n</tool_response>"),
        ],
    ),
]  # fmt: skip


def options(template, messages):
    """Sets of options: each value of what the template asks for."""
    sets = [{"add_generation_prompt": True}]
    if messages[-1]["role"] == "assistant":
        sets.append({"add_generation_prompt": False})
    if "enable_thinking" in template:
        sets = [{**one, **thinking} for one in sets for thinking in ({}, {"enable_thinking": True}, {"enable_thinking": False})]
    if "reasoning_effort" in template:
        sets = [{**one, **effort} for one in sets for effort in ({}, {"reasoning_effort": "low"}, {"reasoning_effort": "high"})]
    return sets


def render(template, special_tokens, messages, tools, chosen):
    try:
        # Rendered text, and spans that only training looks at.
        (text,), _ = chat_template_utils.render_jinja_template(
            [messages], tools=tools, chat_template=template, **chosen, **special_tokens
        )
    except jinja2.exceptions.TemplateError as refusal:
        return {"refused": str(refusal)}
    return {"prompt": text}


def main():
    conversations = [{"name": name, "tools": tools, "messages": messages} for name, tools, messages in CONVERSATIONS]
    write_json(FOLDER / "conversations.json", conversations)
    for folder in sorted(path.parent for path in FOLDER.glob("*/chat_template.jinja")):
        template = (folder / "chat_template.jinja").read_text()
        tokens = json.loads((folder / "tokenizer_config.json").read_text())
        tokens = {name: token for name, token in tokens.items() if token is not None}
        cases = []
        for index, (_, tools, messages) in enumerate(CONVERSATIONS):
            for chosen in options(template, messages):
                cases.append({"conversation": index, "options": chosen, **render(template, tokens, messages, tools, chosen)})
        write_json(folder / "expected.json", cases)
        print(f"{folder.name:<24}{len(cases):>4} prompts, {sum('refused' in case for case in cases)} refused")


if __name__ == "__main__":
    main()
