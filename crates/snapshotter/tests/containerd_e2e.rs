//! containerd itself with the snapshotter as its proxy plugin: an image is imported, containers run, one is committed,
//! the snapshotter is restarted and killed beneath them, and garbage collection leaves nothing.
//!
//! Runs with `PLYFS_E2E=1` only: it depends on when containerd collects garbage, which a loaded machine delays. Needs root,
//! `containerd`, `ctr`, `runc` and `busybox` (statically linked); skips where one is missing, unless `PLYFS_TESTS_STRICT=1`
//! says that all must be there.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use common::process::{Process, serve_if_told};
use plyfs_testkit::need::Need;

const IMAGE: &str = "docker.io/library/plyfs-test:1";
const LIMIT: Duration = Duration::from_secs(60);
/// Numbers the looks into containers.
static LOOKS: AtomicU32 = AtomicU32::new(0);

#[test]
fn serves_in_a_process_of_its_own() {
    serve_if_told();
}

#[test]
fn containerd_runs_containers_on_the_kernels_overlay() {
    if !possible(&[]) {
        return;
    }
    let mut host = Host::start("kernel", None);
    host.import();
    assert_eq!(host.snapshots(), 5, "one for each layer");

    let output = host.run("first", &["cat", "/etc/motd", "/etc/added", "/etc/layer-4"]);
    assert_eq!(output, "from the base\nadded later\n4\n");
    assert_eq!(host.run("listing", &["ls", "/etc"]), "added\nlayer-2\nlayer-3\nlayer-4\nmotd\n");

    for n in 0..10 {
        host.start_container(&format!("c{n}"), &format!("echo {n} > /written; exec sleep 600"));
    }
    assert_eq!(host.snapshots(), 5 + 10);
    host.restart_snapshotter("SIGTERM");
    host.expect_written(0..10);
    host.restart_snapshotter("SIGKILL");
    host.expect_written(0..10);
    host.restart_containerd();
    host.expect_written(0..10);

    for n in 0..10 {
        host.ctr(&["tasks", "kill", "--signal", "SIGKILL", &format!("c{n}")]);
    }
    host.until("the tasks have stopped", |host| !host.ctr(&["tasks", "ls"]).contains("RUNNING"));
    host.ctr(&["tasks", "rm", "c3"]);
    let tar = ["--media-type", "application/vnd.oci.image.layer.v1.tar"];
    let difference = [&["snapshots", "--snapshotter", "plyfs", "diff"], &tar[..], &["c3"]].concat();
    let written = tar_names(&host.ctr_output(&difference));
    assert!(written.contains(&"written".to_owned()), "{written:?}");
    host.ctr(&["snapshots", "--snapshotter", "plyfs", "commit", "kept", "c3"]);
    host.ctr(&["snapshots", "--snapshotter", "plyfs", "prepare", "again", "kept"]);
    let shown = host.ctr(&["snapshots", "--snapshotter", "plyfs", "mounts", "/m", "again"]);
    let newest = shown.split("lowerdir=").nth(1).and_then(|lowers| lowers.split(':').next()).unwrap();
    assert_eq!(fs::read_to_string(Path::new(newest).join("written")).unwrap(), "3\n");

    for n in 0..10 {
        host.ctr(&["containers", "rm", &format!("c{n}")]);
    }
    host.ctr(&["images", "rm", "--sync", IMAGE]);
    host.until("only the committed snapshot's chain is left", |host| host.snapshots() == 7);
    assert_eq!(host.ctr(&["content", "ls", "--quiet"]), "");
    host.ctr(&["snapshots", "--snapshotter", "plyfs", "rm", "again"]);
    host.ctr(&["snapshots", "--snapshotter", "plyfs", "rm", "kept"]);
    host.expect_empty();
}

#[test]
fn containerd_runs_containers_on_plyfs_over_fuse() {
    let Some(plyfs) = plyfs_program() else {
        eprintln!("skipped: plyfs is not built (cargo build -p plyfs), and PLYFS_BIN does not name one");
        return;
    };
    if !possible(&[Need::Fuse, Need::Tool("mount.fuse3")]) {
        return;
    }
    let mut host = Host::start("fuse", Some(&plyfs));
    host.import();
    let output = host.run("first", &["sh", "-c", "cat /etc/motd && ls /etc && grep ' / ' /proc/mounts"]);
    assert!(
        output.starts_with("from the base\nadded\nlayer-2\nlayer-3\nlayer-4\nmotd\nplyfs / fuse.plyfs"),
        "{output}"
    );
    for n in 0..3 {
        host.start_container(&format!("c{n}"), &format!("echo {n} > /written; exec sleep 600"));
    }
    host.restart_snapshotter("SIGKILL");
    host.expect_written(0..3);
    for n in 0..3 {
        host.ctr(&["tasks", "kill", "--signal", "SIGKILL", &format!("c{n}")]);
    }
    host.until("the tasks have stopped", |host| !host.ctr(&["tasks", "ls"]).contains("RUNNING"));
    for n in 0..3 {
        host.ctr(&["containers", "rm", &format!("c{n}")]);
    }
    host.ctr(&["images", "rm", "--sync", IMAGE]);
    host.expect_empty();
}

