//! What plyfs promises beyond containerd's suite: usage, deletion, restarts, sockets and metrics.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use common::{Mounted, Served, cannot_mount, config, connect, labels, refused, tree, write};
use plyfs_snapshotter::{Backend, Config, Error, Options, Server};
use plyfs_sys::mount;
use tonic::Code;

fn count(dir: &Path) -> usize {
    fs::read_dir(dir).unwrap().count()
}

#[tokio::test(flavor = "multi_thread")]
async fn usage_is_that_of_the_layer_alone_with_hard_links_once() {
    let mut s = Served::start().await;
    s.prepare("k", "").await.unwrap();
    let empty = s.usage("k").await.unwrap();
    assert_eq!(empty.inodes, 1);
    let diff = s.root().join("overlay2/1/diff");
    write(diff.join("a"), &"x".repeat(1 << 20), 0o644);
    fs::hard_link(diff.join("a"), diff.join("b")).unwrap();
    let full = s.usage("k").await.unwrap();
    assert_eq!(full.inodes, 2);
    assert!((1 << 20..3 << 19).contains(&(full.size - empty.size)), "{full:?}");
    s.commit("c", "k").await.unwrap();
    assert_eq!(s.usage("c").await.unwrap(), full);
    s.prepare("on-top", "c").await.unwrap();
    assert_eq!(s.usage("on-top").await.unwrap().inodes, 1);
    s.view("v", "c").await.unwrap();
    assert_eq!(s.usage("v").await.unwrap().inodes, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn cleanup_takes_orphans_and_waits_until_removed_trees_are_gone() {
    let mut s = Served::start().await;
    s.prepare("k", "").await.unwrap();
    for n in 0..500 {
        fs::create_dir_all(s.root().join(format!("overlay2/1/diff/{n}/a/b"))).unwrap();
    }
    s.prepare("stays", "").await.unwrap();
    s.remove("k").await.unwrap();
    assert!(!s.root().join("overlay2/1").exists(), "moved away at once");
    fs::create_dir_all(s.root().join("overlay2/99/diff")).unwrap();
    fs::create_dir(s.root().join("overlay2/junk")).unwrap();
    s.cleanup().await.unwrap();
    assert_eq!(count(&s.root().join("overlay2")), 1);
    assert_eq!(count(&s.root().join("trash")), 0);
    assert_eq!(s.mounts("stays").await.unwrap()[0].r#type, "bind");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_restart_finds_everything_and_leaves_what_is_mounted_alone() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    s.prepare("x", "").await.unwrap();
    s.commit("base", "x").await.unwrap();
    let mounts = s.prepare("running", "base").await.unwrap();
    let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
    write(mounted.0.join("before"), "1", 0o644);
    let before = s.list(&[]).await.unwrap();

    let dir = s.stop().await;
    write(mounted.0.join("meanwhile"), "2", 0o644);
    assert!(!dir.path().join("s.sock").exists(), "the socket goes with the service");
    fs::create_dir_all(dir.path().join("root/staging/new-7/diff/half")).unwrap();
    fs::create_dir_all(dir.path().join("root/overlay2/77/diff/half")).unwrap();
    fs::create_dir_all(dir.path().join("root/trash/removed-3/left")).unwrap();

    let mut s = Served::start_in(dir).await;
    assert_eq!(s.list(&[]).await.unwrap(), before);
    assert_eq!(s.mounts("running").await.unwrap(), mounts);
    s.cleanup().await.unwrap();
    for (name, left) in [("staging", 0), ("trash", 0), ("overlay2", 2)] {
        assert_eq!(count(&s.root().join(name)), left, "{name}");
    }
    write(mounted.0.join("after"), "3", 0o644);
    let files = tree(&mounted.0);
    drop(mounted);
    s.commit("done", "running").await.unwrap();
    let mounted = Mounted::at(&s.dir.path().join("m"), &s.view("v", "done").await.unwrap());
    assert_eq!(tree(&mounted.0), files);
    assert_eq!(files.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_root_and_a_socket_are_served_once_and_a_dead_socket_is_replaced() {
    let s = Served::start().await;
    assert!(matches!(Server::bind(&config(s.dir.path())), Err(Error::InUse(_))));
    let other = Config { root: s.dir.path().join("other"), ..config(s.dir.path()) };
    assert!(matches!(Server::bind(&other), Err(Error::Serve { .. })));
    let socket = s.dir.path().join("s.sock");
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    let dir = s.stop().await;
    drop(std::os::unix::net::UnixListener::bind(&socket).unwrap());
    assert!(socket.exists());
    let mut s = Served::start_in(dir).await;
    assert_eq!(s.list(&[]).await.unwrap(), []);
    let dir = s.stop().await;
    write(&socket, "precious", 0o644);
    assert!(matches!(Server::bind(&config(dir.path())), Err(Error::Serve { .. })));
    assert_eq!(fs::read_to_string(&socket).unwrap(), "precious");
}

#[tokio::test(flavor = "multi_thread")]
async fn many_clients_at_once_get_each_their_own_snapshot() {
    let mut s = Served::start().await;
    s.prepare("x", "").await.unwrap();
    s.commit("base", "x").await.unwrap();
    let socket = s.dir.path().join("s.sock");
    let tasks: Vec<_> = (0..16)
        .map(|n| {
            let socket = socket.clone();
            tokio::spawn(async move {
                let mut client = connect(&socket).await;
                for round in 0..4 {
                    let request = plyfs_snapshotter::proto::snapshots::PrepareSnapshotRequest {
                        key: format!("k{}", (n + round) % 16),
                        parent: "base".into(),
                        ..Default::default()
                    };
                    match client.prepare(request).await {
                        Ok(_) => {}
                        Err(e) => assert_eq!(e.code(), Code::AlreadyExists),
                    }
                }
            })
        })
        .collect();
    for task in tasks {
        task.await.unwrap();
    }
    assert_eq!(s.list(&["kind==active"]).await.unwrap().len(), 16);
    assert_eq!(count(&s.root().join("overlay2")), 17);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mapped_snapshot_belongs_to_the_mapped_root() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    let map = |uid: &str, gid: &str| {
        labels(&[("containerd.io/snapshot/uidmapping", uid), ("containerd.io/snapshot/gidmapping", gid)])
    };
    refused(s.prepare_with("k", "", map("1:1000:1", "0:1:1")).await, Code::InvalidArgument);
    refused(s.prepare_with("k", "", map("nonsense", "0:1:1")).await, Code::InvalidArgument);
    s.prepare("x", "").await.unwrap();
    s.commit("base", "x").await.unwrap();
    let mounts = s.prepare_with("k", "base", map("0:1000:65536", "0:2000:65536")).await.unwrap();
    assert_eq!(mounts[0].options[..2], ["uidmap=0:1000:65536", "gidmap=0:2000:65536"]);
    let meta = fs::metadata(s.root().join("overlay2/2/diff")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (1000, 2000));
}

#[tokio::test(flavor = "multi_thread")]
async fn with_the_fuse_backend_overlays_are_mounted_by_plyfs_and_binds_by_the_kernel() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options { backend: Backend::Fuse, sync: true };
    let server = Server::bind(&Config { options, ..config(dir.path()) }).unwrap();
    let running = tokio::spawn(server.run(std::future::pending()));
    let mut client = connect(&dir.path().join("s.sock")).await;
    let request = |key: &str, parent: &str| plyfs_snapshotter::proto::snapshots::PrepareSnapshotRequest {
        key: key.into(),
        parent: parent.into(),
        ..Default::default()
    };
    let first = client.prepare(request("x", "")).await.unwrap().into_inner().mounts;
    assert_eq!(first[0].r#type, "bind");
    let commit = plyfs_snapshotter::proto::snapshots::CommitSnapshotRequest {
        name: "base".into(),
        key: "x".into(),
        ..Default::default()
    };
    client.commit(commit).await.unwrap();
    let second = client.prepare(request("y", "base")).await.unwrap().into_inner().mounts;
    assert_eq!((second[0].r#type.as_str(), second[0].source.as_str()), ("fuse3.plyfs", "plyfs"));
    let root = dir.path().join("root").canonicalize().unwrap();
    let lower = format!("lowerdir={}/overlay2/1/diff", root.display());
    assert_eq!(second[0].options.last(), Some(&lower));
    assert!(!second[0].options.iter().any(|o| o.starts_with("index")), "{second:?}");
    running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn metrics_count_operations_and_snapshots() {
    let mut s = Served::start().await;
    s.prepare("k", "").await.unwrap();
    refused(s.stat("nothing").await, Code::NotFound);
    let port = s.metrics_port.unwrap();
    let get = move |path: &str| {
        let mut connection = std::net::TcpStream::connect(("127.0.0.1", port)).unwrap();
        write!(connection, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
        let mut answer = String::new();
        connection.read_to_string(&mut answer).unwrap();
        answer
    };
    let (page, other) = tokio::task::spawn_blocking(move || (get("/metrics"), get("/"))).await.unwrap();
    for line in [
        "plyfs_snapshotter_operations_total{operation=\"prepare\",code=\"ok\"} 1",
        "plyfs_snapshotter_operations_total{operation=\"stat\",code=\"not_found\"} 1",
        "plyfs_snapshotter_operation_duration_seconds_count{operation=\"prepare\"} 1",
        "plyfs_snapshotter_snapshots{kind=\"active\"} 1",
        "plyfs_snapshotter_snapshots{kind=\"committed\"} 0",
        "# EOF",
    ] {
        assert!(page.lines().any(|found| found == line), "{line} is not in\n{page}");
    }
    assert!(page.starts_with("HTTP/1.1 200"));
    assert!(other.starts_with("HTTP/1.1 404"), "{other}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_is_an_error_said_so_and_over_when_there_is_space_again() {
    if cannot_mount() {
        return;
    }
    let dir = tempfile::Builder::new().prefix("snapshotter-").tempdir().unwrap();
    let root = dir.path().join("root");
    fs::create_dir(&root).unwrap();
    mount::mount(c"tmpfs", &root, c"tmpfs", mount::MountFlags::empty(), b"size=8m,mode=700").unwrap();
    let mounted = Detached(root.clone());
    let mut s = Served::start_in(dir).await;
    s.prepare("before", "").await.unwrap();
    let mut filler = fs::File::create(root.join("filler")).unwrap();
    while filler.write_all(&[7; 4096]).is_ok() {}

    let long = labels(&[("l", &"x".repeat(4000))]);
    let mut prepared = 0;
    let error = loop {
        match s.prepare_with(&format!("k{prepared}"), "", long.clone()).await {
            Ok(_) => prepared += 1,
            Err(error) => break error,
        }
        assert!(prepared < 5000, "the disk never filled");
    };
    assert_eq!(error.code(), Code::ResourceExhausted, "{error:?}");
    refused(s.prepare_with("again", "", long.clone()).await, Code::ResourceExhausted);

    fs::remove_file(root.join("filler")).unwrap();
    drop(filler);
    assert_eq!(s.list(&[]).await.unwrap().len(), 1 + prepared);
    s.prepare_with("again", "", long).await.unwrap();
    s.remove("before").await.unwrap();
    s.cleanup().await.unwrap();
    assert_eq!(count(&root.join("overlay2")), prepared + 1);
    let dir = s.stop().await;
    let s = Served::start_in(dir).await;
    let dir = s.stop().await;
    drop(mounted);
    drop(dir);
}

/// A mount that goes, in use or not, when the test ends.
struct Detached(PathBuf);

impl Drop for Detached {
    fn drop(&mut self) {
        mount::unmount_detached(&self.0).expect("unmount");
    }
}
