//! kill -9 at random points: what was answered holds, what was under way happened or did not, nothing is left over.
//!
//! `PLYFS_CRASH_ROUNDS` says how often (12 unless told), `PLYFS_CRASH_SEED` repeats a run.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use common::process::{Process, serve_if_told};
use common::{Client, connect, list};
use plyfs_snapshotter::proto::snapshots as api;
use plyfs_snapshotter::proto::snapshots::Kind;

const CLIENTS: usize = 3;
/// How many layers a client stacks before it takes them down again.
const HEIGHT: usize = 6;

#[test]
fn serves_in_a_process_of_its_own() {
    serve_if_told();
}

/// What a client knows to exist: by name, kind and content. A change is entered as pending before it is asked for.
#[derive(Default)]
struct Model {
    snapshots: BTreeMap<String, (Kind, String)>,
    pending: Option<Change>,
}

#[derive(Clone)]
enum Change {
    Prepare(String),
    Commit { key: String, name: String },
    Remove(String),
}

impl Model {
    fn apply(&mut self, change: Change, content: String) {
        match change {
            Change::Prepare(key) => {
                self.snapshots.insert(key, (Kind::Active, content));
            }
            Change::Commit { key, name } => {
                let (_, content) = self.snapshots.remove(&key).unwrap();
                self.snapshots.insert(name, (Kind::Committed, content));
            }
            Change::Remove(key) => {
                self.snapshots.remove(&key);
            }
        }
    }