/// Whether these long tests were asked for and the tools are here.
fn possible(more: &[Need<'_>]) -> bool {
    if std::env::var_os("PLYFS_E2E").is_none_or(|value| value != "1") {
        eprintln!("skipped: runs a real containerd for minutes; set PLYFS_E2E=1");
        return false;
    }
    let tools = ["containerd", "ctr", "runc", "busybox"].map(Need::Tool);
    let needs: Vec<_> = [Need::Root].into_iter().chain(tools).chain(more.iter().copied()).collect();
    plyfs_testkit::need::met(&needs)
}

/// The program that `mount.fuse3` is to call.
fn plyfs_program() -> Option<PathBuf> {
    let beside = std::env::current_exe().ok()?.parent()?.parent()?.join("plyfs");
    std::env::var_os("PLYFS_BIN").map(PathBuf::from).or(Some(beside)).filter(|path| path.is_file())
}

/// A containerd and a snapshotter in a directory of their own.
struct Host {
    dir: tempfile::TempDir,
    backend: &'static str,
    path: std::ffi::OsString,
    snapshotter: Option<Process>,
    containerd: Option<Child>,
}

impl Host {
    fn start(backend: &'static str, plyfs: Option<&Path>) -> Self {
        let dir = tempfile::Builder::new().prefix("snapshotter-e2e-").tempdir().unwrap();
        fs::create_dir(dir.path().join("bin")).unwrap();
        if let Some(plyfs) = plyfs {
            symlink(plyfs, dir.path().join("bin/plyfs")).unwrap();
        }
        let mut path = dir.path().join("bin").into_os_string();
        path.push(":");
        path.push(std::env::var_os("PATH").unwrap());
        let snapshotter = Some(Process::start(dir.path(), backend));
        let mut host = Self { dir, backend, path, snapshotter, containerd: None };
        fs::write(host.file("config.toml"), host.config()).unwrap();
        host.start_containerd();
        host
    }

    fn namespace(&self) -> String {
        format!("plyfs-test-{}-{}", std::process::id(), self.backend)
    }

    fn file(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn config(&self) -> String {
        let dir = self.dir.path().display();
        format!(
            r#"version = 2
root = "{dir}/containerd-root"
state = "{dir}/containerd-state"
disabled_plugins = ["io.containerd.grpc.v1.cri", "io.containerd.internal.v1.tracing"]
[grpc]
  address = "{dir}/c.sock"
[ttrpc]
  address = "{dir}/c.sock.ttrpc"
[plugins."io.containerd.internal.v1.opt"]
  path = "{dir}/opt"
[plugins."io.containerd.gc.v1.scheduler"]
  schedule_delay = "0ms"
  startup_delay = "10ms"
[proxy_plugins.plyfs]
  type = "snapshot"
  address = "{dir}/s.sock"
"#
        )
    }

    fn start_containerd(&mut self) {
        let log = fs::File::options().create(true).append(true).open(self.file("containerd.log")).unwrap();
        let child = Command::new("containerd")
            .arg("--config")
            .arg(self.file("config.toml"))
            .env("PATH", &self.path)
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .unwrap();
        self.containerd = Some(child);
        self.until("containerd answers", |host| host.try_ctr(&["plugins", "ls"]).status.success());
        let plugins = self.ctr(&["plugins", "ls"]);
        let line = plugins.lines().find(|line| line.contains(" plyfs ")).unwrap_or_default();
        assert!(line.trim_end().ends_with("ok"), "{plugins}");
    }

    fn restart_snapshotter(&mut self, how: &str) {
        let old = self.snapshotter.take().unwrap();
        if how == "SIGKILL" {
            old.kill()
        } else {
            old.end()
        }
        self.snapshotter = Some(Process::start(self.dir.path(), self.backend));
        // containerd connects again by itself, after a pause.
        self.until("containerd reaches the snapshotter", |host| {
            host.try_ctr(&["snapshots", "--snapshotter", "plyfs", "ls"]).status.success()
        });
    }

    fn restart_containerd(&mut self) {
        self.stop_containerd();
        self.start_containerd();
    }

    fn stop_containerd(&mut self) {
        let mut child = self.containerd.take().unwrap();
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        child.wait().unwrap();
    }

    /// Runs `ctr`, expects that it succeeds, and returns what it says.
    fn ctr(&self, arguments: &[&str]) -> String {
        String::from_utf8(self.ctr_output(arguments)).unwrap()
    }

    fn ctr_output(&self, arguments: &[&str]) -> Vec<u8> {
        // A client notices a restarted snapshotter a moment later than we do.
        let start = Instant::now();
        loop {
            let output = self.try_ctr(arguments);
            if output.status.success() {
                return output.stdout;
            }
            let error = String::from_utf8_lossy(&output.stderr).into_owned();
            let again = error.contains("Unavailable") || error.contains("connection error");
            assert!(again && start.elapsed() < LIMIT, "ctr {arguments:?}: {error}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(50));
        }
    }

    fn try_ctr(&self, arguments: &[&str]) -> Output {
        let mut command = Command::new("ctr");
        command.arg("--address").arg(self.file("c.sock")).args([
            "--connect-timeout",
            "2s",
            "--timeout",
            "60s",
        ]);
        // runc's state and cgroups lie outside the directory, by namespace.
        command
            .args(["--namespace", &self.namespace()])
            .args(arguments)
            .env("PATH", &self.path)
            .stdin(Stdio::null())
            .output()
            .unwrap()
    }

    fn log(&self) -> String {
        fs::read_to_string(self.file("containerd.log")).unwrap_or_default()
    }

    fn until(&self, what: &str, condition: impl Fn(&Self) -> bool) {
        let start = Instant::now();
        while !condition(self) {
            assert!(start.elapsed() < LIMIT, "waited in vain until {what}\n{}", self.log());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    fn import(&self) {
        let archive = image::archive(&self.file("image"));
        self.ctr(&["images", "import", "--snapshotter", "plyfs", archive.to_str().unwrap()]);
    }

    fn run(&self, name: &str, command: &[&str]) -> String {
        let mut arguments = vec!["run", "--rm", "--snapshotter", "plyfs", IMAGE, name];
        arguments.extend(command);
        self.ctr(&arguments)
    }

    fn start_container(&self, name: &str, script: &str) {
        self.ctr(&["run", "--detach", "--snapshotter", "plyfs", IMAGE, name, "sh", "-c", script]);
    }

    fn expect_written(&self, containers: std::ops::Range<usize>) {
        for n in containers {
            let name = format!("c{n}");
            self.until("the container has written its file", |host| {
                // An interrupted exec keeps its id for a while.
                let id = format!("look-{}", LOOKS.fetch_add(1, Ordering::Relaxed));
                let output = host.try_ctr(&["tasks", "exec", "--exec-id", &id, &name, "cat", "/written"]);
                output.status.success() && output.stdout == format!("{n}\n").as_bytes()
            });
        }
    }

    fn snapshots(&self) -> usize {
        self.ctr(&["snapshots", "--snapshotter", "plyfs", "ls"]).lines().count() - 1
    }

    /// A collection that found the snapshotter away is made up for by the next one after a snapshot was removed.
    fn collect_garbage(&self) {
        self.ctr(&["snapshots", "--snapshotter", "plyfs", "prepare", "collect"]);
        self.ctr(&["snapshots", "--snapshotter", "plyfs", "rm", "collect"]);
        self.ctr(&["leases", "create", "--id", "collect"]);
        self.ctr(&["leases", "delete", "--sync", "collect"]);
    }

    fn expect_empty(&self) {
        self.until("garbage collection has removed all snapshots", |host| host.snapshots() == 0);
        for name in ["overlay2", "staging", "trash"] {
            self.until(&format!("{name} is empty"), |host| {
                host.collect_garbage();
                fs::read_dir(host.file("root").join(name)).unwrap().count() == 0
            });
        }
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // What runs still, after a failure: its shims would keep the directory's mounts.
        if self.containerd.is_some() {
            let tasks = self.try_ctr(&["tasks", "ls", "--quiet"]);
            for task in String::from_utf8_lossy(&tasks.stdout).lines() {
                self.try_ctr(&["tasks", "kill", "--signal", "SIGKILL", task]);
                self.try_ctr(&["tasks", "rm", "--force", task]);
            }
            self.stop_containerd();
        }
        self.snapshotter.take().unwrap().end();
        remove_leftovers(&self.namespace());
    }
}

/// What runc and containerd leave outside of the directory: their empty directories for the namespace.
fn remove_leftovers(namespace: &str) {
    let mut parents = vec![PathBuf::from("/run/containerd/runc"), PathBuf::from("/sys/fs/cgroup")];
    parents.extend(fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
    for directory in
        parents.iter().map(|parent| parent.join(namespace)).filter(|directory| directory.is_dir())
    {
        if let Err(e) = fs::remove_dir(&directory) {
            eprintln!("left: {}: {e}", directory.display());
        }
    }
}

/// The names in a tar, by its own headers.
fn tar_names(bytes: &[u8]) -> Vec<String> {
    let mut names = Vec::new();
    let mut rest = bytes;
    while let Some((header, after)) = rest.split_at_checked(512).filter(|(header, _)| header[0] != 0) {
        let text = |field: &[u8]| String::from_utf8_lossy(field).trim_matches(['\0', ' ']).to_owned();
        names.push(text(&header[..100]));
        let size = usize::from_str_radix(&text(&header[124..136]), 8).unwrap();
        rest = after.get(size.next_multiple_of(512)..).unwrap_or_default();
    }
    names
}

/// An OCI image of five layers, made from the host's busybox with `tar` and `sha256sum`.
mod image {
    use super::*;

    pub fn archive(work: &Path) -> PathBuf {
        let blobs = work.join("oci/blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let layers: Vec<_> = (0..5).map(|n| layer(work, &blobs, n)).collect();
        let diff_ids: Vec<_> = layers.iter().map(|(digest, _)| format!("\"sha256:{digest}\"")).collect();
        let config = format!(
            r#"{{"architecture":"{}","os":"linux","config":{{"Env":["PATH=/bin"]}},"rootfs":{{"type":"layers","diff_ids":[{}]}}}}"#,
            if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" },
            diff_ids.join(",")
        );
        let config = blob(&blobs, config.as_bytes());
        let descriptors: Vec<_> = layers.iter().map(|layer| descriptor("layer.v1.tar", layer, "")).collect();
        let manifest = format!(
            r#"{{"schemaVersion":2,"config":{},"layers":[{}]}}"#,
            descriptor("config.v1+json", &config, ""),
            descriptors.join(",")
        );
        let manifest = blob(&blobs, manifest.as_bytes());
        let name = format!(r#","annotations":{{"io.containerd.image.name":"{IMAGE}"}}"#);
        let index = format!(
            r#"{{"schemaVersion":2,"manifests":[{}]}}"#,
            descriptor("manifest.v1+json", &manifest, &name)
        );
        fs::write(work.join("oci/index.json"), index).unwrap();
        fs::write(work.join("oci/oci-layout"), r#"{"imageLayoutVersion":"1.0.0"}"#).unwrap();
        let archive = work.join("image.tar");
        tar(&work.join("oci"), &archive);
        archive
    }

    /// Layer 0 holds busybox and two files, layer 1 deletes one of them and adds one, each further one adds one.
    fn layer(work: &Path, blobs: &Path, n: usize) -> (String, u64) {
        let root = work.join(format!("layer-{n}"));
        fs::create_dir_all(root.join("etc")).unwrap();
        match n {
            0 => {
                for name in ["bin", "tmp", "proc", "sys", "dev"] {
                    fs::create_dir(root.join(name)).unwrap();
                }
                fs::copy(busybox(), root.join("bin/busybox")).unwrap();
                for name in ["sh", "ls", "cat", "grep", "sleep"] {
                    symlink("busybox", root.join("bin").join(name)).unwrap();
                }
                fs::write(root.join("etc/motd"), "from the base\n").unwrap();
                fs::write(root.join("etc/deleted"), "x").unwrap();
            }
            1 => {
                fs::write(root.join("etc/.wh.deleted"), "").unwrap();
                fs::write(root.join("etc/added"), "added later\n").unwrap();
            }
            _ => fs::write(root.join(format!("etc/layer-{n}")), format!("{n}\n")).unwrap(),
        }
        let archive = work.join(format!("layer-{n}.tar"));
        tar(&root, &archive);
        blob(blobs, &fs::read(archive).unwrap())
    }

    fn busybox() -> PathBuf {
        let path = std::env::var_os("PATH").unwrap();
        std::env::split_paths(&path).map(|dir| dir.join("busybox")).find(|file| file.is_file()).unwrap()
    }

    fn tar(root: &Path, archive: &Path) {
        let status = Command::new("tar")
            .args(["--numeric-owner", "--owner=0", "--group=0", "--sort=name", "-cf"])
            .arg(archive)
            .arg("-C")
            .arg(root)
            .arg(".")
            .status()
            .unwrap();
        assert!(status.success());
    }

    fn blob(blobs: &Path, content: &[u8]) -> (String, u64) {
        let file = blobs.join("new");
        fs::write(&file, content).unwrap();
        let output = Command::new("sha256sum").arg(&file).output().unwrap();
        let digest = String::from_utf8(output.stdout).unwrap()[..64].to_owned();
        fs::rename(&file, blobs.join(&digest)).unwrap();
        (digest, content.len() as u64)
    }

    fn descriptor(kind: &str, (digest, size): &(String, u64), more: &str) -> String {
        format!(
            r#"{{"mediaType":"application/vnd.oci.image.{kind}","digest":"sha256:{digest}","size":{size}{more}}}"#
        )
    }
}
