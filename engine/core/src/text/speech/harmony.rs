//! Harmony: a turn of several messages, each with a header that names its channel and, for a call, the function.
//!
//! ```text
//! <|channel|>analysis<|message|>They ask for bees.<|end|>
//! <|start|>assistant<|channel|>commentary to=functions.search <|constrain|>json<|message|>{"word": "пчела"}<|call|>
//! ```
//!
//! (Without the line break. The prompt ends with `<|start|>assistant`, so the first header lacks that.) The recipient may
//! stand in the part of the role, too. Only `functions.` are calls here; other recipients are tools that a prompt has to
//! offer in words of its own.

use super::calls::ToolCall;
use super::pending::{Found, Pending, Start, find, starts};
use super::{Events, Progress};

pub(crate) const START: &str = "<|start|>";
pub(crate) const CHANNEL: &str = "<|channel|>";
pub(crate) const MESSAGE: &str = "<|message|>";
pub(crate) const CONSTRAIN: &str = "<|constrain|>";
pub(crate) const END: &str = "<|end|>";
const CALL: &str = "<|call|>";
const RETURN: &str = "<|return|>";

pub(super) const MARKS: [&str; 7] = [START, CHANNEL, MESSAGE, CONSTRAIN, END, CALL, RETURN];

/// What ends a header or a body.
const ENDS: [&str; 5] = [MESSAGE, END, CALL, RETURN, START];
/// A body may hold the text of a message's mark; a channel's mark means that the end was forgotten.
const BODY_ENDS: [&str; 5] = [END, CALL, RETURN, START, CHANNEL];

/// A role, a channel, a recipient and a type take less.
const HEADER_BYTES_MAX: usize = 1 << 10;

/// JSON needs no schema, so the tools that a prompt offers are of no use here.
#[derive(Debug, Default)]
pub(super) struct Harmony {
    state: State,
    told: Told,
}

/// Which kinds of text were told: messages of a kind are set apart by an empty line.
#[derive(Debug, Default)]
struct Told {
    reasoning: bool,
    content: bool,
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Reasoning,
    Content,
}

#[derive(Debug, Default)]
enum State {
    /// Before a header, or text that has none.
    #[default]
    Between,
    /// In a header, no mark before `clear`.
    Header { clear: usize },
    /// In a message; `told` if something of it was.
    Body { kind: Kind, told: bool },
    /// In the arguments of a call. They begin after `header` bytes, which are kept in case that it is none.
    Call { name: String, header: usize, clear: usize },
}

const REASONING: State = State::Body { kind: Kind::Reasoning, told: false };
const CONTENT: State = State::Body { kind: Kind::Content, told: false };
/// Goes on with text that was told.
const VERBATIM: State = State::Body { kind: Kind::Content, told: true };

impl Harmony {
    pub(super) fn step(&mut self, pending: &mut Pending, events: &mut Events) -> Progress {
        if pending.rest().is_empty() {
            return Progress::NeedsText;
        }
        let told = &mut self.told;
        let (next, progress) = match &mut self.state {
            State::Between => between(pending),
            State::Header { clear } => header(clear, pending, events, told),
            State::Body { kind, told: this } => body(*kind, this, pending, events, told),
            State::Call { name, header, clear } => call(name, *header, clear, pending, events, told),
        };
        if let Some(next) = next {
            self.state = next;
        }
        progress
    }
}

impl Told {
    /// Tells more of a message; `this` says whether something of it was told before.
    fn tell(&mut self, kind: Kind, text: &str, this: &mut bool, events: &mut Events) {
        let (of_kind, event): (_, fn(&mut Events, &str)) = match kind {
            Kind::Reasoning => (&mut self.reasoning, Events::reasoning),
            Kind::Content => (&mut self.content, Events::content),
        };
        if text.is_empty() {
            return;
        }
        if *of_kind && !*this {
            event(events, "\n\n");
        }
        (*of_kind, *this) = (true, true);
        event(events, text);
    }

    /// Text that is not what its marks say goes to the answer as it is.
    fn tell_verbatim(&mut self, text: &str, events: &mut Events) {
        self.tell(Kind::Content, text, &mut true, events);
    }
}

fn between(pending: &Pending) -> (Option<State>, Progress) {
    let markers = [START, CHANNEL, MESSAGE, CONSTRAIN, " to=", "to="];
    match starts(pending.rest(), markers.map(|marker| (marker, ())).into_iter(), pending.ended()) {
        Start::Marker(..) => (Some(State::Header { clear: 0 }), Progress::Step),
        Start::Open => (None, Progress::NeedsText),
        Start::Other => (Some(CONTENT), Progress::Step),
    }
}

