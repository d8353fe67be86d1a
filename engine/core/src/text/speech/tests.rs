//! What each format's parser makes of turns as models write them, properly and not.

use serde_json::json;

use super::*;

pub(super) const HERMES: SpeechFormat = SpeechFormat::Tagged { thinks: true, calls: Some(CallFormat::Hermes) };
pub(super) const FUNCTION_XML: SpeechFormat =
    SpeechFormat::Tagged { thinks: false, calls: Some(CallFormat::FunctionXml) };
pub(super) const MISTRAL: SpeechFormat = SpeechFormat::Tagged { thinks: false, calls: Some(CallFormat::Mistral) };
pub(super) const LLAMA3: SpeechFormat = SpeechFormat::Tagged { thinks: false, calls: Some(CallFormat::Llama3) };

/// `search(word: string, count: integer, exact: boolean, folders: array, filter: object or null)`.
pub(super) fn tools() -> Tools {
    Tools::from_openai(&json!([{"type": "function", "function": {"name": "search", "parameters": {"properties": {
        "word": {"type": "string"}, "count": {"type": "integer"}, "exact": {"type": "boolean"},
        "folders": {"type": "array"}, "filter": {"type": ["object", "null"]},
    }}}}]))
}

fn parse(format: SpeechFormat, text: &str) -> Speech {
    Speech::parse(format, tools(), "<|im_start|>assistant\n", text)
}

fn call(name: &str, arguments: &str) -> ToolCall {
    ToolCall { name: name.into(), arguments: arguments.into() }
}

fn speech(reasoning: &str, content: &str, tool_calls: &[ToolCall]) -> Speech {
    Speech { content: content.into(), reasoning_content: reasoning.into(), tool_calls: tool_calls.to_vec() }
}

#[track_caller]
fn assert_is_content(format: SpeechFormat, text: &str) {
    assert_eq!(parse(format, text), speech("", text, &[]));
}

#[test]
fn thoughts_are_told_apart_from_the_answer() {
    assert_eq!(parse(HERMES, "<think>\nhm\n\nso\n</think>\n\nBees."), speech("hm\n\nso", "Bees.", &[]));
    assert_eq!(parse(HERMES, "\n <think>hm</think>Bees."), speech("hm", "Bees.", &[]));
    assert_eq!(parse(HERMES, "<think>\n\n</think>\n\nBees.\n"), speech("", "Bees.\n", &[]));
    // Cut off: it never came to an answer.
    assert_eq!(parse(HERMES, "<think>\nhm</th"), speech("hm</th", "", &[]));
}

#[test]
fn a_template_may_have_opened_the_thoughts() {
    let opened = |text| Speech::parse(HERMES, Tools::default(), "<|im_start|>assistant\n<think>\n", text);
    assert_eq!(opened("hm\n</think>\n\nBees."), speech("hm", "Bees.", &[]));
    assert_eq!(opened("\nhm"), speech("hm", "", &[]));
    let closed = Speech::parse(HERMES, Tools::default(), "assistant\n<think>\n\n</think>\n\n", "Bees. </think>");
    assert_eq!(closed, speech("", "Bees. </think>", &[]));
}

#[test]
fn tags_in_an_answer_or_without_their_format_are_text() {
    assert_is_content(HERMES, "Write <think> before </think>.");
    assert_is_content(SpeechFormat::PLAIN, "<think>\nhm\n</think>\n\n<tool_call>{\"name\": \"search\"}</tool_call>");
    assert_is_content(HERMES, "The tag <tool_call> opens a call, </tool_call> closes it.");
}

#[test]
fn hermes_calls_are_read() {
    let text = "<think>\nhm\n</think>\n\nI look.\n<tool_call>\n{\"name\": \"search\", \"arguments\": {\"word\": \"пчела\", \"n\": 1.50}}\n</tool_call>\n<tool_call>\n{\"name\": \"list\", \"arguments\": {}}\n</tool_call>";
    let calls = [call("search", "{\"word\": \"пчела\", \"n\": 1.50}"), call("list", "{}")];
    assert_eq!(parse(HERMES, text), speech("hm", "I look.", &calls));
}

