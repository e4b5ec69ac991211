//! Reading plyfs's own command lines, of the union mount and of the store. A wrong one is one line, not a page.

use std::ffi::OsString;

use clap::Parser;
use clap::error::ErrorKind;

use crate::failure::{Failure, Outcome};

/// Reads a command line. Help and version that were asked for are printed.
///
/// # Errors
/// What is wrong, what was probably meant, and whose `--help` explains; or nothing to say, with the exit code.
pub fn parse<P: Parser>(line: &[OsString]) -> Outcome<P> {
    P::try_parse_from(line).map_err(|error| match error.kind() {
        ErrorKind::DisplayHelp
        | ErrorKind::DisplayVersion
        | ErrorKind::DisplayHelpOnMissingArgumentOrSubcommand => {
            let code = u8::try_from(error.exit_code()).unwrap_or(1);
            error.print().map_or_else(Failure::from, |()| Failure::silent(code))
        }
        _ => Failure::usage(one_line(&error.to_string(), verb::<P>(line))),
    })
}

/// The first word that is a command.
fn verb<P: Parser>(line: &[OsString]) -> Option<&str> {
    let command = P::command();
    let words = line.iter().skip(1).filter_map(|word| word.to_str());
    words.into_iter().find(|word| command.find_subcommand(word).is_some())
}

/// clap's message, which is a page: what is wrong, perhaps a tip, the usage.
fn one_line(text: &str, verb: Option<&str>) -> String {
    let said = text.lines().map(str::trim).take_while(|line| !line.starts_with("Usage:"));
    let said = said.filter(|line| !line.is_empty() && !line.starts_with("For more"));
    let mut line = String::new();
    for words in said {
        let words = words.strip_prefix("error: ").unwrap_or(words);
        match words.strip_prefix("tip: ") {
            Some(tip) => line.push_str(&format!("; {tip}")),
            None if line.is_empty() => line.push_str(words),
            None => line.push_str(&format!(" {words}")),
        }
    }
    let command = verb.map(|verb| format!(" {verb}")).unwrap_or_default();
    format!("{line}; plyfs{command} --help explains")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::args::Cli;

    fn said(line: &str) -> String {
        let line: Vec<OsString> = line.split(' ').map(OsString::from).collect();
        parse::<Cli>(&line).err().map(|failure| failure.to_string()).unwrap_or_default()
    }

    #[test]
    fn a_wrong_line_is_one_line_that_names_whose_help_explains() {
        assert_eq!(
            said("plyfs diff upper"),
            "the following required arguments were not provided: --lower <DIR>; plyfs diff --help explains"
        );
        assert_eq!(
            said("plyfs list --jsn"),
            "unexpected argument '--jsn' found; a similar argument exists: '--json'; plyfs list --help explains"
        );
        assert_eq!(
            said("plyfs moutn"),
            "unrecognized subcommand 'moutn'; some similar subcommands exist: 'umount', 'mount'; plyfs --help explains"
        );
    }
}
