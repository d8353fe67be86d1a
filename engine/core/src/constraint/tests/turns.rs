//! Thoughts before an answer, and calls of tools: what is forced is what the reader of turns understands.

use serde_json::{Value, json};

use super::*;
use crate::text::{CallFormat, Speech, SpeechFormat, Tools};

const HARMONY: [&str; 7] =
    ["<|start|>", "<|channel|>", "<|message|>", "<|constrain|>", "<|end|>", "<|call|>", "<|return|>"];

fn tagged(thinks: bool, calls: Option<CallFormat>) -> SpeechFormat {
    SpeechFormat::Tagged { thinks, calls }
}

fn tools() -> Value {
    json!([
        {"type": "function", "function": {"name": "search", "parameters": {
            "type": "object",
            "properties": {"word": {"type": "string"}, "limit": {"type": "integer", "minimum": 1, "maximum": 99},
                           "folder": {"enum": ["bees", "Пасека"]}, "tags": {"type": "array", "items": {"type": "string"}},
                           "exact": {"type": ["boolean", "null"]}},
            "required": ["word", "limit"], "additionalProperties": false}}},
        {"type": "function", "function": {"name": "now"}},
        {"type": "function", "function": {"name": "link", "parameters": {
            "type": "object", "properties": {"from": {"$ref": "#/$defs/note"}, "to": {"$ref": "#/$defs/note"}},
            "required": ["from", "to"], "additionalProperties": false, "$defs": {"note": {"enum": ["a", "b"]}}}}},
    ])
}

fn call(
    compiler: &ConstraintCompiler,
    format: SpeechFormat,
    choice: ToolChoice,
    parallel: bool,
) -> Result<Constraint, ConstraintError> {
    compiler.tool_calls(format, &tools(), choice, parallel, &Limits::default())
}

/// Noise calls tools: each call is read again, of a known tool, with arguments of its schema.
fn check_calls(tokenizer: &Tokenizer, constraint: &Constraint, format: SpeechFormat, only: Option<&str>, most: usize) {
    let offered = tools();
    for seed in 0..12 {
        let text = babble(constraint, tokenizer, seed, 3000).expect("it comes to its end");
        let speech = Speech::parse(format, Tools::from_openai(&offered), "", &text);
        assert_eq!(speech.content, "", "{text}");
        assert!((1..=most).contains(&speech.tool_calls.len()), "{text}");
        for call in &speech.tool_calls {
            assert!(only.is_none_or(|name| name == call.name), "{text}");
            let tool = offered.as_array().expect("a list").iter().find(|tool| tool["function"]["name"] == *call.name);
            let schema = tool.expect("a known tool")["function"].get("parameters").cloned();
            let arguments: Value = serde_json::from_str(&call.arguments).expect("JSON");
            let validator =
                jsonschema::validator_for(&schema.unwrap_or(json!({"maxProperties": 0}))).expect("a schema");
            assert!(validator.is_valid(&arguments), "{text} has {arguments}");
        }
    }
}

#[test]
fn forced_calls_are_read_again_with_arguments_of_their_schema() {
    for marks in [&[][..], &["<tool_call>", "</tool_call>", "[TOOL_CALLS]"], &["[TOOL_CALLS]", "[ARGS]"], &HARMONY] {
        let tokenizer = tokenizer_with(marks);
        let compiler = compiler_for(&tokenizer);
        let mut formats = vec![
            tagged(false, Some(CallFormat::Hermes)),
            tagged(false, Some(CallFormat::Mistral)),
            tagged(false, Some(CallFormat::Llama3)),
        ];
        if marks == HARMONY {
            formats = vec![SpeechFormat::Harmony];
        }
        for format in formats {
            let single =
                matches!(format, SpeechFormat::Harmony | SpeechFormat::Tagged { calls: Some(CallFormat::Llama3), .. });
            let several = call(&compiler, format, ToolChoice::Required, true).expect("compiles");
            check_calls(&tokenizer, &several, format, None, if single { 1 } else { 100 });
            let named = call(&compiler, format, ToolChoice::Named("search"), false).expect("compiles");
            check_calls(&tokenizer, &named, format, Some("search"), 1);
        }
    }
}

#[test]
fn calls_in_function_xml_are_forced_where_types_are_plain() {
    let tokenizer = tokenizer_with(&[]);
    let compiler = compiler_for(&tokenizer);
    let format = tagged(false, Some(CallFormat::FunctionXml));
    for name in ["search", "now"] {
        let constraint = call(&compiler, format, ToolChoice::Named(name), true).expect("compiles");
        check_calls(&tokenizer, &constraint, format, Some(name), 100);
        let written = "<tool_call>\n<function=search>\n<parameter=word>\nпчела <b> \"x\"\n</parameter>\n<parameter=limit>\n7\n</parameter>\n</function>\n</tool_call>";
        assert_eq!(admits(&constraint, &tokenizer, written), name == "search");
    }
    let error = call(&compiler, format, ToolChoice::Required, true).expect_err("`link` has a reference");
    assert!(error.to_string().contains("`link`") && error.to_string().contains("$ref"), "{error}");
}

