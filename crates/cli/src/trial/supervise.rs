//! The process that makes the view, waits for the command, says what it changed, and removes everything.

use std::path::{Path, PathBuf};
use std::process::Command;

use plyfs_core::Settings;
use plyfs_format::Namespace;
use plyfs_format::spec::{Options, RedirectDir, StackSpec, UpperSpec};
use plyfs_fuse::Running;
use plyfs_sys::mount::{self, MountPropagationFlags, Namespaces};
use plyfs_sys::{creds, process};
use rustix::process::{Pid, Resource, Signal};

use crate::args::{TryArgs, ViewNetwork};
use crate::failure::{Context, Failure, Outcome};
use crate::trial::frame::{self, Hole};
use crate::trial::idmap::{Helper, Map};
use crate::trial::keep::Keep;
use crate::trial::report::{self, Changed};
use crate::trial::scenery::{self, Part, Scene};
use crate::trial::session::Session;
use crate::trial::signals::{Caught, Then};
use crate::trial::{code_of, own, stage_command, view};
use crate::union;

/// What the view makes anew below its root.
const MADE_NEW: [&str; 3] = ["dev", "proc", "sys"];

/// The stage `supervise`: returns the command's exit code.
pub fn run(args: &TryArgs, parent: Option<i32>) -> Outcome<u8> {
    let caught = Caught::new().map_err(own)?;
    let soft_limit = rustix::process::getrlimit(Resource::Nofile).current;
    let user = enter_namespaces(parent).map_err(own)?;
    let session = Session::create().map_err(own)?;
    let trial = Trial::prepare(args, &session, user).map_err(own);
    let made = trial.and_then(|trial| trial.run(args, caught, soft_limit));
    let removed = session.remove();
    let code = made?;
    removed.map(|()| code).map_err(own)
}

/// Moves to a mount namespace, and where that is not permitted to a user namespace as well. Returns whether it took one.
fn enter_namespaces(parent: Option<i32>) -> Outcome<bool> {
    let alone = Namespaces { mount: true, ..Namespaces::default() };
    let user = match mount::unshare(alone) {
        Ok(()) => false,
        Err(plyfs_sys::Errno::PERM) => {
            Helper::start(Map::BecomeRoot)?.enter(alone)?;
            true
        }
        Err(error) => return Err(Failure::new(format!("cannot make a mount namespace: {error}"))),
    };
    // Set behind the change of credentials, which resets it.
    rustix::process::set_parent_process_death_signal(Some(Signal::TERM))
        .context(|| "cannot tie to the parent")?;
    // One that was killed before sends nothing any more.
    if parent.is_some_and(|parent| {
        rustix::process::getppid().map(Pid::as_raw_nonzero).map(i32::from) != Some(parent)
    }) {
        return Err(Failure::new("the plyfs that started it is gone"));
    }
    let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
    mount::set_propagation(Path::new("/"), private).context(|| "cannot make the mounts private")?;
    process::raise_descriptor_limit().context(|| "cannot raise the limit of open files")?;
    Ok(user)
}

/// One file system of the machine, overlaid.
#[derive(Debug)]
struct Layered {
    /// Where it is on the machine.
    path: PathBuf,
    /// Where it is in the view, from the view's root.
    place: PathBuf,
    /// Where its upper lies.
    upper: UpperSpec,
}

/// A view that can be made.
struct Trial<'a> {
    session: &'a Session,
    /// What is the view's root on the machine.
    root: PathBuf,
    scenes: Vec<Scene>,
    /// The root first, then what is mounted below it.
    layered: Vec<Layered>,
    hidden: Vec<PathBuf>,
    keep: Option<Keep>,
    /// It runs in a user namespace made for it.
    user: bool,
    /// Where the command starts.
    start: PathBuf,
}

impl<'a> Trial<'a> {
    fn prepare(args: &TryArgs, session: &'a Session, user: bool) -> Outcome<Self> {
        let working = std::env::current_dir().unwrap_or_else(|_| PathBuf::from("/"));
        let lower = args.lower.as_deref().map(directory).transpose()?;
        let as_root = lower.as_deref().filter(|lower| holds_root(lower));
        let root = as_root.map_or_else(|| PathBuf::from("/"), Path::to_owned);
        let mut scenes = scenery::below(&root)?;
        let mut start = if as_root.is_some() { PathBuf::from("/") } else { working };
        let mut kept = root.clone();
        if let Some(lower) = lower.as_ref().filter(|_| as_root.is_none()) {
            scenery::add_overlaid(&mut scenes, lower);
            start.clone_from(lower);
            kept.clone_from(lower);
        }
        let mut keep = args.keep.as_deref().map(|upper| Keep::open(upper, &kept)).transpose()?;
        let overlaid =
            scenes.iter().filter(|scene| scene.part == Part::Overlaid).map(|scene| scene.path.clone());
        let mut layered = Vec::new();
        for (number, path) in std::iter::once(root.clone()).chain(overlaid).enumerate() {
            let upper = match &mut keep {
                Some(keep) => keep.upper_for(&path, number)?,
                None => UpperSpec {
                    upper: session.make(format!("{number}/upper"))?,
                    work: session.make(format!("{number}/work"))?,
                },
            };
            let place = path.strip_prefix(&root).unwrap_or(&path).to_owned();
            layered.push(Layered { path, place, upper });
        }
        let mut hidden = vec![session.path().to_owned()];
        hidden.extend(keep.iter().flat_map(Keep::hidden));
        Ok(Self { session, root, scenes, layered, hidden, keep, user, start })
    }

