//! What holds for every text, however hostile, and for every turn that is written as its format asks.

use proptest::collection::vec;
use proptest::prelude::*;
use proptest::sample::select;
use serde_json::{Map, Value, json};

use super::tests::{FUNCTION_XML, HERMES, LLAMA3, MISTRAL, tools};
use super::*;

const FORMATS: [SpeechFormat; 6] = [SpeechFormat::Harmony, HERMES, FUNCTION_XML, MISTRAL, LLAMA3, SpeechFormat::PLAIN];

/// Pieces of marks, of JSON and of text: their rows come near to every branch.
const SHARDS: [&str; 64] = [
    "<think>",
    "</think>",
    "<tool_call>",
    "</tool_call>",
    "<function=",
    "<parameter=",
    "</parameter>",
    "</function>",
    "[TOOL_CALLS]",
    "[ARGS]",
    "[CALL_ID]",
    "<|python_tag|>",
    "<|start|>",
    "<|channel|>",
    "<|message|>",
    "<|end|>",
    "<|call|>",
    "<|return|>",
    "<|constrain|>",
    "assistant",
    "analysis",
    "commentary",
    "final",
    " to=functions.search",
    "to=",
    "json",
    "search",
    "word",
    "{\"name\": \"search\", \"arguments\": {\"word\": \"a\"}}",
    "{\"name\": \"search\", \"parameters\": {}}",
    "{\"word\": \"b\"}",
    "{",
    "}",
    "[",
    "]",
    "\"",
    "\\",
    ":",
    ",",
    ";",
    "name",
    "<",
    ">",
    "</",
    "/",
    "=",
    "|",
    "<|",
    "|>",
    "\n",
    "\n\n\n\n\n",
    " ",
    "\t",
    "a",
    "é",
    "пчела",
    "🐝",
    "\0",
    "1",
    "true",
    "null",
    "                                                                 ",
    "<tool",
    "[TOOL",
];

fn hostile() -> impl Strategy<Value = String> {
    vec(select(&SHARDS[..]), 0..40).prop_map(|shards| shards.concat())
}

fn prompt() -> impl Strategy<Value = &'static str> {
    select(&["assistant\n", "assistant\n<think>\n"][..])
}

/// Events of a text that comes in pieces of these lengths, in characters, neighbours of a kind joined.
fn events(format: SpeechFormat, prompt: &str, text: &str, lengths: &[usize]) -> Vec<SpeechEvent> {
    let mut parser = SpeechParser::new(format, tools(), prompt);
    let mut joined = Events::default();
    let mut rest = text;
    let mut add = |events: Vec<SpeechEvent>| {
        for event in events {
            match event {
                SpeechEvent::Reasoning(text) => joined.reasoning(&text),
                SpeechEvent::Content(text) => joined.content(&text),
                SpeechEvent::ToolCall(call) => joined.calls(vec![call]),
            }
        }
    };
    for length in lengths.iter().cycle() {
        if rest.is_empty() {
            break;
        }
        let end = rest.char_indices().nth(*length).map_or(rest.len(), |(end, _)| end);
        let (piece, after) = rest.split_at(end);
        add(parser.push(piece));
        rest = after;
    }
    add(parser.finish());
    joined.0
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn no_cut_changes_what_was_said(text in hostile(), prompt in prompt(), lengths in vec(1..9usize, 1..6)) {
        for format in FORMATS {
            let whole = events(format, prompt, &text, &[usize::MAX]);
            prop_assert_eq!(&events(format, prompt, &text, &[1]), &whole, "{:?} by characters", format);
            prop_assert_eq!(&events(format, prompt, &text, &lengths), &whole, "{:?}", format);
        }
    }

    /// Without a closing bracket no call is complete, and without a closing tag none of the XML.
    #[test]
    fn what_is_no_call_is_answer_to_the_letter(text in hostile()) {
        let text = text.replace(['}', ']'], "").replace("</function>", "").replace("</tool_call>", "");
        for format in [FUNCTION_XML, MISTRAL, LLAMA3, SpeechFormat::PLAIN] {
            let speech = Speech::parse(format, tools(), "", &text);
            prop_assert_eq!(&speech.content, &text, "{:?}", format);
        }
        let speech = Speech::parse(HERMES, tools(), "", &format!("x{text}"));
        prop_assert_eq!(speech.content, format!("x{text}"));
    }

    /// Harmony's marks are taken out; every word between them is told once, in order.
    #[test]
    fn harmony_loses_no_words(words in vec(select(&["<|end|>", "<|start|>assistant<|channel|>final<|message|>",
        "<|start|>assistant<|channel|>analysis<|message|>", "ab", " ", "é", "<", "|>"][..]), 0..30)) {
        let text = format!("<|channel|>final<|message|>{}", words.concat());
        let told: String = events(SpeechFormat::Harmony, "", &text, &[3]).into_iter().map(|event| match event {
            SpeechEvent::Content(text) | SpeechEvent::Reasoning(text) => text,
            SpeechEvent::ToolCall(call) => panic!("{call:?}"),
        }).collect();
        let marks = |text: &str| ["<|end|>", "<|start|>assistant<|channel|>final<|message|>",
            "<|start|>assistant<|channel|>analysis<|message|>", "<|channel|>final<|message|>"]
            .iter().fold(text.to_owned(), |text, mark| text.replace(mark, ""));
        prop_assert_eq!(told.replace("\n\n", ""), marks(&text));
    }

    #[test]
    fn calls_always_carry_an_object(text in hostile()) {
        for format in FORMATS {
            for call in Speech::parse(format, tools(), "", &text).tool_calls {
                prop_assert!(serde_json::from_str::<Map<String, Value>>(&call.arguments).is_ok(), "{:?}", call);
                prop_assert!(!call.name.is_empty());
            }
        }
    }
}