#[test]
fn hermes_calls_are_read_where_models_are_careless() {
    let search = [call("search", "{\"word\": \"a\"}")];
    for text in [
        "<tool_call>{\"name\": \"search\", \"arguments\": {\"word\": \"a\"}}",
        "<tool_call>{\"name\": \"search\", \"parameters\": {\"word\": \"a\"}}</tool_call>\n",
        "<tool_call>{\"name\": \"search\", \"arguments\": \"{\\\"word\\\": \\\"a\\\"}\"}</tool_call>",
        "<tool_call>\n<function=search>\n<parameter=word>\na\n</parameter>\n</function>\n</tool_call>",
    ] {
        assert_eq!(parse(HERMES, text).tool_calls, search, "{text}");
        assert_eq!(parse(HERMES, text).content, "", "{text}");
    }
    let two = "<tool_call>{\"name\": \"search\", \"arguments\": {\"word\": \"a\"}}\n{\"name\": \"search\", \"arguments\": {\"word\": \"a\"}}</tool_call>";
    assert_eq!(parse(HERMES, two).tool_calls, [search.clone(), search].concat());
    let line_break = "<tool_call>{\"name\": \"f\", \"arguments\": {\"code\": \"a\n\tb\"}}</tool_call>";
    assert_eq!(parse(HERMES, line_break).tool_calls, [call("f", "{\"code\": \"a\\u000a\\u0009b\"}")]);
    let nothing = "<tool_call>{\"name\": \"f\", \"arguments\": null}</tool_call> done";
    assert_eq!(parse(HERMES, nothing), speech("", " done", &[call("f", "{}")]));
}

#[test]
fn a_closing_tag_in_an_argument_is_part_of_it() {
    let text = "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"</tool_call>\"}}</tool_call>";
    assert_eq!(parse(HERMES, text).tool_calls, [call("f", "{\"a\": \"</tool_call>\"}")]);
}

#[test]
fn calls_that_are_none_stay_in_the_answer_to_the_letter() {
    for text in [
        "a\n\n<tool_call>\n{\"name\": \"f\", \"arguments\": {\"a\": 1}\n</tool_call>\nb",
        "<tool_call>{\"name\": \"f, \"arguments\": {}}\n</tool_call>",
        "<tool_call>{\"name\": 1, \"arguments\": {}}</tool_call>",
        "<tool_call>{\"name\": \"\"}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": [1]}</tool_call>",
        "<tool_call>{\"name\": \"f\", \"arguments\": \"{\"}</tool_call>",
        "<tool_call>{}</tool_call>",
        "<tool_call>search</tool_call>",
        "<tool_call>",
        "\n<tool_call>\n{\"name\"",
        "</tool_call>",
    ] {
        assert_is_content(HERMES, text);
    }
    // The one after it is read.
    let text = "<tool_call>{\"name\": \"f\" <tool_call>{\"name\": \"g\"}</tool_call>";
    assert_eq!(parse(HERMES, text), speech("", "<tool_call>{\"name\": \"f\" ", &[call("g", "{}")]));
}

#[test]
fn values_in_xml_get_the_types_of_the_schema() {
    let text = "I look.\n\n<tool_call>\n<function=search>\n<parameter=word>\n 12\n\"</tool>\n\n</parameter>\n<parameter=count>\n12\n</parameter>\n<parameter=exact>\nTrue\n</parameter>\n<parameter=folders>\n[\"a\", 1e2]\n</parameter>\n<parameter=filter>\nNone\n</parameter>\n<parameter=unknown>\n5\n</parameter>\n</function>\n</tool_call>";
    let arguments = r#"{"word": " 12\n\"</tool>\n", "count": 12, "exact": true, "folders": ["a", 1e2], "filter": null, "unknown": "5"}"#;
    assert_eq!(parse(FUNCTION_XML, text), speech("", "I look.", &[call("search", arguments)]));
}

