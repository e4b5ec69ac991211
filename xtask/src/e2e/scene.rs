//! Where the steps happen: one scratch directory, and a private view of the few places of the machine that
//! engines insist on (`/etc/passwd`, `/etc/subuid`, `/dev/fuse`, `/dev/shm`, a cgroup hierarchy that crun accepts).
//!
//! All mounts made here are in a mount namespace of this process and vanish with it.

use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};
use std::path::{Path, PathBuf};

use super::leftovers;
use anyhow::{Context, Result};
use plyfs_testkit::sandbox::open_fuse_to_all;
use rustix::mount::{MountFlags, mount, mount_bind};

/// The unprivileged users; no accounts of the machine, they exist in the scene's `/etc/passwd` only.
pub const USERS: [User; 2] = [
    User { name: "plyfs-e2e-a", id: 54321, first_subordinate: 700_000 },
    User { name: "plyfs-e2e-b", id: 54322, first_subordinate: 800_000 },
];
/// Where podman takes the ids of `--userns=auto` containers of root from: this name in `/etc/subuid`.
const AUTO_USERNS: &str = "containers:1000000:1000000";
const SUBORDINATES: u32 = 65_536;

/// An unprivileged user with subordinate ids.
pub struct User {
    pub name: &'static str,
    /// User id and group id.
    pub id: u32,
    first_subordinate: u32,
}

impl User {
    /// The user's home directory in `scene`.
    pub fn home(&self, scene: &Scene) -> PathBuf {
        scene.path(self.name)
    }

    /// The user's XDG_RUNTIME_DIR in `scene`.
    pub fn runtime_dir(&self, scene: &Scene) -> PathBuf {
        self.home(scene).join("runtime")
    }
}

/// The prepared scratch directory.
pub struct Scene {
    scratch: tempfile::TempDir,
    /// plyfs, copied to where every user can execute it.
    pub plyfs: PathBuf,
    /// The same under fuse-overlayfs's name, alone in its directory.
    pub fuse_overlayfs: PathBuf,
}

impl Scene {
    /// Builds the scene around the binary `plyfs`. Must run in a mount namespace of its own.
    pub fn set_up(plyfs: &Path) -> Result<Self> {
        let scratch = tempfile::Builder::new().prefix("plyfs-e2e.").tempdir().context("scratch directory")?;
        fs::set_permissions(scratch.path(), PermissionsExt::from_mode(0o755))?;
        let (binary, replacement) =
            (scratch.path().join("bin/plyfs"), scratch.path().join("replacement/fuse-overlayfs"));
        let scene = Self { scratch, plyfs: binary, fuse_overlayfs: replacement };
        for copy in [&scene.plyfs, &scene.fuse_overlayfs] {
            fs::create_dir_all(copy.parent().context("no parent")?)?;
            fs::copy(plyfs, copy).with_context(|| format!("copying {}", plyfs.display()))?;
        }
        scene.directory("tmp", 0, 0o1777)?;
        scene.directory("home", 0, 0o700)?;
        for user in &USERS {
            scene.directory(user.name, user.id, 0o700)?;
            scene.directory(&format!("{}/runtime", user.name), user.id, 0o700)?;
        }
        scene.hide_machine().context("private view of the machine")?;
        scene.write_configuration()?;
        Ok(scene)
    }

    /// A path in the scratch directory.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.scratch.path().join(relative)
    }

    /// Makes a directory in the scratch directory that belongs to `owner`.
    pub fn directory(&self, relative: &str, owner: u32, mode: u32) -> Result<PathBuf> {
        let path = self.path(relative);
        fs::create_dir_all(&path).with_context(|| path.display().to_string())?;
        fs::set_permissions(&path, PermissionsExt::from_mode(mode))?;
        chown(&path, Some(owner), Some(owner))?;
        Ok(path)
    }

    /// The engines' configuration file.
    pub fn containers_conf(&self) -> PathBuf {
        self.path("containers.conf")
    }

    /// Removes the scratch directory; an error if something in it cannot be removed.
    pub fn tear_down(self) -> Result<()> {
        let path = self.scratch.path().to_path_buf();
        // What is bound from the scratch directory keeps its files alive, but not their names.
        self.scratch.close().with_context(|| format!("removing {}", path.display()))
    }

    fn hide_machine(&self) -> Result<()> {
        leftovers::detach_foreign()?;
        let passwd =
            |user: &User| format!("{}:x:{1}:{1}::{2}:/bin/sh", user.name, user.id, user.home(self).display());
        let group = |user: &User| format!("{}:x:{}:", user.name, user.id);
        let subordinate = |user: &User| format!("{}:{}:{SUBORDINATES}", user.name, user.first_subordinate);
        self.append("passwd", &USERS.each_ref().map(passwd))?;
        self.append("group", &USERS.each_ref().map(group))?;
        for file in ["subuid", "subgid"] {
            self.append(file, &USERS.each_ref().map(subordinate))?;
            self.append(file, &[AUTO_USERNS.to_owned()])?;
        }
        open_fuse_to_all(self.scratch.path())?;
        tmpfs(Path::new("/dev/shm"))?;
        let unified = Path::new("/sys/fs/cgroup/unified");
        if unified.is_dir() {
            // crun refuses to run where version 2 lies beside version 1.
            tmpfs(unified)?;
        }
        Ok(())
    }

    /// Shows `/etc/NAME` with more lines, in this mount namespace.
    fn append(&self, name: &str, lines: &[String]) -> Result<()> {
        let machine = Path::new("/etc").join(name);
        let mut text = fs::read_to_string(&machine).with_context(|| machine.display().to_string())?;
        lines.iter().for_each(|line| {
            text.push_str(line);
            text.push('\n');
        });
        let own = self.path(&format!("etc/{name}"));
        fs::create_dir_all(self.path("etc"))?;
        if own.exists() {
            return fs::write(&own, text).with_context(|| own.display().to_string());
        }
        fs::write(&own, text).with_context(|| own.display().to_string())?;
        mount_bind(&own, &machine).with_context(|| format!("binding over {}", machine.display()))
    }

    fn write_configuration(&self) -> Result<()> {
        let containers = concat!(
            "[containers]\n",
            // Nobody here may raise limits.
            "default_ulimits = [\"nofile=16384:16384\", \"nproc=16384:16384\"]\n",
            "netns = \"host\"\n",
            "[engine]\n",
            "cgroup_manager = \"cgroupfs\"\n",
            "events_logger = \"file\"\n",
            "runtime = \"crun\"\n",
        );
        fs::write(self.containers_conf(), containers).context("containers.conf")
    }
}

fn tmpfs(target: &Path) -> Result<()> {
    mount("tmpfs", target, "tmpfs", MountFlags::NOSUID | MountFlags::NODEV, Some(c"mode=1777"))
        .with_context(|| format!("mounting a tmpfs on {}", target.display()))
}