#[test]
fn calls_that_cannot_be_forced_are_refused_by_name() {
    let compiler = compiler();
    let hermes = tagged(false, Some(CallFormat::Hermes));
    let error = call(&compiler, SpeechFormat::PLAIN, ToolChoice::Required, false).expect_err("no format");
    assert!(error.to_string().contains("template"), "{error}");
    let error = call(&compiler, hermes, ToolChoice::Named("fly"), false).expect_err("no such tool");
    assert!(error.to_string().contains("`fly`"), "{error}");
    for (tools, says) in [
        (json!([]), "no tools"),
        (json!({}), "no list"),
        (json!([{"type": "function"}]), "name"),
        (json!([{"name": "a b"}]), "a b"),
        (json!([{"name": "a\"}"}]), "does not fit"),
        (json!([{"name": "f", "parameters": []}]), "`f`"),
        (json!([{"name": "f", "parameters": {"type": "string"}}]), "object"),
        (json!([{"name": "f", "parameters": {"type": "object", "properties": {"a": {"format": "odd"}}}}]), ""),
    ] {
        let error = compiler.tool_calls(hermes, &tools, ToolChoice::Required, false, &Limits::default());
        let error = error.expect_err(&tools.to_string());
        assert!(error.to_string().contains(says), "{error}");
    }
}

#[test]
fn thoughts_are_free_and_the_answer_is_not() {
    let thoughts = "Hm, {\"a\"? <b> Пчёлы \"\n\n1 < 2. ";
    for marks in [&[][..], &["<think>", "</think>"]] {
        let tokenizer = tokenizer_with(marks);
        let compiler = compiler_for(&tokenizer);
        let answer = compiler.json_schema(&json!({"enum": [{"a": 1}]}), &Limits::default()).expect("compiles");
        let format = tagged(true, None);
        let may = answer.after_thinking(format, "<|im_start|>assistant\n").expect("compiles");
        let text = r#"{"a": 1}"#;
        assert!(admits(&may, &tokenizer, text), "it need not think");
        assert!(admits(&may, &tokenizer, &format!("<think>{thoughts}</think>\n\n{text}")));
        assert!(admits(&may, &tokenizer, &format!("<think></think>{text}")));
        assert!(!admits(&may, &tokenizer, &format!("<think>{thoughts}")), "thoughts are no answer");
        assert!(!admits(&may, &tokenizer, &format!("<think>{thoughts}</think>\n\nSure! {text}")));
        assert!(!admits(&may, &tokenizer, &format!("{thoughts}</think>{text}")));
        let must = answer.after_thinking(format, "<|im_start|>assistant\n<think>\n").expect("compiles");
        assert!(admits(&must, &tokenizer, &format!("{thoughts}</think>\n\n{text}")));
        assert!(!admits(&must, &tokenizer, text), "the template has opened the thoughts");
        let closed = answer.after_thinking(format, "<think>\n\n</think>\n\n").expect("compiles");
        assert!(admits(&closed, &tokenizer, text));
        assert!(!admits(&closed, &tokenizer, &format!("<think></think>{text}")));
        let plain = answer.after_thinking(tagged(false, None), "").expect("compiles");
        assert!(admits(&plain, &tokenizer, text) && !admits(&plain, &tokenizer, &format!("<think></think>{text}")));
    }
}

#[test]
fn thoughts_may_come_before_forced_calls() {
    let tokenizer = tokenizer_with(&[]);
    let format = tagged(true, Some(CallFormat::Hermes));
    let constraint = call(&compiler_for(&tokenizer), format, ToolChoice::Named("now"), false).expect("compiles");
    let constraint = constraint.after_thinking(format, "<|im_start|>assistant\n").expect("compiles");
    let text = "<tool_call>\n{\"name\": \"now\", \"arguments\": {}}\n</tool_call>";
    assert!(admits(&constraint, &tokenizer, text));
    assert!(admits(&constraint, &tokenizer, &format!("<think>\nWhat time is it?\n</think>\n\n{text}")));
    assert!(!admits(&constraint, &tokenizer, "<think>\nWhat time is it?\n</think>\n\nLate."));
}

#[test]
fn in_harmony_the_answer_has_a_channel_of_its_own() {
    let tokenizer = tokenizer_with(&HARMONY);
    let compiler = compiler_for(&tokenizer);
    let answer = compiler.json_schema(&json!({"const": 5}), &Limits::default()).expect("compiles");
    let answer = answer.after_thinking(SpeechFormat::Harmony, "<|start|>assistant").expect("compiles");
    let thought = "<|channel|>analysis<|message|>They want \"5\" {.<|end|><|start|>assistant";
    assert!(admits(&answer, &tokenizer, "<|channel|>final<|message|>5"));
    assert!(admits(&answer, &tokenizer, &format!("{thought}<|channel|>final<|message|>5")));
    assert!(admits(&answer, &tokenizer, &format!("{thought}{thought}<|channel|>final<|message|>5")));
    assert!(!admits(&answer, &tokenizer, &format!("{thought}<|channel|>final<|message|>6")));
    assert!(!admits(&answer, &tokenizer, "5"));
    let calls = call(&compiler, SpeechFormat::Harmony, ToolChoice::Named("now"), false).expect("compiles");
    let calls = calls.after_thinking(SpeechFormat::Harmony, "<|start|>assistant").expect("compiles");
    let written = "<|channel|>commentary to=functions.now <|constrain|>json<|message|>{}";
    assert!(admits(&calls, &tokenizer, &format!("{thought}{written}")));
    assert!(!admits(&calls, &tokenizer, &format!("{thought}<|channel|>final<|message|>5")));
}