/// Text of an answer or of thoughts: no marks, no line breaks at its ends, where formats put their own.
fn prose() -> impl Strategy<Value = String> {
    let words = ["bees ", "пчела", "🐝", "\n", "{", "}", "\"", "<", ">", "[", "]", "a=b ", "</p>", "<|", "\\"];
    vec(select(words.to_vec()), 0..12).prop_map(|words| {
        let text = words.concat();
        text.trim().to_owned()
    })
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        (-1e9..1e9f64).prop_map(Value::from),
        hostile().prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 16, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            vec((hostile(), inner), 0..4).prop_map(|fields| Value::Object(fields.into_iter().collect())),
        ]
    })
}

fn arguments() -> impl Strategy<Value = Map<String, Value>> {
    vec((prose(), json_value()), 0..4).prop_map(|fields| fields.into_iter().collect())
}

/// Names and arguments.
type Calls = Vec<(String, Map<String, Value>)>;

/// Thoughts, an answer and calls.
fn written() -> impl Strategy<Value = (String, String, Calls)> {
    (prose(), prose(), vec((select(vec!["search".to_owned(), "list".into()]), arguments()), 0..3))
}

fn calls_of(speech: &Speech) -> Calls {
    let object = |call: &ToolCall| serde_json::from_str(&call.arguments).expect("an object");
    speech.tool_calls.iter().map(|call| (call.name.clone(), object(call))).collect()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn hermes_turns_come_back((reasoning, content, calls) in written()) {
        let mut text = format!("<think>\n{reasoning}\n</think>\n\n{content}");
        for (name, arguments) in &calls {
            text += &format!("\n<tool_call>\n{}\n</tool_call>", json!({"name": name, "arguments": arguments}));
        }
        let speech = Speech::parse(HERMES, tools(), "", &text);
        prop_assert_eq!((&speech.reasoning_content, &speech.content), (&reasoning, &content));
        prop_assert_eq!(calls_of(&speech), calls);
    }

    #[test]
    fn mistral_turns_come_back((_, content, calls) in written()) {
        let list: Vec<Value> = calls.iter().map(|(name, arguments)| json!({"name": name, "arguments": arguments})).collect();
        let list = if list.is_empty() { String::new() } else { format!("[TOOL_CALLS]{}", Value::from(list)) };
        let speech = Speech::parse(MISTRAL, tools(), "", &format!("{content}{list}"));
        prop_assert_eq!(&speech.content, &content);
        prop_assert_eq!(calls_of(&speech), calls.clone());
        let named: String =
            calls.iter().map(|(name, arguments)| format!("[TOOL_CALLS]{name}[ARGS]{}", json!(arguments))).collect();
        prop_assert_eq!(calls_of(&Speech::parse(MISTRAL, tools(), "", &named)), calls);
    }

    #[test]
    fn llama_turns_come_back(arguments in arguments()) {
        for tag in ["", "<|python_tag|>"] {
            let text = format!("{tag}{}", json!({"name": "search", "parameters": arguments}));
            let speech = Speech::parse(LLAMA3, tools(), "", &text);
            prop_assert_eq!(&speech.content, "");
            prop_assert_eq!(calls_of(&speech), [("search".to_owned(), arguments.clone())]);
        }
    }

    #[test]
    fn xml_turns_come_back(content in prose(), word in prose(), count in any::<i64>(), exact in any::<bool>(),
        folders in vec(json_value(), 0..3), filter in arguments()) {
        let value = |json: Value| json.to_string().replace("</parameter>", "");
        let (folders, filter) = (value(folders.into()), value(filter.into()));
        let exact_in_python = if exact { "True" } else { "False" };
        let tag = |name: &str, value: &str| format!("<parameter={name}>\n{value}\n</parameter>\n");
        let parameters = [("word", word.as_str()), ("count", &count.to_string()), ("exact", exact_in_python),
            ("folders", &folders), ("filter", &filter)].map(|(name, value)| tag(name, value)).concat();
        let text = format!("{content}\n\n<tool_call>\n<function=search>\n{parameters}</function>\n</tool_call>");
        let speech = Speech::parse(FUNCTION_XML, tools(), "", &text);
        prop_assert_eq!(&speech.content, &content);
        let parsed = |json: &str| serde_json::from_str::<Value>(json).expect("JSON");
        let want = json!({"word": word, "count": count, "exact": exact, "folders": parsed(&folders),
            "filter": parsed(&filter)});
        prop_assert_eq!(parsed(&speech.tool_calls[0].arguments), want);
    }

    #[test]
    fn harmony_turns_come_back((reasoning, content, calls) in written()) {
        let message = |header: &str, body: &str, end: &str| format!("<|start|>assistant{header}<|message|>{body}{end}");
        let mut text = message("<|channel|>analysis", &reasoning, "<|end|>");
        text += &message("<|channel|>commentary", &content, "<|end|>");
        let mut want = Vec::new();
        for (name, arguments) in calls {
            // Harmony has no way to quote its own marks.
            let arguments = json!(arguments).to_string().replace("<|", "");
            text += &message(&format!(" to=functions.{name}<|channel|>commentary json"), &arguments, "<|call|>");
            want.push((name, serde_json::from_str(&arguments).expect("an object")));
        }
        let text = text.strip_prefix("<|start|>assistant").expect("the prompt ends with it");
        let speech = Speech::parse(SpeechFormat::Harmony, tools(), "", text);
        prop_assert_eq!((&speech.reasoning_content, &speech.content), (&reasoning, &content));
        prop_assert_eq!(calls_of(&speech), want);
    }
}

