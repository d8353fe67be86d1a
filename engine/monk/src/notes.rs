//! The notes of a job, read once.
//!
//! A job works for hours while its owner goes on writing. So all notes are read at the start and the job sees that
//! snapshot. A note that cannot be read ends the job then and there, by name: a report that silently lacks a note
//! would say "no contradictions" about something that nobody read.

use std::collections::{BTreeMap, HashMap};
use std::fs::{self, File};
use std::io::{self, Read};
use std::path::{Component, Path, PathBuf};

use globset::{GlobBuilder, GlobMatcher};
use walkdir::WalkDir;

use crate::markdown;

/// A single note above this is no note; a person writes about 1 MiB in a year.
const NOTE_BYTES_MAX: u64 = 16 << 20;
/// All notes together; the snapshot is held in memory.
const NOTES_BYTES_MAX: u64 = 1 << 30;

/// The snapshot: every note of the job, ordered by the bytes of its path.
#[derive(Clone, Debug)]
pub struct Notes {
    notes: Vec<Note>,
}

/// One note as it was when the job began.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// Relative to the notes' folder (with several entries: to the deepest folder that holds them all), with `/`.
    pub path: String,
    /// The first heading, or the file's name.
    pub title: String,
    /// As Obsidian links to it: `[[name]]`, with its folders where two notes share a name. A name that such a link
    /// cannot hold (one with `#`, say) gets a Markdown link.
    pub link: String,
    /// The text, without a byte order mark.
    pub text: String,
    /// BLAKE3 of the file's bytes, in hexadecimal.
    pub hash: String,
}

/// Why the notes cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum NotesError {
    /// An entry of `notes` leads nowhere.
    #[error("there is no {}; `notes` in the job file names it", .0.display())]
    Missing(PathBuf),
    /// A glob is not one.
    #[error("`notes` = {pattern:?} is not a glob: {message}")]
    Pattern {
        /// As the job file has it, made absolute.
        pattern: String,
        /// What is wrong with it.
        message: String,
    },
    /// Nothing matched.
    #[error("no note matches {}; notes are files whose names end in .md, outside of folders whose names begin with a dot", list(.0))]
    Empty(Vec<PathBuf>),
    /// All notes are empty.
    #[error("there is no text in any note of {}", list(.0))]
    Blank(Vec<PathBuf>),
    /// A note or folder cannot be read.
    #[error("cannot read {}: {source}; make it readable or leave it out of `notes`", path.display())]
    Read {
        /// The note or folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// A note's text, or its name, is not UTF-8.
    #[error("{} is not UTF-8 (byte {offset}); convert it or leave it out of `notes`", path.display())]
    NotUtf8 {
        /// The note.
        path: PathBuf,
        /// Where the text stops being UTF-8.
        offset: usize,
    },
    /// A note's name cannot be written.
    #[error("the name of {path:?} is not printable UTF-8; rename it")]
    Name {
        /// The note.
        path: PathBuf,
    },
    /// A symbolic link would lead the job out of its folder.
    #[error("{} is a symbolic link to {}, outside of {}; copy the note or add its folder to `notes`", path.display(), target.display(), folder.display())]
    LeavesFolder {
        /// The link.
        path: PathBuf,
        /// Where it leads.
        target: PathBuf,
        /// The folder that the job was given.
        folder: PathBuf,
    },
    /// More than a job holds.
    #[error("{} is too large: {limit} bytes is the limit for {what}; split it", path.display())]
    TooLarge {
        /// The note at which the limit was passed.
        path: PathBuf,
        /// What the limit is for.
        what: &'static str,
        /// The limit in bytes.
        limit: u64,
    },
}

fn list(entries: &[PathBuf]) -> String {
    entries.iter().map(|entry| entry.display().to_string()).collect::<Vec<_>>().join(", ")
}

