//! Completions and manual pages, made from the definitions in `args.rs`.

use std::io::Write;
use std::path::Path;

use clap::{Command, CommandFactory};
use clap_complete::Shell;
use clap_mangen::Man;

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
    let mut text = Vec::new();
    let source = format!("plyfs {}", env!("CARGO_PKG_VERSION"));
    Man::new(command).title(name.to_uppercase()).source(source).render(&mut text)?;
    Ok((name, text))
}
