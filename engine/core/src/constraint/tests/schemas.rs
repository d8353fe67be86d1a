//! 500 schemas: what noise writes under each is valid JSON of it, by the judgement of another library.

use serde_json::{Map, Value, json};

use super::*;

/// Those that people send.
fn common() -> Vec<Value> {
    vec![
        json!(true),
        json!({}),
        json!({"type": "object"}),
        json!({"type": "array", "items": {"type": "string"}}),
        json!({"type": "object", "properties": {"name": {"type": "string"}, "age": {"type": "integer"}},
               "required": ["name", "age"], "additionalProperties": false}),
        json!({"type": "object", "properties": {"steps": {"type": "array", "items": {"type": "object", "properties": {
                   "explanation": {"type": "string"}, "output": {"type": "string"}},
                   "required": ["explanation", "output"], "additionalProperties": false}},
                   "final_answer": {"type": "string"}},
               "required": ["steps", "final_answer"], "additionalProperties": false}),
        json!({"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "Note", "type": "object",
               "properties": {"tags": {"type": "array", "items": {"enum": ["bee", "wasp", "пчела"]}, "maxItems": 4},
                              "score": {"type": "number", "minimum": 0, "maximum": 1},
                              "source": {"anyOf": [{"type": "string"}, {"type": "null"}], "default": null}},
               "required": ["tags", "score"]}),
        json!({"$defs": {"node": {"type": "object", "properties": {"value": {"type": "integer"},
                   "next": {"anyOf": [{"$ref": "#/$defs/node"}, {"type": "null"}]}},
                   "required": ["value", "next"], "additionalProperties": false}}, "$ref": "#/$defs/node"}),
        json!({"type": "object", "properties": {"a/b": {"const": "x\"y\\z"}, "": {"type": "boolean"}},
               "required": ["a/b", ""], "additionalProperties": {"type": "integer"}}),
        json!({"type": ["string", "null", "boolean"]}),
        json!({"enum": [1, "two", null, [3], {"four": 4.5}]}),
        json!({"type": "array", "prefixItems": [{"type": "string"}, {"type": "integer"}], "items": false, "minItems": 2}),
        json!({"type": "object", "properties": {"id": {"type": "string", "pattern": "^[a-z]{2,8}-[0-9]{3}$"}},
               "required": ["id"], "patternProperties": {"^x_": {"type": "integer"}}, "additionalProperties": false}),
        json!({"allOf": [{"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]},
                         {"type": "object", "properties": {"b": {"type": "string"}}, "required": ["b"]}]}),
    ]
}

/// A schema of a seeded noise.
fn generate(noise: &mut Noise, depth: usize) -> Value {
    let kinds = if depth == 0 { 8 } else { 12 };
    match noise.below(kinds) {
        0 => json!({"type": "string"}),
        1 => {
            let least = noise.below(4);
            json!({"type": "string", "minLength": least, "maxLength": least + noise.below(12)})
        }
        2 => json!({"type": "string", "pattern": (["^[a-f]+$", "^\\d{3}-\\d{2}$", "^(ja|nein)?$"][noise.below(3)])}),
        3 => {
            let least = noise.below(300) as i64 - 150;
            json!({"type": "integer", "minimum": least, "maximum": least + noise.below(2000) as i64})
        }
        4 => {
            let least = noise.below(100) as f64 / 8.0 - 5.0;
            json!({"type": "number", "minimum": least, "exclusiveMaximum": least + 0.5 + noise.below(40) as f64})
        }
        5 => json!({"type": (["boolean", "null", "integer", "number"][noise.below(4)])}),
        6 => {
            let values = [json!(noise.below(9)), json!("слово"), json!("a b"), json!(false)];
            json!({"enum": values[..1 + noise.below(4)]})
        }
        7 => json!({"const": ([json!("x"), json!(17), json!({"k": [1, null]})][noise.below(3)])}),
        8 => {
            let least = noise.below(3);
            let items = generate(noise, depth - 1);
            json!({"type": "array", "items": items, "minItems": least, "maxItems": least + noise.below(3)})
        }
        9 => {
            let variants: Vec<Value> = (0..1 + noise.below(3)).map(|_| generate(noise, depth - 1)).collect();
            json!({"anyOf": variants})
        }
        _ => {
            let names = ["name", "age", "kind", "Größe", "a b", "x_1"];
            let mut properties = Map::new();
            for name in &names[..1 + noise.below(names.len())] {
                properties.insert((*name).into(), generate(noise, depth - 1));
            }
            let required: Vec<&String> = properties.keys().filter(|_| noise.below(2) == 0).collect();
            let mut schema = json!({"type": "object", "required": required});
            schema["properties"] = properties.clone().into();
            match noise.below(3) {
                0 => {}
                1 => schema["additionalProperties"] = json!(false),
                _ => schema["additionalProperties"] = json!({"type": "integer"}),
            }
            schema
        }
    }
}

/// JSON knows no largest number, but its reader here does: of exponents beyond strings the first two digits are kept.
fn with_small_exponents(text: &str) -> String {
    let (mut out, mut in_string, mut escaped, mut digits) = (String::new(), false, false, None);
    for c in text.chars() {
        if in_string {
            in_string = escaped || c != '"';
            escaped = c == '\\' && !escaped;
        } else {
            digits = match (c, digits) {
                ('e' | 'E', _) if out.ends_with(|before: char| before.is_ascii_digit()) => Some(0),
                ('+' | '-', Some(0)) => Some(0),
                ('0'..='9', Some(2)) => continue,
                ('0'..='9', Some(count)) => Some(count + 1),
                _ => None,
            };
            in_string = c == '"';
        }
        out.push(c);
    }
    out
}

#[test]
fn of_500_schemas_all_that_noise_writes_is_valid() {
    let (tokenizer, compiler) = (byte_level(), compiler());
    let mut noise = Noise(5);
    let mut schemas = common();
    while schemas.len() < 500 {
        schemas.push(generate(&mut noise, 3));
    }
    for (seed, schema) in (0..).zip(&schemas) {
        let constraint = compiler.json_schema(schema, &Limits::default()).unwrap_or_else(|e| panic!("{e}: {schema}"));
        let text = babble(&constraint, &tokenizer, seed, 4000).unwrap_or_else(|| panic!("no end: {schema}"));
        let text = with_small_exponents(&text);
        let value: Value = serde_json::from_str(&text).unwrap_or_else(|e| panic!("{e}: {text} of {schema}"));
        let validator = jsonschema::validator_for(schema).expect("a schema");
        assert!(validator.is_valid(&value), "{text} is not of {schema}");
    }
}
