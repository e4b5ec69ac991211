//! Printing: tables for people, JSON for scripts. Standard output carries the result and nothing else.

use std::io::{self, Write};

use serde::Serialize;

use super::commands::Failure;

/// Prints a line.
pub fn line(text: impl AsRef<[u8]>) -> Result<(), Failure> {
    let mut out = io::stdout().lock();
    written(out.write_all(text.as_ref()).and_then(|()| out.write_all(b"\n")))
}

/// Prints a value as JSON.
pub fn json(value: &impl Serialize) -> Result<(), Failure> {
    let text = serde_json::to_string_pretty(value).map_err(|e| Failure::from(io::Error::other(e)))?;
    line(text)
}

/// Prints rows in columns as wide as their widest cell.
pub fn table(head: &[&str], rows: &[Vec<String>]) -> Result<(), Failure> {
    let mut all: Vec<Vec<String>> = vec![head.iter().map(|h| (*h).to_owned()).collect()];
    all.extend(rows.iter().cloned());
    let columns = head.len();
    let width = |c: usize| all.iter().filter_map(|r| r.get(c)).map(|s| s.chars().count()).max().unwrap_or(0);
    let widths: Vec<usize> = (0..columns).map(width).collect();
    for r in &all {
        let cells: Vec<String> = r.iter().zip(&widths).map(|(s, w)| format!("{s:w$}")).collect();
        line(cells.join("  ").trim_end())?;
    }
    Ok(())
}

/// Bytes for people, in powers of 1024.
pub fn bytes(n: u64) -> String {
    let units = ["B", "KiB", "MiB", "GiB", "TiB", "PiB"];
    let mut v = n as f64;
    let mut unit = "B";
    for u in units {
        unit = u;
        if v < 1024.0 || u == "PiB" {
            break;
        }
        v /= 1024.0;
    }
    if unit == "B" { format!("{n} B") } else { format!("{v:.1} {unit}") }
}

/// The first twelve digits of an id.
pub fn short(hex: &str) -> String {
    hex.chars().take(12).collect()
}

fn written(r: io::Result<()>) -> Result<(), Failure> {
    r.map_err(Failure::from)
}
