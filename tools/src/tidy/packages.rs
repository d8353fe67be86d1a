//! Rules about the packages of the workspace, read from their manifests.

use std::collections::BTreeSet;

use toml::{Table, Value};

use super::{Offence, Tree};

/// Packages from the ground up. A package may use those of the rows above its own, never one of its own row or below:
/// what computes knows no files, what knows models knows no jobs, and nothing that is shipped knows its tests.
const ORDER: [&[&str]; 8] = [
    &["simd", "numa"],
    &["gpu-offload"],
    &["engine-core"],
    &["engine-monk"],
    &["engine-server", "strain"],
    &["nightmonk"],
    &["synth"],
    &["benches", "tools", "measure"],
];

/// Lints that are errors in every package: what keeps `unsafe` explained.
const DENIED: [(&str, &str); 4] = [
    ("rust", "unsafe_op_in_unsafe_fn"),
    ("clippy", "undocumented_unsafe_blocks"),
    ("clippy", "multiple_unsafe_ops_per_block"),
    ("clippy", "missing_safety_doc"),
];

/// Crates that open connections or exist for those that do.
const NETWORK: [&str; 9] =
    ["curl", "hf-hub", "hickory-resolver", "hyper-rustls", "native-tls", "quinn", "reqwest", "rustls", "ureq"];

/// Crates that a server is made of, and the one package that may have them.
const SERVER: [&str; 5] = ["axum", "hyper", "hyper-util", "mio", "tokio"];
const SERVER_PACKAGE: &str = "engine-server";

/// One package of the workspace.
pub(super) struct Package {
    /// From the root, as in `engine/core`.
    folder: String,
    manifest_path: String,
    manifest: Table,
}

/// The packages that the root's manifest lists.
pub(super) fn read(tree: &Tree) -> Result<Vec<Package>, Offence> {
    let root = manifest(tree, "Cargo.toml")?;
    let members = at(&root, &["workspace", "members"]).and_then(Value::as_array);
    let members = members.ok_or_else(|| Offence::file("Cargo.toml", "lists no members of the workspace"))?;
    let read = |folder: &str| {
        let manifest_path = format!("{folder}/Cargo.toml");
        Ok(Package { folder: folder.to_owned(), manifest: manifest(tree, &manifest_path)?, manifest_path })
    };
    members.iter().filter_map(Value::as_str).map(read).collect()
}

fn manifest(tree: &Tree, path: &str) -> Result<Table, Offence> {
    let text = tree.text(path).ok_or_else(|| Offence::file(path, "this manifest is missing"))?;
    text.parse().map_err(|error: toml::de::Error| Offence::file(path, format!("is not TOML: {}", error.message())))
}

fn at<'a>(table: &'a Table, path: &[&str]) -> Option<&'a Value> {
    let (last, folders) = path.split_last()?;
    folders.iter().try_fold(table, |table, key| table.get(*key)?.as_table())?.get(*last)
}

impl Package {
    pub(super) fn name(&self) -> &str {
        at(&self.manifest, &["package", "name"]).and_then(Value::as_str).unwrap_or_default()
    }

    /// Files that a compiler starts from: those where cargo looks by itself, and those that a target names.
    pub(super) fn crate_roots(&self, tree: &Tree) -> BTreeSet<String> {
        let found = |path: &str| {
            let Some(path) = path.strip_prefix(&self.folder).and_then(|path| path.strip_prefix('/')) else {
                return false;
            };
            let parts: Vec<&str> = path.split('/').collect();
            match parts[..] {
                ["src", file] => file == "lib.rs" || file == "main.rs",
                ["src", "bin", file] | ["benches" | "examples" | "tests", file] => file.ends_with(".rs"),
                ["src", "bin", _, file] | ["benches" | "examples" | "tests", _, file] => file == "main.rs",
                [file] => file == "build.rs",
                _ => false,
            }
        };
        let named = ["lib", "bin", "bench", "example", "test"].into_iter().filter_map(|kind| self.manifest.get(kind));
        let named = named.flat_map(|targets| targets.as_array().map_or(std::slice::from_ref(targets), Vec::as_slice));
        let named = named.filter_map(|target| resolve(&self.folder, target.get("path")?.as_str()?));
        tree.files.keys().filter(|path| found(path)).cloned().chain(named).collect()
    }

