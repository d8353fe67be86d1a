//! Whether a document keeps a schema, as far as schemas are drawn here. Written from JSON Schema, not from what masks tokens.

use serde_json::Value;

/// Patterns, and the same said without a pattern.
type Pattern = (&'static str, fn(&str) -> bool);

pub(super) const PATTERNS: [Pattern; 6] = [
    ("^[a-z]{2,8}$", |text| (2..=8).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_lowercase())),
    ("^[0-9]{4}-[0-9]{2}-[0-9]{2}$", |text| {
        text.len() == 10
            && text.bytes().enumerate().all(|(place, byte)| match place {
                4 | 7 => byte == b'-',
                _ => byte.is_ascii_digit(),
            })
    }),
    ("^(yes|no|unknown)$", |text| matches!(text, "yes" | "no" | "unknown")),
    ("^#[0-9a-f]{6}$", |text| {
        text.len() == 7
            && text.starts_with('#')
            && text[1..].bytes().all(|byte| byte.is_ascii_digit() || (b'a'..=b'f').contains(&byte))
    }),
    ("^(a|b)?c{0,3}$", |text| {
        let rest = text.strip_prefix(['a', 'b']).unwrap_or(text);
        rest.len() <= 3 && rest.bytes().all(|byte| byte == b'c')
    }),
    ("^[А-Яа-я]{1,5}$", |text| {
        (1..=5).contains(&text.chars().count()) && text.chars().all(|letter| ('А'..='я').contains(&letter))
    }),
];

/// Checks `document` against `schema`; `root` is where references lead to.
pub(super) fn check(root: &Value, schema: &Value, document: &Value) -> Result<(), String> {
    let fails = |why: &str| Err(format!("{document} is not {why}, as {schema} says"));
    if let Some(reference) = schema["$ref"].as_str() {
        let pointer = reference.trim_start_matches('#');
        let target = root.pointer(pointer).ok_or_else(|| format!("{reference} leads nowhere"))?;
        return check(root, target, document);
    }
    if let Some(options) = schema["anyOf"].as_array()
        && !options.iter().any(|option| check(root, option, document).is_ok())
    {
        return fails("any of them");
    }
    if let Some(values) = schema["enum"].as_array()
        && !values.contains(document)
    {
        return fails("one of them");
    }
    if let Some(constant) = schema.get("const")
        && constant != document
    {
        return fails("that");
    }
    match schema["type"].as_str() {
        None => Ok(()),
        Some("boolean") if document.is_boolean() => Ok(()),
        Some("null") if document.is_null() => Ok(()),
        Some("integer") => match document.as_i64() {
            Some(number) if in_range(schema, "minimum", "maximum", number) => Ok(()),
            _ => fails("such an integer"),
        },
        Some("string") => match document.as_str() {
            Some(text) if in_range(schema, "minLength", "maxLength", text.chars().count() as i64) => {
                let pattern = schema["pattern"].as_str();
                let known = pattern.and_then(|pattern| PATTERNS.iter().find(|(known, _)| *known == pattern));
                match (pattern, known) {
                    (Some(pattern), None) => Err(format!("the pattern {pattern} is none of those that are known")),
                    (_, Some((_, keeps))) if !keeps(text) => fails("of this pattern"),
                    _ => Ok(()),
                }
            }
            _ => fails("such a string"),
        },
        Some("array") => match document.as_array() {
            Some(list) if in_range(schema, "minItems", "maxItems", list.len() as i64) => {
                list.iter().try_for_each(|item| check(root, &schema["items"], item))
            }
            _ => fails("such an array"),
        },
        Some("object") => {
            let Some(fields) = document.as_object() else { return fails("an object") };
            let required = schema["required"].as_array().map(Vec::as_slice).unwrap_or_default();
            if !required.iter().filter_map(Value::as_str).all(|name| fields.contains_key(name)) {
                return fails("complete");
            }
            for (name, value) in fields {
                match schema["properties"].get(name) {
                    Some(property) => check(root, property, value)?,
                    None if schema["additionalProperties"] == false => return fails("without other fields"),
                    None => {}
                }
            }
            Ok(())
        }
        Some(_) => fails("of this type"),
    }
}

fn in_range(schema: &Value, least: &str, most: &str, number: i64) -> bool {
    schema[least].as_i64().is_none_or(|least| number >= least)
        && schema[most].as_i64().is_none_or(|most| number <= most)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn each_keyword_is_kept_or_broken() {
        let schema = json!({"type": "object", "required": ["a"], "additionalProperties": false, "properties": {
            "a": {"type": "integer", "minimum": 2, "maximum": 4},
            "b": {"type": "array", "items": {"$ref": "#/$defs/s"}, "minItems": 1, "maxItems": 2},
            "c": {"anyOf": [{"const": 1}, {"enum": ["x", null]}]},
            "d": {"type": "string", "pattern": "^[a-z]{2,8}$"},
        }, "$defs": {"s": {"type": "string", "minLength": 1, "maxLength": 2}}});
        let keeps = |document: Value| check(&schema, &schema, &document).is_ok();
        assert!(keeps(json!({"a": 3, "b": ["жж", "y"], "c": null, "d": "ok"})));
        for broken in [
            json!([]),
            json!({}),
            json!({"a": 1}),
            json!({"a": 5}),
            json!({"a": 2.5}),
            json!({"a": "3"}),
            json!({"a": 3, "z": 1}),
            json!({"a": 3, "b": []}),
            json!({"a": 3, "b": ["x", "y", "z"]}),
            json!({"a": 3, "b": [""]}),
            json!({"a": 3, "b": ["xyz"]}),
            json!({"a": 3, "c": 2}),
            json!({"a": 3, "d": "A"}),
            json!({"a": 3, "d": "abcdefghi"}),
        ] {
            assert!(!keeps(broken.clone()), "{broken}");
        }
    }

    #[test]
    fn patterns_are_said_without_patterns() {
        let kept = ["abc", "2026-11-23", "unknown", "#00ff7a", "bccc", "Жук"];
        for (place, (pattern, keeps)) in PATTERNS.iter().enumerate() {
            assert!(keeps(kept[place]), "{pattern}");
            assert!(!keeps("") || pattern.contains('?'), "{pattern}");
            assert!(!keeps("2026-11-2x") && !keeps("abccccc1"), "{pattern}");
        }
    }
}
