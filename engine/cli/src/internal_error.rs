//! A bug in the program, told without what it was working on: a panic's message may quote a note.

use std::panic::{self, UnwindSafe};
use std::sync::Mutex;

/// Where the last panic came from. Some are caught and become errors, so nothing is printed before one ends the program.
static PLACE: Mutex<Option<String>> = Mutex::new(None);

/// Runs the program; a panic in it, or in a worker whose panic it takes over, becomes a line for the user.
pub(crate) fn guard<T>(program: impl FnOnce() -> T + UnwindSafe) -> Result<T, String> {
    panic::set_hook(Box::new(|panic| {
        let place = panic.location().map(|place| format!("{}:{}", place.file(), place.line()));
        *PLACE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()) = place;
    }));
    panic::catch_unwind(program).map_err(|_| {
        let place = PLACE.lock().unwrap_or_else(|poisoned| poisoned.into_inner()).take();
        format!("internal error at {}; please report it", place.as_deref().unwrap_or("an unknown place"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_panic_becomes_its_place_without_its_message() {
        let line = line!() + 1;
        let error = guard::<()>(|| panic!("the note says: secret")).unwrap_err();
        drop(panic::take_hook());
        assert_eq!(error, format!("internal error at {}:{line}; please report it", file!()));
        assert_eq!(guard(|| 5), Ok(5));
        drop(panic::take_hook());
    }
}
