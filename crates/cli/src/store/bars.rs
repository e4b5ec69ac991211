//! Progress bars on standard error, when it is a terminal.

use std::io::IsTerminal;

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use plyfs_store::{Progress, Silent, Task};

/// Bars, unless nobody would see them or they are not wanted.
pub fn progress(quiet: bool) -> Box<dyn Progress> {
    if quiet || !std::io::stderr().is_terminal() {
        Box::new(Silent)
    } else {
        Box::new(Bars(MultiProgress::new()))
    }
}

struct Bars(MultiProgress);

impl Progress for Bars {
    fn task(&self, what: &str, total: Option<u64>) -> Box<dyn Task> {
        let bar = match total {
            Some(n) => ProgressBar::new(n),
            None => ProgressBar::new_spinner(),
        };
        let template = match total {
            Some(_) => "{msg:30!} {wide_bar} {bytes:>10}/{total_bytes:10} {bytes_per_sec:>12} {eta:>4}",
            None => "{msg:30!} {spinner} {bytes:>10} {bytes_per_sec:>12}",
        };
        if let Ok(style) = ProgressStyle::with_template(template) {
            bar.set_style(style);
        }
        let bar = self.0.add(bar);
        bar.set_message(what.to_owned());
        Box::new(Bar(bar))
    }
}

struct Bar(ProgressBar);

impl Task for Bar {
    fn add(&self, n: u64) {
        self.0.inc(n);
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        self.0.finish_and_clear();
    }
}
