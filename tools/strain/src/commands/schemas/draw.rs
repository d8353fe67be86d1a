//! Schemas drawn by chance, of the kinds that programs send. Every value that they allow is short, so that an answer ends.

use serde_json::{Map, Value, json};

use super::valid::PATTERNS;
use crate::random::Random;

const DEPTH_MAX: usize = 3;

/// A schema whose answers are objects, as most interfaces want it.
pub(super) fn schema(random: &mut Random) -> Value {
    let mut schema = object(random, 0);
    if random.once_in(5) {
        // A definition that is used twice.
        let definition = any(random, 2);
        let fields = json!({"first": {"$ref": "#/$defs/part"}, "second": {"$ref": "#/$defs/part"}});
        schema = json!({"type": "object", "properties": fields, "required": ["first", "second"],
                        "additionalProperties": false, "$defs": {"part": definition}});
    }
    if random.once_in(4) {
        schema["$schema"] = json!("https://json-schema.org/draft/2020-12/schema");
        schema["title"] = json!("An answer");
    }
    schema
}

fn any(random: &mut Random, depth: usize) -> Value {
    let kinds = if depth >= DEPTH_MAX { 7 } else { 11 };
    match random.below(kinds) {
        0 => json!({"type": "boolean"}),
        1 => json!({"type": "null"}),
        2 => integer(random),
        3 => string(random),
        4 => {
            let values: Vec<Value> = (0..random.between(1, 6)).map(|_| constant(random)).collect();
            json!({"enum": values})
        }
        5 => json!({"const": constant(random)}),
        6 => {
            let (pattern, _) = random.one_of(&PATTERNS);
            json!({"type": "string", "pattern": pattern})
        }
        7 | 8 => object(random, depth + 1),
        9 => {
            let min = random.below(3);
            json!({"type": "array", "items": any(random, depth + 1), "minItems": min, "maxItems": min + random.below(3)})
        }
        _ => {
            let options: Vec<Value> = (0..random.between(2, 3)).map(|_| any(random, depth + 1)).collect();
            json!({"anyOf": options})
        }
    }
}

fn object(random: &mut Random, depth: usize) -> Value {
    let mut properties = Map::new();
    let mut required = Vec::new();
    for number in 0..random.between(1, 4) {
        let name = random.one_of(&["name", "Имя", "a b", "quote\"d", "x", "count", "итог", "🎉"]).to_string();
        let name = if properties.contains_key(&name) { format!("{name}{number}") } else { name };
        if !random.once_in(3) {
            required.push(name.clone());
        }
        properties.insert(name, any(random, depth));
    }
    json!({"type": "object", "properties": properties, "required": required, "additionalProperties": false})
}

fn integer(random: &mut Random) -> Value {
    let minimum = random.below(2000) as i64 - 1000;
    json!({"type": "integer", "minimum": minimum, "maximum": minimum + random.below(5000) as i64})
}

fn string(random: &mut Random) -> Value {
    let min = random.below(4);
    json!({"type": "string", "minLength": min, "maxLength": min + random.below(12)})
}

fn constant(random: &mut Random) -> Value {
    match random.below(8) {
        0 => json!(random.below(1000) as i64 - 500),
        1 => json!(true),
        2 => Value::Null,
        3 => json!("строка с \"кавычками\" и \\"),
        4 => json!("line\nbreak\tand \u{1f389}"),
        5 => json!(1.5),
        6 => json!(["a", 1, {"b": []}]),
        _ => {
            let length = random.between(0, 12);
            json!(random.words(length))
        }
    }
}
