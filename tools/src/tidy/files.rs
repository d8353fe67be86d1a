//! Rules about files of any kind: their names, their size, and what they may not mention.

use super::{Offence, Tree};

/// Where golden data lies, a folder a family.
pub(crate) const GOLDEN: &str = "tests/golden/";

/// A clone carries golden data for ever.
pub(crate) const GOLDEN_FAMILY_BYTES_MAX: u64 = 1 << 20;

/// Names that fit every file and so tell nothing about any.
const EMPTY_NAMES: [&str; 11] =
    ["common", "data", "helper", "helpers", "manager", "managers", "misc", "stuff", "util", "utils", "utility"];

/// Beginnings of paths that exist on one machine or for one person. In two pieces each, so that this file keeps its rule.
const MACHINE_PATHS: [&str; 4] =
    [concat!("/", "work/"), concat!("/", "root/"), concat!("/", "home/"), concat!("/", "Users/")];

/// Licences that a user may choose from, as `license` in Cargo.toml names them.
const LICENCES: [&str; 2] = ["LICENSE-MIT", "LICENSE-APACHE"];

pub(super) fn names_say_what_is_inside(tree: &Tree) -> Vec<Offence> {
    let mut offences = Vec::new();
    for path in tree.files.keys().filter(|path| [".rs", ".py", ".sh", ".cu"].iter().any(|end| path.ends_with(end))) {
        let words = path.split(['/', '.', '_', '-']);
        for word in words.filter(|word| EMPTY_NAMES.contains(word)) {
            offences.push(Offence::file(path, format!("`{word}` fits every file: name what is inside")));
        }
    }
    offences
}

pub(super) fn nothing_names_one_machine(tree: &Tree) -> Vec<Offence> {
    let mut offences = Vec::new();
    for (path, text) in tree.texts() {
        for (index, line) in text.lines().enumerate() {
            // `target/work/x` and `https://host/home/x` are not absolute.
            let absolute = |at: usize| !line[..at].ends_with(|c: char| c.is_alphanumeric() || "_-.~)}]".contains(c));
            let named = MACHINE_PATHS.iter().find(|prefix| line.match_indices(**prefix).any(|(at, _)| absolute(at)));
            offences.extend(
                named.map(|prefix| Offence::at(path, index + 1, format!("{prefix}… is a path of one machine"))),
            );
        }
    }
    offences
}

pub(super) fn golden_families_are_small(tree: &Tree) -> Vec<Offence> {
    let families = tree.golden_families().into_iter();
    families
        .filter(|(_, size)| size.bytes >= GOLDEN_FAMILY_BYTES_MAX)
        .map(|(family, size)| {
            let message =
                format!("{} bytes; a family of golden data stays below {GOLDEN_FAMILY_BYTES_MAX}", size.bytes);
            Offence::file(&format!("{GOLDEN}{family}"), message)
        })
        .collect()
}

pub(super) fn licences_are_there(tree: &Tree) -> Vec<Offence> {
    let absent = LICENCES.into_iter().filter(|path| tree.text(path).is_none_or(|text| text.trim().is_empty()));
    absent.map(|path| Offence::file(path, "the licence is named in Cargo.toml, but its text is missing")).collect()
}

#[cfg(test)]
mod tests {
    use super::super::printed;
    use super::*;

    #[test]
    fn a_name_that_fits_every_file_is_found_in_any_part_of_a_path() {
        let tree = Tree::of([
            ("simd/src/matmul.rs", ""),
            ("simd/src/metadata.rs", ""),
            ("simd/src/string_utils.rs", ""),
            ("engine/common/mod.rs", ""),
            ("tools/demo/notes/data-retention.md", ""),
        ]);
        let found = printed(names_say_what_is_inside(&tree));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("engine/common/mod.rs: `common`"), "{found:?}");
        assert!(found[1].starts_with("simd/src/string_utils.rs: `utils`"), "{found:?}");
    }

    #[test]
    fn a_path_of_one_machine_is_found_and_a_relative_one_is_not() {
        let [work, root, home, _] = MACHINE_PATHS;
        let text = format!("cd {home}me\ntarget{work}x\nhttps://example.org{home}x\n\"{root}x\"\n{{folder}}{work}\n");
        let found = printed(nothing_names_one_machine(&Tree::of([("README.md", &text)])));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("README.md:1: ") && found[1].starts_with("README.md:4: "), "{found:?}");
    }

    #[test]
    fn a_golden_family_stays_below_its_limit() {
        let (full, half) = ("x".repeat(1 << 20), "x".repeat((1 << 19) - 1));
        let tree = Tree::of([
            ("tests/golden/a/one.bin", &full),
            ("tests/golden/b/one.bin", &half),
            ("tests/golden/b/two.bin", &half),
        ]);
        let found = printed(golden_families_are_small(&tree));
        assert_eq!(found, ["tests/golden/a: 1048576 bytes; a family of golden data stays below 1048576"]);
    }

    #[test]
    fn both_licences_have_a_text() {
        assert_eq!(licences_are_there(&Tree::of([("LICENSE-MIT", "text"), ("LICENSE-APACHE", "text")])), []);
        let found = printed(licences_are_there(&Tree::of([("LICENSE-MIT", "\n")])));
        assert_eq!(found.len(), 2, "{found:?}");
    }
}
