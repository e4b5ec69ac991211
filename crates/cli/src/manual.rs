//! Completions and manual pages, made from the definitions in `args.rs`.

use std::io::Write;
use std::path::Path;

use clap::{Arg, ArgAction, Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;
use clap_mangen::roff::{Inline, Roff, bold, italic, roman};

use crate::args::Cli;
use crate::failure::{Context, Outcome};

/// Prints the completions of `shell`.
pub fn completions(shell: Shell, out: &mut dyn Write) -> Outcome<()> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut crate::store::beside(Cli::command()), "plyfs", &mut text);
    Ok(out.write_all(&text)?)
}

/// Prints the manual page of plyfs with those of all its commands behind it, or writes each to its own file.
pub fn man(directory: Option<&Path>, out: &mut dyn Write) -> Outcome<()> {
    for (name, page) in pages()? {
        match directory {
            Some(directory) => {
                let path = directory.join(format!("{name}.1"));
                std::fs::write(&path, page).context(|| path.display().to_string())?;
            }
            None => out.write_all(&page)?,
        }
    }
    Ok(())
}

/// The name and text of each page: `plyfs`, then `plyfs-mount` and so on.
fn pages() -> Outcome<Vec<(String, Vec<u8>)>> {
    let mut root = crate::store::beside(Cli::command());
    root.build();
    let commands = root.get_subcommands().filter(|command| !command.is_hide_set()).cloned();
    std::iter::once(root.clone()).chain(commands).map(page).collect()
}

fn page(command: Command) -> Outcome<(String, Vec<u8>)> {
    let name = match command.get_name() {
        "plyfs" => "plyfs".to_owned(),
        subcommand => format!("plyfs-{subcommand}"),
    };
    let synopsis = synopsis(&command);
    let page =
        Man::new(command).title(name.to_uppercase()).source(format!("plyfs {}", env!("CARGO_PKG_VERSION")));
    let mut text = Vec::new();
    page.render_title(&mut text)?;
    page.render_name_section(&mut text)?;
    text.extend_from_slice(synopsis.as_bytes());
    let mut rest = Vec::new();
    page.render(&mut rest)?;
    // What stands behind clap's own synopsis, which leaves out the values of options.
    let rest = String::from_utf8_lossy(&rest).into_owned();
    let behind = rest.find(".SH DESCRIPTION").and_then(|start| rest.get(start..));
    text.extend_from_slice(behind.unwrap_or(&rest).as_bytes());
    Ok((name, text))
}

/// The section that shows the command's words: options with their values, and operands.
fn synopsis(command: &Command) -> String {
    let mut line = vec![bold(command.get_bin_name().unwrap_or(command.get_name()))];
    let arguments = || command.get_arguments().filter(|argument| !argument.is_hide_set());
    let options = arguments().filter(|argument| !argument.is_positional());
    for argument in options.chain(command.get_positionals().filter(|argument| !argument.is_hide_set())) {
        line.push(roman(" "));
        line.extend(word(argument));
    }
    if command.has_subcommands() {
        line.extend([roman(" "), italic("COMMAND"), roman(" …")]);
    }
    let mut section = Roff::default();
    section.control("SH", ["SYNOPSIS"]).text(line);
    section.to_roff()
}

/// An option or operand, in brackets if it may be left out.
fn word(argument: &Arg) -> Vec<Inline> {
    let (open, close) = if argument.is_required_set() { ("", "") } else { ("[", "]") };
    let short = argument.get_short().map(|letter| format!("-{letter}"));
    let long = argument.get_long().map(|long| format!("--{long}"));
    let names: Vec<String> = short.into_iter().chain(long).collect();
    let mut inline = vec![roman(open), bold(names.join("|"))];
    if let Some(values) = argument.get_action().takes_values().then(|| values(argument)) {
        let least = argument.get_num_args().map_or(1, |range| range.min_values());
        let optional = least == 0 && !argument.is_positional();
        inline.push(roman(if names.is_empty() { "" } else { " " }));
        inline.push(if optional { italic(format!("[{values}]")) } else { italic(values) });
    }
    let most = argument.get_num_args().map_or(1, |range| range.max_values());
    // A name with brackets of its own tells already how many there may be.
    let spelled_out = values(argument).contains('[');
    let repeated = !spelled_out && (matches!(argument.get_action(), ArgAction::Append) || most > 1);
    inline.extend([roman(close), roman(if repeated { "…" } else { "" })]);
    inline
}

fn values(argument: &Arg) -> String {
    let names = argument.get_value_names().unwrap_or_default();
    let names: Vec<&str> = names.iter().map(clap::builder::Str::as_str).collect();
    if names.is_empty() { argument.get_id().as_str().to_uppercase() } else { names.join(" ") }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(name: &str) -> String {
        let pages = pages().unwrap();
        let (_, text) = pages.iter().find(|(page, _)| page == name).unwrap();
        let text = String::from_utf8(text.clone()).unwrap();
        assert_eq!(text.matches(".SH SYNOPSIS").count(), 1, "{text}");
        assert_eq!(text.matches(".SH NAME").count(), 1, "{text}");
        let section = text.split(".SH SYNOPSIS\n").nth(1).unwrap().split(".SH ").next().unwrap();
        ["\\fB", "\\fI", "\\fR"].iter().fold(section.replace("\\-", "-"), |text, font| text.replace(font, ""))
    }

    #[test]
    fn the_synopsis_of_a_page_shows_the_values_of_options_and_what_is_required() {
        let mount = shown("plyfs-mount");
        for words in ["plyfs mount ", "[-o OPTIONS]…", "[-f|--foreground]", "[--log FILE]", "[SOURCE] TARGET"]
        {
            assert!(mount.contains(words), "{words}: {mount}");
        }
        let diff = shown("plyfs-diff");
        assert!(diff.contains(" --lower DIR… ") && diff.contains(" UPPER"), "{diff}");
        assert!(shown("plyfs-run").contains(" IMAGE [CMD]…"), "{}", shown("plyfs-run"));
        assert!(shown("plyfs-create").contains("[--size SIZE]"));
        assert!(shown("plyfs").contains("COMMAND"));
    }
}
