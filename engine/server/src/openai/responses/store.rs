//! Responses that can be asked for again, in memory.
//!
//! There is a bound on how many there are and how long they are together, conversations before them included. Those that
//! ended are forgotten first, the one that ended first before the others; one that still runs never is. A server that ends
//! forgets all.

use std::collections::VecDeque;
use std::sync::{Mutex, MutexGuard};

use tokio::sync::oneshot;

use super::document::ResponseDocument;
use super::items::{Item, Status};
use crate::config::{RESPONSES_BYTES_MAX, RESPONSES_MAX};
use crate::error::ApiError;

/// Responses.
pub(crate) struct Store {
    kept: Mutex<Kept>,
    count_max: usize,
    bytes_max: usize,
}

#[derive(Default)]
struct Kept {
    /// In the order in which they ended, those that run anywhere between.
    entries: VecDeque<Entry>,
    bytes: usize,
}

struct Entry {
    document: ResponseDocument,
    /// The conversation before it.
    conversation: Vec<Item>,
    bytes: usize,
    /// There while it runs; dropped, it ends.
    runs: Option<oneshot::Sender<()>>,
}

impl Default for Store {
    fn default() -> Self {
        Self::new(RESPONSES_MAX, RESPONSES_BYTES_MAX)
    }
}

impl Store {
    fn new(count_max: usize, bytes_max: usize) -> Self {
        Self { kept: Mutex::default(), count_max, bytes_max }
    }

    fn kept(&self) -> MutexGuard<'_, Kept> {
        self.kept.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    /// Keeps a response that ended. Where running ones leave no room for it, it is not there.
    pub(super) fn keep(&self, document: ResponseDocument, conversation: Vec<Item>) {
        let bytes = bytes_of(&document, &conversation);
        let mut kept = self.kept();
        kept.add(Entry { document, conversation, bytes, runs: None });
        kept.forget(self.count_max, self.bytes_max);
    }

    /// Keeps a response that runs until it has ended, or until the other end of `runs` hears that this one is gone.
    pub(super) fn begin(
        &self,
        document: ResponseDocument,
        conversation: Vec<Item>,
        runs: oneshot::Sender<()>,
    ) -> Result<(), ApiError> {
        let bytes = bytes_of(&document, &conversation);
        let mut kept = self.kept();
        let id = document.id.clone();
        kept.add(Entry { document, conversation, bytes, runs: Some(runs) });
        if kept.forget(self.count_max, self.bytes_max) {
            return Ok(());
        }
        // Only running ones are left, this one among them.
        kept.take(&id, |_| true);
        Err(ApiError::overloaded(kept.entries.len()))
    }

    /// Its first event came.
    pub(super) fn started(&self, id: &str) {
        if let Some(entry) = self.kept().find(id)
            && entry.document.status == Status::Queued
        {
            entry.document.status = Status::InProgress;
        }
    }

    /// It has ended. One that was cancelled or deleted meanwhile stays so.
    pub(super) fn ended(&self, document: ResponseDocument) {
        let mut kept = self.kept();
        let Some(mut entry) = kept.take(&document.id, |entry| entry.runs.is_some()) else { return };
        entry.runs = None;
        entry.bytes = bytes_of(&document, &entry.conversation);
        entry.document = document;
        kept.add(entry);
        kept.forget(self.count_max, self.bytes_max);
    }

    /// The response of this id.
    pub(super) fn get(&self, id: &str) -> Result<ResponseDocument, ApiError> {
        self.kept().find(id).map(|entry| entry.document.clone()).ok_or_else(|| none(id))
    }

    /// The conversation before it.
    pub(super) fn conversation(&self, id: &str) -> Result<Vec<Item>, ApiError> {
        self.kept().find(id).map(|entry| entry.conversation.clone()).ok_or_else(|| none(id))
    }

    /// The conversation before it, and itself.
    pub(super) fn continued(&self, id: &str) -> Result<Vec<Item>, ApiError> {
        let mut kept = self.kept();
        let field = "previous_response_id";
        let Some(entry) = kept.find(id) else {
            let mut error = ApiError::field(field, none(id).message);
            error.code = Some("previous_response_not_found");
            return Err(error);
        };
        match entry.document.status {
            Status::Completed | Status::Incomplete => {
                Ok(entry.conversation.iter().chain(&entry.document.output).cloned().collect())
            }
            Status::Queued | Status::InProgress => {
                Err(ApiError::field(field, "this response has not ended yet; ask again when it has"))
            }
            Status::Failed | Status::Cancelled => {
                Err(ApiError::field(field, "this response has no answer that could be gone on from"))
            }
        }
    }

    /// Ends one that runs. One that has ended in the background is told as it is.
    pub(super) fn cancel(&self, id: &str) -> Result<ResponseDocument, ApiError> {
        let mut kept = self.kept();
        if let Some(mut entry) = kept.take(id, |entry| entry.runs.is_some()) {
            entry.runs = None;
            entry.document.status = Status::Cancelled;
            let document = entry.document.clone();
            kept.add(entry);
            return Ok(document);
        }
        match kept.find(id) {
            Some(entry) if entry.document.background => Ok(entry.document.clone()),
            Some(_) => Err(ApiError::bad_request("only responses with `background`: true can be cancelled")),
            None => Err(none(id)),
        }
    }

    /// Forgets it, and ends it where it runs.
    pub(super) fn delete(&self, id: &str) -> Result<(), ApiError> {
        self.kept().take(id, |_| true).map(drop).ok_or_else(|| none(id))
    }
}

