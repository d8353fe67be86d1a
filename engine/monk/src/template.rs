//! Prompts are templates, and templates are hostile input: they come with recipes that people share.
//!
//! So a template has a budget (fuel) of steps and of bytes that it makes, and a misspelt variable is an error, never an
//! empty string. Each template is rendered once with invented values while the job is loaded, so that what is wrong
//! with it is said in the evening and not after the first note. Errors of a later rendering carry no detail of the
//! engine's: it could quote a note.

use minijinja::syntax::SyntaxConfig;
use minijinja::{Environment, ErrorKind, UndefinedBehavior, Value, context};

use crate::generator::Prompt;

/// The budget of one prompt, beside [`FUEL_PER_ITEM`]: about one unit for a step of the template engine or 64 bytes of
/// text, so it bounds memory (64 MB) as well as time. A built-in prompt over a page of text takes about 100.
const FUEL: u64 = 1_000_000;
/// The budget for each item that a prompt is rendered over.
const FUEL_PER_ITEM: u64 = 1_000;

/// What a map template may use.
const MAP_VARIABLES: [&str; 6] = ["note.path", "note.title", "note.text", "part", "parts", "language"];
/// What a reduce template may use.
const REDUCE_VARIABLES: [&str; 5] = ["items", "notes", "round", "last", "language"];

/// Why a prompt cannot be made.
#[derive(Debug, thiserror::Error)]
#[error("`{key}` is not a prompt: {message}")]
pub struct TemplateError {
    key: String,
    message: String,
}

/// The system and user templates of one phase, checked.
#[derive(Clone, Debug)]
pub(crate) struct PhaseTemplate {
    kind: PhaseKind,
    system: Option<String>,
    prompt: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum PhaseKind {
    Map,
    Reduce,
}

/// The variables of one map prompt.
pub(crate) struct MapVariables<'a> {
    pub(crate) path: &'a str,
    pub(crate) title: &'a str,
    pub(crate) text: &'a str,
    /// From 1.
    pub(crate) part: usize,
    pub(crate) parts: usize,
    pub(crate) language: Option<&'a str>,
}

/// The variables of one reduce prompt.
pub(crate) struct ReduceVariables<'a> {
    pub(crate) items: &'a [Item],
    /// Notes of the whole job.
    pub(crate) notes: usize,
    /// From 1.
    pub(crate) round: usize,
    /// Whether this prompt sees all that is left, so that its answer is the job's.
    pub(crate) last: bool,
    pub(crate) language: Option<&'a str>,
}

/// An answer on its way to the report.
#[derive(Clone, Debug)]
pub(crate) struct Item {
    /// Links of the notes that it came from, in order.
    pub(crate) links: Vec<String>,
    pub(crate) text: String,
}

impl PhaseTemplate {
    /// `key` is `map` or `reduce`, as in the job file.
    pub(crate) fn new(key: &'static str, system: Option<String>, prompt: String) -> Result<Self, TemplateError> {
        let kind = if key == "map" { PhaseKind::Map } else { PhaseKind::Reduce };
        let template = Self { kind, system, prompt };
        template.try_out()?;
        Ok(template)
    }

    /// Parts that decide a prompt's bytes, for the manifest.
    pub(crate) fn sources(&self) -> [Option<&str>; 2] {
        [self.system.as_deref(), Some(&self.prompt)]
    }

    pub(crate) fn map_prompt(&self, variables: &MapVariables) -> Result<Prompt, TemplateError> {
        let MapVariables { path, title, text, part, parts, language } = *variables;
        let note = context! { path, title, text };
        self.render(context! { note, part, parts, language }, 1, Detail::Hidden)
    }

    pub(crate) fn reduce_prompt(&self, variables: &ReduceVariables) -> Result<Prompt, TemplateError> {
        let ReduceVariables { items, notes, round, last, language } = *variables;
        let (count, items) = (items.len() as u64, values(items));
        self.render(context! { items, notes, round, last, language }, count, Detail::Hidden)
    }

    fn try_out(&self) -> Result<(), TemplateError> {
        let known: &[&str] = match self.kind {
            PhaseKind::Map => &MAP_VARIABLES,
            PhaseKind::Reduce => &REDUCE_VARIABLES,
        };
        for (key, source) in self.keys() {
            let environment = environment(FUEL);
            let template =
                environment.template_from_named_str(&key, source).map_err(|e| error(&key, &e, Detail::Shown))?;
            let mut used: Vec<_> = template.undeclared_variables(true).into_iter().collect();
            used.sort_unstable();
            for name in used {
                let is_known = known.iter().any(|k| {
                    *k == name
                        || name.strip_prefix(k).is_some_and(|rest| rest.starts_with('.'))
                        || k.starts_with(&format!("{name}."))
                });
                if !is_known && !environment.globals().any(|(global, _)| global == name) {
                    let message = format!("it uses `{name}`, but what it may use is {}", known.join(", "));
                    return Err(TemplateError { key, message });
                }
            }
        }
        for last in [false, true] {
            match self.kind {
                PhaseKind::Map => {
                    let note = context! { path => "folder/name.md", title => "Name", text => "Text." };
                    let parts = if last { 1 } else { 2 };
                    self.render(context! { note, part => 1, parts, language => None::<&str> }, 1, Detail::Shown)?;
                }
                PhaseKind::Reduce => {
                    let item = |name: &str| Item { links: vec![format!("[[{name}]]")], text: "Text.".to_owned() };
                    let items = values(&[item("one"), item("two")]);
                    let language = None::<&str>;
                    self.render(context! { items, notes => 2, round => 1, last, language }, 2, Detail::Shown)?;
                }
            }
        }
        Ok(())
    }

