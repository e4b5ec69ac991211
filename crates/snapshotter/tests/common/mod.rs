//! A served snapshotter and a client for tests, and mounting as containerd does.

#![allow(dead_code, reason = "each test file uses its part")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

pub mod process;

use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use plyfs_snapshotter::proto::snapshots as api;
use plyfs_snapshotter::proto::types::Mount;
use plyfs_snapshotter::{Backend, Config, Options, Server};
use plyfs_sys::mount::{self, MountFlags, Parameter};
use plyfs_testkit::need::Need;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;
use tonic::transport::Channel;
use tonic::{Code, Status};

pub type Client = api::snapshots_client::SnapshotsClient<Channel>;
pub type Labels = BTreeMap<String, String>;

/// Says what is missing to mount overlays here; see [`plyfs_testkit::need`].
pub fn cannot_mount() -> bool {
    !plyfs_testkit::need::met(&[Need::Root, Need::Filesystem("overlay")])
}

/// A snapshotter that is served on a socket, in this process.
pub struct Served {
    pub dir: tempfile::TempDir,
    pub client: Client,
    pub metrics_port: Option<u16>,
    stop: Option<oneshot::Sender<()>>,
    task: Option<JoinHandle<plyfs_snapshotter::Result<()>>>,
}

impl Served {
    pub async fn start() -> Self {
        Self::start_in(tempfile::Builder::new().prefix("snapshotter-").tempdir().unwrap()).await
    }

    pub async fn start_in(dir: tempfile::TempDir) -> Self {
        let config = config(dir.path());
        let server = Server::bind(&config).unwrap();
        let metrics_port = server.metrics_port();
        let (stop, stopped) = oneshot::channel::<()>();
        let task = tokio::spawn(server.run(async {
            stopped.await.ok();
        }));
        let client = connect(&config.address).await;
        Self { dir, client, metrics_port, stop: Some(stop), task: Some(task) }
    }

    /// Ends the service as SIGTERM does, and keeps the root.
    pub async fn stop(mut self) -> tempfile::TempDir {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.take().unwrap().await.unwrap().unwrap();
        self.dir
    }

    pub fn root(&self) -> PathBuf {
        self.dir.path().join("root")
    }

    pub async fn prepare(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.prepare_with(key, parent, gc_root()).await
    }

    pub async fn prepare_with(
        &mut self,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.into(), parent.into());
        let request = api::PrepareSnapshotRequest { snapshotter: "plyfs".into(), key, parent, labels };
        Ok(self.client.prepare(request).await?.into_inner().mounts)
    }

    pub async fn view(&mut self, key: &str, parent: &str) -> Result<Vec<Mount>, Status> {
        self.view_with(key, parent, gc_root()).await
    }

    pub async fn view_with(&mut self, key: &str, parent: &str, labels: Labels) -> Result<Vec<Mount>, Status> {
        let (key, parent) = (key.into(), parent.into());
        let request = api::ViewSnapshotRequest { snapshotter: "plyfs".into(), key, parent, labels };
        Ok(self.client.view(request).await?.into_inner().mounts)
    }

    pub async fn mounts(&mut self, key: &str) -> Result<Vec<Mount>, Status> {
        let request = api::MountsRequest { snapshotter: "plyfs".into(), key: key.into() };
        Ok(self.client.mounts(request).await?.into_inner().mounts)
    }

    pub async fn commit(&mut self, name: &str, key: &str) -> Result<(), Status> {
        self.commit_with(name, key, "", gc_root()).await
    }

    pub async fn commit_with(
        &mut self,
        name: &str,
        key: &str,
        parent: &str,
        labels: Labels,
    ) -> Result<(), Status> {
        let request = api::CommitSnapshotRequest {
            snapshotter: "plyfs".into(),
            name: name.into(),
            key: key.into(),
            parent: parent.into(),
            labels,
        };
        self.client.commit(request).await.map(drop)
    }

    pub async fn remove(&mut self, key: &str) -> Result<(), Status> {
        let request = api::RemoveSnapshotRequest { snapshotter: "plyfs".into(), key: key.into() };
        self.client.remove(request).await.map(drop)
    }

    pub async fn stat(&mut self, key: &str) -> Result<api::Info, Status> {
        let request = api::StatSnapshotRequest { snapshotter: "plyfs".into(), key: key.into() };
        Ok(self.client.stat(request).await?.into_inner().info.unwrap())
    }

    pub async fn update(&mut self, info: api::Info, paths: &[&str]) -> Result<api::Info, Status> {
        let paths: Vec<String> = paths.iter().map(|path| (*path).into()).collect();
        let request = api::UpdateSnapshotRequest {
            snapshotter: "plyfs".into(),
            info: Some(info),
            update_mask: Some(prost_types::FieldMask { paths }),
        };
        Ok(self.client.update(request).await?.into_inner().info.unwrap())
    }

    pub async fn usage(&mut self, key: &str) -> Result<api::UsageResponse, Status> {
        let request = api::UsageRequest { snapshotter: "plyfs".into(), key: key.into() };
        Ok(self.client.usage(request).await?.into_inner())
    }

    pub async fn cleanup(&mut self) -> Result<(), Status> {
        self.client.cleanup(api::CleanupRequest { snapshotter: "plyfs".into() }).await.map(drop)
    }

    pub async fn list(&mut self, filters: &[&str]) -> Result<Vec<api::Info>, Status> {
        list(&mut self.client, filters).await
    }
}

