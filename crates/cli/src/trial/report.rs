//! What the command changed, as a person wants to read it: by directory, a new tree as one line, with sizes.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use plyfs_format::RelPath;
use plyfs_sys::FileKind;
use serde_json::{Value, json};

use crate::changes::{self, Change, Comparison, Kind};
use crate::failure::{Failure, Outcome};
use crate::paint::{self, Paint};

/// One file system of the view.
#[derive(Debug)]
pub struct Changed {
    /// Where it is in the view.
    pub place: PathBuf,
    /// Its upper.
    pub upper: PathBuf,
    /// What lies under it.
    pub lower: PathBuf,
    /// Owners do not count.
    pub ignore_owner: bool,
}

/// As many lines of one directory are shown, and as many in all; the rest is counted.
const LINES_OF_A_DIRECTORY: usize = 20;
const LINES: usize = 400;

/// Prints what was changed to standard error, since standard output is the command's.
pub fn print(all: &[Changed], as_json: bool) -> Outcome<()> {
    let mut summary = Summary::default();
    for one in all {
        let comparison = Comparison::with(&one.upper, &one.lower, one.ignore_owner);
        changes::walk(&comparison, &mut |change| summary.take(&one.place, change, as_json))?;
    }
    let mut text = Vec::new();
    if as_json {
        writeln!(text, "{}", summary.to_json())?;
    } else {
        summary.write(Paint::for_stream(&std::io::stderr()), &mut text)?;
    }
    std::io::stderr().write_all(&text).map_err(Failure::from)
}

/// What is gathered while walking; what it remembers is bounded by what it shows (unless JSON is asked for).
#[derive(Default)]
struct Summary {
    groups: BTreeMap<RelPath, Group>,
    totals: Totals,
    lines: usize,
    /// The new tree that is being walked through.
    tree: Option<(RelPath, RelPath)>,
    json: Vec<Value>,
}

#[derive(Default)]
struct Group {
    lines: Vec<Line>,
    more: usize,
}

struct Line {
    change: Change,
    /// Of a new directory: how many things are in it, and their size.
    inside: usize,
    inside_size: u64,
}

#[derive(Default)]
struct Totals {
    added: usize,
    modified: usize,
    deleted: usize,
    renamed: usize,
    written: u64,
}

impl Totals {
    fn count(&mut self, change: &Change) {
        let counter = match change.kind {
            Kind::Added => &mut self.added,
            Kind::Modified => &mut self.modified,
            Kind::Deleted => &mut self.deleted,
            Kind::Renamed => &mut self.renamed,
        };
        *counter += 1;
        if matches!(change.kind, Kind::Added | Kind::Modified) {
            self.written += change.size;
        }
    }
}

impl Summary {
    fn take(&mut self, place: &Path, change: Change, keep_json: bool) -> Outcome<()> {
        let change = moved(change, place)?;
        self.totals.count(&change);
        if keep_json {
            self.json.push(changes::to_json(&change));
            return Ok(());
        }
        if self.goes_into_tree(&change) {
            return Ok(());
        }
        let parent = change.path.parent().unwrap_or_default();
        let is_tree = change.kind == Kind::Added && change.file == FileKind::Directory;
        self.tree = is_tree.then(|| (change.path.clone(), parent.clone()));
        let group = self.groups.entry(parent).or_default();
        if group.lines.len() >= LINES_OF_A_DIRECTORY || self.lines >= LINES {
            group.more += 1;
            self.tree = None;
        } else {
            self.lines += 1;
            group.lines.push(Line { change, inside: 0, inside_size: 0 });
        }
        Ok(())
    }

    /// Counts a change inside a new directory with the line of that directory. A walk reports what is in a directory right
    /// behind it.
    fn goes_into_tree(&mut self, change: &Change) -> bool {
        let Some((tree, parent)) = &self.tree else {
            return false;
        };
        let inside = change.kind == Kind::Added && is_inside(&change.path, tree);
        let line = self.groups.get_mut(parent).and_then(|group| group.lines.last_mut());
        if let Some(line) = line.filter(|_| inside) {
            line.inside += 1;
            line.inside_size += change.size;
        }
        inside
    }

    fn write(&self, paint: Paint, out: &mut Vec<u8>) -> Outcome<()> {
        let totals = &self.totals;
        writeln!(out)?;
        if totals.added + totals.modified + totals.deleted + totals.renamed == 0 {
            writeln!(out, "{}", paint.bold("The command changed nothing."))?;
            return Ok(());
        }
        writeln!(out, "{}", paint.bold("Changed in the view, and only there:"))?;
        for (directory, group) in &self.groups {
            writeln!(out, "{}", changes::shown(directory))?;
            for line in &group.lines {
                writeln!(out, "  {}", line.text(paint))?;
            }
            if group.more > 0 {
                writeln!(out, "  {}", paint.dim(&format!("… and {} more", group.more)))?;
            }
        }
        let size = paint::size(totals.written);
        writeln!(
            out,
            "{} added, {} modified, {} deleted, {} renamed; {size} in what is new",
            totals.added, totals.modified, totals.deleted, totals.renamed
        )?;
        Ok(())
    }

