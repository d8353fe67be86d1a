//! Bodies that are well-formed, and meant to break what reads them.
//!
//! Most have killed a server: 60,000 nested groups and long repetitions in a grammar, patterns that take for ever, the text of
//! a tool's description, a schema that refers to itself, JSON that nests a thousand deep.

use serde_json::{Value, json};

use super::{Case, Place};
use crate::answers::{chat, completion, path_of};
use crate::random::Random;

const KINDS: usize = 28;

/// Ways in which servers of this kind take a grammar.
fn constrained(place: &Place<'_>, grammar: &str, random: &mut Random) -> Value {
    let mut body = chat(place.model, "a", 2);
    match random.below(3) {
        0 => body["grammar"] = json!(grammar),
        1 => body["structured_outputs"] = json!({"grammar": grammar}),
        _ => body["guided_grammar"] = json!(grammar),
    }
    body
}

fn with_pattern(place: &Place<'_>, pattern: &str, random: &mut Random) -> Value {
    let mut body = chat(place.model, "a", 2);
    match random.below(4) {
        0 => body["guided_regex"] = json!(pattern),
        1 => body["structured_outputs"] = json!({"regex": pattern}),
        2 => body["stop"] = json!([pattern.chars().take(100).collect::<String>()]),
        _ => {
            let schema = json!({"type": "object", "properties": {"a": {"type": "string", "pattern": pattern}}});
            return with_schema(place, &schema);
        }
    }
    body
}

fn with_schema(place: &Place<'_>, schema: &Value) -> Value {
    let mut body = chat(place.model, "a", 2);
    body["response_format"] = json!({"type": "json_schema", "json_schema": {"name": "x", "schema": schema}});
    body
}

fn with_tool(place: &Place<'_>, name: &str, description: &str, parameters: &Value) -> Value {
    let mut body = chat(place.model, "a", 2);
    body["tools"] = json!([{"type": "function",
                            "function": {"name": name, "description": description, "parameters": parameters}}]);
    body
}

fn nested(open: &str, core: &str, close: &str, times: usize) -> String {
    format!("{}{core}{}", open.repeat(times), close.repeat(times))
}

const CONTROL_TOKENS: [&str; 8] = [
    "<|im_start|>",
    "<|im_end|>",
    "<|endoftext|>",
    "<|start|>assistant<|channel|>final<|message|>",
    "</s>",
    "<s>",
    "[INST]",
    "<tool_call>{\"name\": \"x\"}</tool_call>",
];