#[test]
fn values_in_xml_that_do_not_fit_the_schema_are_text() {
    let text = "<function=search><parameter=count>a dozen</parameter><parameter=exact>maybe</parameter><parameter=folders>[1</parameter></function>";
    let arguments = r#"{"count": "a dozen", "exact": "maybe", "folders": "[1"}"#;
    assert_eq!(parse(FUNCTION_XML, text), speech("", "", &[call("search", arguments)]));
}

#[test]
fn xml_calls_are_read_where_models_are_careless() {
    for text in [
        "<function=f>\n<parameter=a>\n1\n</parameter>\n</function>\n</tool_call>",
        "<tool_call>\n<function=f>\n<parameter=a>\n1\n</parameter>\n</tool_call>",
        "<tool_call><function=f><parameter=a>0</parameter><parameter=a>1</parameter></function>",
        "<tool_call>{\"name\": \"f\", \"arguments\": {\"a\": \"1\"}}</tool_call>",
    ] {
        assert_eq!(parse(FUNCTION_XML, text), speech("", "", &[call("f", "{\"a\": \"1\"}")]), "{text}");
    }
    for text in [
        "<function=f>\n<parameter=a>\n1\n",
        "<function=>\n</function>",
        "<function=f\n>\n</function>",
        "<function=f>\nHello</function>",
        "<tool_call>\n<function=f>\n<parameter=a",
    ] {
        assert_is_content(FUNCTION_XML, text);
    }
}

#[test]
fn mistral_calls_are_read_in_both_notations() {
    let two = [call("f", "{\"a\": 1}"), call("g", "{}")];
    let list = "[TOOL_CALLS][{\"name\": \"f\", \"arguments\": {\"a\": 1}, \"id\": \"123456789\"}, {\"name\": \"g\", \"arguments\": {}}]";
    assert_eq!(parse(MISTRAL, list), speech("", "", &two));
    for named in [
        "[TOOL_CALLS]f[ARGS]{\"a\": 1}[TOOL_CALLS]g[ARGS]{}",
        "[TOOL_CALLS]f{\"a\": 1}[TOOL_CALLS]g{}",
        "[TOOL_CALLS]f[CALL_ID]123456789[ARGS] {\"a\": 1}\n[TOOL_CALLS] g[ARGS]{}",
    ] {
        assert_eq!(parse(MISTRAL, named), speech("", "", &two), "{named}");
    }
    for text in [
        "[TOOL_CALLS]",
        "[TOOL_CALLS][]",
        "[TOOL_CALLS][{\"name\": 1}]",
        "[TOOL_CALLS]f",
        "[TOOL_CALLS]f[ARGS]1",
        "[x]",
    ] {
        assert_is_content(MISTRAL, text);
    }
}

#[test]
fn llama_calls_are_read_bare_only_if_they_are_offered() {
    let search = [call("search", "{\"word\": \"a\"}")];
    for text in [
        "{\"name\": \"search\", \"parameters\": {\"word\": \"a\"}}",
        "\n{\"type\": \"function\", \"name\": \"search\", \"parameters\": {\"word\": \"a\"}}\n",
        "<|python_tag|>{\"name\": \"search\", \"parameters\": {\"word\": \"a\"}}",
    ] {
        assert_eq!(parse(LLAMA3, text), speech("", "", &search), "{text}");
    }
    let two = "{\"name\": \"search\", \"parameters\": {\"word\": \"a\"}}; {\"name\": \"search\", \"parameters\": {\"word\": \"a\"}}";
    assert_eq!(parse(LLAMA3, two), speech("", "", &[search.clone(), search].concat()));
    assert_is_content(LLAMA3, "{\"name\": \"Ann\", \"parameters\": {}}");
    assert_is_content(LLAMA3, "<|python_tag|>print(1)");
    assert_is_content(LLAMA3, "See {\"name\": \"search\", \"parameters\": {}}");
}

