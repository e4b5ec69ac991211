//! Colours and sizes: how output looks to a person. Scripts never see a colour, because only terminals get one.

use std::io::IsTerminal;

use anstyle::{AnsiColor, Style};

/// Whether to colour, decided once for a stream.
#[derive(Clone, Copy, Debug)]
pub struct Paint {
    on: bool,
}

impl Paint {
    /// Colours on a terminal, unless `NO_COLOR` is set or the terminal is `dumb`.
    pub fn for_stream(stream: &impl IsTerminal) -> Self {
        let refused = std::env::var_os("NO_COLOR").is_some_and(|value| !value.is_empty());
        let dumb = std::env::var_os("TERM").is_none_or(|value| value == "dumb");
        Self { on: stream.is_terminal() && !refused && !dumb }
    }

    /// Something added.
    pub fn added(self, text: &str) -> String {
        self.style(AnsiColor::Green.on_default(), text)
    }

    /// Something deleted, or wrong.
    pub fn deleted(self, text: &str) -> String {
        self.style(AnsiColor::Red.on_default(), text)
    }

    /// Something changed.
    pub fn modified(self, text: &str) -> String {
        self.style(AnsiColor::Yellow.on_default(), text)
    }

    /// Something moved.
    pub fn renamed(self, text: &str) -> String {
        self.style(AnsiColor::Cyan.on_default(), text)
    }

    /// A heading.
    pub fn bold(self, text: &str) -> String {
        self.style(Style::new().bold(), text)
    }

    /// A remark beside the matter.
    pub fn dim(self, text: &str) -> String {
        self.style(Style::new().dimmed(), text)
    }

    fn style(self, style: Style, text: &str) -> String {
        if self.on { format!("{style}{text}{style:#}") } else { text.to_owned() }
    }
}

/// A number of bytes in the unit that a person would choose: `0 B`, `831 B`, `1.4 MiB`.
pub fn size(bytes: u64) -> String {
    const UNITS: [&str; 6] = ["KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut value = bytes as f64;
    let mut unit = "B";
    for larger in UNITS {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = larger;
    }
    format!("{value:.1} {unit}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_given_in_the_largest_unit_that_leaves_a_whole_number() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(1023), "1023 B");
        assert_eq!(size(1024), "1.0 KiB");
        assert_eq!(size(1_500_000), "1.4 MiB");
        assert_eq!(size(u64::MAX), "16.0 EiB");
    }
}