impl Notes {
    /// Reads all notes that `entries` (absolute folders, files and globs) name, except the file `report`.
    pub fn read(entries: &[PathBuf], report: &Path) -> Result<Self, NotesError> {
        let report = fs::canonicalize(report).ok();
        let mut files = BTreeMap::new();
        let mut folders = Vec::new();
        for entry in entries {
            folders.push(collect(entry, &mut files)?);
        }
        let base = common_folder(&folders);
        let mut notes = Vec::with_capacity(files.len());
        let mut bytes = 0;
        for (real, path) in files {
            if Some(&real) == report.as_ref() {
                continue;
            }
            let note = read_note(&real, path.strip_prefix(&base).unwrap_or(&path))?;
            bytes += note.text.len() as u64;
            if bytes > NOTES_BYTES_MAX {
                let what = "all notes of a job";
                return Err(NotesError::TooLarge { path, what, limit: NOTES_BYTES_MAX });
            }
            notes.push(note);
        }
        if notes.is_empty() {
            return Err(NotesError::Empty(entries.to_vec()));
        }
        if notes.iter().all(|note| note.text.trim().is_empty()) {
            return Err(NotesError::Blank(entries.to_vec()));
        }
        notes.sort_by(|a, b| a.path.as_bytes().cmp(b.path.as_bytes()));
        set_links(&mut notes);
        Ok(Self { notes })
    }

    /// The notes in their order.
    pub fn iter(&self) -> std::slice::Iter<'_, Note> {
        self.notes.iter()
    }

    /// How many notes there are, at least one.
    #[expect(clippy::len_without_is_empty, reason = "a snapshot without notes cannot be made")]
    pub fn len(&self) -> usize {
        self.notes.len()
    }

    /// Bytes of all texts.
    pub fn text_bytes(&self) -> u64 {
        self.notes.iter().map(|note| note.text.len() as u64).sum()
    }
}

/// Adds the notes of one entry to `files` (real path → path as found) and returns the folder they are relative to.
fn collect(entry: &Path, files: &mut BTreeMap<PathBuf, PathBuf>) -> Result<PathBuf, NotesError> {
    if fs::symlink_metadata(entry).is_ok() {
        let entry = canonical(entry)?;
        if entry.is_file() {
            files.insert(entry.clone(), entry.clone());
            return Ok(entry.parent().unwrap_or(&entry).to_owned());
        }
        walk(&entry, None, files)?;
        return Ok(entry);
    }
    let is_pattern = |part: &Component| part.as_os_str().as_encoded_bytes().iter().any(|b| b"*?[{".contains(b));
    if !entry.components().any(|part| is_pattern(&part)) {
        return Err(NotesError::Missing(entry.to_owned()));
    }
    let folder: PathBuf = entry.components().take_while(|part| !is_pattern(part)).collect();
    let pattern: PathBuf = entry.components().skip_while(|part| !is_pattern(part)).collect();
    let pattern = pattern.to_str().ok_or_else(|| NotesError::Name { path: entry.to_owned() })?;
    let glob = GlobBuilder::new(pattern)
        .literal_separator(true)
        .build()
        .map_err(|e| NotesError::Pattern { pattern: entry.display().to_string(), message: e.kind().to_string() })?;
    if fs::symlink_metadata(&folder).is_err() {
        return Err(NotesError::Missing(folder));
    }
    let folder = canonical(&folder)?;
    walk(&folder, Some(&glob.compile_matcher()), files)?;
    Ok(folder)
}

fn walk(
    folder: &Path,
    pattern: Option<&GlobMatcher>,
    files: &mut BTreeMap<PathBuf, PathBuf>,
) -> Result<(), NotesError> {
    let is_hidden = |name: &std::ffi::OsStr| name.as_encoded_bytes().starts_with(b".");
    let entries = WalkDir::new(folder).into_iter();
    for entry in entries.filter_entry(|entry| entry.depth() == 0 || !is_hidden(entry.file_name())) {
        let entry = entry.map_err(|e| {
            let path = e.path().unwrap_or(folder).to_owned();
            NotesError::Read { path, source: e.into_io_error().unwrap_or_else(|| io::ErrorKind::Other.into()) }
        })?;
        let path = entry.path();
        let is_note = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("md"));
        let inside = path.strip_prefix(folder).expect("walkdir stays below its root");
        let is_wanted = is_note && pattern.is_none_or(|pattern| pattern.is_match(inside));
        if entry.file_type().is_symlink() {
            if !is_wanted && !path.is_dir() {
                continue;
            }
            let target = canonical(path)?;
            if !target.starts_with(folder) {
                return Err(NotesError::LeavesFolder { path: path.to_owned(), target, folder: folder.to_owned() });
            }
            // A note that is found at its own place too is one note; so are those of a linked folder.
            if target.is_file() {
                files.entry(target).or_insert_with(|| path.to_owned());
            }
        } else if is_wanted && !entry.file_type().is_dir() {
            files.insert(path.to_owned(), path.to_owned());
        }
    }
    Ok(())
}