/// Were any of these looked at again with every piece, this test would not end: a quarter of a million pieces.
#[test]
fn endless_calls_cost_no_more_than_their_length() {
    for (format, opening, again) in [
        (HERMES, "<tool_call>{\"name\": \"", "<tool_call>"),
        (HERMES, "", "<tool_call>{\""),
        (HERMES, "<tool_call>{\"a\n", "</tool_call"),
        (HERMES, "<think>", "</think"),
        (FUNCTION_XML, "<function=f><parameter=a>", "</parameter"),
        (FUNCTION_XML, "<function=f>", "<parameter=a></parameter>"),
        (MISTRAL, "[TOOL_CALLS]", "[["),
        (LLAMA3, "", "{"),
        (SpeechFormat::Harmony, "<|channel|>commentary to=functions.f<|message|>", "<|channel"),
        (SpeechFormat::Harmony, "", "<|channel|>"),
        (HERMES, "", "\n"),
    ] {
        let mut parser = SpeechParser::new(format, tools(), "");
        let mut told = 0;
        let count = |events: Vec<SpeechEvent>| -> usize {
            let len = |event: &SpeechEvent| match event {
                SpeechEvent::Reasoning(text) | SpeechEvent::Content(text) => text.len(),
                SpeechEvent::ToolCall(_) => 0,
            };
            events.iter().map(len).sum()
        };
        told += count(parser.push(opening));
        let pieces = (1 << 18) / again.len();
        for _ in 0..pieces {
            for at in 0..again.len() {
                told += count(parser.push(&again[at..=at]));
            }
        }
        told += count(parser.finish());
        let marks = if opening == "<think>" { opening.len() } else { 0 };
        assert_eq!(told, opening.len() + pieces * again.len() - marks, "{format:?} {opening}{again}…");
    }
}
