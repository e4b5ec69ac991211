//! A change as a line, and as JSON.

use plyfs_format::RelPath;
use plyfs_sys::FileKind;
use serde_json::{Value, json};

use crate::changes::{Aspect, Change, Kind};
use crate::paint::Paint;

/// `A /path`, `M /path`, `D /path` or `R /from -> /to`; behind an `M` without new content, what is new: `M /path (owner)`.
pub fn line(change: &Change, paint: Paint) -> String {
    let path = shown(&change.path);
    match (change.kind, &change.from) {
        (Kind::Added, _) => paint.added(&format!("A {path}")),
        (Kind::Modified, _) => paint.modified(&format!("M {path}{}", attributes(change))),
        (Kind::Deleted, _) => paint.deleted(&format!("D {path}")),
        (Kind::Renamed, Some(from)) => paint.renamed(&format!("R {} -> {path}", shown(from))),
        (Kind::Renamed, None) => paint.renamed(&format!("R {path}")),
    }
}

fn attributes(change: &Change) -> String {
    if change.aspects.is_empty() || change.aspects.contains(&Aspect::Content) {
        return String::new();
    }
    let names: Vec<&str> = change.aspects.iter().map(|aspect| aspect_name(*aspect)).collect();
    format!(" ({})", names.join(", "))
}

/// An absolute path. One that would not stay on its line, or is no text, is escaped and quoted.
pub fn shown(path: &RelPath) -> String {
    let bytes = path.as_bytes();
    match std::str::from_utf8(bytes) {
        Ok(text) if !text.chars().any(char::is_control) => format!("/{text}"),
        _ => format!("\"/{}\"", bytes.escape_ascii()),
    }
}

/// One JSON object. A path that is not UTF-8 has its bytes replaced, and is given exactly in `path_bytes`.
pub fn to_json(change: &Change) -> Value {
    let mut value = json!({
        "change": match change.kind {
            Kind::Added => "added",
            Kind::Modified => "modified",
            Kind::Deleted => "deleted",
            Kind::Renamed => "renamed",
        },
        "path": text(&change.path),
        "type": type_name(change.file),
        "size": change.size,
    });
    if let Some(object) = value.as_object_mut() {
        if let Some(from) = &change.from {
            object.insert("from".to_owned(), json!(text(from)));
        }
        if change.kind == Kind::Modified {
            let aspects: Vec<&str> = change.aspects.iter().map(|aspect| aspect_name(*aspect)).collect();
            object.insert("what".to_owned(), json!(aspects));
        }
        if std::str::from_utf8(change.path.as_bytes()).is_err() {
            object.insert("path_bytes".to_owned(), json!(change.path.as_bytes()));
        }
    }
    value
}

fn text(path: &RelPath) -> String {
    format!("/{}", String::from_utf8_lossy(path.as_bytes()))
}

fn type_name(file: FileKind) -> &'static str {
    match file {
        FileKind::Regular => "file",
        FileKind::Directory => "directory",
        FileKind::Symlink => "symlink",
        FileKind::Char => "character device",
        FileKind::Block => "block device",
        FileKind::Fifo => "fifo",
        FileKind::Socket => "socket",
    }
}

fn aspect_name(aspect: Aspect) -> &'static str {
    match aspect {
        Aspect::Content => "content",
        Aspect::Mode => "mode",
        Aspect::Owner => "owner",
        Aspect::Times => "times",
        Aspect::Xattrs => "xattrs",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_path_that_would_break_its_line_is_quoted() {
        let shown = |bytes: &[u8]| shown(&RelPath::parse(bytes).unwrap());
        assert_eq!(shown("etc/höhle".as_bytes()), "/etc/höhle");
        assert_eq!(shown(b"a\nb"), "\"/a\\nb\"");
        assert_eq!(shown(b"\xff"), "\"/\\xff\"");
    }
}