    /// Looks which way the interrupted change went.
    fn settle(&mut self, found: &BTreeMap<String, api::Info>) {
        let Some(change) = self.pending.take() else { return };
        let happened = match &change {
            Change::Prepare(key) => found.contains_key(key),
            Change::Commit { name, .. } => found.contains_key(name),
            Change::Remove(key) => !found.contains_key(key),
        };
        if happened {
            self.apply(change, String::new());
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_killed_snapshotter_keeps_what_it_answered_and_leaves_nothing_behind() {
    let rounds = number("PLYFS_CRASH_ROUNDS").unwrap_or(12);
    let seed = number("PLYFS_CRASH_SEED").unwrap_or_else(|| u64::from(std::process::id()));
    eprintln!("PLYFS_CRASH_SEED={seed}");
    let mut random = Random(seed | 1);
    let dir = tempfile::Builder::new().prefix("snapshotter-").tempdir().unwrap();
    let models: Vec<_> = (0..CLIENTS).map(|_| Arc::new(Mutex::new(Model::default()))).collect();
    let mut changes = 0;
    for round in 0..rounds {
        let process = Process::start(dir.path(), "kernel");
        let mut client = connect(&dir.path().join("s.sock")).await;
        check(&mut client, dir.path(), &models, &format!("round {round}")).await;
        let tasks: Vec<_> = models
            .iter()
            .enumerate()
            .map(|(n, model)| tokio::spawn(work(client.clone(), n, Arc::clone(model))))
            .collect();
        tokio::time::sleep(Duration::from_millis(20 + random.below(300))).await;
        process.kill();
        for task in tasks {
            changes += task.await.unwrap();
        }
    }
    let process = Process::start(dir.path(), "kernel");
    let mut client = connect(&dir.path().join("s.sock")).await;
    check(&mut client, dir.path(), &models, "the end").await;
    process.end();
    assert!(changes > rounds, "only {changes} changes were answered in {rounds} rounds: nothing was tested");
}

/// Stacks snapshots and takes them down until the snapshotter is gone; says how many changes were answered.
async fn work(mut client: Client, number: usize, model: Arc<Mutex<Model>>) -> u64 {
    let mut answered = 0;
    loop {
        let (change, parent) = next(&model.lock().unwrap().snapshots, number);
        model.lock().unwrap().pending = Some(change.clone());
        let Some(content) = ask(&mut client, &change, &parent).await else { return answered };
        let mut model = model.lock().unwrap();
        model.pending = None;
        model.apply(change, content);
        answered += 1;
    }
}

/// The next change, and the parent if one is prepared: a prepared snapshot is committed; below the height one is prepared
/// on the top; at the height a mark is set, and as long as it is there the top is removed.
fn next(snapshots: &BTreeMap<String, (Kind, String)>, client: usize) -> (Change, String) {
    let (key, falling) = (format!("{client}-key"), format!("{client}-falling"));
    let name = |level: usize| format!("{client}-level-{level}");
    let height = snapshots.values().filter(|(kind, _)| *kind == Kind::Committed).count();
    let top = height.checked_sub(1).map(name);
    if snapshots.contains_key(&key) {
        return (Change::Commit { key, name: name(height) }, String::new());
    }
    if snapshots.contains_key(&falling) {
        return (Change::Remove(top.unwrap_or(falling)), String::new());
    }
    if height == HEIGHT {
        return (Change::Prepare(falling), String::new());
    }
    (Change::Prepare(key), top.unwrap_or_default())
}

/// Asks for a change; a prepared snapshot is filled. None once the snapshotter is gone.
async fn ask(client: &mut Client, change: &Change, parent: &str) -> Option<String> {
    let answer = match change.clone() {
        Change::Prepare(key) => {
            let content = key.clone();
            let request = api::PrepareSnapshotRequest { key, parent: parent.into(), ..Default::default() };
            client.prepare(request).await.map(|answer| {
                fs::write(diff(&answer.into_inner().mounts[0]).join("content"), &content).unwrap();
                content
            })
        }
        Change::Commit { key, name } => {
            let request = api::CommitSnapshotRequest { key, name, ..Default::default() };
            client.commit(request).await.map(|_| String::new())
        }
        Change::Remove(key) => {
            let request = api::RemoveSnapshotRequest { key, ..Default::default() };
            client.remove(request).await.map(|_| String::new())
        }
    };
    match answer {
        Ok(content) => Some(content),
        Err(e) => {
            let gone =
                matches!(e.code(), tonic::Code::Unavailable | tonic::Code::Unknown | tonic::Code::Cancelled);
            assert!(gone, "{e:?}");
            None
        }
    }
}

fn diff(mount: &plyfs_snapshotter::proto::types::Mount) -> PathBuf {
    match mount.options.iter().find_map(|option| option.strip_prefix("upperdir=")) {
        Some(upper) => upper.into(),
        None => mount.source.clone().into(),
    }
}

/// Everything answered is there, with its content, and nothing else is.
async fn check(client: &mut Client, dir: &Path, models: &[Arc<Mutex<Model>>], when: &str) {
    let found: BTreeMap<_, _> =
        list(client, &[]).await.unwrap().into_iter().map(|info| (info.name.clone(), info)).collect();
    let mut expected = BTreeMap::new();
    for model in models {
        let mut model = model.lock().unwrap();
        model.settle(&found);
        expected.extend(model.snapshots.clone());
    }
    let names: BTreeSet<_> = found.keys().collect();
    assert_eq!(names, expected.keys().collect(), "{when}");
    for (name, (kind, content)) in &expected {
        assert_eq!(found[name].kind(), *kind, "{when}: {name}");
        if *kind == Kind::Active {
            let request = api::MountsRequest { key: name.clone(), ..Default::default() };
            let mounts = client.mounts(request).await.unwrap().into_inner().mounts;
            let path = diff(&mounts[0]).join("content");
            assert_eq!(fs::read_to_string(&path).unwrap_or_default(), *content, "{when}: {}", path.display());
        }
        let request = api::UsageRequest { key: name.clone(), ..Default::default() };
        let usage = client.usage(request).await.unwrap().into_inner();
        assert!(usage.inodes >= if content.is_empty() { 1 } else { 2 }, "{when}: {name} {usage:?}");
    }
    client.cleanup(api::CleanupRequest::default()).await.unwrap();
    for (name, count) in [("overlay2", expected.len()), ("staging", 0), ("trash", 0)] {
        let left = fs::read_dir(dir.join("root").join(name)).unwrap().count();
        assert_eq!(left, count, "{when}: entries of {name}");
    }
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().map(|text| text.parse().expect("a number"))
}

/// xorshift64
struct Random(u64);

impl Random {
    fn below(&mut self, limit: u64) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0 % limit
    }
}