    fn to_json(&self) -> Value {
        let totals = &self.totals;
        json!({
            "changes": self.json,
            "added": totals.added,
            "modified": totals.modified,
            "deleted": totals.deleted,
            "renamed": totals.renamed,
            "size": totals.written,
        })
    }
}

impl Line {
    fn text(&self, paint: Paint) -> String {
        let change = &self.change;
        let name = change.path.file_name().map(RelPath::from).unwrap_or_default();
        let slash = if change.file == FileKind::Directory { "/" } else { "" };
        let name = format!("{}{slash}", changes::shown(&name).replacen('/', "", 1));
        let detail = paint.dim(&self.detail());
        match change.kind {
            Kind::Added => format!("{} {detail}", paint.added(&format!("A {name}"))),
            Kind::Modified => format!("{} {detail}", paint.modified(&format!("M {name}"))),
            Kind::Deleted => format!("{} {detail}", paint.deleted(&format!("D {name}"))),
            Kind::Renamed => format!("{} {detail}", paint.renamed(&format!("R {name}"))),
        }
    }

    fn detail(&self) -> String {
        let change = &self.change;
        match (change.kind, &change.from) {
            (Kind::Renamed, Some(from)) => format!("was {}", changes::shown(from)),
            (Kind::Added, _) if self.inside > 0 => {
                format!("{} inside, {}", self.inside, paint::size(self.inside_size))
            }
            (Kind::Modified, _) if !change.aspects.contains(&changes::Aspect::Content) => {
                "attributes only".to_owned()
            }
            _ if change.file == FileKind::Directory => String::new(),
            _ => paint::size(change.size),
        }
    }
}

/// The change with its paths from the view's root.
fn moved(mut change: Change, place: &Path) -> Outcome<Change> {
    let prefix = place.strip_prefix("/").unwrap_or(place).as_os_str().as_encoded_bytes();
    if !prefix.is_empty() {
        change.path = below(prefix, &change.path)?;
        change.from = change.from.map(|from| below(prefix, &from)).transpose()?;
    }
    Ok(change)
}

fn below(prefix: &[u8], path: &RelPath) -> Outcome<RelPath> {
    let joined = [prefix, b"/", path.as_bytes()].concat();
    RelPath::parse(&joined).map_err(|error| Failure::new(error.to_string()))
}

fn is_inside(path: &RelPath, tree: &RelPath) -> bool {
    path.as_bytes().strip_prefix(tree.as_bytes()).is_some_and(|rest| rest.starts_with(b"/"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn change(kind: Kind, path: &str, file: FileKind, size: u64) -> Change {
        let path = RelPath::parse(path.as_bytes()).unwrap();
        Change { kind, path, from: None, file, size, aspects: Vec::new() }
    }

    fn summary(changes: Vec<Change>) -> String {
        let mut summary = Summary::default();
        for change in changes {
            summary.take(Path::new("/"), change, false).unwrap();
        }
        let mut text = Vec::new();
        summary.write(Paint::for_stream(&std::fs::File::open("/dev/null").unwrap()), &mut text).unwrap();
        String::from_utf8(text).unwrap()
    }

    #[test]
    fn a_new_tree_is_one_line_with_the_number_and_size_of_what_is_in_it() {
        let text = summary(vec![
            change(Kind::Added, "opt/new", FileKind::Directory, 0),
            change(Kind::Added, "opt/new/a", FileKind::Regular, 1000),
            change(Kind::Added, "opt/new/b", FileKind::Regular, 24),
            change(Kind::Added, "opt/newer", FileKind::Regular, 7),
        ]);
        assert!(text.contains("/opt\n  A new/ 2 inside, 1.0 KiB\n  A newer 7 B\n"), "{text}");
        assert!(text.contains("4 added, 0 modified"), "{text}");
    }

    #[test]
    fn a_directory_with_many_changes_is_cut_and_counted() {
        let changes =
            (0..50).map(|number| change(Kind::Deleted, &format!("d/{number}"), FileKind::Regular, 1));
        let text = summary(changes.collect());
        assert!(text.contains("… and 30 more") && text.contains("50 deleted"), "{text}");
    }

    #[test]
    fn nothing_changed_is_said() {
        assert!(summary(Vec::new()).contains("changed nothing"));
    }
}
