//! Chat templates: the program, shipped with a model, that writes a conversation as the model was trained to read it.
//!
//! The words must be those that `transformers` would write, to the byte: a missing newline costs quality and nobody
//! sees why. So the environment is set up as theirs (`trim_blocks`, `lstrip_blocks`, Python's methods, `json.dumps`),
//! and what they pass as None where a template only asks whether it is there (`tools`, `documents`) is left undefined.
//!
//! A template is a download, hence hostile. `minijinja` gives it no file and no connection; every step and every 64 bytes
//! it makes cost fuel, so it ends; the Python methods that could make much from little are measured first (`python`).
//!
//! Two things are done for the caller: `arguments` of tool calls that come as JSON in a string (as the OpenAI API has
//! them) are parsed, because most templates walk them as an object; and content in parts is joined to one text for
//! templates that expect one, found out by a trial when the template is read.

mod python;

use std::path::{Path, PathBuf};
use std::thread;

use minijinja::value::Serde;
use minijinja::{AutoEscape, Environment, ErrorKind, UndefinedBehavior};
use serde_json::{Map, Value, json};

use super::bounded_file::{read, read_json_object};
use super::masking::{MARK, Masking};
use super::tokenizer::CONFIG_BYTES_MAX;
use super::{CivilTime, Content, Message, SpeechFormat, TextError, Tokenizer};

/// The longest known template has 30 KB.
const TEMPLATE_BYTES_MAX: u64 = 1 << 20;
/// Steps that any template may take, whatever the input: the longest known one needs some hundreds a message.
const FUEL_BASE: u64 = 100_000;
const FUEL_PER_MESSAGE: u64 = 1_000;
/// One fuel pays for 64 bytes; templates copy, trim and split a text some twenty times.
const INPUT_BYTES_PER_FUEL: usize = 2;
/// Enough for five million tokens of text.
const FUEL_MAX: u64 = 8_000_000;
/// A value that a template nests is dropped, compared and printed by recursion, which the library does not bound.
/// Nesting one level deeper costs at least one fuel, and printing a level takes 280 to 570 bytes of stack (45,000 levels
/// overflow 13 MB and fit into 26 MB). An honest template touches nothing of it.
const STACK_BYTES_PER_FUEL: u64 = 1 << 10;
/// An honest prompt is its input and some words a message; JSON may escape a character in six.
const OUTPUT_PER_INPUT: usize = 8;
const OUTPUT_BYTES_BASE: usize = 1 << 20;
/// Templates compare roles, and some models have a token of the same spelling, so these are never masked.
const ROLES: [&str; 7] = ["system", "developer", "user", "assistant", "tool", "function", "ipython"];

/// Variables that rendering sets, whatever the caller gives beside them.
const FIXED: [&str; 3] = ["messages", "tools", "add_generation_prompt"];

/// The chat templates of one model; most have one.
#[derive(Clone, Debug)]
pub struct ChatTemplate {
    path: PathBuf,
    sources: Vec<Source>,
    special_tokens: Map<String, Value>,
}

#[derive(Clone, Debug)]
struct Source {
    name: String,
    text: String,
    takes_parts: bool,
}

/// What a template is told beside the messages.
#[derive(Clone, Debug, Default)]
pub struct RenderOptions {
    /// End with the beginning of the assistant's turn.
    pub add_generation_prompt: bool,
    /// `enable_thinking`, where the caller says; absent, the template decides.
    pub enable_thinking: Option<bool>,
    /// Tools as in the OpenAI API: a list of `{"type": "function", "function": …}`.
    pub tools: Option<Value>,
    /// The time for `strftime_now`. A template that asks for it without being given one is an error.
    pub now: Option<CivilTime>,
    /// Further variables (`chat_template_kwargs`). They cannot replace the ones above, nor messages.
    pub extra: Map<String, Value>,
}

impl ChatTemplate {
    /// Reads `chat_template.jinja`, else `chat_template.json`, else `chat_template` in `tokenizer_config.json` (one text
    /// or a list of `{name, template}`). Special tokens come from `tokenizer_config.json` in any case.
    pub fn from_dir(dir: &Path) -> Result<Self, TextError> {
        let config_path = dir.join("tokenizer_config.json");
        let config = read_json_object(&config_path, CONFIG_BYTES_MAX)?.unwrap_or_default();

        let jinja_path = dir.join("chat_template.jinja");
        if let Some(bytes) = read(&jinja_path, TEMPLATE_BYTES_MAX)? {
            let text = String::from_utf8(bytes)
                .map_err(|error| TextError::Malformed { path: jinja_path.clone(), reason: error.to_string() })?;
            return Self::new(jinja_path, &Value::String(text), &config);
        }
        let json_path = dir.join("chat_template.json");
        if let Some(file) = read_json_object(&json_path, CONFIG_BYTES_MAX)?
            && let Some(template) = file.get("chat_template")
        {
            return Self::new(json_path, template, &config);
        }
        match config.get("chat_template") {
            Some(template) => Self::new(config_path, template, &config),
            None => Err(TextError::Missing {
                path: jinja_path,
                help: "nor is there a chat template in chat_template.json or tokenizer_config.json; a base model has none \
                       (send it plain text), for another one take the file from its original repository",
            }),
        }
    }

