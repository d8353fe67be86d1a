//! Rules about what stands in a source file.

use super::rust::{Kind, lines_with, only};
use super::{Offence, Tree, packages};

/// A file that can no longer be read in one sitting is two files.
const RUST_LINES_MAX: usize = 700;

/// Everything that a compiler cannot vouch for: the intrinsics, the system calls for memory and threads, the map of the
/// checkpoint, and the GPU's driver. A folder ends in `/`.
const UNSAFE_PLACES: [&str; 6] = [
    "simd/src/arch.rs",
    "simd/src/arch/",
    "engine/numa/",
    "engine/core/src/checkpoint/map.rs",
    "gpu-offload/src/driver.rs",
    "gpu-offload/src/driver/",
];

/// The packages of [`UNSAFE_PLACES`]; every other forbids unsafe code in each crate root.
const UNSAFE_PACKAGES: [&str; 4] = ["simd", "numa", "engine-core", "gpu-offload"];

pub(super) fn unsafe_code_lives_in_few_places(tree: &Tree) -> Vec<Offence> {
    let allowed = |path: &str| {
        UNSAFE_PLACES.iter().any(|place| path == *place || place.ends_with('/') && path.starts_with(place))
    };
    let mut offences = Vec::new();
    for (path, source) in tree.rust().filter(|(path, _)| !allowed(path)) {
        for line in lines_with("unsafe", &only(Kind::Code, source)) {
            offences.push(Offence::at(path, line, "unsafe code outside of the few places for it (ARCHITECTURE.md)"));
        }
    }
    offences
}

pub(super) fn crates_without_need_forbid_unsafe_code(tree: &Tree) -> Vec<Offence> {
    let packages = match packages::read(tree) {
        Ok(packages) => packages,
        Err(offence) => return vec![offence],
    };
    let roots =
        packages.iter().filter(|package| !UNSAFE_PACKAGES.contains(&package.name())).flat_map(|p| p.crate_roots(tree));
    roots
        .filter(|root| {
            !tree.text(root).is_some_and(|source| only(Kind::Code, source).contains("#![forbid(unsafe_code)]"))
        })
        .map(|root| Offence::file(&root, "this crate root lacks #![forbid(unsafe_code)]"))
        .collect()
}

/// Where sockets live: the server, the flags that say where it listens, its tests and what puts it under load.
const SOCKETS: [&str; 5] = [
    "engine/server/src/",
    "engine/cli/src/args/serve.rs",
    "engine/cli/src/commands/serve.rs",
    "tests/server/",
    "tools/strain/",
];
/// Of these, those that connect to the server, or show that it cannot connect.
const CLIENTS: [&str; 3] = ["engine/server/src/sandbox.rs", "tests/server/", "tools/strain/"];

/// The program listens in one place and connects to nothing, so no slip of its own can send a note anywhere.
pub(super) fn nothing_opens_a_connection(tree: &Tree) -> Vec<Offence> {
    let sockets = ["std::net", "TcpListener", "TcpStream", "UnixDatagram", "UnixListener", "UnixStream"];
    let away = ["TcpStream::connect", "TcpSocket", "ToSocketAddrs", "UdpSocket", "lookup_host"];
    let mut offences = Vec::new();
    for (path, source) in tree.rust() {
        let is_in = |places: &[&str]| places.iter().any(|place| path.starts_with(place));
        let code = only(Kind::Code, source);
        let mut find = |names: &[&str], why: &str| {
            for name in names {
                let lines = lines_with(name, &code).into_iter();
                offences.extend(lines.map(|line| Offence::at(path, line, format!("{name}: {why}"))));
            }
        };
        if !is_in(&SOCKETS) {
            find(&sockets, "sockets live in engine/server");
        }
        if !is_in(&CLIENTS) {
            find(&away, "this program opens no connection");
        }
    }
    offences
}

pub(super) fn nothing_is_left_to_be_done(tree: &Tree) -> Vec<Offence> {
    // In two pieces, so that this file keeps the rule.
    let remarks = [concat!("TO", "DO"), concat!("FIX", "ME")];
    let macros = ["dbg!", "todo!", "unimplemented!"];
    let mut offences = Vec::new();
    let mut find = |words: &[&str], path, text: &str| {
        for word in words {
            let lines = lines_with(word, text).into_iter();
            offences.extend(lines.map(|line| Offence::at(path, line, format!("{word}: do it now, or open an issue"))));
        }
    };
    for (path, text) in tree.texts() {
        if path.ends_with(".rs") {
            find(&remarks, path, &only(Kind::Comment, text));
            find(&macros, path, &only(Kind::Code, text));
        } else if [".sh", ".py", ".toml", ".cu", "/run"].iter().any(|end| path.ends_with(end)) {
            find(&remarks, path, text);
        }
    }
    offences
}

pub(super) fn files_are_short(tree: &Tree) -> Vec<Offence> {
    let lengths = tree.rust().map(|(path, source)| (path, source.lines().count()));
    lengths
        .filter(|(_, lines)| *lines > RUST_LINES_MAX)
        .map(|(path, lines)| {
            Offence::file(path, format!("{lines} lines; with more than {RUST_LINES_MAX} it is two files"))
        })
        .collect()
}

