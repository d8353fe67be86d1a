//! A turn as one text with tags: thoughts first, then the answer, calls in between or at the end.

use super::calls::Verdict;
use super::format::CallFormat;
use super::marked_calls::{CallReader, Opening, WHITE_SPACE_MAX, white_space};
use super::pending::{Found, Pending, Start, find, starts};
use super::tools::Tools;
use super::{Events, Progress};

pub(crate) const THINK: &str = "<think>";
pub(crate) const THINK_END: &str = "</think>";

/// Templates put one or two line breaks beside a mark. More than these belong to the text.
const FRAMING_LINE_BREAKS_MAX: usize = 4;

#[derive(Debug)]
pub(super) struct Tagged {
    thinks: bool,
    calls: Option<CallFormat>,
    tools: Tools,
    state: State,
}

#[derive(Debug)]
enum State {
    /// Nothing of this part has come, so it may begin with thoughts, or be a bare call.
    Beginning {
        may_think: bool,
    },
    /// Framing before thoughts or the answer.
    LineBreaks(Then),
    Thoughts,
    Content,
    /// A call after `framing` bytes.
    Call {
        framing: usize,
        reader: CallReader,
    },
    AfterCall {
        closed: bool,
    },
}

#[derive(Clone, Copy, Debug)]
enum Then {
    Thoughts,
    Answer,
}

#[derive(Clone, Copy, Debug)]
enum Next {
    Thoughts,
    Call(Opening),
    Closer,
}

impl Tagged {
    pub(super) fn new(thinks: bool, calls: Option<CallFormat>, tools: Tools, prompt: &str) -> Self {
        let state = match thinks && prompt.trim_ascii_end().ends_with(THINK) {
            true => State::LineBreaks(Then::Thoughts),
            false => State::Beginning { may_think: thinks },
        };
        Self { thinks, calls, tools, state }
    }

    pub(super) fn step(&mut self, pending: &mut Pending, events: &mut Events) -> Progress {
        if pending.rest().is_empty() {
            return Progress::NeedsText;
        }
        let (next, progress) = match &mut self.state {
            State::Beginning { may_think } => {
                let may_think = *may_think;
                self.beginning(may_think, pending)
            }
            State::LineBreaks(then) => line_breaks(*then, pending),
            State::Thoughts => thoughts(pending, events),
            State::Content => self.content(pending, events),
            State::Call { framing, reader } => {
                let verdict = reader.read(&pending.rest()[*framing..], pending.ended(), &self.tools);
                match verdict {
                    Verdict::Open => (None, Progress::NeedsText),
                    Verdict::Calls { len, calls } => {
                        pending.take(*framing + len);
                        events.calls(calls);
                        (Some(State::AfterCall { closed: false }), Progress::Step)
                    }
                    Verdict::NoCall { len } => {
                        events.content(pending.take(*framing + len));
                        (Some(State::Content), Progress::Step)
                    }
                }
            }
            State::AfterCall { closed } => {
                let closed = *closed;
                self.after_call(closed, pending)
            }
        };
        if let Some(next) = next {
            self.state = next;
        }
        progress
    }

    fn beginning(&self, may_think: bool, pending: &mut Pending) -> (Option<State>, Progress) {
        let space = white_space(pending.rest());
        if space > WHITE_SPACE_MAX {
            return (Some(State::Content), Progress::Step);
        }
        let bare = self.calls == Some(CallFormat::Llama3) && !self.tools.is_empty();
        let starts_with = [(may_think, (THINK, Next::Thoughts)), (bare, ("{", Next::Call(Opening::Bare)))];
        let markers = starts_with.into_iter().filter_map(|(wanted, marker)| wanted.then_some(marker));
        match starts(&pending.rest()[space..], markers, pending.ended()) {
            Start::Marker(len, Next::Thoughts) => {
                pending.take(space + len);
                (Some(State::LineBreaks(Then::Thoughts)), Progress::Step)
            }
            Start::Marker(_, Next::Call(opening)) => {
                (Some(State::Call { framing: space, reader: CallReader::new(opening, 0) }), Progress::Step)
            }
            Start::Open => (None, Progress::NeedsText),
            _ => (Some(State::Content), Progress::Step),
        }
    }