    /// `template` is a text or a list of named ones; `config` is tokenizer_config.json; `path` is for messages.
    fn new(path: PathBuf, template: &Value, config: &Map<String, Value>) -> Result<Self, TextError> {
        let named = |entry: &Value| {
            let field = |name| entry.get(name).and_then(Value::as_str).map(str::to_owned);
            Some((field("name")?, field("template")?))
        };
        let sources: Option<Vec<(String, String)>> = match template {
            Value::String(text) => Some(vec![("default".into(), text.clone())]),
            Value::Array(list) if !list.is_empty() => list.iter().map(named).collect(),
            _ => None,
        };
        let sources = sources.ok_or_else(|| TextError::Field {
            path: path.clone(),
            field: "chat_template".into(),
            expected: "a text or a list of {name, template}",
            found: super::bounded_file::describe(template),
        })?;
        let special_tokens = config.iter().filter_map(|(name, value)| {
            let text = value.as_str().or_else(|| value.get("content").and_then(Value::as_str))?;
            name.ends_with("_token").then(|| (name.clone(), text.into()))
        });
        let mut this = Self { path, sources: Vec::new(), special_tokens: special_tokens.collect() };
        for (name, text) in sources {
            if text.len() as u64 > TEMPLATE_BYTES_MAX {
                return Err(TextError::FileTooLarge { path: this.path, max_bytes: TEMPLATE_BYTES_MAX });
            }
            if text.contains(MARK) {
                return Err(this.failed("it holds U+FDD0, which is kept for marking quoted control tokens".into()));
            }
            let text = without_generation_tags(&text);
            this.environment(0, None)?.template_from_str(&text).map_err(|error| this.failed(error.to_string()))?;
            let takes_parts = this.takes_parts(&text);
            this.sources.push(Source { name, text, takes_parts });
        }
        Ok(this)
    }

    /// The prompt as text. If a message holds the text of a control token, so does this, and a tokenizer cannot tell it
    /// from the template's own: for anything but display use [`render_to_tokens`](Self::render_to_tokens).
    pub fn render(&self, messages: &[Message], options: &RenderOptions) -> Result<String, TextError> {
        self.render_with(messages, options, None)
    }

    /// The prompt as ids. Control tokens come from the template only: where a message, a tool or an option quotes one,
    /// its characters are encoded as text. Without such quotes the ids are those of `transformers`. Some templates build
    /// a control token around the role, so roles that strangers may choose are the caller's to check.
    pub fn render_to_tokens(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        options: &RenderOptions,
    ) -> Result<Vec<u32>, TextError> {
        tokenizer.check_protectable()?;
        tokenizer.encode_masked(&self.render_with(messages, options, Some(tokenizer.masking()))?)
    }

    /// How a model of this template marks thoughts and calls.
    ///
    /// # Errors
    /// Those of [`render`](Self::render) that do not depend on messages: there is no template for these options.
    pub fn speech_format(&self, options: &RenderOptions) -> Result<SpeechFormat, TextError> {
        Ok(SpeechFormat::of_template(&self.source_for(options)?.text))
    }

    /// Whether a prompt may hold the date: whoever renders it again later has to say the same time.
    pub fn asks_for_time(&self) -> bool {
        self.sources.iter().any(|source| has_word(&source.text, "strftime_now"))
    }

    /// Refuses options that would change nothing, or that come to nothing: a variable whose name the template holds
    /// nowhere, one that is set here in any case, one that is given twice.
    ///
    /// A name that stands in a comment only goes unnoticed. None that is refused here can be read by the template.
    ///
    /// # Errors
    /// [`TextError::TemplateOption`] with the variable's name.
    pub fn check_options(&self, options: &RenderOptions) -> Result<(), TextError> {
        let source = self.source_for(options)?;
        let refused = |name: &str, reason| {
            // A name may come from a request.
            let name = name.chars().take(60).collect();
            Err(TextError::TemplateOption { path: self.path.clone(), name, reason })
        };
        for name in options.extra.keys() {
            if FIXED.contains(&name.as_str()) || self.special_tokens.contains_key(name) {
                return refused(name, "is always set, and by nobody else");
            }
            if name == "enable_thinking" && options.enable_thinking.is_some() {
                return refused(name, "is given twice");
            }
        }
        let thinking = options.enable_thinking.map(|_| "enable_thinking");
        let tools = options.tools.as_ref().map(|_| "tools");
        let given = options.extra.keys().map(String::as_str).chain(thinking).chain(tools);
        match given.into_iter().find(|name| !has_word(&source.text, name)) {
            Some(name) => refused(name, "is nowhere in it, so it would change nothing; this model was not made for it"),
            None => Ok(()),
        }
    }