pub async fn list(client: &mut Client, filters: &[&str]) -> Result<Vec<api::Info>, Status> {
    let filters = filters.iter().map(|filter| (*filter).into()).collect();
    let request = api::ListSnapshotsRequest { snapshotter: "plyfs".into(), filters };
    let mut stream = client.list(request).await?.into_inner();
    let mut all = Vec::new();
    while let Some(message) = stream.message().await? {
        all.extend(message.info);
    }
    Ok(all)
}

pub fn config(dir: &Path) -> Config {
    Config {
        address: dir.join("s.sock"),
        root: dir.join("root"),
        // The tests' many small commits need not wait for the disk; crash.rs syncs.
        options: Options { backend: Backend::Kernel, sync: false },
        metrics: Some("127.0.0.1:0".parse().unwrap()),
    }
}

pub async fn connect(address: &Path) -> Client {
    let uri = format!("unix:{}", address.display());
    Client::new(tonic::transport::Endpoint::try_from(uri).unwrap().connect().await.unwrap())
}

pub fn labels(pairs: &[(&str, &str)]) -> Labels {
    pairs.iter().map(|(name, value)| ((*name).into(), (*value).into())).collect()
}

pub fn gc_root() -> Labels {
    labels(&[("containerd.io/gc.root", "2026-01-01T00:00:00Z")])
}

/// Asserts that a call failed with this code.
#[track_caller]
pub fn refused<T: std::fmt::Debug>(result: Result<T, Status>, code: Code) -> String {
    let status = result.unwrap_err();
    assert_eq!(status.code(), code, "{status:?}");
    status.message().to_owned()
}

/// What a snapshot's mounts show, at a path; unmounted when dropped.
pub struct Mounted(pub PathBuf);

impl Mounted {
    pub fn at(target: &Path, mounts: &[Mount]) -> Self {
        fs::create_dir_all(target).unwrap();
        let [mount] = mounts else { panic!("one mount, not {mounts:?}") };
        mount_one(mount, target).unwrap_or_else(|e| panic!("{mount:?}: {e}"));
        Self(target.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        mount::unmount(&self.0).expect("unmount");
    }
}

/// Mounts as containerd's mount package does: what makes the options longer than a page is shortened there by a change
/// of directory, here avoided by the new mount API.
fn mount_one(mount: &Mount, target: &Path) -> plyfs_sys::Result<()> {
    if mount.r#type == "bind" {
        mount::bind(Path::new(&mount.source), target, mount.options.iter().any(|o| o == "rbind"))?;
        if mount.options.iter().any(|o| o == "ro") {
            mount::remount_bind(target, MountFlags::RDONLY)?;
        }
        return Ok(());
    }
    assert_eq!(mount.r#type, "overlay");
    let options = mount.options.join(",");
    if options.len() < 4096 {
        return mount::mount(c"overlay", target, c"overlay", MountFlags::empty(), options.as_bytes());
    }
    mount_long(mount, target)
}

fn mount_long(mount: &Mount, target: &Path) -> plyfs_sys::Result<()> {
    let mut pairs = Vec::new();
    for option in &mount.options {
        match option.split_once('=') {
            Some(("lowerdir", lowers)) => {
                pairs.extend(lowers.split(':').map(|lower| ("lowerdir+".to_owned(), lower.to_owned())));
            }
            Some((key, value)) => pairs.push((key.to_owned(), value.to_owned())),
            None => panic!("unexpected option {option}"),
        }
    }
    let pairs: Vec<_> = pairs.iter().map(|(k, v)| (c(k), c(v))).collect();
    let parameters: Vec<_> = pairs.iter().map(|(k, v)| Parameter::Text(k, v)).collect();
    let detached = mount::new_filesystem(c"overlay", &parameters, 0)?;
    mount::attach(detached.as_fd(), rustix::fs::CWD, target)
}

fn c(text: &str) -> CString {
    CString::new(text).unwrap()
}

/// One line for every entry of a tree: path, type, mode, owner, and content.
pub fn tree(root: &Path) -> Vec<String> {
    let mut lines = Vec::new();
    let mut pending = vec![root.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let rel = path.strip_prefix(root).unwrap().display().to_string();
        let content = if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|e| e.unwrap().path()));
            "dir".to_owned()
        } else if meta.is_symlink() {
            format!("-> {}", fs::read_link(&path).unwrap().display())
        } else {
            format!("{:?}", String::from_utf8_lossy(&fs::read(&path).unwrap()))
        };
        let mode = meta.permissions().mode() & 0o7777;
        lines.push(format!("/{rel} {mode:o} {}:{} {content}", meta.uid(), meta.gid()));
    }
    lines.sort();
    lines
}

/// Writes a file with a mode that does not depend on the umask.
pub fn write(path: impl AsRef<Path>, content: &str, mode: u32) {
    fs::write(&path, content).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}

/// Makes a directory with a mode that does not depend on the umask.
pub fn mkdir(path: impl AsRef<Path>, mode: u32) {
    fs::create_dir(&path).unwrap();
    fs::set_permissions(&path, fs::Permissions::from_mode(mode)).unwrap();
}