fn header(clear: &mut usize, pending: &mut Pending, events: &mut Events, told: &mut Told) -> (Option<State>, Progress) {
    let rest = pending.rest();
    // Its own mark begins it and does not end it.
    let from = (*clear).max(if rest.starts_with(START) { START.len() } else { 0 });
    // A header is one short line. Where this one stops to be one does not depend on how much of it is there.
    let limit = rest.find('\n').unwrap_or(rest.len()).min(rest.floor_char_boundary(HEADER_BYTES_MAX));
    match find(rest, from, &ENDS, pending.ended()) {
        Found::Marker { at, marker: MESSAGE } if at <= limit => {
            let len = at + MESSAGE.len();
            let next = match parse_header(&rest[..at]) {
                Header::Call(name) => return (Some(State::Call { name, header: len, clear: len }), Progress::Step),
                Header::Reasoning => REASONING,
                Header::Content => CONTENT,
                Header::Other => {
                    told.tell_verbatim(pending.take(len), events);
                    return (Some(VERBATIM), Progress::Step);
                }
            };
            pending.take(len);
            (Some(next), Progress::Step)
        }
        Found::Marker { at, marker } if at <= limit => {
            told.tell_verbatim(pending.take(at + len_of_end(marker)), events);
            (Some(State::Between), Progress::Step)
        }
        // The beginning of a mark, or nothing yet against it.
        Found::None { clear: further } if further <= limit && !pending.ended() => {
            *clear = further;
            (None, Progress::NeedsText)
        }
        _ => {
            // A header begins with a mark, so this is something.
            told.tell_verbatim(pending.take(limit), events);
            (Some(VERBATIM), Progress::Step)
        }
    }
}

enum Header {
    Reasoning,
    Content,
    /// Of this function.
    Call(String),
    /// Not of the assistant, or to somebody that is no function.
    Other,
}

fn parse_header(header: &str) -> Header {
    let explicit = header.strip_prefix(START);
    let (role, channel) = explicit.unwrap_or(header).split_once(CHANNEL).unwrap_or((explicit.unwrap_or(header), ""));
    let words = |text: &str| text.replace(CONSTRAIN, " ").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
    let (role, channel) = (words(role), words(channel));
    if explicit.is_some() && role.first().is_none_or(|role| role != "assistant") {
        return Header::Other;
    }
    if let Some(to) = role.iter().chain(&channel).find_map(|word| word.strip_prefix("to=")) {
        let name = to.strip_prefix("functions.").filter(|name| !name.is_empty());
        return name.map_or(Header::Other, |name| Header::Call(name.into()));
    }
    match channel.first().map(String::as_str) {
        Some("analysis") => Header::Reasoning,
        _ => Header::Content,
    }
}

fn body(
    kind: Kind,
    this: &mut bool,
    pending: &mut Pending,
    events: &mut Events,
    told: &mut Told,
) -> (Option<State>, Progress) {
    match find(pending.rest(), 0, &BODY_ENDS, pending.ended()) {
        Found::None { clear } => {
            told.tell(kind, pending.take(clear), this, events);
            (None, Progress::NeedsText)
        }
        Found::Marker { at, marker } => {
            told.tell(kind, pending.take(at), this, events);
            pending.take(len_of_end(marker));
            (Some(State::Between), Progress::Step)
        }
    }
}

fn call(
    name: &str,
    header: usize,
    clear: &mut usize,
    pending: &mut Pending,
    events: &mut Events,
    told: &mut Told,
) -> (Option<State>, Progress) {
    let rest = pending.rest();
    let (end, marker) = match find(rest, *clear, &BODY_ENDS, pending.ended()) {
        Found::Marker { at, marker } => (at, len_of_end(marker)),
        Found::None { .. } if pending.ended() => (rest.len(), 0),
        Found::None { clear: further } => {
            *clear = further;
            return (None, Progress::NeedsText);
        }
    };
    let call = ToolCall::new(name, &rest[header..end]);
    let text = pending.take(end + marker);
    match call {
        Some(call) => events.calls(vec![call]),
        None => told.tell_verbatim(text, events),
    }
    (Some(State::Between), Progress::Step)
}

/// A mark that begins the next message is left for it.
fn len_of_end(marker: &str) -> usize {
    if [START, CHANNEL].contains(&marker) { 0 } else { marker.len() }
}
