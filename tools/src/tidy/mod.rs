//! The rules of the house that no compiler knows.
//!
//! A rule is a plain function from the tree of files to offences. It sees every file that git tracks or would track, so
//! an offence shows before it is committed; nothing outside of that is read. Each rule is tested twice: on a tree that
//! keeps it and on one that does not.

mod files;
mod packages;
mod rust;
mod source;

use std::collections::BTreeMap;
use std::fmt;
use std::path::Path;
use std::process::Command;

pub(crate) use files::{GOLDEN, GOLDEN_FAMILY_BYTES_MAX};

type Rule = fn(&Tree) -> Vec<Offence>;

const RULES: &[Rule] = &[
    source::unsafe_code_lives_in_few_places,
    source::crates_without_need_forbid_unsafe_code,
    source::nothing_opens_a_connection,
    source::nothing_is_left_to_be_done,
    source::files_are_short,
    source::files_open_with_their_reason,
    files::names_say_what_is_inside,
    files::nothing_names_one_machine,
    files::golden_families_are_small,
    files::licences_are_there,
    packages::lints_hold_everywhere,
    packages::dependencies_point_one_way,
    packages::numa_is_ours,
    packages::nothing_brings_a_network,
];

/// Prints every offence against a rule and fails if there was one.
pub(crate) fn run(root: &Path) -> Result<(), String> {
    let tree = Tree::read(root)?;
    let offences: Vec<Offence> = RULES.iter().flat_map(|rule| rule(&tree)).collect();
    for offence in &offences {
        eprintln!("{offence}");
    }
    match offences.len() {
        0 => {
            println!("tidy: {} files keep {} rules", tree.files.len(), RULES.len());
            Ok(())
        }
        count => Err(format!("tidy: {count} offences")),
    }
}

/// One place where a rule is broken: a line of a file, counted from one, or all of it.
#[derive(Debug, PartialEq, Eq)]
struct Offence {
    path: String,
    line: Option<usize>,
    message: String,
}

impl Offence {
    fn at(path: &str, line: usize, message: impl Into<String>) -> Self {
        Self { path: path.into(), line: Some(line), message: message.into() }
    }

    fn file(path: &str, message: impl Into<String>) -> Self {
        Self { path: path.into(), line: None, message: message.into() }
    }
}

impl fmt::Display for Offence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.line {
            Some(line) => write!(f, "{}:{line}: {}", self.path, self.message),
            None => write!(f, "{}: {}", self.path, self.message),
        }
    }
}

/// The files of the repository by their path from the root, with `/` between folders.
pub(crate) struct Tree {
    files: BTreeMap<String, Vec<u8>>,
}

/// What one golden family weighs.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Size {
    pub(crate) bytes: u64,
    pub(crate) files: usize,
}

impl Tree {
    /// Reads what git tracks or would track.
    pub(crate) fn read(root: &Path) -> Result<Self, String> {
        let list = ["ls-files", "-z", "--cached", "--others", "--exclude-standard"];
        let list = crate::output(Command::new("git").args(list).current_dir(root))?;
        let mut files = BTreeMap::new();
        for path in list.split_terminator('\0') {
            let file = root.join(path);
            // Deleted, but not yet in the index; or a link, whose target is another entry or not ours.
            if !file.symlink_metadata().is_ok_and(|file| file.is_file()) {
                continue;
            }
            let bytes = std::fs::read(&file).map_err(|error| format!("{path} cannot be read: {error}"))?;
            files.insert(path.to_owned(), bytes);
        }
        Ok(Self { files })
    }

    /// Every file that is text: its path and its content.
    fn texts(&self) -> impl Iterator<Item = (&str, &str)> {
        self.files.iter().filter_map(|(path, bytes)| Some((path.as_str(), std::str::from_utf8(bytes).ok()?)))
    }

    /// Every Rust file: its path and its content.
    fn rust(&self) -> impl Iterator<Item = (&str, &str)> {
        self.texts().filter(|(path, _)| path.ends_with(".rs"))
    }

    fn text(&self, path: &str) -> Option<&str> {
        std::str::from_utf8(self.files.get(path)?).ok()
    }

    /// The folders of [`GOLDEN`] and what they weigh.
    pub(crate) fn golden_families(&self) -> BTreeMap<&str, Size> {
        let mut families = BTreeMap::new();
        for (path, bytes) in &self.files {
            let Some((family, _)) = path.strip_prefix(GOLDEN).and_then(|path| path.split_once('/')) else { continue };
            let size = families.entry(family).or_insert(Size { bytes: 0, files: 0 });
            size.bytes += bytes.len() as u64;
            size.files += 1;
        }
        families
    }
}

#[cfg(test)]
impl Tree {
    /// A tree that never was on a disk.
    fn of<const N: usize>(files: [(&str, &str); N]) -> Self {
        Self { files: files.into_iter().map(|(path, text)| (path.to_owned(), text.as_bytes().to_vec())).collect() }
    }
}

/// The offences as they are printed.
#[cfg(test)]
fn printed(offences: Vec<Offence>) -> Vec<String> {
    offences.iter().map(Offence::to_string).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tree_is_what_git_tracks_or_would_track() {
        let tree = Tree::read(&crate::root().unwrap()).unwrap();
        assert!(tree.text("tools/src/tidy/mod.rs").unwrap().starts_with("//! The rules of the house"));
        assert!(!tree.files.keys().any(|path| path.starts_with("target/") || path.starts_with(".git/")));
    }

    #[test]
    fn an_offence_prints_as_editors_and_people_expect() {
        assert_eq!(Offence::at("a/b.rs", 7, "is odd").to_string(), "a/b.rs:7: is odd");
        assert_eq!(Offence::file("a/b.rs", "is odd").to_string(), "a/b.rs: is odd");
    }

    #[test]
    fn golden_families_are_the_folders_and_what_is_below_them() {
        let tree = Tree::of([
            ("tests/golden/llama/config.json", "{}"),
            ("tests/golden/llama/deep/a.bin", "123"),
            ("tests/golden/README.md", "how"),
        ]);
        assert_eq!(tree.golden_families(), [("llama", Size { bytes: 5, files: 2 })].into());
    }
}
