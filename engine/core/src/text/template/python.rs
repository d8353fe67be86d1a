//! What chat templates expect of Python: `json.dumps`, methods of `str` and `dict`, and two functions of transformers.
//!
//! `minijinja` charges a method for its result, after it was made. Where a short call can make a long result
//! (`replace`, `join`, `format`, `split`) the length is computed and paid for first.

use std::fmt::Write;

use minijinja::value::{Kwargs, ValueKind, from_args};
use minijinja::{Environment, Error, ErrorKind, State, Value};
use minijinja_contrib::pycompat;

use crate::text::CivilTime;
use crate::text::masking::MARK;

/// JSON deeper than this is a trick; requests are limited to 128 by their parser.
const JSON_DEPTH_MAX: usize = 200;

/// Carried as the source of an error, to be told from a failing template.
#[derive(Debug, thiserror::Error)]
#[error("no time was given")]
struct NoTime;

/// Adds filters, functions and methods.
pub(super) fn install(environment: &mut Environment<'_>, now: Option<CivilTime>) {
    environment.set_unknown_method_callback(method);
    environment.add_filter("tojson", tojson);
    // Rust's debug notation, which costs the cube of the depth and is paid for afterwards. Nothing in Python has it.
    environment.remove_filter("pprint");
    environment.remove_global("debug");
    environment.add_filter("trim", trim);
    environment.add_function("raise_exception", |message: String| -> Result<Value, Error> {
        Err(Error::new(ErrorKind::InvalidOperation, format!("{RAISED}{message}")))
    });
    environment.add_function("strftime_now", move |format: &str| -> Result<String, Error> {
        let now = now.ok_or_else(|| Error::new(ErrorKind::InvalidOperation, "no time").with_source(NoTime))?;
        now.strftime(format).map_err(|directive| {
            Error::new(ErrorKind::InvalidOperation, format!("strftime_now does not know {directive}"))
        })
    });
}

const RAISED: &str = "it refuses this conversation: ";

/// Whether the template wanted the time and there was none.
pub(super) fn asked_for_time(error: &Error) -> bool {
    let mut source = std::error::Error::source(error);
    while let Some(error) = source {
        if error.is::<NoTime>() {
            return true;
        }
        source = error.source();
    }
    false
}

/// What went wrong and in which line. Not the library's debug text: that shows variables, hence private text.
pub(super) fn reason(error: &Error) -> String {
    let detail = error.detail().unwrap_or_default();
    let line = error.line().map(|line| format!(" (line {line})")).unwrap_or_default();
    match detail.strip_prefix(RAISED) {
        Some(message) => format!("{RAISED}{message}{line}"),
        None => format!("{}: {detail}{line}", error.kind()),
    }
}

/// Pays for `bytes` of work or memory before it is spent.
fn afford(state: &State, bytes: usize) -> Result<(), Error> {
    state.consume_fuel(bytes as u64 / 64)
}

fn method(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let Some(text) = value.as_str() else { return pycompat::unknown_method_callback(state, value, method, args) };
    afford(state, text.len())?;
    match method {
        "strip" => strip(text, args, true, true),
        "lstrip" => strip(text, args, true, false),
        "rstrip" => strip(text, args, false, true),
        "join" => join(state, text, args),
        "split" => {
            let (separator, _): (Option<&str>, Option<i64>) = from_args(args)?;
            if separator == Some("") {
                return Err(Error::new(ErrorKind::InvalidOperation, "empty separator"));
            }
            // Each piece is a value of its own.
            let pieces = separator.map_or(text.len() / 2, |separator| text.matches(separator).count());
            afford(state, pieces.saturating_mul(64))?;
            pycompat::unknown_method_callback(state, value, method, args)
        }
        "splitlines" => {
            afford(state, text.matches('\n').count().saturating_mul(64))?;
            pycompat::unknown_method_callback(state, value, method, args)
        }
        "replace" => {
            let (old, new, _): (&str, &str, Option<i64>) = from_args(args)?;
            afford(state, text.matches(old).count().saturating_mul(new.len()))?;
            pycompat::unknown_method_callback(state, value, method, args)
        }
        "format" => {
            // A width asks for any amount of memory with few digits.
            if text.contains(':') {
                return Err(Error::new(ErrorKind::InvalidOperation, "str.format with a format specification"));
            }
            let longest = args.iter().map(|arg| arg.to_string().len()).max().unwrap_or(0);
            afford(state, text.matches('{').count().saturating_mul(longest))?;
            pycompat::unknown_method_callback(state, value, method, args)
        }
        _ => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Python counts four control characters as white space that Unicode does not.
fn is_python_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1C}'..='\u{1F}').contains(&c)
}