fn canonical(path: &Path) -> Result<PathBuf, NotesError> {
    fs::canonicalize(path).map_err(|source| NotesError::Read { path: path.to_owned(), source })
}

fn common_folder(folders: &[PathBuf]) -> PathBuf {
    let (first, rest) = folders.split_first().expect("a job names at least one entry");
    let mut common = first.as_path();
    for folder in rest {
        while !folder.starts_with(common) {
            common = common.parent().expect("every absolute path starts with the root");
        }
    }
    common.to_owned()
}

fn read_note(file: &Path, path: &Path) -> Result<Note, NotesError> {
    let read = |source| NotesError::Read { path: file.to_owned(), source };
    let name = path.to_str().filter(|name| !name.chars().any(char::is_control));
    let name = name.ok_or_else(|| NotesError::Name { path: file.to_owned() })?;
    // Asked before it is opened: to open a pipe would wait for ever.
    if !fs::metadata(file).map_err(read)?.is_file() {
        return Err(read(io::Error::other("it is not a regular file")));
    }
    let mut bytes = Vec::new();
    File::open(file).map_err(read)?.take(NOTE_BYTES_MAX + 1).read_to_end(&mut bytes).map_err(read)?;
    if bytes.len() as u64 > NOTE_BYTES_MAX {
        let path = file.to_owned();
        return Err(NotesError::TooLarge { path, what: "one note", limit: NOTE_BYTES_MAX });
    }
    let hash = blake3::hash(&bytes).to_hex().to_string();
    let text = String::from_utf8(bytes)
        .map_err(|e| NotesError::NotUtf8 { path: file.to_owned(), offset: e.utf8_error().valid_up_to() })?;
    let text = text.strip_prefix('\u{feff}').map(str::to_owned).unwrap_or(text);
    let title = markdown::first_heading(&text).unwrap_or_else(|| stem(name).to_owned());
    Ok(Note { path: name.to_owned(), title, link: String::new(), text, hash })
}

/// The path without its ending, as Obsidian names a note.
fn without_ending(path: &str) -> &str {
    match path.rsplit_once('.') {
        Some((name, ending)) if ending.eq_ignore_ascii_case("md") && !name.is_empty() => name,
        _ => path,
    }
}

fn stem(path: &str) -> &str {
    let path = without_ending(path);
    path.rsplit_once('/').map_or(path, |(_, name)| name)
}

