//! `cargo xtask e2e`: real container engines, with plyfs beneath them.
//!
//! Owns the list of steps and how they are run. All of it happens in mount and process namespaces of its own
//! ([`scene`]), so that nothing of the machine is touched but the packages that are installed and cgroups of
//! the containers; after each step [`leftovers`] looks for what it left behind. Images are made here from
//! busybox and debootstrap, and a registry on the loopback device takes them: no public registry is asked.

mod buildah;
mod client;
mod containerd;
mod debian;
mod docker;
mod images;
mod interchange;
mod leftovers;
mod podman;
mod registry;
mod scene;
mod sharing;

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};
use plyfs_testkit::sandbox::{Space, run_again};

use self::client::Owner;
use self::scene::Scene;
use crate::{mounts, setup};

/// Options of `cargo xtask e2e`.
#[derive(clap::Args, Debug)]
pub struct Args {
    /// Run only steps whose name contains this; may be repeated
    #[arg(long)]
    only: Vec<String>,
    /// Name the steps and do nothing
    #[arg(long)]
    list: bool,
    /// The plyfs binary; built from this workspace if left out
    #[arg(long)]
    plyfs: Option<PathBuf>,
}

/// How a step that did not fail ended.
enum Verdict {
    Passed,
    /// It cannot be done here, for this reason.
    Impossible(String),
}

struct Step {
    name: &'static str,
    about: &'static str,
    run: fn(&Scene) -> Result<Verdict>,
}

const STEPS: &[Step] = &[
    Step {
        name: "podman-basics",
        about: "import, run, exec, change, diff, commit, stop, kill; by command-line options",
        run: |scene| podman::basics(scene, Owner::Root),
    },
    Step {
        name: "podman-build",
        about: "ten-step Dockerfile, push, rmi, pull, run",
        run: |scene| podman::build(scene, Owner::Root),
    },
    Step {
        name: "podman-options",
        about: "read-only root, volumes, user namespaces",
        run: |scene| podman::options(scene, Owner::Root),
    },
    Step {
        name: "podman-twenty",
        about: "20 containers at once on one image",
        run: |scene| podman::twenty(scene, Owner::Root),
    },
    Step {
        name: "podman-debian",
        about: "apt-get, dpkg, pip, git clone and a C build in Debian",
        run: |scene| debian::work(scene, Owner::Root),
    },
    Step {
        name: "rootless-basics",
        about: "the same without root, plyfs in fuse-overlayfs's place",
        run: |scene| podman::basics(scene, Owner::User),
    },
    Step {
        name: "rootless-build",
        about: "the same without root",
        run: |scene| podman::build(scene, Owner::User),
    },
    Step {
        name: "rootless-options",
        about: "the same without root, and keep-id",
        run: |scene| podman::options(scene, Owner::User),
    },
    Step {
        name: "rootless-twenty",
        about: "the same without root",
        run: |scene| podman::twenty(scene, Owner::User),
    },
    Step {
        name: "rootless-debian",
        about: "the same without root",
        run: |scene| debian::work(scene, Owner::User),
    },
    Step {
        name: "buildah-equal",
        about: "bud with and without layers: the images equal the kernel overlay's, file by file",
        run: buildah::equal,
    },
    Step {
        name: "two-users",
        about: "two users mount the same lowers, as fuse-overlayfs",
        run: sharing::two_users,
    },
    Step {
        name: "nested",
        about: "plyfs in a container on plyfs, and one more on that",
        run: sharing::nested,
    },
    Step {
        name: "docker",
        about: "dockerd with its fuse-overlayfs driver: import, run, exec, diff, commit, build",
        run: docker::engine,
    },
    Step {
        name: "interchange",
        about: "skopeo, podman and umoci read what plyfs saves and pushes, and the reverse: equal digests and trees",
        run: interchange::both_ways,
    },
    Step {
        name: "containerd",
        about: "the snapshotter under a real containerd (its own test, built for this)",
        run: containerd::snapshotter,
    },
];

/// What the steps call, and the packages that bring it.
const TOOLS: &[(&str, &str)] = &[
    ("podman", "podman"),
    ("buildah", "buildah"),
    ("crun", "crun"),
    ("skopeo", "skopeo"),
    ("umoci", "umoci"),
    ("setfattr", "attr"),
    ("setcap", "libcap2-bin"),
    ("fusermount3", "fuse3"),
    ("newuidmap", "uidmap"),
    ("docker-registry", "docker-registry"),
    ("busybox", "busybox-static"),
    ("debootstrap", "debootstrap"),
    ("dockerd", "docker.io"),
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("setpriv", "util-linux"),
    ("tar", "tar"),
];

/// Runs the steps, each told with `ok`, `FAILED` or the reason why it cannot be done here.
pub fn run(args: &Args) -> Result<()> {
    let chosen = chosen(args)?;
    if args.list {
        chosen.iter().for_each(|step| println!("{:18} {}", step.name, step.about));
        return Ok(());
    }
    match Space::current() {
        Some(Space::Mounts) => inside(args, &chosen),
        _ => outside(args),
    }
}

fn chosen(args: &Args) -> Result<Vec<&'static Step>> {
    let wanted = |step: &&Step| args.only.is_empty() || args.only.iter().any(|part| step.name.contains(part));
    let chosen: Vec<_> = STEPS.iter().filter(wanted).collect();
    if chosen.is_empty() {
        bail!("no step is called so; see cargo xtask e2e --list");
    }
    Ok(chosen)
}

/// Prepares what outlives the run, then runs this program again in namespaces of its own.
fn outside(args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("needs root: it installs packages, and drives engines as root and as a user");
    }
    setup::install_tools(TOOLS)?;
    let plyfs = mounts::plyfs(args.plyfs.as_deref())?;
    let mut line: Vec<OsString> = vec!["e2e".into(), "--plyfs".into(), plyfs.into()];
    line.extend(args.only.iter().flat_map(|only| ["--only".into(), only.into()]));
    let before = leftovers::cgroups()?;
    let status = run_again(Space::Mounts, &line, &[])?;
    leftovers::remove_new_cgroups(&before)?;
    if !status.success() {
        bail!("a step failed");
    }
    Ok(())
}

fn inside(args: &Args, steps: &[&Step]) -> Result<()> {
    let scene = Scene::set_up(args.plyfs.as_deref().context("--plyfs is missing")?)?;
    let mut counts = [0; 3];
    for step in steps {
        let start = Instant::now();
        let ended = (step.run)(&scene).and_then(|verdict| leftovers::check(&scene).map(|()| verdict));
        let seconds = start.elapsed().as_secs();
        let (kind, line) = match ended {
            Ok(Verdict::Passed) => (0, "ok".to_owned()),
            Ok(Verdict::Impossible(reason)) => (1, format!("not possible here: {reason}")),
            Err(error) => (2, format!("FAILED: {error:#}")),
        };
        if let Some(count) = counts.get_mut(kind) {
            *count += 1;
        }
        println!("e2e: {:18} {line} ({seconds} s)", step.name);
    }
    scene.tear_down()?;
    let [passed, impossible, failed] = counts;
    println!("e2e: {passed} ok, {impossible} not possible here, {failed} failed");
    if failed > 0 { bail!("{failed} steps failed") } else { Ok(()) }
}
