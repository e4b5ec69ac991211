//! Trees for a person: names with branches before them, and beside each what it means in an upper.

use std::path::Path;

use plyfs_format::Redirect;
use plyfs_sys::{Dir, FileKind, Stat};

use crate::changes::{Item, UpperDir};
use crate::failure::{Context, Outcome};

/// A tree as lines, the first of them its title.
pub struct Tree {
    lines: Vec<String>,
}

impl Tree {
    /// What a program sees in a directory: files with their first line.
    pub fn plain(title: &str, path: &Path) -> Outcome<Self> {
        let mut lines = vec![title.to_owned()];
        plain_lines(path, "", &mut lines)?;
        Ok(Self { lines })
    }

    /// What lies in an upper, with the meaning of what a program would not see.
    pub fn upper(title: &str, path: &Path) -> Outcome<Self> {
        let mut lines = vec![title.to_owned()];
        upper_lines(&UpperDir::open_root(path)?, "", &mut lines)?;
        Ok(Self { lines })
    }

    /// Trees side by side.
    pub fn beside(trees: &[Self]) -> String {
        let height = trees.iter().map(|tree| tree.lines.len()).max().unwrap_or(0);
        let mut text = String::new();
        for row in 0..height {
            let mut line = String::from("   ");
            for tree in trees {
                let width = tree.lines.iter().map(|line| line.chars().count()).max().unwrap_or(0) + 4;
                let cell = tree.lines.get(row).map_or("", String::as_str);
                line.push_str(&format!("{cell:width$}"));
            }
            text.push_str(line.trim_end());
            text.push('\n');
        }
        text
    }
}

/// The branch before an entry, and what is before the entries inside it.
fn branch(last: bool) -> (&'static str, &'static str) {
    if last { ("└── ", "    ") } else { ("├── ", "│   ") }
}

fn plain_lines(path: &Path, indent: &str, lines: &mut Vec<String>) -> Outcome<()> {
    let describe = || path.display().to_string();
    let mut entries: Vec<_> =
        std::fs::read_dir(path).context(describe)?.collect::<Result<_, _>>().context(describe)?;
    entries.sort_by_key(std::fs::DirEntry::file_name);
    for (number, entry) in entries.iter().enumerate() {
        let (before, inside) = branch(number + 1 == entries.len());
        let name = entry.file_name().to_string_lossy().into_owned();
        if entry.file_type().context(describe)?.is_dir() {
            lines.push(format!("{indent}{before}{name}/"));
            plain_lines(&entry.path(), &format!("{indent}{inside}"), lines)?;
        } else {
            let text = std::fs::read_to_string(entry.path()).context(describe)?;
            lines.push(format!("{indent}{before}{name}  \"{}\"", text.trim_end().replace('\n', " / ")));
        }
    }
    Ok(())
}

fn upper_lines(upper: &UpperDir, indent: &str, lines: &mut Vec<String>) -> Outcome<()> {
    let items = upper.items()?;
    for (number, item) in items.iter().enumerate() {
        let (before, inside) = branch(number + 1 == items.len());
        let name = item.name();
        match item {
            Item::Whiteout(_) => lines.push(format!("{indent}{before}{name}  ✗ whiteout")),
            Item::Plain(_, stat) if stat.is_dir() => {
                let child = upper.child(name.as_name())?;
                let meaning = meaning(upper, &child, item, stat)?;
                lines.push(format!("{indent}{before}{name}/{meaning}"));
                upper_lines(&child, &format!("{indent}{inside}"), lines)?;
            }
            Item::Plain(_, stat) => {
                let size = if stat.kind() == FileKind::Regular {
                    format!("  {} bytes", stat.size)
                } else {
                    String::new()
                };
                lines.push(format!("{indent}{before}{name}{size}"));
            }
        }
    }
    Ok(())
}

fn meaning(parent: &UpperDir, child: &UpperDir, item: &Item, stat: &Stat) -> Outcome<String> {
    if let Some(redirect) = parent.redirect(item.name().as_name(), stat)? {
        let from = match redirect {
            Redirect::Relative(name) => name.to_string(),
            Redirect::Absolute(path) => format!("/{path}"),
        };
        return Ok(format!("  → redirect to {from}"));
    }
    Ok(if child.is_opaque()? { "  ■ opaque".to_owned() } else { String::new() })
}

/// Whether a directory has nothing in it.
pub fn is_empty(path: &Path) -> Outcome<bool> {
    let describe = || path.display().to_string();
    Dir::open_root(path).and_then(|dir| dir.list()?.is_empty()).context(describe)
}