fn set_links(notes: &mut [Note]) {
    let mut shared: HashMap<String, usize> = HashMap::new();
    for note in &*notes {
        *shared.entry(stem(&note.path).to_lowercase()).or_default() += 1;
    }
    for note in notes {
        let name = stem(&note.path);
        let target = if shared[&name.to_lowercase()] == 1 { name } else { without_ending(&note.path) };
        note.link = markdown::note_link(target, &note.path);
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::ffi::OsStrExt;
    use std::os::unix::fs::symlink;

    use tempfile::TempDir;

    use super::*;

    fn folder(files: &[(&str, &[u8])]) -> TempDir {
        let folder = TempDir::new().unwrap();
        for (path, bytes) in files {
            let path = folder.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, bytes).unwrap();
        }
        folder
    }

    fn read(folder: &TempDir, entries: &[&str]) -> Result<Vec<Note>, String> {
        let entries: Vec<_> = entries.iter().map(|entry| folder.path().join(entry)).collect();
        let notes = Notes::read(&entries, &folder.path().join("report.md"));
        notes.map(|notes| notes.notes).map_err(|e| e.to_string())
    }

    fn paths(notes: &[Note]) -> Vec<&str> {
        notes.iter().map(|note| &*note.path).collect()
    }

    #[test]
    fn notes_come_in_the_order_of_their_paths_whatever_the_file_system_says() {
        let folder = folder(&[
            ("b.md", b"b"),
            ("a/z.md", b"z"),
            ("a.md", b"a"),
            ("\u{451}.MD", b"e"),
            ("other.txt", b"no"),
            (".obsidian/x.md", b"no"),
            ("report.md", b"no"),
        ]);
        let notes = read(&folder, &["."]).unwrap();
        assert_eq!(paths(&notes), ["a.md", "a/z.md", "b.md", "\u{451}.MD"]);
        assert_eq!(notes[0].hash, blake3::hash(b"a").to_hex().as_str());
        assert_eq!(notes[3].link, "[[\u{451}]]");
    }

    #[test]
    fn globs_lists_and_files_name_notes_once() {
        let folder =
            folder(&[("n/2026-01.md", b"1"), ("n/2026-02.md", b"2"), ("n/x/2026-03.md", b"3"), ("m/4.md", b"4")]);
        assert_eq!(paths(&read(&folder, &["n/2026-*.md"]).unwrap()), ["2026-01.md", "2026-02.md"]);
        assert_eq!(paths(&read(&folder, &["n/**/*.md"]).unwrap()), ["2026-01.md", "2026-02.md", "x/2026-03.md"]);
        assert_eq!(paths(&read(&folder, &["n/2026-01.md"]).unwrap()), ["2026-01.md"]);
        let list = read(&folder, &["n/x", "m", "m/*.md"]).unwrap();
        assert_eq!(paths(&list), ["m/4.md", "n/x/2026-03.md"]);
    }

    #[test]
    fn a_link_is_the_name_and_the_path_where_a_name_is_shared() {
        let folder = folder(&[("a/Log.md", b"x"), ("b/log.md", b""), ("c/plan.md", b""), ("C#.md", b"")]);
        let links: Vec<_> = read(&folder, &["."]).unwrap().into_iter().map(|note| note.link).collect();
        assert_eq!(links, ["[C&#35;](C%23.md)", "[[a/Log]]", "[[b/log]]", "[[plan]]"]);
    }

    #[test]
    fn a_title_is_the_first_heading_or_the_name() {
        let folder = folder(&[
            ("a.md", b"\xef\xbb\xbf---\ntitle: x\n# no\n---\n```\n# no\n```\n## Dome limits ##\ntext"),
            ("b c.md", b"text"),
        ]);
        let titles: Vec<_> = read(&folder, &["."]).unwrap().into_iter().map(|note| note.title).collect();
        assert_eq!(titles, ["Dome limits", "b c"]);
    }

    #[test]
    fn what_cannot_be_read_is_named() {
        type Prepare = fn(&Path);
        let cases: [(&str, Prepare, &[&str]); 6] = [
            ("missing", |_| (), &["there is no", "missing"]),
            ("n", |_| (), &["no note matches", ".md"]),
            ("n", |n| fs::write(n.join("x.md"), b"ab\xff").unwrap(), &["x.md", "UTF-8", "byte 2"]),
            ("n", |n| symlink("/etc/hostname", n.join("x.md")).unwrap(), &["x.md", "symbolic link", "outside"]),
            ("n", |n| symlink("/etc", n.join("x")).unwrap(), &["n/x", "symbolic link", "outside"]),
            ("n", |n| symlink("nowhere", n.join("x.md")).unwrap(), &["cannot read", "x.md"]),
        ];
        for (entry, prepare, parts) in cases {
            let folder = TempDir::new().unwrap();
            fs::create_dir(folder.path().join("n")).unwrap();
            prepare(&folder.path().join("n"));
            let message = read(&folder, &[entry]).unwrap_err();
            for part in parts {
                assert!(message.contains(part), "{part} is missing in: {message}");
            }
        }
        let folder = folder(&[]);
        fs::write(folder.path().join(std::ffi::OsStr::from_bytes(b"x\xff.md")), b"x").unwrap();
        assert!(read(&folder, &["."]).unwrap_err().contains("rename"));
        assert!(read(&folder, &["[.md"]).unwrap_err().contains("not a glob"));
    }

    #[test]
    fn a_folder_that_may_not_be_read_is_named() {
        use std::os::unix::fs::PermissionsExt;
        let folder = folder(&[("a.md", b"a"), ("closed/b.md", b"b")]);
        let closed = folder.path().join("closed");
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o000)).unwrap();
        // The superuser may read it all the same.
        if fs::read_dir(&closed).is_err() {
            let message = read(&folder, &["."]).unwrap_err();
            assert!(message.contains("cannot read") && message.contains("closed"), "{message}");
        }
        fs::set_permissions(&closed, fs::Permissions::from_mode(0o700)).unwrap();
    }

    #[test]
    fn a_symbolic_link_inside_the_folder_adds_no_second_note() {
        let folder = folder(&[("a.md", b"a"), ("d/b.md", b"b")]);
        symlink("a.md", folder.path().join("link.md")).unwrap();
        symlink("d", folder.path().join("e")).unwrap();
        assert_eq!(paths(&read(&folder, &["."]).unwrap()), ["a.md", "d/b.md"]);
    }
}
