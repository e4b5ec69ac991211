//! `plyfs commit`: applies what an upper directory changes to the directory it was made over. It shows the changes and
//! asks first.

mod apply;
mod guard;
mod meta;
mod stage;

use std::io::{BufRead, IsTerminal, Write};

use plyfs_sys::{Dir, Faults};
use serde_json::json;

use crate::args::CommitArgs;
use crate::changes::{self, Comparison};
use crate::failure::{Context, Failure, Outcome};
use crate::paint::Paint;

/// `plyfs commit`.
pub fn run(args: &CommitArgs, out: &mut dyn Write) -> Outcome<()> {
    if args.json && !args.yes && !args.dry_run {
        return Err(Failure::usage("commit --json asks nobody; add --yes or --dry-run"));
    }
    // Held to the end.
    let _lock = guard::check(args)?;
    let left = is_left(args)?;
    let count = show(args, out)?;
    if args.dry_run || (count == 0 && !left) {
        return summary(args, count, out);
    }
    if !args.yes && !confirmed(args, out)? {
        return Err(Failure::new("nothing was changed"));
    }
    apply::apply(&args.upper, &args.onto, args.ignore_owner, &Faults::new())?;
    summary(args, count, out)
}

/// Whether an interrupted commit has left something to do.
fn is_left(args: &CommitArgs) -> Outcome<bool> {
    let target = Dir::open_root(&args.onto).context(|| args.onto.display().to_string())?;
    stage::is_left(&target)
}

/// Prints the changes and returns their number.
fn show(args: &CommitArgs, out: &mut dyn Write) -> Outcome<usize> {
    let comparison = Comparison::with(&args.upper, &args.onto, args.ignore_owner);
    let paint = Paint::for_stream(&std::io::stdout());
    let mut count = 0;
    changes::walk(&comparison, &mut |change| {
        count += 1;
        if args.json {
            writeln!(out, "{}", changes::to_json(&change))?;
        } else {
            writeln!(out, "{}", changes::line(&change, paint))?;
        }
        Ok(())
    })?;
    Ok(count)
}

fn summary(args: &CommitArgs, count: usize, out: &mut dyn Write) -> Outcome<()> {
    let (upper, onto) = (args.upper.display(), args.onto.display());
    let changes = if count == 1 { "1 change".to_owned() } else { format!("{count} changes") };
    if args.json {
        let onto = args.onto.to_string_lossy();
        writeln!(out, "{}", json!({"applied": !args.dry_run, "changes": count, "onto": onto}))?;
    } else if count == 0 {
        writeln!(out, "{upper} changes nothing in {onto}")?;
    } else if args.dry_run {
        writeln!(out, "{changes} would be made in {onto}")?;
    } else {
        writeln!(out, "{changes} made in {onto}; {upper} is not needed any more")?;
    }
    Ok(())
}

fn confirmed(args: &CommitArgs, out: &mut dyn Write) -> Outcome<bool> {
    let input = std::io::stdin();
    if !input.is_terminal() {
        return Err(Failure::new(
            "nobody can be asked whether to do this; add --yes to do it, --dry-run to look only",
        ));
    }
    write!(out, "Apply this to {}? [y/N] ", args.onto.display())?;
    out.flush()?;
    let mut answer = String::new();
    input.lock().read_line(&mut answer).context(|| "cannot read the answer")?;
    Ok(matches!(answer.trim().to_ascii_lowercase().as_str(), "y" | "yes"))
}