    fn render_with(
        &self,
        messages: &[Message],
        options: &RenderOptions,
        masking: Option<&Masking>,
    ) -> Result<String, TextError> {
        let source = self.source_for(options)?;
        let mut context = Map::new();
        context.extend(options.extra.clone());
        if let Some(enable_thinking) = options.enable_thinking {
            context.insert("enable_thinking".into(), enable_thinking.into());
        }
        if let Some(tools) = &options.tools {
            context.insert("tools".into(), tools.clone());
        }
        let messages: Result<Vec<Value>, TextError> =
            messages.iter().enumerate().map(|(index, message)| prepared(message, index, source.takes_parts)).collect();
        context.insert("messages".into(), messages?.into());
        if let Some(masking) = masking {
            context.values_mut().for_each(|value| mask(value, masking));
        }
        let input_bytes = Value::Object(context.clone()).to_string().len();
        context.insert("add_generation_prompt".into(), options.add_generation_prompt.into());
        // After masking: these are the template's own words.
        for (name, text) in &self.special_tokens {
            context.insert(name.clone(), text.clone());
        }
        self.run(&source.text, context, options.now, input_bytes)
    }

    fn source_for(&self, options: &RenderOptions) -> Result<&Source, TextError> {
        let named = |name: &str| self.sources.iter().find(|source| source.name == name);
        let tool_use = options.tools.as_ref().and_then(|_| named("tool_use"));
        tool_use.or_else(|| named("default")).ok_or_else(|| {
            let names: Vec<&str> = self.sources.iter().map(|source| source.name.as_str()).collect();
            self.failed(format!("none of the templates ({}) is called `default`", names.join(", ")))
        })
    }

    fn environment(&self, fuel: u64, now: Option<CivilTime>) -> Result<Environment<'_>, TextError> {
        let mut environment = Environment::new();
        let syntax = minijinja::syntax::SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
        environment.set_syntax(syntax.map_err(|error| self.failed(error.to_string()))?);
        environment.set_auto_escape_callback(|_| AutoEscape::None);
        environment.set_undefined_behavior(UndefinedBehavior::Lenient);
        environment.set_fuel(Some(fuel));
        python::install(&mut environment, now);
        Ok(environment)
    }

    fn run(
        &self,
        source: &str,
        context: Map<String, Value>,
        now: Option<CivilTime>,
        input_bytes: usize,
    ) -> Result<String, TextError> {
        let messages = context.get("messages").and_then(Value::as_array).map_or(0, Vec::len);
        let fuel = FUEL_BASE + FUEL_PER_MESSAGE * messages as u64 + (input_bytes / INPUT_BYTES_PER_FUEL) as u64;
        let fuel = fuel.min(FUEL_MAX);
        let render = || -> Result<String, TextError> {
            let environment = self.environment(fuel, now)?;
            environment.render_str(source, Serde(&context)).map_err(|error| match error.kind() {
                ErrorKind::OutOfFuel => TextError::TemplateBudget { path: self.path.clone(), fuel, input_bytes },
                _ if python::asked_for_time(&error) => TextError::TemplateNeedsTime { path: self.path.clone() },
                _ => self.failed(python::reason(&error)),
            })
        };
        let stack_bytes = (fuel * STACK_BYTES_PER_FUEL) as usize;
        // A panic of the library ends this thread only.
        let joined = thread::scope(|scope| {
            let thread = thread::Builder::new().name("chat-template".into()).stack_size(stack_bytes);
            Ok(thread.spawn_scoped(scope, render)?.join())
        });
        let output = joined
            .map_err(|error: std::io::Error| {
                self.failed(format!("cannot start its thread ({stack_bytes} bytes): {error}"))
            })?
            .map_err(|_| self.failed("the template library broke off on it".into()))??;
        if output.len() > OUTPUT_BYTES_BASE + OUTPUT_PER_INPUT * input_bytes {
            return Err(self.failed(format!("it made {} bytes of {input_bytes} bytes of input", output.len())));
        }
        Ok(output)
    }

    /// Whether the text of `[{"type": "text", "text": …}]` comes out as itself, not as Python's notation of a list.
    fn takes_parts(&self, source: &str) -> bool {
        let context = json!({
            "messages": [{"role": "user", "content": [{"type": "text", "text": "probe"}]}],
            "add_generation_prompt": true,
        });
        let Value::Object(mut context) = context else { return false };
        context.extend(self.special_tokens.clone());
        let output = self.run(source, context, Some(CivilTime::from_unix(0, 0)), 1024);
        output.is_ok_and(|text| text.contains("probe") && !text.contains("'type'") && !text.contains("\"type\""))
    }

    fn failed(&self, reason: String) -> TextError {
        TextError::Template { path: self.path.clone(), reason }
    }
}

