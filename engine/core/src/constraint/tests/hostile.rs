//! Schemas and grammars that were not meant well, and those that cannot be kept to.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::*;

fn nested(depth: usize) -> Value {
    (0..depth).fold(json!({"type": "string"}), |inner, _| json!({"type": "array", "items": inner}))
}

#[test]
fn a_schema_that_cannot_be_kept_to_is_refused_with_what_it_has() {
    let compiler = compiler();
    let many: Vec<usize> = (0..10_001).collect();
    for (schema, says) in [
        (nested(70), "levels"),
        (json!({"enum": many}), "values"),
        (json!({"const": "x".repeat(300_000)}), "bytes of text"),
        (json!(5), "5"),
        (json!("string"), "string"),
        (json!([{"type": "string"}]), "object"),
        (json!(false), "false"),
        (json!({"type": "strnig"}), "strnig"),
        (json!({"type": "string", "format": "phone-of-anna"}), "phone-of-anna"),
        (json!({"type": "string", "pattern": "(ab"}), ""),
        (json!({"type": "string", "minLength": 5, "maxLength": 2}), ""),
        (json!({"type": "integer", "minimum": 5, "maximum": 2}), ""),
        (json!({"type": "object", "not": {"type": "null"}, "minProperties": 2}), ""),
        (json!({"$ref": "http://127.0.0.1/schema.json"}), "http://127.0.0.1/schema.json"),
        (json!({"$ref": "#/$defs/none"}), ""),
        (json!({"type": "array", "uniqueItems": true}), "uniqueItems"),
        (json!({"oneOf": [{"type": "integer"}, {"type": "number"}]}), ""),
        (json!({"type": "string", "not": {"const": "a"}, "x-guidance": {"lenient": true}}), "x-guidance"),
    ] {
        let error = compiler
            .json_schema(&schema, &Limits::default())
            .expect_err(&schema.to_string()[..40.min(schema.to_string().len())]);
        let text = error.to_string();
        assert!(text.contains(says), "{text} does not say {says}");
        assert!(text.len() < 500, "{text}");
    }
}

#[test]
fn a_hostile_schema_costs_seconds_at_most_and_never_the_process() {
    let compiler = compiler();
    let billion = 1_000_000_000;
    let doubling = |levels: usize| {
        let mut defs = serde_json::Map::new();
        for level in 0..levels {
            let next = json!({"$ref": format!("#/$defs/d{}", level + 1)});
            defs.insert(format!("d{level}"), json!({"type": "array", "prefixItems": [next, next], "items": next}));
        }
        defs.insert(format!("d{levels}"), json!({"type": "integer"}));
        json!({"$defs": defs, "$ref": "#/$defs/d0"})
    };
    let wide: serde_json::Map<String, Value> =
        (0..2000).map(|index| (format!("p{index}"), json!({"type": "string"}))).collect();
    let alternatives: Vec<Value> =
        (0..300).map(|i| json!({"type": "object", "properties": {format!("k{i}"): {"type": "integer"}}})).collect();
    let start = Instant::now();
    for schema in [
        json!({"type": "string", "pattern": "^((a{1,1000}){1,1000}){1,1000}$"}),
        json!({"type": "string", "pattern": "(x+x+)+y"}),
        json!({"type": "string", "pattern": "^(a|b|ab)*c.{500}$"}),
        json!({"type": "string", "minLength": billion}),
        json!({"type": "array", "items": {"type": "string"}, "minItems": billion}),
        json!({"type": "array", "items": {"type": "string"}, "maxItems": billion}),
        json!({"type": "integer", "minimum": -1e300, "multipleOf": 7}),
        json!({"type": "number", "multipleOf": 1e-9}),
        json!({"$ref": "#"}),
        json!({"$defs": {"a": {"$ref": "#/$defs/b"}, "b": {"$ref": "#/$defs/a"}}, "$ref": "#/$defs/a"}),
        json!({"allOf": [{"$ref": "#"}, {"type": "object"}]}),
        json!({"anyOf": [{"$ref": "#"}, {"$ref": "#"}]}),
        json!({"type": "object", "properties": wide}),
        json!({"allOf": [{"anyOf": alternatives}, {"anyOf": alternatives}]}),
        json!({"patternProperties": {"^(a+)+$": {"type": "string"}, "(b|c|bc)*": {"type": "integer"}}}),
        nested(60),
        doubling(40),
    ] {
        // Taken or refused: either is an answer. What is taken is then followed.
        if let Ok(constraint) = compiler.json_schema(&schema, &Limits::default()) {
            let mut matcher = constraint.begin();
            let first = matcher.mask().expect("the first mask was computed before").to_vec();
            assert!(first.iter().any(|word| *word != 0));
        }
    }
    // About a second where nothing else runs.
    assert!(start.elapsed() < Duration::from_secs(60), "{:?}", start.elapsed());
}

#[test]
fn a_broken_expression_or_grammar_is_an_error() {
    let compiler = compiler();
    for expression in ["(", "[a", "a{2,1}", r"\p{Nothing}", "a(?=b)", r"(a)\1"] {
        compiler.regex(expression).expect_err(expression);
    }
    assert!(matches!(compiler.regex(&"(".repeat(1000)), Err(ConstraintError::TooLarge { unit: "levels", .. })));
    assert!(matches!(compiler.regex(&"a".repeat(300_000)), Err(ConstraintError::TooLarge { unit: "bytes", .. })));
    for grammar in [
        "",
        "begin: \"a\"",
        "start: missing",
        "start: <|no_such_token|>",
        "start: \"a",
        "start: @elsewhere",
        "start: start",
        "start: %json {\"type\": \"nothing\"}",
        "start: %json {\"type\": 5",
        "start: /(/",
        "%import common.NO_SUCH_THING\nstart: \"a\"",
    ] {
        compiler.lark(grammar).expect_err(grammar);
    }
    assert!(compiler.lark(&format!("start: {}\"a\"{}", "(".repeat(1000), ")".repeat(1000))).is_err());
    let doubling: String = (0..40).map(|at| format!("r{at}: r{n} r{n}\n", n = at + 1)).collect();
    let taken = compiler.lark(&format!("start: r0\n{doubling}r40: \"a\""));
    if let Ok(constraint) = taken {
        constraint.begin().mask().expect("the first mask was computed before");
    }
}
