//! The engine as a library, without FUSE: lists the merged view of a stack, with what each name is and its size.
//!
//! `cargo run -p plyfs-core --example list -- lowerdir=TOP:BOTTOM[,upperdir=UPPER,workdir=WORK] [DIRECTORY]`

use std::error::Error;
use std::io::Write;
use std::process::ExitCode;

use plyfs_core::{Attr, DirEntry, DirSink, NodeId, Overlay, Settings};
use plyfs_format::StackSpec;

const S_IFMT: u32 = 0o170_000;
const S_IFDIR: u32 = 0o040_000;

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("list: {error}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let options = arguments.next().ok_or("name the layers: lowerdir=TOP:BOTTOM")?;
    let start = arguments.next().unwrap_or_default();
    let spec = StackSpec::parse(&[options])?.spec;
    let overlay = Overlay::assemble(&spec, &Settings::default())?;
    let node = find(&overlay, &start)?;
    list(&overlay, node, start.trim_matches('/'), &mut std::io::stdout().lock())
}

/// The node at a path. Its lookups are never given back: the example ends before that matters.
fn find(overlay: &Overlay, path: &str) -> Result<NodeId, Box<dyn Error>> {
    let mut node = NodeId::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        let entry = overlay.lookup(node, name.as_bytes())?;
        node = entry.ok_or_else(|| format!("{path}: no such file or directory"))?.node;
    }
    Ok(node)
}

/// What a listing gave: names, nodes and attributes.
#[derive(Default)]
struct Found(Vec<(String, NodeId, Attr)>);

impl DirSink for Found {
    fn has_room(&self, _: usize) -> bool {
        true
    }

    fn push(&mut self, entry: &DirEntry<'_>) {
        // `.` and `..` come without.
        if let Some(found) = entry.entry {
            let name = String::from_utf8_lossy(entry.name).into_owned();
            self.0.push((name, found.node, found.attr));
        }
    }
}

fn list(overlay: &Overlay, dir: NodeId, path: &str, out: &mut impl Write) -> Result<(), Box<dyn Error>> {
    let mut found = Found::default();
    overlay.read_dir(dir, 0, true, &mut found)?;
    found.0.sort_by(|one, other| one.0.cmp(&other.0));
    for (name, node, attr) in found.0 {
        let path = if path.is_empty() { name } else { format!("{path}/{name}") };
        writeln!(out, "{:06o} {:5}:{:<5} {:>12} {path}", attr.mode, attr.uid, attr.gid, attr.size)?;
        if attr.mode & S_IFMT == S_IFDIR {
            list(overlay, node, &path, out)?;
        }
        // Each entry of a listing counts as a lookup.
        overlay.forget(node, 1);
    }
    Ok(())
}
