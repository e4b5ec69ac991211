//! `plyfs mount`, by whichever command line it was asked for: returns when the mount is usable. With `-o remount` there is
//! a mount already, and only its flags change.

mod daemon;
mod log;
mod remount;

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use plyfs_format::StackSpec;

use crate::args::MountArgs;
use crate::failure::{Failure, Outcome};
use crate::list;
use crate::union;

/// What is to be mounted where.
struct Request<'a> {
    args: &'a MountArgs,
    spec: StackSpec,
    source: Option<&'a OsStr>,
    target: &'a Path,
}

/// Mounts. In the foreground it returns when the mount is gone, else when it is usable.
pub fn mount(args: &MountArgs) -> Outcome<()> {
    if let (Some(flags), Some(target)) = (union::remount_flags(&args.options)?, args.operands.last()) {
        return if args.fake { Ok(()) } else { remount::remount(Path::new(target), &flags) };
    }
    // Whatever can be refused without touching a layer is refused here, before there is a daemon.
    let request = request(args)?;
    if args.fake {
        check(&request)
    } else if args.foreground || args.debug {
        daemon::serve_here(&request)
    } else {
        daemon::start(&request)
    }
}

fn request(args: &MountArgs) -> Outcome<Request<'_>> {
    let (source, target) = match args.operands.as_slice() {
        [target] => (None, target),
        [source, target] => (Some(source.as_os_str()), target),
        _ => return Err(Failure::usage("mount: give one directory to mount on")),
    };
    if args.options.is_empty() {
        let shown = target.display();
        return Err(Failure::usage(format!(
            "{shown}: nothing to mount; name at least one directory: plyfs mount -o lowerdir=DIR {shown}"
        )));
    }
    let spec = union::parse(&args.options)?;
    let target = Path::new(target);
    if list::is_dead(target) {
        let shown = target.display();
        return Err(Failure::new(format!("{shown}: a dead mount lies here; plyfs umount {shown} first")));
    }
    Ok(Request { args, spec, source, target })
}

/// Everything that can be checked without changing anything.
fn check(request: &Request<'_>) -> Outcome<()> {
    let upper = request.spec.upper.iter().flat_map(|paths| [&paths.upper, &paths.work]);
    let target = request.target.to_owned();
    let all: Vec<&PathBuf> = request.spec.lowers.iter().chain(upper).chain([&target]).collect();
    match all.into_iter().find(|path| !path.is_dir()) {
        Some(missing) => Err(Failure::new(format!("{}: is no directory", missing.display()))),
        None => Ok(()),
    }
}