/// The message as the template sees it.
fn prepared(message: &Message, index: usize, takes_parts: bool) -> Result<Value, TextError> {
    let mut fields = Map::new();
    fields.insert("role".into(), message.role.clone().into());
    match &message.content {
        None => {}
        Some(Content::Null) => _ = fields.insert("content".into(), Value::Null),
        Some(Content::Text(text)) => _ = fields.insert("content".into(), text.clone().into()),
        Some(Content::Parts(parts)) if takes_parts => _ = fields.insert("content".into(), parts.clone().into()),
        Some(Content::Parts(parts)) => _ = fields.insert("content".into(), joined(parts, index)?.into()),
    }
    // As transformers does: gpt-oss reads `thinking`, the others `reasoning_content`.
    let reasoning = ["thinking", "reasoning"].iter().find_map(|&name| message.extra.get(name).filter(|v| !v.is_null()));
    if let Some(reasoning) = message.reasoning_content.clone().map(Value::from).or_else(|| reasoning.cloned()) {
        fields.insert("thinking".into(), reasoning.clone());
        fields.insert("reasoning_content".into(), reasoning);
    }
    if let Some(calls) = &message.tool_calls {
        fields.insert("tool_calls".into(), calls.iter().map(with_parsed_arguments).collect());
    }
    for (name, value) in &message.extra {
        fields.insert(name.clone(), value.clone());
    }
    Ok(Value::Object(fields))
}

/// The texts of all parts, a line each.
fn joined(parts: &[Value], index: usize) -> Result<String, TextError> {
    let text = |part: &Value| match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str))
    {
        (Some("text"), Some(text)) => Ok(text.to_owned()),
        (kind, _) => {
            Err(TextError::UnsupportedPart { index, kind: kind.unwrap_or("unknown").chars().take(40).collect() })
        }
    };
    let texts: Result<Vec<String>, TextError> = parts.iter().map(text).collect();
    Ok(texts?.join("\n"))
}

fn with_parsed_arguments(call: &Value) -> Value {
    let mut call = call.clone();
    let holder = if call.get("function").is_some() { call.get_mut("function") } else { Some(&mut call) };
    if let Some(arguments) = holder.and_then(|function| function.get_mut("arguments"))
        && let Some(Ok(object)) = arguments.as_str().map(serde_json::from_str::<Map<String, Value>>)
    {
        *arguments = Value::Object(object);
    }
    call
}

/// Masks every text in the value, names of fields included: tools print those, too.
fn mask(value: &mut Value, masking: &Masking) {
    match value {
        Value::String(text) => *text = masking.mask(text).into_owned(),
        Value::Array(list) => list.iter_mut().for_each(|value| mask(value, masking)),
        Value::Object(fields) => {
            *fields = std::mem::take(fields)
                .into_iter()
                .map(|(name, mut value)| {
                    if name != "role" || !value.as_str().is_some_and(|role| ROLES.contains(&role)) {
                        mask(&mut value, masking);
                    }
                    (masking.mask(&name).into_owned(), value)
                })
                .collect();
        }
        Value::Null | Value::Bool(_) | Value::Number(_) => {}
    }
}

/// Whether `name` stands anywhere in a template, as a word. One that has it nowhere cannot read the variable.
fn has_word(template: &str, name: &str) -> bool {
    template.split(|c: char| !c.is_alphanumeric() && c != '_').any(|word| word == name)
}

/// `{% generation %}` marks what training looks at; it prints its body in a scope of its own, as `with` does.
fn without_generation_tags(source: &str) -> String {
    let mut out = String::with_capacity(source.len());
    let mut rest = source;
    while let Some(start) = rest.find("{%") {
        let (before, tag) = rest.split_at(start);
        out += before;
        let Some(end) = tag.find("%}") else { break };
        let inner = &tag[2..end];
        let signs: &[char] = &['-', '+'];
        let replacement = match inner.trim_matches(signs).trim() {
            "generation" => Some("with"),
            "endgeneration" => Some("endwith"),
            _ => None,
        };
        match replacement {
            Some(word) => {
                let sign = |c: Option<char>| c.filter(|c| signs.contains(c)).map(String::from).unwrap_or_default();
                out += &format!("{{%{} {word} {}%}}", sign(inner.chars().next()), sign(inner.chars().next_back()));
                rest = &tag[end + 2..];
            }
            None => {
                out += "{%";
                rest = &tag[2..];
            }
        }
    }
    out + rest
}

#[cfg(test)]
mod tests;