pub(super) fn files_open_with_their_reason(tree: &Tree) -> Vec<Offence> {
    tree.rust()
        .filter(|(_, source)| !source.starts_with("//! "))
        .map(|(path, _)| Offence::at(path, 1, "the file does not open with its reason (`//! …`)"))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::super::{packages::tests::WORKSPACE, printed};
    use super::*;

    #[test]
    fn unsafe_code_is_found_wherever_it_has_no_place() {
        let code = "//! a\nfn f() {\n    unsafe { g() }\n}\n";
        let tree = Tree::of([
            ("engine/core/src/checkpoint/map.rs", code),
            ("engine/core/src/checkpoint/mapping.rs", code),
            ("engine/numa/src/pool.rs", code),
            ("gpu-offload/src/driver/stream.rs", code),
            ("gpu-offload/src/lib.rs", code),
            ("simd/src/arch/x86_64/avx2.rs", code),
            ("simd/src/architecture.rs", code),
        ]);
        let found = printed(unsafe_code_lives_in_few_places(&tree));
        let places: Vec<&str> = found.iter().filter_map(|line| line.split(": ").next()).collect();
        assert_eq!(
            places,
            ["engine/core/src/checkpoint/mapping.rs:3", "gpu-offload/src/lib.rs:3", "simd/src/architecture.rs:3"]
        );
    }

    #[test]
    fn speaking_of_unsafe_code_is_safe() {
        let source = "//! no unsafe here\n#![forbid(unsafe_code)]\nconst WORD: &str = \"unsafe\"; // unsafe\n";
        assert_eq!(unsafe_code_lives_in_few_places(&Tree::of([("tools/src/main.rs", source)])), []);
    }

    #[test]
    fn every_crate_root_without_need_forbids_unsafe_code() {
        let forbid = "//! a\n#![forbid(unsafe_code)]\n";
        let cli = "[package]\nname = \"nightmonk\"\n[[test]]\nname = \"integration\"\npath = \"../../tests/main.rs\"\n";
        let tree = Tree::of([
            ("Cargo.toml", "[workspace]\nmembers = [\"simd\", \"engine/cli\"]\n"),
            ("simd/Cargo.toml", "[package]\nname = \"simd\"\n"),
            ("simd/src/lib.rs", "//! a\n"),
            ("engine/cli/Cargo.toml", cli),
            ("engine/cli/src/main.rs", forbid),
            ("engine/cli/src/plan.rs", "//! not a crate root\n"),
            ("engine/cli/benches/load.rs", "//! a\n// #![forbid(unsafe_code)]\n"),
            ("tests/main.rs", "//! a\n"),
            ("tests/plan.rs", "//! not a crate root\n"),
        ]);
        let found = printed(crates_without_need_forbid_unsafe_code(&tree));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(
            found[0].starts_with("engine/cli/benches/load.rs") && found[1].starts_with("tests/main.rs"),
            "{found:?}"
        );
        assert_eq!(crates_without_need_forbid_unsafe_code(&Tree::of(WORKSPACE)), []);
    }

    #[test]
    fn a_connection_is_found_in_code_and_not_in_words_about_it() {
        let source = "//! no std::net\nuse std::net::Ipv4Addr;\nlet a = \"TcpStream\"; // TcpStream\nlet b = TcpStream::connect(c);\n";
        let files = ["engine/core/src/lib.rs", "engine/server/src/listen.rs", "tests/server/client.rs"];
        let found = printed(nothing_opens_a_connection(&Tree::of(files.map(|file| (file, source)))));
        let places: Vec<&str> = found.iter().filter_map(|line| line.split(": ").next()).collect();
        let elsewhere = ["engine/core/src/lib.rs:2", "engine/core/src/lib.rs:4", "engine/core/src/lib.rs:4"];
        assert_eq!(places, [&elsewhere[..], &["engine/server/src/listen.rs:4"]].concat());
    }

    #[test]
    fn remarks_about_later_are_found_in_comments_and_not_in_strings() {
        let note = concat!("TO", "DO");
        let source = format!("//! a\nlet a = 1; // {note}: more\nlet {note} = \"{note}\";\n");
        let script = format!("#!/bin/sh\n# {note}\n");
        let tree = Tree::of([("simd/src/lib.rs", &source), ("tools/x.sh", &script), ("tools/demo/notes/a.md", note)]);
        let found = printed(nothing_is_left_to_be_done(&tree));
        assert_eq!(found.len(), 2, "{found:?}");
        assert!(found[0].starts_with("simd/src/lib.rs:2: ") && found[1].starts_with("tools/x.sh:2: "), "{found:?}");
    }

    #[test]
    fn macros_for_work_in_progress_are_found_in_code() {
        let source =
            "//! todo!()\nfn f() { todo!() }\nfn todo() { dbg!(1); }\nlet a = \"unimplemented!()\";\nfn dbg() {}\n";
        let found = printed(nothing_is_left_to_be_done(&Tree::of([("simd/src/lib.rs", source)])));
        assert_eq!(
            found,
            [
                "simd/src/lib.rs:3: dbg!: do it now, or open an issue",
                "simd/src/lib.rs:2: todo!: do it now, or open an issue"
            ]
        );
    }

    #[test]
    fn a_file_may_have_700_lines_and_not_701() {
        let (longest, too_long) = ("//! a\n".repeat(700), "//! a\n".repeat(701));
        let found = printed(files_are_short(&Tree::of([("a.rs", &longest), ("b.rs", &too_long), ("c.md", &too_long)])));
        assert_eq!(found, ["b.rs: 701 lines; with more than 700 it is two files"]);
    }

    #[test]
    fn a_file_opens_with_its_reason() {
        let tree = Tree::of([("a.rs", "//! Why.\n"), ("b.rs", "use a;\n//! Late.\n"), ("c.rs", ""), ("d.rs", "//!\n")]);
        let found = printed(files_open_with_their_reason(&tree));
        assert_eq!(found.iter().map(|line| &line[..7]).collect::<Vec<_>>(), ["b.rs:1:", "c.rs:1:", "d.rs:1:"]);
    }
}