    fn run(self, args: &TryArgs, caught: Caught, soft_limit: Option<u64>) -> Outcome<u8> {
        let view = self.session.make("view").map_err(own)?;
        let serving = self.build(&view).map_err(own)?;
        let status = self.run_command(args, &view, caught, soft_limit);
        // The innermost first.
        serving.into_iter().rev().for_each(drop);
        if !args.quiet {
            report::print(&self.changed(), args.json).map_err(own)?;
        }
        if let Some(keep) = self.keep {
            keep.finish(args.quiet, self.user).map_err(own)?;
        }
        status
    }

    /// Makes the view: every file system, outermost first.
    fn build(&self, view: &Path) -> Outcome<Vec<Running>> {
        let mut serving = Vec::new();
        for (number, layer) in self.layered.iter().enumerate() {
            serving.push(self.serve(number, layer, &view.join(&layer.place))?);
            for scene in self.scenes.iter().filter(|scene| self.parent(&scene.path) == number) {
                if scene.part == Part::ReadOnly {
                    view::show_read_only(&scene.path, &view.join(self.place(&scene.path)))?;
                }
            }
        }
        view::make_dev(view)?;
        view::make_sys(view)?;
        Ok(serving)
    }

    fn serve(&self, number: usize, layer: &Layered, target: &Path) -> Outcome<Running> {
        let namespace = if creds::has_cap_sys_admin_init() { Namespace::Trusted } else { Namespace::User };
        let frame = self.session.make(format!("{number}/frame"))?;
        frame::build(&layer.path, &frame, &self.holes(number), namespace)?;
        frame::begin_upper(&layer.path, &layer.upper.upper, self.user)?;
        let mut options = Options {
            userxattr: namespace == Namespace::User,
            redirect_dir: Some(RedirectDir::On),
            volatile: self.keep.is_none(),
            allow_other: true,
            ..Options::default()
        };
        options.mount.nodev = Some(true);
        let spec = StackSpec {
            lowers: vec![frame, layer.path.clone()],
            data_lowers: Vec::new(),
            upper: Some(layer.upper.clone()),
            options,
        };
        // In a user namespace the machine's own files belong to nobody it knows: to its root, then.
        // The frame lies in what it covers, and hides itself there.
        let settings = Settings {
            unmapped_owner: self.user.then_some((0, 0)),
            nested_lowers: true,
            ..Settings::default()
        };
        let session = union::mount(&spec, &settings, target, None)?;
        session.spawn().context(|| target.display().to_string())
    }

    /// The holes of a file system's frame.
    fn holes(&self, number: usize) -> Vec<(PathBuf, Hole)> {
        let mut holes: Vec<_> = if number == 0 {
            MADE_NEW.iter().map(|name| (self.root.join(name), Hole::Directory)).collect()
        } else {
            Vec::new()
        };
        for scene in self.scenes.iter().filter(|scene| self.parent(&scene.path) == number) {
            let hole = if scene.directory { Hole::Directory } else { Hole::File };
            holes.push((scene.path.clone(), hole));
        }
        let hidden =
            self.hidden.iter().filter(|path| path.starts_with(&self.root) && self.parent(path) == number);
        holes.extend(hidden.map(|path| (path.clone(), Hole::Hidden)));
        holes
    }

    /// The file system in which a path lies, other than as its root.
    fn parent(&self, path: &Path) -> usize {
        let above = |layer: &Layered| path != layer.path && path.starts_with(&layer.path);
        let depth = |layer: &Layered| layer.path.components().count();
        let candidates = self.layered.iter().enumerate().filter(|(_, layer)| above(layer));
        candidates.max_by_key(|(_, layer)| depth(layer)).map_or(0, |(number, _)| number)
    }

    fn place(&self, path: &Path) -> PathBuf {
        path.strip_prefix(&self.root).unwrap_or(path).to_owned()
    }

    fn run_command(&self, args: &TryArgs, view: &Path, caught: Caught, soft: Option<u64>) -> Outcome<u8> {
        let mut command: Command = stage_command("inside");
        command.arg("--view").arg(view).arg("--start").arg(&self.start);
        if let Some(soft) = soft {
            command.arg("--nofile").arg(soft.to_string());
        }
        if args.network == ViewNetwork::None {
            command.args(["--network", "none"]);
        }
        command.arg("--").args(&args.command);
        let forwarding = caught.forward(Then::Kill).map_err(own)?;
        // For children of this thread only; from here on it can start no thread.
        mount::unshare(Namespaces { pid: true, ..Namespaces::default() })
            .context(|| "cannot make a PID namespace")
            .map_err(own)?;
        let mut child = command.spawn().context(|| "cannot start the command").map_err(own)?;
        forwarding.to(child.id()).map_err(own)?;
        child.wait().map(code_of).context(|| "cannot wait for the command").map_err(own)
    }

    fn changed(&self) -> Vec<Changed> {
        let changed = |layer: &Layered| Changed {
            place: Path::new("/").join(&layer.place),
            upper: layer.upper.upper.clone(),
            lower: layer.path.clone(),
            ignore_owner: self.user,
        };
        self.layered.iter().map(changed).collect()
    }
}

fn directory(path: &Path) -> Outcome<PathBuf> {
    let found = path.canonicalize().context(|| format!("{}: cannot be shown", path.display()))?;
    if found.is_dir() { Ok(found) } else { Err(Failure::new(format!("{}: is no directory", path.display()))) }
}

/// Whether a directory holds a root file system: it has a shell. (Not followed out of it: /bin may be a link to usr/bin,
/// and /bin/sh one to an absolute path.)
fn holds_root(directory: &Path) -> bool {
    ["bin/sh", "usr/bin/sh"].iter().any(|shell| directory.join(shell).symlink_metadata().is_ok())
}