    /// Names of the packages that this one depends on, for any purpose and any target.
    fn dependencies(&self) -> BTreeSet<&str> {
        let targets = self.manifest.get("target").and_then(Value::as_table).into_iter().flat_map(Table::values);
        let tables = targets.filter_map(Value::as_table).chain([&self.manifest]);
        let kinds = ["dependencies", "dev-dependencies", "build-dependencies"];
        let tables = tables.flat_map(|table| kinds.iter().filter_map(|kind| table.get(*kind)?.as_table()));
        // `alias = { package = "name" }` depends on `name`.
        tables
            .flatten()
            .map(|(key, value)| value.get("package").and_then(Value::as_str).unwrap_or(key.as_str()))
            .collect()
    }
}

/// `path` from `folder`, with its `..` taken away; nothing if it leaves the repository.
fn resolve(folder: &str, path: &str) -> Option<String> {
    let mut parts: Vec<&str> = folder.split('/').collect();
    for part in path.split('/') {
        match part {
            "." => {}
            ".." => drop(parts.pop()?),
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

pub(super) fn lints_hold_everywhere(tree: &Tree) -> Vec<Offence> {
    let (root, packages) = match manifest(tree, "Cargo.toml").and_then(|root| Ok((root, read(tree)?))) {
        Ok(both) => both,
        Err(offence) => return vec![offence],
    };
    let mut offences = Vec::new();
    for (tool, lint) in DENIED {
        let level = at(&root, &["workspace", "lints", tool, lint]);
        let level = level.and_then(|level| level.as_str().or_else(|| level.get("level")?.as_str()));
        if !matches!(level, Some("deny" | "forbid")) {
            offences.push(Offence::file("Cargo.toml", format!("the lint {tool}::{lint} has to be denied")));
        }
    }
    for package in packages {
        for (path, what) in [(["lints", "workspace"], "lints"), (["package", "license"], "licence")] {
            let value = at(&package.manifest, &path);
            let value = if what == "lints" { value } else { value.and_then(|value| value.get("workspace")) };
            if value.and_then(Value::as_bool) != Some(true) {
                offences.push(Offence::file(&package.manifest_path, format!("does not take the workspace's {what}")));
            }
        }
    }
    offences
}

pub(super) fn dependencies_point_one_way(tree: &Tree) -> Vec<Offence> {
    let packages = match read(tree) {
        Ok(packages) => packages,
        Err(offence) => return vec![offence],
    };
    let row = |name: &str| ORDER.iter().position(|row| row.contains(&name));
    let names: BTreeSet<&str> = packages.iter().map(Package::name).collect();
    let mut offences = Vec::new();
    for package in &packages {
        let name = package.name();
        let Some(own) = row(name) else {
            let message = format!("`{name}` has no row in the order of packages (tools/src/tidy/packages.rs)");
            offences.push(Offence::file(&package.manifest_path, message));
            continue;
        };
        let wrong = package.dependencies().into_iter().filter(|dependency| names.contains(dependency));
        let wrong = wrong.filter(|dependency| row(dependency).is_none_or(|row| row >= own));
        offences.extend(wrong.map(|dependency| {
            Offence::file(
                &package.manifest_path,
                format!("`{name}` may not depend on `{dependency}`: dependencies point one way"),
            )
        }));
    }
    offences
}

/// The registry has a crate `numa` too, a DNS resolver. A slip in a manifest would bring it in under our name.
pub(super) fn numa_is_ours(tree: &Tree) -> Vec<Offence> {
    let foreign = |name: &str, source: Option<&str>| {
        let source = source.filter(|_| name == "numa")?;
        Some(format!("`numa` comes from {source}, but it has to be engine/numa"))
    };
    in_lock_file(tree, foreign)
}

/// A dependency, or a feature of one, can bring network code in; most of it comes through one of these.
pub(super) fn nothing_brings_a_network(tree: &Tree) -> Vec<Offence> {
    let network = |name: &str, _: Option<&str>| {
        NETWORK.contains(&name).then(|| format!("`{name}` is network code; `cargo tree -i {name}` tells what wants it"))
    };
    let mut offences = in_lock_file(tree, network);
    let packages = match read(tree) {
        Ok(packages) => packages,
        Err(offence) => return vec![offence],
    };
    for package in packages.iter().filter(|package| package.name() != SERVER_PACKAGE) {
        let wrong = package.dependencies().into_iter().filter(|dependency| SERVER.contains(dependency));
        offences.extend(wrong.map(|dependency| {
            Offence::file(&package.manifest_path, format!("`{dependency}` is for {SERVER_PACKAGE} alone"))
        }));
    }
    offences
}

/// What `offends` says about the packages of the lock file, by name and source.
fn in_lock_file(tree: &Tree, offends: impl Fn(&str, Option<&str>) -> Option<String>) -> Vec<Offence> {
    let lock = match manifest(tree, "Cargo.lock") {
        Ok(lock) => lock,
        Err(offence) => return vec![offence],
    };
    let packages = lock.get("package").and_then(Value::as_array).into_iter().flatten();
    packages
        .filter_map(|package| offends(package.get("name")?.as_str()?, package.get("source").and_then(Value::as_str)))
        .map(|message| Offence::file("Cargo.lock", message))
        .collect()
}

#[cfg(test)]
pub(super) mod tests {
    use super::super::printed;
    use super::*;

    /// A workspace that keeps every rule of this file.
    pub(in super::super) const WORKSPACE: [(&str, &str); 7] = [
        (
            "Cargo.toml",
            "[workspace]\nmembers = [\"engine/numa\", \"tools\"]\n[workspace.lints.rust]\nunsafe_op_in_unsafe_fn = \"deny\"\n\
             [workspace.lints.clippy]\nundocumented_unsafe_blocks = \"deny\"\nmissing_safety_doc = \"forbid\"\n\
             multiple_unsafe_ops_per_block = { level = \"deny\", priority = 1 }\n",
        ),
        ("Cargo.lock", "[[package]]\nname = \"numa\"\nversion = \"0.1.0\"\n"),
        (
            "engine/numa/Cargo.toml",
            "[package]\nname = \"numa\"\nlicense.workspace = true\n[lints]\nworkspace = true\n[dependencies]\nlibc = \"1\"\n",
        ),
        ("engine/numa/src/lib.rs", "//! a\n"),
        (
            "tools/Cargo.toml",
            "[package]\nname = \"tools\"\nlicense.workspace = true\n[lints]\nworkspace = true\n[dependencies]\nnuma.workspace = true\n",
        ),
        ("tools/src/main.rs", "//! a\n#![forbid(unsafe_code)]\n"),
        ("tools/src/tidy.rs", "//! a\n"),
    ];

    /// [`WORKSPACE`] with one change.
    #[track_caller]
    fn with(path: &str, from: &str, to: &str) -> Tree {
        let mut tree = Tree::of(WORKSPACE);
        let text = tree.text(path).unwrap();
        assert!(text.contains(from), "{path} has no {from}");
        let text = text.replacen(from, to, 1).into_bytes();
        tree.files.insert(path.to_owned(), text);
        tree
    }

    #[test]
    fn a_good_workspace_keeps_every_rule() {
        let tree = Tree::of(WORKSPACE);
        assert_eq!(lints_hold_everywhere(&tree), []);
        assert_eq!(dependencies_point_one_way(&tree), []);
        assert_eq!(numa_is_ours(&tree), []);
    }

    #[test]
    fn a_lint_that_is_only_warned_of_or_not_inherited_is_found() {
        let found = printed(lints_hold_everywhere(&with("Cargo.toml", "\"deny\"", "\"warn\"")));
        assert_eq!(found, ["Cargo.toml: the lint rust::unsafe_op_in_unsafe_fn has to be denied"]);
        let found = printed(lints_hold_everywhere(&with("Cargo.toml", "level = \"deny\"", "level = \"allow\"")));
        assert_eq!(found, ["Cargo.toml: the lint clippy::multiple_unsafe_ops_per_block has to be denied"]);
        let found = printed(lints_hold_everywhere(&with("tools/Cargo.toml", "[lints]\nworkspace = true\n", "")));
        assert_eq!(found, ["tools/Cargo.toml: does not take the workspace's lints"]);
        let found =
            printed(lints_hold_everywhere(&with("tools/Cargo.toml", "license.workspace = true", "license = \"MIT\"")));
        assert_eq!(found, ["tools/Cargo.toml: does not take the workspace's licence"]);
    }

    #[test]
    fn a_dependency_against_the_order_is_found_however_it_is_written() {
        let want = ["engine/numa/Cargo.toml: `numa` may not depend on `tools`: dependencies point one way"];
        for dependency in [
            "[dev-dependencies]\ntools.workspace = true\n",
            "[build-dependencies.tools]\npath = \"../../tools\"\n",
            "[target.'cfg(unix)'.dependencies]\ntools = { path = \"../../tools\" }\n",
            "[dev-dependencies]\nchecks = { package = \"tools\", path = \"../../tools\" }\n",
        ] {
            let tree = with("engine/numa/Cargo.toml", "[dependencies]\nlibc = \"1\"\n", dependency);
            assert_eq!(printed(dependencies_point_one_way(&tree)), want, "{dependency}");
        }
    }

    #[test]
    fn a_package_has_a_row_in_the_order() {
        let found = printed(dependencies_point_one_way(&with("tools/Cargo.toml", "\"tools\"", "\"gadgets\"")));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].starts_with("tools/Cargo.toml: `gadgets` has no row"), "{found:?}");
    }

    #[test]
    fn the_numa_of_the_registry_is_found() {
        let source = "version = \"0.1.0\"\nsource = \"registry+https://example.org/index\"\n";
        let found = printed(numa_is_ours(&with("Cargo.lock", "version = \"0.1.0\"\n", source)));
        assert_eq!(found.len(), 1, "{found:?}");
        assert!(found[0].contains("has to be engine/numa"), "{found:?}");
    }

    #[test]
    fn a_network_crate_is_found() {
        assert_eq!(nothing_brings_a_network(&Tree::of(WORKSPACE)), []);
        let found = printed(nothing_brings_a_network(&with("Cargo.lock", "\"numa\"", "\"hf-hub\"")));
        assert_eq!(found, ["Cargo.lock: `hf-hub` is network code; `cargo tree -i hf-hub` tells what wants it"]);
        let found = printed(nothing_brings_a_network(&with(
            "engine/numa/Cargo.toml",
            "[dependencies]",
            "[dependencies]\ntokio = \"1\"",
        )));
        assert_eq!(found, ["engine/numa/Cargo.toml: `tokio` is for engine-server alone"]);
    }

    #[test]
    fn a_manifest_that_is_absent_or_broken_is_an_offence() {
        let mut tree = Tree::of(WORKSPACE);
        tree.files.remove("tools/Cargo.toml");
        assert_eq!(printed(dependencies_point_one_way(&tree)), ["tools/Cargo.toml: this manifest is missing"]);
        let found = printed(numa_is_ours(&with("Cargo.lock", "[[package]]", "[[package")));
        assert!(found[0].starts_with("Cargo.lock: is not TOML"), "{found:?}");
    }

    #[test]
    fn the_path_of_a_target_may_lead_out_of_its_package() {
        assert_eq!(resolve("engine/cli", "../../tests/main.rs").as_deref(), Some("tests/main.rs"));
        assert_eq!(resolve("tools", "./src/main.rs").as_deref(), Some("tools/src/main.rs"));
        assert_eq!(resolve("tools", "../../elsewhere.rs"), None);
    }
}
