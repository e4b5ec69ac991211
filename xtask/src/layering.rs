//! The layering rules: which crate of the workspace may depend on which, which crates may name a
//! dependency that is confined, and that the word `unsafe` occurs in crates/sys only.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, anyhow, bail};
use cargo_metadata::{DependencyKind, Package};
use proc_macro2::{TokenStream, TokenTree};

use crate::workspace;

/// Each package and the packages of the workspace it may depend on. Dependencies point downwards only.
const ALLOWED: &[(&str, &[&str])] = &[
    ("plyfs-format", &[]),
    ("plyfs-sys", &["plyfs-format"]),
    ("plyfs-core", &["plyfs-format", "plyfs-sys"]),
    ("plyfs-fuse", &["plyfs-format", "plyfs-sys", "plyfs-core"]),
    ("plyfs-store", &["plyfs-format", "plyfs-sys"]),
    ("plyfs-snapshotter", &["plyfs-format", "plyfs-sys", "plyfs-store"]),
    ("plyfs", &["plyfs-format", "plyfs-sys", "plyfs-core", "plyfs-fuse", "plyfs-store", "plyfs-snapshotter"]),
    ("plyfs-fuzzing", &["plyfs-format", "plyfs-store"]),
    ("plyfs-testkit", &["plyfs-format", "plyfs-sys", "plyfs-core"]),
    ("xtask", &["plyfs-format", "plyfs-sys", "plyfs-testkit"]),
];

/// A dependency from outside, and the only packages that may name it.
const CONFINED: &[(&str, &[&str])] = &[
    ("fuser", &["plyfs-fuse"]),
    ("tokio", &["plyfs-store", "plyfs-snapshotter", "plyfs"]),
    ("tonic", &["plyfs-snapshotter", "plyfs"]),
];

/// The package with test helpers: any package's tests may use it.
const TEST_HELPERS: &str = "plyfs-testkit";

/// The one crate that may say `unsafe`.
const UNSAFE_CRATE: &str = "sys";

/// Checks all rules; an error tells how many are broken, each having been printed.
pub fn run() -> Result<()> {
    let metadata = workspace::metadata()?;
    let packages = metadata.workspace_packages();
    let mut broken = Vec::new();
    for package in &packages {
        broken.extend(wrong_dependencies(package)?);
    }
    broken.extend(unsafe_outside_sys()?);
    for rule in &broken {
        println!("layering: {rule}");
    }
    if !broken.is_empty() {
        bail!("layering: {} broken", broken.len());
    }
    println!("layering: {} packages, each depends only on what it may", packages.len());
    Ok(())
}

fn wrong_dependencies(package: &Package) -> Result<Vec<String>> {
    let name = package.name.as_str();
    let (_, allowed) = ALLOWED
        .iter()
        .find(|(known, _)| *known == name)
        .ok_or_else(|| anyhow!("package {name} is not in the table of xtask/src/layering.rs"))?;
    let mut wrong = Vec::new();
    for dependency in &package.dependencies {
        let to = dependency.name.as_str();
        let of_workspace = ALLOWED.iter().any(|(known, _)| *known == to);
        let for_tests = dependency.kind == DependencyKind::Development;
        if of_workspace && !allowed.contains(&to) && !(for_tests && may_be_tested_with(name, to)) {
            wrong.push(format!("{name} must not depend on {to}"));
        }
        if CONFINED.iter().any(|(confined, users)| *confined == to && !users.contains(&name)) {
            wrong.push(format!("{name} must not name {to}"));
        }
    }
    Ok(wrong)
}

/// Tests may use the helpers, and the binary's tests everything.
fn may_be_tested_with(name: &str, dependency: &str) -> bool {
    dependency == TEST_HELPERS || name == "plyfs"
}

fn unsafe_outside_sys() -> Result<Vec<String>> {
    let mut wrong = Vec::new();
    let mut directories = workspace::crates()?;
    directories.retain(|directory| !directory.ends_with(UNSAFE_CRATE));
    directories.push(workspace::root()?.join("xtask"));
    for directory in directories {
        for file in workspace::rust_files(&directory)? {
            for line in unsafe_lines(&file)? {
                wrong.push(format!("{}:{line}: `unsafe` outside crates/sys", workspace::relative(&file)));
            }
        }
    }
    Ok(wrong)
}

fn unsafe_lines(file: &Path) -> Result<Vec<usize>> {
    let text = fs::read_to_string(file).with_context(|| file.display().to_string())?;
    let tokens: TokenStream =
        text.parse().map_err(|error| anyhow!("cannot parse {}: {error}", file.display()))?;
    let mut lines = Vec::new();
    let mut pending = vec![tokens];
    while let Some(stream) = pending.pop() {
        for token in stream {
            match token {
                TokenTree::Group(group) => pending.push(group.stream()),
                TokenTree::Ident(word) if word == "unsafe" => lines.push(word.span().start().line),
                _ => {}
            }
        }
    }
    lines.sort_unstable();
    Ok(lines)
}
