//! Other programs, run to their end.

use std::path::PathBuf;
use std::process::{Command, Stdio};

/// Standard output of a command that has to succeed; its standard error passes through.
pub(crate) fn output(command: &mut Command) -> Result<String, String> {
    let output = command.stdin(Stdio::null()).stderr(Stdio::inherit()).output();
    let output = output.map_err(|error| format!("{} could not be started: {error}", line(command)))?;
    if !output.status.success() {
        return Err(format!("{}: {}", line(command), output.status));
    }
    String::from_utf8(output.stdout).map_err(|_| format!("{} wrote something that is not UTF-8", line(command)))
}

/// The command as a person would type it.
pub(crate) fn line(command: &Command) -> String {
    let words = std::iter::once(command.get_program()).chain(command.get_args());
    words.map(|word| word.to_string_lossy()).collect::<Vec<_>>().join(" ")
}

/// The checkout that the current folder is in.
pub(crate) fn checkout() -> Result<PathBuf, String> {
    output(Command::new("git").args(["rev-parse", "--show-toplevel"])).map(|path| PathBuf::from(path.trim_end()))
}

/// The commit that is checked out; `-dirty` after it if tracked files differ, records aside.
pub(crate) fn commit() -> Result<String, String> {
    let hash = output(Command::new("git").args(["rev-parse", "--short=12", "HEAD"]))?;
    let changes = ["status", "--porcelain", "--untracked-files=no", "--", ":/", ":(top,exclude)benches/record"];
    let changes = output(Command::new("git").args(changes))?;
    Ok(format!("{}{}", hash.trim_end(), if changes.trim().is_empty() { "" } else { "-dirty" }))
}
