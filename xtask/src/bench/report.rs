//! The table, the JSON and the list of demands.

use std::collections::HashMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde::Serialize;

use super::row::{Demand, Peer, Row, Unit};

/// Figures that differ by less are equal: repeated runs differ by this much.
const NOISE: f64 = 1.05;

/// What one peer needed in one row.
#[derive(Serialize)]
pub struct Figure {
    median: Option<f64>,
    samples: Vec<f64>,
    error: Option<String>,
}

impl Figure {
    /// From the rounds' figures, or what went wrong.
    pub fn new(result: Result<Vec<f64>, String>) -> Self {
        match result {
            Ok(samples) => Self { median: median(&samples), samples, error: None },
            Err(error) => Self { median: None, samples: Vec::new(), error: Some(error) },
        }
    }
}

/// The middle sample.
pub fn median(samples: &[f64]) -> Option<f64> {
    let mut sorted = samples.to_vec();
    sorted.sort_by(f64::total_cmp);
    let upper = *sorted.get(sorted.len() / 2)?;
    let lower = *sorted.get((sorted.len() - 1) / 2)?;
    Some((lower + upper) / 2.0)
}

/// All figures of a run.
pub struct Report {
    figures: HashMap<(String, Peer), Figure>,
    order: Vec<(String, &'static str)>,
    width: usize,
}

impl Report {
    /// An empty report for these rows; prints the head of the table.
    pub fn new(rows: &[Row]) -> Self {
        let width = rows.iter().map(|row| row.name.len()).max().unwrap_or(0);
        print!("| {:width$} |     |", "row");
        for peer in Peer::ALL {
            print!(" {:>14} |", peer.name());
        }
        println!(" plyfs/fuse-o. | plyfs/kernel |");
        print!("|-{:-<width$}-|-----|", "");
        for _ in Peer::ALL {
            print!("---------------:|");
        }
        println!("--------------:|-------------:|");
        Self { figures: HashMap::new(), order: Vec::new(), width }
    }

    /// Adds the figure of a peer.
    pub fn add(&mut self, row: &Row, peer: Peer, figure: Figure) {
        let key = (row.name.clone(), row.unit.name());
        if self.order.last() != Some(&key) {
            self.order.push(key);
        }
        self.figures.insert((row.name.clone(), peer), figure);
    }

    /// Prints the line of a row.
    pub fn print_row(&self, row: &Row) {
        print!("| {:width$} | {:>3} |", row.name, row.unit.name(), width = self.width);
        for peer in Peer::ALL {
            let shown = match self.figures.get(&(row.name.clone(), peer)) {
                Some(Figure { median: Some(median), .. }) => significant(*median),
                Some(Figure { error: Some(_), .. }) => "FAILED".to_owned(),
                _ => String::new(),
            };
            print!(" {shown:>14} |");
        }
        let ratio = |peer| self.ratio(&row.name, peer).map_or(String::new(), |ratio| format!("{ratio:.2}"));
        println!(" {:>13} | {:>12} |", ratio(Peer::FuseOverlayfs), ratio(Peer::Kernel));
    }

    fn median(&self, row: &str, peer: Peer) -> Option<f64> {
        self.figures.get(&(row.to_owned(), peer))?.median
    }

    fn ratio(&self, row: &str, peer: Peer) -> Option<f64> {
        Some(self.median(row, Peer::Plyfs)? / self.median(row, peer)?)
    }

    /// Writes rows, in order, with every peer's median and samples.
    pub fn write_json(&self, path: &Path) -> Result<()> {
        let rows: Vec<_> = self
            .order
            .iter()
            .map(|(row, unit)| {
                let figures: HashMap<_, _> = Peer::ALL
                    .into_iter()
                    .filter_map(|peer| Some((peer.name(), self.figures.get(&(row.clone(), peer))?)))
                    .collect();
                serde_json::json!({ "row": row, "unit": unit, "peers": figures })
            })
            .collect();
        let text = serde_json::to_string_pretty(&rows).context("figures")?;
        fs::write(path, text).with_context(|| path.display().to_string())
    }

    /// Prints each demand as met or missed, with figures.
    pub fn print_demands(&self, rows: &[Row]) -> Result<()> {
        println!(
            "\n| {:width$} | demand                               | figures                   | verdict |",
            "row",
            width = self.width
        );
        println!(
            "|-{:-<width$}-|--------------------------------------|---------------------------|---------|",
            "",
            width = self.width
        );
        let (mut met, mut missed, mut open) = (0, 0, 0);
        for row in rows {
            for demand in &row.demands {
                let (wanted, limit) = self.limit(row, demand);
                let figure = self.median(&row.name, Peer::Plyfs);
                let (figures, verdict) = verdict(figure, limit, row.unit);
                match verdict {
                    "met" => met += 1,
                    "missed" => missed += 1,
                    _ => open += 1,
                }
                println!(
                    "| {:width$} | {wanted:<36} | {figures:<25} | {verdict:<7} |",
                    row.name,
                    width = self.width
                );
            }
        }
        println!("\ndemands: {met} met, {missed} missed, {open} without figures");
        Ok(())
    }

    /// A demand in words, and the most that plyfs may need.
    fn limit(&self, row: &Row, demand: &Demand) -> (String, Option<f64>) {
        match demand {
            Demand::Against(peer, factor) => {
                let limit = self.median(&row.name, *peer).map(|median| median * factor);
                (format!("at most {factor} x {}", peer.name()), limit)
            }
            Demand::AtMost(most) => (format!("at most {most} {}", row.unit.name()), Some(*most)),
            Demand::AgainstRow(other, factor) => {
                let limit = self.median(other, Peer::Plyfs).map(|median| median * factor);
                (format!("at most {factor} x itself at 1 lower"), limit)
            }
        }
    }
}

fn verdict(figure: Option<f64>, limit: Option<f64>, unit: Unit) -> (String, &'static str) {
    let (Some(figure), Some(limit)) = (figure, limit) else { return (String::new(), "-") };
    let figures = format!("{} of {} {}", significant(figure), significant(limit), unit.name());
    (figures, if figure <= limit * NOISE { "met" } else { "missed" })
}

/// Three significant digits.
pub fn significant(value: f64) -> String {
    match value.abs() {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_lies_between_the_middle_two() {
        assert_eq!(median(&[4.0, 1.0, 2.0, 9.0]), Some(3.0));
        assert_eq!(median(&[5.0]), Some(5.0));
        assert_eq!(median(&[]), None);
    }

    #[test]
    fn a_demand_without_figures_is_neither_met_nor_missed() {
        assert_eq!(verdict(None, Some(1.0), Unit::Micros).1, "-");
        assert_eq!(verdict(Some(1.0), Some(1.0), Unit::Micros).1, "met");
        assert_eq!(verdict(Some(1.2), Some(1.0), Unit::Micros).1, "missed");
    }

    #[test]
    fn figures_have_three_digits() {
        assert_eq!(significant(1234.5), "1234");
        assert_eq!(significant(12.345), "12.3");
        assert_eq!(significant(0.456), "0.46");
    }
}