pub(super) fn case(place: &Place<'_>, turn: usize, random: &mut Random) -> Case {
    let (what, body): (String, Value) = match turn % KINDS {
        0 => {
            let times = *random.one_of(&[100, 5_000, 60_000]);
            let grammar = format!("root ::= {}", nested("(", "\"a\"", ")", times));
            (format!("{times} groups in a grammar"), constrained(place, &grammar, random))
        }
        1 => {
            let times = *random.one_of(&[100, 60_000]);
            (
                format!("{times} groups in a Lark grammar"),
                constrained(place, &format!("start: {}", nested("(", "\"a\"", ")", times)), random),
            )
        }
        2 => {
            let times = *random.one_of(&[100, 60_000]);
            (format!("{times} groups in a pattern"), with_pattern(place, &nested("(", "a", ")", times), random))
        }
        3 => {
            let pattern = *random.one_of(&[
                "(a+)+$",
                "(a|aa)+$",
                "(.*a){25}",
                "a{1,100000}",
                "(a{1,1000}){1,1000}",
                "(?=a)b",
                "(?<x>a)\\k<x>",
                "[",
                "(",
                "*",
                "\\",
                "\\p{Nonsense}",
                "[z-a]",
                "(?i",
                "a{99999999999}",
                "[^\\x00-\\x{10ffff}]",
                "\\uD800",
                "((((((a{50}){50}){50}){50}){50}){50})",
            ]);
            (format!("pattern {pattern}"), with_pattern(place, pattern, random))
        }
        4 => {
            let grammar = *random.one_of(&[
                "root ::= root",
                "root ::= root root | \"a\"",
                "root ::= a\na ::= b\nb ::= a",
                "root ::= missing",
                "root ::= \"",
                "root ::= [",
                "",
                "start: start",
                "start: a\na: start",
                "%llguidance {}\nstart: /(/",
                "root ::= \"a\"{1,1000000}",
                "root ::= [a-z]{1000000,}",
                "root ::= \"a\"\nroot ::= \"b\"",
                "::=",
                "root ::= (\"a\"*)*",
                "root ::= \"\\xff\"",
                "start: %json {\"type\": \"x\"}",
                "start: @nothing",
                "start: <|im_end|>",
            ]);
            (format!("grammar {grammar:?}"), constrained(place, grammar, random))
        }
        5 => {
            let times = *random.one_of(&[10, 60, 500, 20_000]);
            let schema = nested(r#"{"type":"object","properties":{"a":"#, r#"{"type":"string"}"#, "}}", times);
            let text = format!(
                r#"{{"model":"{}","messages":[{{"role":"user","content":"a"}}],"max_tokens":2,"response_format":{{"type":"json_schema","json_schema":{{"name":"x","schema":{schema}}}}}}}"#,
                place.model
            );
            return Case::body(place.site, format!("a schema that nests {times} deep"), "/v1/chat/completions", text);
        }
        6 => {
            let times = *random.one_of(&[63, 64, 65, 1000, 100_000]);
            let (open, close) = *random.one_of(&[("[", "]"), (r#"{"a":"#, "}")]);
            let text = format!(r#"{{"model":"x","messages":{}}}"#, nested(open, "1", close, times));
            return Case::body(place.site, format!("JSON that nests {times} deep"), "/v1/chat/completions", text);
        }
        7 => {
            let schema = random
                .one_of(&[
                    json!({"$ref": "#"}),
                    json!({"$ref": "#/$defs/a", "$defs": {"a": {"$ref": "#/$defs/a"}}}),
                    json!({"$ref": "#/$defs/missing"}),
                    json!({"$ref": "http://127.0.0.1:9/x"}),
                    json!({"$ref": "file:///etc/passwd"}),
                    json!({"$id": "http://x/", "$ref": "y"}),
                    json!({"allOf": [{"$ref": "#"}]}),
                    json!({"not": {}}),
                    json!(false),
                    json!(true),
                    json!({"enum": []}),
                    json!({"type": []}),
                    json!({"type": "objekt"}),
                    json!({"type": 1}),
                    json!({"required": "a"}),
                    json!({"properties": []}),
                    json!({"minLength": 5, "maxLength": 1, "type": "string"}),
                    json!({"minimum": 5, "maximum": 1, "type": "integer"}),
                    json!({"type": "integer", "multipleOf": 0}),
                    json!({"type": "array", "minItems": 4_000_000_000_u32}),
                    json!({"type": "string", "minLength": 4_000_000_000_u32}),
                    json!({"type": "string", "format": "nonsense"}),
                    json!({"oneOf": []}),
                    json!({"const": 1e308}),
                    json!({"type": "number", "minimum": 1e308}),
                    json!({"patternProperties": {"(": {}}}),
                    json!({"type": "array", "uniqueItems": true}),
                    json!({"if": {}, "then": {}, "else": false}),
                    json!({"unevaluatedProperties": false}),
                    json!({"type": "object", "additionalProperties": {"$ref": "#"}}),
                    json!({"type": "string", "pattern": "(?=x)"}),
                ])
                .clone();
            (format!("schema {schema}"), with_schema(place, &schema))
        }
        8 => {
            let many = random.between(100, 3000);
            let properties: serde_json::Map<String, Value> = (0..many)
                .map(|number| (format!("p{number}"), json!({"type": "string", "maxLength": 999_999})))
                .collect();
            (
                format!("a schema of {many} properties"),
                with_schema(place, &json!({"type": "object", "properties": properties})),
            )
        }
        9 => {
            let words: Vec<String> = (0..random.between(100, 20_000)).map(|_| random.hex(16)).collect();
            (format!("an enum of {} values", words.len()), with_schema(place, &json!({"enum": words})))
        }
        10 => {
            let many = random.between(10, 400);
            let options: Vec<Value> =
                (0..many).map(|number| json!({"type": "object", "properties": {"a": {"const": number}}})).collect();
            let schema = json!({"anyOf": options.clone(), "allOf": [{"anyOf": options.clone()}, {"oneOf": options}]});
            (format!("a product of {many} alternatives"), with_schema(place, &schema))
        }
        11 | 12 => {
            let description = format!("{} {}", random.one_of(&CONTROL_TOKENS), random.words(20));
            (
                "control tokens in a tool's description".into(),
                with_tool(place, "f", &description, &json!({"type": "object"})),
            )
        }
        13 => {
            let name = *random.one_of(&["", " ", "a b", "\n", "f\"}]", "<|im_end|>", "ж", "\0", "../x", "{{ 7 * 7 }}"]);
            (format!("a tool called {name:?}"), with_tool(place, name, "x", &json!({"type": "object"})))
        }
        14 => {
            let schema = random
                .one_of(&[
                    json!([]),
                    json!("x"),
                    json!({"type": "x"}),
                    json!({"properties": {"a": "b"}}),
                    json!({"$ref": "#"}),
                    Value::Null,
                ])
                .clone();
            let mut body = with_tool(place, "f", "x", &schema);
            body["tool_choice"] = json!(random.one_of(&["required", "auto", "none", "f"]));
            (format!("a tool with parameters {schema}"), body)
        }
        15 => {
            let mut body = with_tool(place, "f", "x", &json!({"type": "object"}));
            body["tool_choice"] = random
                .one_of(&[
                    json!({"type": "function", "function": {"name": "g"}}),
                    json!({"type": "function"}),
                    json!({"name": "f"}),
                    json!([]),
                    json!(""),
                ])
                .clone();
            ("a choice of no tool".into(), body)
        }
        16 => {
            let tools: Vec<Value> = (0..random.between(100, 2000))
                .map(|number| json!({"type": "function", "function": {"name": format!("f{number}"), "parameters": {"type": "object"}}}))
                .collect();
            let mut body = chat(place.model, "a", 2);
            body["tools"] = json!(tools);
            ("very many tools".into(), body)
        }
        17 => {
            let text =
                format!("{}{}{}", random.one_of(&CONTROL_TOKENS), random.words(5), random.one_of(&CONTROL_TOKENS));
            let role =
                *random.one_of(&["user", "system", "assistant", "tool", "<|im_start|>system", "", "user\n<|im_end|>"]);
            (
                format!("role {role:?} with control tokens"),
                json!({"model": place.model, "messages": [{"role": role, "content": text}], "max_tokens": 2}),
            )
        }
        18 => {
            let template = *random.one_of(&[
                "{{ 1/0 }}",
                "{% for i in range(999999999) %}{% endfor %}",
                "{{ cycler.__init__.__globals__ }}",
                "{%",
            ]);
            let mut body = chat(place.model, template, 2);
            body["chat_template"] = json!(template);
            body["chat_template_kwargs"] = json!({"messages": template, "tools": 1, "add_generation_prompt": []});
            ("a template in the request".into(), body)
        }
        19 => {
            let messages: Vec<Value> =
                (0..random.between(500, 20_000)).map(|_| json!({"role": "user", "content": ""})).collect();
            ("very many messages".into(), json!({"model": place.model, "messages": messages, "max_tokens": 2}))
        }
        20 => {
            let calls = json!([{"id": "x", "type": "function", "function": {"name": "f", "arguments": random.one_of(&["{", "", "[1]", "\0", "{\"a\":1e999}"])}}]);
            let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": null, "tool_calls": calls}, {"role": "tool", "content": [], "tool_call_id": 7}]);
            ("broken calls in the history".into(), json!({"model": place.model, "messages": messages, "max_tokens": 2}))
        }
        21 => {
            let bias: serde_json::Map<String, Value> =
                (0..random.between(300, 20_000)).map(|token| (token.to_string(), json!(100))).collect();
            let mut body = completion(place.model, "a", 2);
            body["logit_bias"] = bias.into();
            ("very many biases".into(), body)
        }
        22 => {
            let mut body = completion(place.model, "a", 2);
            body["prompt"] = random
                .one_of(&[
                    json!([u32::MAX]),
                    json!([-1]),
                    json!([1.5]),
                    json!([[1], "a"]),
                    json!([[]]),
                    json!([]),
                    json!(vec![""; 5000]),
                    json!([319, 300, 260]),
                ])
                .clone();
            ("tokens that there are not".into(), body)
        }
        23 => {
            let stops: Vec<String> = (0..random.between(10, 5000)).map(|_| random.hex(8)).collect();
            let mut body = completion(place.model, "a", 2);
            body["stop"] = json!(stops);
            ("very many stop strings".into(), body)
        }
        24 => {
            let mut body = completion(place.model, "a", 2);
            body["n"] = json!(random.one_of(&[129, 100_000, 4_000_000_000_u32]));
            ("very many choices".into(), body)
        }
        25 => {
            let mut text = completion(place.model, "a", 2).to_string().into_bytes();
            let at = text.len() - 2;
            text.splice(at..at, [0xff, 0xc0, 0x80, 0xed, 0xa0, 0x80].into_iter().take(random.between(1, 6)));
            return Case::body(place.site, "invalid UTF-8", "/v1/completions", text);
        }
        26 => {
            let text = *random.one_of(&[
                "",
                "null",
                "[]",
                "1",
                "\"a\"",
                "{",
                "}",
                "{}{}",
                "{\"a\":1,}",
                "{'a':1}",
                "{\"prompt\":\"\\ud800\"}",
                "{\"prompt\":\"a\",\"prompt\":\"b\"}",
                "\u{feff}{}",
                "{\"n\":1e400}",
                "{\"max_tokens\":00}",
                "NaN",
                "{\"seed\":123456789012345678901234567890}",
                "{\"temperature\":-0}",
            ]);
            return Case::body(place.site, format!("the body {text}"), "/v1/completions", text);
        }
        _ => {
            let size = *random.one_of(&[100_000, 1_000_000, 4_000_000]);
            let text = completion(place.model, &"a ".repeat(size / 2), 2).to_string();
            return Case::body(place.site, format!("a prompt of {size} bytes"), "/v1/completions", text);
        }
    };
    let path = path_of(&body);
    Case::body(place.site, what, path, body.to_string())
}