impl Kept {
    fn find(&mut self, id: &str) -> Option<&mut Entry> {
        self.entries.iter_mut().find(|entry| entry.document.id == id)
    }

    fn add(&mut self, entry: Entry) {
        self.bytes += entry.bytes;
        self.entries.push_back(entry);
    }

    fn take(&mut self, id: &str, which: impl Fn(&Entry) -> bool) -> Option<Entry> {
        let index = self.entries.iter().position(|entry| entry.document.id == id && which(entry))?;
        let entry = self.entries.remove(index)?;
        self.bytes -= entry.bytes;
        Some(entry)
    }

    /// Forgets what ended until there is room; whether there is.
    fn forget(&mut self, count_max: usize, bytes_max: usize) -> bool {
        while self.entries.len() > count_max || self.bytes > bytes_max {
            let Some(index) = self.entries.iter().position(|entry| entry.runs.is_none()) else { return false };
            if let Some(entry) = self.entries.remove(index) {
                self.bytes -= entry.bytes;
            }
        }
        true
    }
}

fn bytes_of(document: &ResponseDocument, conversation: &[Item]) -> usize {
    // What has no JSON could not be told, so it is nowhere.
    let bytes = |written: serde_json::Result<Vec<u8>>| written.map_or(0, |bytes| bytes.len());
    bytes(serde_json::to_vec(document)) + bytes(serde_json::to_vec(conversation))
}

fn none(id: &str) -> ApiError {
    let id: String = id.chars().take(80).collect();
    ApiError::not_found(format!("There is no response `{id}`: it was not stored, deleted, or forgotten for newer ones"))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use serde_json::json;

    use super::*;

    fn document(id: &str, status: Status) -> ResponseDocument {
        ResponseDocument {
            id: id.into(),
            object: "response",
            created_at: 0,
            completed_at: None,
            status,
            background: true,
            error: None,
            incomplete_details: None,
            instructions: None,
            max_output_tokens: None,
            metadata: BTreeMap::new(),
            model: String::new(),
            output: Vec::new(),
            parallel_tool_calls: true,
            previous_response_id: None,
            reasoning: json!({}),
            store: true,
            temperature: 0.0,
            text: json!({}),
            tool_choice: json!("auto"),
            tools: Vec::new(),
            top_p: 1.0,
            truncation: "disabled",
            usage: None,
        }
    }

    fn there(store: &Store) -> Vec<&'static str> {
        ["a", "b", "c", "d", "e"].into_iter().filter(|id| store.get(id).is_ok()).collect()
    }

    fn keep(store: &Store, id: &str) {
        store.keep(document(id, Status::Completed), Vec::new());
    }

    fn begin(store: &Store, id: &str) -> Result<oneshot::Receiver<()>, ApiError> {
        let (runs, gone) = oneshot::channel();
        store.begin(document(id, Status::Queued), Vec::new(), runs).map(|()| gone)
    }

    #[test]
    fn what_ended_first_is_forgotten_first_and_what_runs_is_not() {
        let store = Store::new(3, usize::MAX);
        let gone = begin(&store, "a").expect("room");
        ["b", "c", "d"].map(|id| keep(&store, id));
        assert_eq!(there(&store), ["a", "c", "d"]);
        // It has ended last, so it outlives the others.
        store.ended(document("a", Status::Completed));
        keep(&store, "e");
        assert_eq!(there(&store), ["a", "d", "e"]);
        drop(gone);
    }

    #[test]
    fn bytes_are_bounded_too() {
        let one = bytes_of(&document("a", Status::Completed), &[]);
        let store = Store::new(100, 2 * one + one / 2);
        ["a", "b", "c"].map(|id| keep(&store, id));
        assert_eq!(there(&store), ["b", "c"]);
        assert_eq!(store.kept().bytes, 2 * one);
        store.keep(document(&"x".repeat(3 * one), Status::Completed), Vec::new());
        assert_eq!((there(&store), store.kept().bytes), (vec![], 0));
    }

    #[test]
    fn with_room_for_none_but_running_ones_another_is_refused() {
        let store = Store::new(2, usize::MAX);
        let _gone = [begin(&store, "a").expect("room"), begin(&store, "b").expect("room")];
        assert_eq!(begin(&store, "c").map(drop).map_err(|error| error.status.as_u16()), Err(429));
        keep(&store, "d");
        assert_eq!(there(&store), ["a", "b"]);
        assert_eq!(store.kept().entries.len(), 2);
    }

    #[test]
    fn one_that_was_cancelled_or_deleted_does_not_come_back() {
        let store = Store::new(3, usize::MAX);
        let (mut a, mut b) = (begin(&store, "a").expect("room"), begin(&store, "b").expect("room"));
        assert!(a.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Empty));
        assert_eq!(store.cancel("a").map(|document| document.status).ok(), Some(Status::Cancelled));
        assert!(store.delete("b").is_ok());
        for gone in [&mut a, &mut b] {
            assert!(gone.try_recv().is_err_and(|error| error == oneshot::error::TryRecvError::Closed));
        }
        store.started("a");
        store.ended(document("a", Status::Completed));
        store.ended(document("b", Status::Completed));
        assert_eq!(store.get("a").map(|document| document.status).ok(), Some(Status::Cancelled));
        assert_eq!(there(&store), ["a"]);
        assert!(store.continued("a").is_err());
    }
}