fn stripped<'a>(text: &'a str, chars: Option<&str>, start: bool, end: bool) -> &'a str {
    let strips = |c: char| chars.map_or_else(|| is_python_space(c), |chars| chars.contains(c));
    let text = if start { text.trim_start_matches(strips) } else { text };
    if end { text.trim_end_matches(strips) } else { text }
}

fn strip(text: &str, args: &[Value], start: bool, end: bool) -> Result<Value, Error> {
    let (chars,): (Option<&str>,) = from_args(args)?;
    Ok(stripped(text, chars, start, end).into())
}

/// Jinja's filter: turns what is no string into one first.
fn trim(value: &Value, chars: Option<&str>) -> String {
    match value.as_str() {
        Some(text) => stripped(text, chars, true, true).to_owned(),
        None => stripped(&value.to_string(), chars, true, true).to_owned(),
    }
}

fn join(state: &State, separator: &str, args: &[Value]) -> Result<Value, Error> {
    let (values,): (&Value,) = from_args(args)?;
    let mut out = String::new();
    for (index, value) in values.try_iter()?.enumerate() {
        let Some(text) = value.as_str() else {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("join of a {}", value.kind())));
        };
        afford(state, separator.len() + text.len() + 64)?;
        if index > 0 {
            out += separator;
        }
        out += text;
    }
    Ok(out.into())
}

/// `json.dumps(value, ensure_ascii=False, indent=None, separators=None, sort_keys=False)`.
fn tojson(state: &State, value: &Value, kwargs: Kwargs) -> Result<Value, Error> {
    let ensure_ascii: Option<bool> = kwargs.get("ensure_ascii")?;
    let indent: Option<Value> = kwargs.get("indent")?;
    let separators: Option<Value> = kwargs.get("separators")?;
    let sort_keys: Option<bool> = kwargs.get("sort_keys")?;
    kwargs.assert_all_used()?;

    let indent = match indent.filter(|indent| !indent.is_none()) {
        None => None,
        Some(indent) => match indent.as_str() {
            Some(text) => Some(text.to_owned()),
            None => {
                let width = usize::try_from(indent)?.min(64);
                Some(" ".repeat(width))
            }
        },
    };
    let (mut item, mut key) = (if indent.is_some() { "," } else { ", " }.to_owned(), ": ".to_owned());
    if let Some(separators) = separators.filter(|separators| !separators.is_none()) {
        let texts: Vec<Value> = separators.try_iter()?.take(3).collect();
        match texts.as_slice() {
            [a, b] => (item, key) = (a.to_string(), b.to_string()),
            _ => return Err(Error::new(ErrorKind::InvalidOperation, "separators must be two strings")),
        }
    }
    let ensure_ascii = ensure_ascii.unwrap_or(false);
    let sort_keys = sort_keys.unwrap_or(false);
    let mut json = Json { state, out: String::new(), paid: 0, ensure_ascii, indent, item, key, sort_keys };
    json.value(value, 0)?;
    Ok(json.out.into())
}

struct Json<'a, 'template, 'env> {
    state: &'a State<'template, 'env>,
    out: String,
    paid: usize,
    ensure_ascii: bool,
    indent: Option<String>,
    item: String,
    key: String,
    sort_keys: bool,
}