    fn keys(&self) -> impl Iterator<Item = (String, &str)> {
        let phase = match self.kind {
            PhaseKind::Map => "map",
            PhaseKind::Reduce => "reduce",
        };
        let system = self.system.as_deref().map(|system| (format!("{phase}.system"), system));
        system.into_iter().chain([(format!("{phase}.prompt"), &*self.prompt)])
    }

    fn render(&self, variables: Value, items: u64, detail: Detail) -> Result<Prompt, TemplateError> {
        let environment = environment(FUEL + FUEL_PER_ITEM * items);
        let mut messages = Vec::with_capacity(2);
        for (key, source) in self.keys() {
            let text = environment
                .template_from_named_str(&key, source)
                .and_then(|template| template.render(variables.clone()))
                .map_err(|e| error(&key, &e, detail))?;
            messages.push(text.trim().to_owned());
        }
        let user = messages.pop().expect("`keys` ends with the user's prompt");
        Ok(Prompt { system: messages.pop(), user })
    }
}

fn values(items: &[Item]) -> Value {
    items.iter().map(|Item { links, text }| context! { links => links.clone(), text => text.as_str() }).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Detail {
    Shown,
    Hidden,
}

fn environment(fuel: u64) -> Environment<'static> {
    let mut environment = Environment::new();
    environment.set_undefined_behavior(UndefinedBehavior::Strict);
    environment.set_fuel(Some(fuel));
    // A line that holds only a `{% … %}` leaves no empty line in the prompt.
    let syntax = SyntaxConfig::builder().trim_blocks(true).lstrip_blocks(true).build();
    environment.set_syntax(syntax.expect("the default delimiters are valid"));
    environment
}

fn error(key: &str, error: &minijinja::Error, detail: Detail) -> TemplateError {
    let line = error.line().map_or(String::new(), |line| format!(" in line {line}"));
    let message = match error.kind() {
        ErrorKind::OutOfFuel => {
            format!("it takes more than {FUEL} steps or makes too much text{line}; does it loop?")
        }
        kind => {
            let detail = error.detail().filter(|_| detail == Detail::Shown);
            format!("{kind}{}{line}", detail.map_or(String::new(), |detail| format!(": {detail}")))
        }
    };
    TemplateError { key: key.to_owned(), message }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(prompt: &str) -> Result<PhaseTemplate, String> {
        PhaseTemplate::new("map", None, prompt.to_owned()).map_err(|e| e.to_string())
    }

    #[test]
    fn a_template_sees_the_note_and_nothing_is_escaped() {
        let template =
            map("{{ note.title }} {{ part }}/{{ parts }}\n{% if parts > 1 %}\ncut\n{% endif %}\n{{ note.text }}\n");
        let variables = MapVariables { path: "a.md", title: "<A>", text: "x & y", part: 2, parts: 3, language: None };
        let prompt = template.unwrap().map_prompt(&variables).unwrap();
        assert_eq!(prompt, Prompt { system: None, user: "<A> 2/3\ncut\nx & y".to_owned() });
    }

    #[test]
    fn a_variable_that_does_not_exist_is_named_with_those_that_do() {
        for source in ["{{ note.txt }}", "{{ nota }}", "{% if items %}{% endif %}"] {
            let message = map(source).unwrap_err();
            assert!(message.contains("note.text") && message.contains("`map.prompt`"), "{message}");
        }
        let reduce = |source: &str| PhaseTemplate::new("reduce", None, source.to_owned());
        assert!(reduce("{% for item in items %}{{ item.text }}{{ item.links[0] }}{% endfor %}").is_ok());
        assert!(reduce("{% for item in items %}{{ item.txt }}{% endfor %}").is_err());
        assert!(reduce("{% if last %}{{ items | length }}{% else %}{{ itens }}{% endif %}").is_err());
    }

    #[test]
    fn a_template_that_loops_or_grows_without_end_is_stopped() {
        let message = map("\n{% for i in range(100000) %}{% for j in range(100000) %}{{ i }}{% endfor %}{% endfor %}");
        let message = message.unwrap_err();
        assert!(message.contains("line 2") && message.contains("does it loop?"), "{message}");
        let grown = "{% set ns = namespace(x='x') %}{% for i in range(60) %}{% set ns.x = ns.x ~ ns.x %}{% endfor %}";
        assert!(map(grown).unwrap_err().contains("too much text"));
    }

    #[test]
    fn an_error_on_a_real_note_does_not_quote_the_note() {
        let template = map("{% if note.text != 'Text.' %}{{ note.text | int }}{% endif %}").unwrap();
        let variables = MapVariables { path: "a.md", title: "A", text: "secret", part: 1, parts: 1, language: None };
        let message = template.map_prompt(&variables).unwrap_err().to_string();
        assert!(!message.contains("secret") && message.contains("line 1"), "{message}");
    }
}