    fn content(&self, pending: &mut Pending, events: &mut Events) -> (Option<State>, Progress) {
        let openings = self.calls.map_or(&[][..], CallFormat::openings);
        let markers: Vec<&str> = openings.iter().map(|(marker, _)| *marker).collect();
        let rest = pending.rest();
        // At most a marker and its framing are looked at again.
        match find(rest, 0, &markers, pending.ended()) {
            Found::None { clear } => {
                let framed = !openings.is_empty() && !pending.ended();
                let told = if framed { without_framing(rest, clear) } else { clear };
                events.content(pending.take(told));
                (None, Progress::NeedsText)
            }
            Found::Marker { at, marker } => {
                let told = without_framing(rest, at);
                events.content(pending.take(told));
                let opening = openings.iter().find(|(known, _)| *known == marker).map(|(_, opening)| *opening);
                let reader = opening.map(|opening| CallReader::new(opening, marker.len()));
                (reader.map(|reader| State::Call { framing: at - told, reader }), Progress::Step)
            }
        }
    }

    fn after_call(&self, closed: bool, pending: &mut Pending) -> (Option<State>, Progress) {
        let Some(calls) = self.calls else { return (Some(State::Content), Progress::Step) };
        let space = white_space(pending.rest());
        if space > WHITE_SPACE_MAX {
            return (Some(State::Content), Progress::Step);
        }
        let closer = calls.closer().filter(|_| !closed).map(|closer| (closer, Next::Closer));
        let another = (!closed || calls == CallFormat::Llama3) && calls != CallFormat::Mistral;
        let another = another.then_some(("{", Next::Call(Opening::Another)));
        let thoughts = self.thinks.then_some((THINK, Next::Thoughts));
        let openings = calls.openings().iter().map(|(marker, opening)| (*marker, Next::Call(*opening)));
        let markers = closer.into_iter().chain(another).chain(thoughts).chain(openings);
        match starts(&pending.rest()[space..], markers, pending.ended()) {
            Start::Marker(len, Next::Closer) => {
                pending.take(space + len);
                (Some(State::AfterCall { closed: true }), Progress::Step)
            }
            Start::Marker(len, Next::Thoughts) => {
                pending.take(space + len);
                (Some(State::LineBreaks(Then::Thoughts)), Progress::Step)
            }
            Start::Marker(len, Next::Call(opening)) => {
                let mark = if opening == Opening::Another { 0 } else { len };
                (Some(State::Call { framing: space, reader: CallReader::new(opening, mark) }), Progress::Step)
            }
            Start::Open => (None, Progress::NeedsText),
            // The end: white space after a call is framing, too.
            Start::Other if space == pending.rest().len() => {
                pending.take(space);
                (None, Progress::NeedsText)
            }
            Start::Other => (Some(State::Content), Progress::Step),
        }
    }
}

fn line_breaks(then: Then, pending: &mut Pending) -> (Option<State>, Progress) {
    let rest = pending.rest();
    let count = rest.len() - rest.trim_start_matches('\n').len();
    let all = count == rest.len();
    pending.take(count);
    match (all, then) {
        (true, _) => (None, Progress::NeedsText),
        (false, Then::Thoughts) => (Some(State::Thoughts), Progress::Step),
        (false, Then::Answer) => (Some(State::Beginning { may_think: false }), Progress::Step),
    }
}

fn thoughts(pending: &mut Pending, events: &mut Events) -> (Option<State>, Progress) {
    let rest = pending.rest();
    match find(rest, 0, &[THINK_END], pending.ended()) {
        Found::None { clear } => {
            let told = if pending.ended() { clear } else { without_framing(rest, clear) };
            events.reasoning(pending.take(told));
            (None, Progress::NeedsText)
        }
        Found::Marker { at, marker } => {
            let told = without_framing(rest, at);
            events.reasoning(pending.take(told));
            pending.take(at - told + marker.len());
            (Some(State::LineBreaks(Then::Answer)), Progress::Step)
        }
    }
}

/// Where the line breaks begin that stand before `end`.
fn without_framing(text: &str, end: usize) -> usize {
    let trimmed = text[..end].trim_end_matches('\n').len();
    trimmed.max(end.saturating_sub(FRAMING_LINE_BREAKS_MAX))
}