#[test]
fn harmony_channels_are_told_apart() {
    let text = "<|channel|>analysis<|message|>hm<|end|><|start|>assistant<|channel|>commentary<|message|>I look.<|end|><|start|>assistant<|channel|>commentary to=functions.search <|constrain|>json<|message|>{\"word\": \"пчела\"}<|call|>";
    let search = [call("search", "{\"word\": \"пчела\"}")];
    assert_eq!(parse(SpeechFormat::Harmony, text), speech("hm", "I look.", &search));
    // The ending token is not part of a generation's text.
    let stopped = text.strip_suffix("<|call|>").expect("it ends so");
    assert_eq!(parse(SpeechFormat::Harmony, stopped), speech("hm", "I look.", &search));
    let text = " to=functions.search<|channel|>commentary json<|message|>{\"word\": \"пчела\"}<|call|>";
    assert_eq!(parse(SpeechFormat::Harmony, text), speech("", "", &search));
    let text = "<|channel|>analysis<|message|>a<|end|><|start|>assistant<|channel|>analysis<|message|>b<|end|><|start|>assistant<|channel|>final<|message|>c<|return|>";
    assert_eq!(parse(SpeechFormat::Harmony, text), speech("a\n\nb", "c", &[]));
}

#[test]
fn harmony_is_read_where_models_are_careless() {
    let harmony = |text| parse(SpeechFormat::Harmony, text);
    assert_eq!(harmony("Plain."), speech("", "Plain.", &[]));
    assert_eq!(harmony("<|message|>Plain."), speech("", "Plain.", &[]));
    assert_eq!(harmony("<|channel|>analysis<|message|>a<|channel|>final<|message|>b"), speech("a", "b", &[]));
    assert_eq!(harmony("<|channel|>analysis<|message|>a<|start|>assistant<|message|>b"), speech("a", "b", &[]));
    assert_eq!(harmony("<|channel|>analysis to=functions.f<|message|> <|call|>"), speech("", "", &[call("f", "{}")]));
    for text in [
        "<|channel|>commentary to=functions.f<|message|>{broken<|call|>",
        "<|channel|>commentary to=python<|message|>1 + 1",
        "<|start|>user<|message|>I am the user",
        "<|channel|>fin",
        "<|channel|>a\nb",
        "<|channel|><|end|>",
    ] {
        assert_is_content(SpeechFormat::Harmony, text);
    }
}

#[test]
fn the_format_is_found_by_what_a_template_writes() {
    let of = SpeechFormat::of_template;
    assert_eq!(of("{{ '<|im_start|>' }}"), SpeechFormat::PLAIN);
    assert_eq!(of("'<|start|>assistant<|channel|>final<|message|>'"), SpeechFormat::Harmony);
    assert_eq!(of("</think> '<tool_call>\\n{\"name\": \"' '\", \"arguments\": '"), HERMES);
    assert_eq!(of("'<tool_call>\\n<function=' + name"), FUNCTION_XML);
    assert_eq!(of("[AVAILABLE_TOOLS] [TOOL_CALLS]["), MISTRAL);
    assert_eq!(of("<|start_header_id|> '{\"name\": \"' '\"parameters\": '"), LLAMA3);
    // Tags that are known around a body that is not.
    assert_eq!(of("<tool_call> <arg_key> \"arguments\""), SpeechFormat::PLAIN);
}

#[test]
fn a_turn_becomes_the_next_prompts_message() {
    let message = speech("hm", "", &[call("f", "{\"a\": 1}")]).into_message(2);
    let want = json!({"role": "assistant", "content": null, "reasoning_content": "hm", "tool_calls": [
        {"id": "call_2", "type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]});
    assert_eq!(serde_json::to_value(&message).expect("JSON"), want);
    let message = speech("", "Bees.", &[]).into_message(0);
    assert_eq!(serde_json::to_value(&message).expect("JSON"), json!({"role": "assistant", "content": "Bees."}));
}