impl Json<'_, '_, '_> {
    fn value(&mut self, value: &Value, depth: usize) -> Result<(), Error> {
        if depth > JSON_DEPTH_MAX {
            return Err(Error::new(ErrorKind::InvalidOperation, "tojson of a value nested too deeply"));
        }
        afford(self.state, 64 + 4 * (self.out.len() - self.paid))?;
        self.paid = self.out.len();
        match value.kind() {
            ValueKind::None => self.out += "null",
            ValueKind::Bool => self.out += if value.is_true() { "true" } else { "false" },
            ValueKind::Number if value.is_integer() => write!(self.out, "{value}").expect("writing to a string"),
            ValueKind::Number => {
                let float = f64::try_from(value.clone())?;
                self.out += &python_float(float);
            }
            ValueKind::String => self.string(value.as_str().unwrap_or_default()),
            ValueKind::Seq | ValueKind::Iterable => {
                let mut count = 0;
                self.out.push('[');
                for item in value.try_iter()? {
                    self.separate(count, depth);
                    self.value(&item, depth + 1)?;
                    count += 1;
                }
                self.close(count, depth, ']');
            }
            ValueKind::Map => {
                let mut names: Vec<Value> = value.try_iter()?.collect();
                if self.sort_keys {
                    names.sort();
                }
                self.out.push('{');
                for (count, name) in names.iter().enumerate() {
                    self.separate(count, depth);
                    match name.as_str() {
                        Some(name) => self.string(name),
                        None => self.name(name)?,
                    }
                    self.out += &self.key.clone();
                    self.value(&value.get_item(name)?, depth + 1)?;
                }
                self.close(names.len(), depth, '}');
            }
            kind => {
                return Err(Error::new(
                    ErrorKind::InvalidOperation,
                    format!("a value that is {kind} has no JSON form"),
                ));
            }
        }
        Ok(())
    }

    /// Python writes keys that are no strings as the JSON they would be, in quotes.
    fn name(&mut self, name: &Value) -> Result<(), Error> {
        if !matches!(name.kind(), ValueKind::None | ValueKind::Bool | ValueKind::Number) {
            return Err(Error::new(ErrorKind::InvalidOperation, format!("a {} as a key of JSON", name.kind())));
        }
        self.out.push('"');
        self.value(name, JSON_DEPTH_MAX)?;
        self.out.push('"');
        Ok(())
    }

    fn separate(&mut self, count: usize, depth: usize) {
        if count > 0 {
            self.out += &self.item.clone();
        }
        self.new_line(depth + 1);
    }

    fn close(&mut self, count: usize, depth: usize, bracket: char) {
        if count > 0 {
            self.new_line(depth);
        }
        self.out.push(bracket);
    }

    fn new_line(&mut self, depth: usize) {
        if let Some(indent) = &self.indent {
            self.out.push('\n');
            self.out += &indent.repeat(depth);
        }
    }

    fn string(&mut self, text: &str) {
        self.out.push('"');
        let mut chars = text.chars();
        while let Some(c) = chars.next() {
            match c {
                '"' => self.out += "\\\"",
                '\\' => self.out += "\\\\",
                '\n' => self.out += "\\n",
                '\r' => self.out += "\\r",
                '\t' => self.out += "\\t",
                '\u{8}' => self.out += "\\b",
                '\u{C}' => self.out += "\\f",
                // A masked character (see `masking`) must stay what the tokenizer looks for.
                MARK => {
                    self.out.push(c);
                    self.out.extend(chars.next());
                }
                c if c < ' ' || (self.ensure_ascii && c >= '\u{7F}') => {
                    for unit in c.encode_utf16(&mut [0; 2]) {
                        write!(self.out, "\\u{unit:04x}").expect("writing to a string");
                    }
                }
                c => self.out.push(c),
            }
        }
        self.out.push('"');
    }
}

/// `repr` of a float: the shortest digits, with an exponent below 1e-4 and from 1e16.
fn python_float(x: f64) -> String {
    if !x.is_finite() {
        return if x.is_nan() {
            "NaN"
        } else if x > 0.0 {
            "Infinity"
        } else {
            "-Infinity"
        }
        .into();
    }
    if x == 0.0 || (1e-4..1e16).contains(&x.abs()) {
        return format!("{x:?}");
    }
    let text = format!("{x:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |exponent| ('-', exponent));
    format!("{digits}e{sign}{exponent:0>2}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn floats_are_written_as_python_writes_them() {
        for (x, want) in [
            (1.0, "1.0"),
            (-0.0, "-0.0"),
            (0.1, "0.1"),
            (1e-4, "0.0001"),
            (1e-5, "1e-05"),
            (1.5e-7, "1.5e-07"),
            (1e15, "1000000000000000.0"),
            (1e16, "1e+16"),
            (-1.25e100, "-1.25e+100"),
            (f64::NAN, "NaN"),
            (f64::NEG_INFINITY, "-Infinity"),
        ] {
            assert_eq!(python_float(x), want);
        }
    }
}
