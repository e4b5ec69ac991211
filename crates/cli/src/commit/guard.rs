//! What may be committed where: asked before anything is shown or changed. Changes nothing.

use std::path::Path;
use std::time::{Duration, Instant};

use plyfs_format::{Name, Namespace};
use plyfs_sys::{Dir, DirLock, DirMut, Errno};
use rustix::fs::{Mode, OFlags};

use crate::args::CommitArgs;
use crate::commit::stage;
use crate::failure::{Context, Failure, Outcome};

/// How long a mount that was just taken down may still hold its upper.
const PATIENCE: Duration = Duration::from_secs(2);

/// Refuses what must not be committed. The upper is locked, as a mount locks it, while the result lives; to look only, it
/// need not be.
pub fn check(args: &CommitArgs) -> Outcome<Option<DirLock>> {
    let target = Dir::open_root(&args.onto).context(|| args.onto.display().to_string())?;
    let upper = DirMut::open_root(&args.upper).context(|| args.upper.display().to_string())?;
    if lies_in(&target, &upper).context(|| args.onto.display().to_string())? {
        return Err(overlap(&args.upper, &args.onto));
    }
    refuse_the_name_of_the_stage(&upper, &args.upper)?;
    if !args.ignore_owner && rustix::process::geteuid().is_root() {
        refuse_somebody_elses(&upper, &args.upper)?;
    }
    if args.dry_run { Ok(None) } else { lock(&upper, &args.upper).map(Some) }
}

/// Refuses an upper with an entry, be it a whiteout, of the name under which a commit prepares: it would not survive that.
fn refuse_the_name_of_the_stage(upper: &Dir, path: &Path) -> Outcome<()> {
    let name = Name::new(stage::NAME).context(|| "the name of a commit's place")?;
    match upper.stat_at(name) {
        Err(Errno::NOENT) => Ok(()),
        Err(error) => Err(error).context(|| path.display().to_string()),
        Ok(_) => Err(Failure::new(format!(
            "{}: changes /{name}, the name under which a commit prepares its work; rename or remove that in it first",
            path.display()
        ))),
    }
}

/// The refusal of a target inside the upper: what is written there would have to be committed again, without end.
pub fn overlap(upper: &Path, onto: &Path) -> Failure {
    let (upper, onto) = (upper.display(), onto.display());
    Failure::new(format!(
        "{onto}: lies in the upper {upper} itself; name the directory that the upper was made over"
    ))
}

/// Whether a directory is another or lies below it, by the way up through the mounts. A bind mount of a part of the other
/// does not lead there: [`super::apply`] meets it on its way down.
fn lies_in(directory: &Dir, other: &Dir) -> plyfs_sys::Result<bool> {
    let wanted = inode(other)?;
    let mut here = directory.try_clone()?;
    let mut number = inode(&here)?;
    loop {
        if number == wanted {
            return Ok(true);
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let above = match rustix::fs::openat(&here, "..", flags, Mode::empty()) {
            Ok(above) => Dir::from_fd(above),
            // Where this user may not look, nothing of his is committed either.
            Err(Errno::ACCESS) => return Ok(false),
            Err(error) => return Err(error),
        };
        let next = inode(&above)?;
        // The root is its own parent.
        if next == number && above.mount_id()? == here.mount_id()? {
            return Ok(false);
        }
        (here, number) = (above, next);
    }
}

/// Refuses to give the machine's files to whoever made the upper. Without root an upper cannot say to whom a file belongs:
/// what belongs to the machine's root belongs to the upper's maker there, or to one of his subordinate ids. Such an upper
/// has no `trusted.*` attribute in its root, which a mount by root puts there.
fn refuse_somebody_elses(upper: &Dir, path: &Path) -> Outcome<()> {
    let describe = || path.display().to_string();
    let uid = upper.stat().context(describe)?.uid;
    let names = upper.list_own_xattrs().context(describe)?;
    let trusted = Namespace::Trusted.prefix();
    if uid == 0 || names.split(|byte| *byte == 0).any(|name| name.starts_with(trusted)) {
        return Ok(());
    }
    let path = path.display();
    Err(Failure::new(format!(
        "{path}: was made without root, by user {uid}, so the owners in it are not the machine's; add --ignore-owner to \
         keep those of the directory (what is new becomes yours, set-id bits are dropped)"
    )))
}

/// What tells a directory from all others now.
pub fn inode(dir: &Dir) -> plyfs_sys::Result<(u64, u64)> {
    dir.stat().map(|stat| (stat.dev(), stat.ino))
}

fn lock(upper: &DirMut, path: &Path) -> Outcome<DirLock> {
    let deadline = Instant::now() + PATIENCE;
    loop {
        match upper.try_lock() {
            Err(Errno::AGAIN) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            Err(Errno::AGAIN) => {
                let path = path.display();
                return Err(Failure::new(format!(
                    "{path}: in use by a mount, a try or another commit; end that first (plyfs list shows mounts)"
                )));
            }
            other => return other.context(|| format!("{}: cannot lock it", path.display())),
        }
    }
}
