//! The engine's invariants under concurrency and pressure. In debug builds every lock taken here asserts its order.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a test may fail by panicking"
)]

mod common;
#[path = "common/view.rs"]
mod view;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use common::{Stack, list, me, read, walk, write};
use plyfs_core::{Data, Entry, Errno, NodeId, Overlay, SetAttr, Settings};
use plyfs_sys::Faults;
use view::{Names, merged};

const O_WRONLY: u32 = 1;
const O_RDWR: u32 = 2;
const O_TRUNC: u32 = 0o1000;
const O_APPEND: u32 = 0o2000;

fn chmod(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

/// Writes at the start of a file that is known by its node.
fn write_node(overlay: &Overlay, node: NodeId, data: &[u8]) -> Result<(), Errno> {
    let opened = overlay.open(&me(), node, O_RDWR, false)?;
    let written = overlay.write(opened.handle, 0, data, None);
    overlay.release(opened.handle);
    written.map(drop)
}

fn read_node(overlay: &Overlay, node: NodeId) -> Result<Vec<u8>, Errno> {
    let opened = overlay.open(&me(), node, 0, false)?;
    let mut data = vec![0; 4096];
    let count = overlay.read(opened.handle, 0, &mut data);
    overlay.release(opened.handle);
    data.truncate(count?);
    Ok(data)
}

#[test]
fn a_writer_is_never_served_from_a_lower_backing() {
    for flags in [O_WRONLY, O_RDWR, O_RDWR | O_TRUNC, O_WRONLY | O_APPEND] {
        let stack = Stack::new(1);
        stack.file("l0/d/f", "lower");
        let overlay = stack.open("");
        let node = walk(&overlay, "d/f").unwrap();
        let reader = overlay.open(&me(), node, 0, false).unwrap();
        assert!(matches!(reader.data, Data::LowerOfWritable), "a lower file is not shared under an upper");
        let writer = overlay.open(&me(), node, flags, false).unwrap();
        let Data::Shareable(shared) = &writer.data else { panic!("an upper file can be shared") };
        let stat = shared.file().stat().unwrap();
        let upper = fs::metadata(stack.path("u/d/f")).unwrap();
        assert_eq!((stat.ino, stat.dev()), (upper.ino(), upper.dev()), "flags {flags:o}");
        overlay.write(writer.handle, 0, b"new", None).unwrap();
        assert_eq!(fs::read_to_string(stack.path("l0/d/f")).unwrap(), "lower");
        let again = overlay.open(&me(), node, 0, false).unwrap();
        assert!(matches!(again.data, Data::Shareable(_)), "after copy-up readers share the upper file");
    }
}

#[test]
fn a_handle_that_was_opened_for_reading_cannot_write_to_a_lower_file() {
    let stack = Stack::new(1);
    stack.file("l0/f", "lower");
    let overlay = stack.open("");
    let reader = overlay.open(&me(), walk(&overlay, "f").unwrap(), 0, false).unwrap();
    assert_eq!(overlay.write(reader.handle, 0, b"new", None), Err(Errno::ROFS));
    assert_eq!(overlay.fallocate(reader.handle, 0, 0, 10), Err(Errno::ROFS));
    assert_eq!(fs::read_to_string(stack.path("l0/f")).unwrap(), "lower");
}

#[test]
fn eight_threads_that_write_one_file_copy_it_up_once() {
    let stack = Stack::new(1);
    stack.file("l0/d/e/f", &"x".repeat(100_000));
    let faults = Faults::new();
    let overlay = stack.open_with("", &Settings { faults: faults.clone(), ..Settings::default() });
    let node = walk(&overlay, "d/e/f").unwrap();
    faults.count();
    let start = Barrier::new(8);
    thread::scope(|scope| {
        for number in 0..8_u8 {
            let (overlay, start) = (&overlay, &start);
            scope.spawn(move || {
                start.wait();
                let opened = overlay.open(&me(), node, O_RDWR, false).unwrap();
                overlay.write(opened.handle, u64::from(number), &[number], None).unwrap();
                overlay.release(opened.handle);
            });
        }
    });
    let hits = faults.hits_by_point();
    assert_eq!(hits.get("copy_data"), Some(&1), "{hits:?}");
    assert_eq!(hits.get("rename"), Some(&2), "each of the two directories was copied up once: {hits:?}");
    let content = fs::read(stack.path("u/d/e/f")).unwrap();
    assert_eq!(content[..8], [0, 1, 2, 3, 4, 5, 6, 7]);
    assert_eq!(content.len(), 100_000);
}

#[test]
fn everybody_else_goes_on_while_a_large_file_is_copied_up() {
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::TempDir::new_in(memory) } else { tempfile::TempDir::new() };
    let stack = Stack::within(dir.unwrap(), 1);
    let large = fs::File::create(stack.path("l0/large")).unwrap();
    let block = vec![7; 1 << 20];
    for number in 0..256 {
        large.write_all_at(&block, number << 20).unwrap();
    }
    stack.file("l0/small", "small").file("l0/d/f", "");
    let overlay = stack.open("");
    let node = walk(&overlay, "large").unwrap();
    let done = AtomicBool::new(false);
    let (others, longest) = thread::scope(|scope| {
        let copier = scope.spawn(|| {
            let started = Instant::now();
            overlay.open(&me(), node, O_RDWR, false).unwrap();
            done.store(true, Ordering::SeqCst);
            started.elapsed()
        });
        let mut rounds = Vec::new();
        while !done.load(Ordering::SeqCst) {
            rounds.push(use_the_rest(&overlay, node, rounds.len()));
        }
        let took = copier.join().unwrap();
        let longest = rounds.iter().max().copied().unwrap_or_default();
        assert!(longest < took / 2 + Duration::from_millis(20), "a round took {longest:?} of {took:?}");
        (rounds.len(), longest)
    });
    assert!(others >= 5, "only {others} rounds beside the copy-up, the longest {longest:?}");
}

/// Looks up, lists, stats, creates, writes and removes beside the inode that is being copied up.
fn use_the_rest(overlay: &Overlay, large: NodeId, number: usize) -> Duration {
    let started = Instant::now();
    overlay.getattr(large, None).unwrap();
    assert!(overlay.lookup(NodeId::ROOT, b"large").unwrap().is_some());
    assert!(overlay.lookup(NodeId::ROOT, b"none").unwrap().is_none());
    list(overlay, "");
    let name = format!("new{number}");
    let (_, opened) = overlay.create(&me(), NodeId::ROOT, name.as_bytes(), 0o644, O_RDWR).unwrap();
    overlay.write(opened.handle, 0, b"x", None).unwrap();
    overlay.release(opened.handle);
    overlay.unlink(NodeId::ROOT, name.as_bytes()).unwrap();
    started.elapsed()
}

#[test]
fn a_file_that_is_renamed_all_the_time_is_always_reached_by_its_node() {
    let stack = Stack::new(1);
    stack.file("l0/one/f", "content").file("l0/two/g", "other");
    let overlay = stack.open("");
    let (one, two) = (walk(&overlay, "one").unwrap(), walk(&overlay, "two").unwrap());
    let node = walk(&overlay, "one/f").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for number in 0..3 {
            let (overlay, stop) = (&overlay, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    overlay.getattr(node, None).unwrap();
                    overlay.setattr(&me(), node, None, &chmod(0o640 + number)).unwrap();
                    assert_eq!(read_node(overlay, node).unwrap(), b"content");
                    write_node(overlay, node, b"content").unwrap();
                    overlay.set_xattr(node, b"user.a", b"b", 0, false).unwrap();
                }
            });
        }
        for _ in 0..1500 {
            overlay.rename(one, b"f", two, b"f", 0).unwrap();
            overlay.rename(two, b"f", one, b"f2", 0).unwrap();
            overlay.rename(one, b"f2", two, b"g", 2).unwrap();
            overlay.rename(two, b"g", one, b"f2", 2).unwrap();
            overlay.rename(one, b"f2", one, b"f", 0).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(read(&overlay, "one/f"), "content");
    assert_eq!(read(&overlay, "two/g"), "other");
}

#[test]
fn what_lies_below_a_renamed_directory_is_always_reached_though_its_descriptors_are_evicted() {
    let stack = Stack::new(2);
    for number in 0..60 {
        stack.file(&format!("l{}/a/b/c{number}/f", number % 2), "content");
    }
    // The least that there is: every step of a path is opened anew all the time.
    let overlay = stack.open_with("", &Settings { open_directories: 1, ..Settings::default() });
    overlay.mkdir(&me(), NodeId::ROOT, b"other", 0o755).unwrap();
    let other = walk(&overlay, "other").unwrap();
    let nodes: Vec<NodeId> =
        (0..60).map(|number| walk(&overlay, &format!("a/b/c{number}/f")).unwrap()).collect();
    let dirs: Vec<NodeId> =
        (0..60).map(|number| walk(&overlay, &format!("a/b/c{number}")).unwrap()).collect();
    let middle = walk(&overlay, "a").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in 0..3_usize {
            let (overlay, stop, nodes, dirs) = (&overlay, &stop, &nodes, &dirs);
            scope.spawn(move || {
                let mut at = worker;
                while !stop.load(Ordering::Relaxed) {
                    at = (at + 7) % nodes.len();
                    assert_eq!(read_node(overlay, nodes[at]).unwrap(), b"content");
                    write_node(overlay, nodes[at], b"content").unwrap();
                    let name = format!("new{worker}");
                    overlay.mkdir(&me(), dirs[at], name.as_bytes(), 0o755).unwrap();
                    overlay.rmdir(dirs[at], name.as_bytes()).unwrap();
                    let mut names = Names::default();
                    overlay.read_dir(dirs[at], 0, false, &mut names).unwrap();
                    assert!(names.0.iter().any(|(name, _)| name == b"f"));
                }
            });
        }
        for _ in 0..150 {
            overlay.rename(NodeId::ROOT, b"a", other, b"a2", 0).unwrap();
            overlay.rename(middle, b"b", middle, b"b2", 0).unwrap();
            overlay.rename(other, b"a2", NodeId::ROOT, b"a", 0).unwrap();
            overlay.rename(middle, b"b2", middle, b"b", 0).unwrap();
        }
        stop.store(true, Ordering::Relaxed);
    });
    let before = merged(&overlay);
    drop(overlay);
    assert_eq!(before, merged(&stack.open("")), "and a new assembly shows the same");
}

#[test]
fn a_removed_directory_stays_usable_for_who_has_it_though_its_descriptor_was_evicted() {
    let stack = Stack::new(1);
    stack.file("l0/gone/f", "").file("l0/replaced/f", "");
    for number in 0..40 {
        stack.file(&format!("l0/d{number}/f"), "");
    }
    let overlay = stack.open_with("", &Settings { open_directories: 1, ..Settings::default() });
    overlay.mkdir(&me(), NodeId::ROOT, b"new", 0o711).unwrap();
    for name in ["gone", "replaced"] {
        overlay.unlink(walk(&overlay, name).unwrap(), b"f").unwrap();
    }
    let (gone, replaced) = (walk(&overlay, "gone").unwrap(), walk(&overlay, "replaced").unwrap());
    overlay.rmdir(NodeId::ROOT, b"gone").unwrap();
    overlay.rename(NodeId::ROOT, b"new", NodeId::ROOT, b"replaced", 0).unwrap();
    for number in 0..40 {
        let dir = walk(&overlay, &format!("d{number}")).unwrap();
        overlay.setattr(&me(), dir, None, &chmod(0o700)).unwrap();
    }
    for node in [gone, replaced] {
        overlay.setattr(&me(), node, None, &chmod(0o701)).unwrap();
        assert_eq!(overlay.getattr(node, None).unwrap().mode & 0o777, 0o701);
        let made = overlay.mkdir(&me(), node, b"x", 0o755);
        assert_eq!(made.unwrap_err(), Errno::NOENT, "nothing is made in it");
        assert_eq!(overlay.lookup(node, b"f").unwrap(), None, "what it hid does not come back");
        let mut names = Names::default();
        overlay.read_dir(node, 0, true, &mut names).unwrap();
        assert!(names.0.is_empty());
    }
    assert_eq!(common::attr(&overlay, "replaced").mode & 0o777, 0o711, "the other one has the name now");
}

#[test]
fn a_file_that_is_removed_while_it_is_copied_up_goes_on_for_who_opens_it() {
    let stack = Stack::new(1);
    for number in 0..200 {
        stack.file(&format!("l0/d/f{number}"), "lower");
    }
    let overlay = stack.open("");
    let dir = walk(&overlay, "d").unwrap();
    for number in 0..200 {
        let name = format!("f{number}");
        let node = overlay.lookup(dir, name.as_bytes()).unwrap().unwrap().node;
        let start = Barrier::new(2);
        thread::scope(|scope| {
            scope.spawn(|| {
                start.wait();
                let opened = overlay.open(&me(), node, O_RDWR, false).unwrap();
                overlay.write(opened.handle, 0, b"UP", None).unwrap();
                let mut data = [0; 5];
                overlay.read(opened.handle, 0, &mut data).unwrap();
                assert_eq!(&data, b"UPwer");
                overlay.getattr(node, None).unwrap();
                overlay.setattr(&me(), node, Some(opened.handle), &chmod(0o600)).unwrap();
                overlay.release(opened.handle);
            });
            start.wait();
            overlay.unlink(dir, name.as_bytes()).unwrap();
        });
        assert_eq!(overlay.lookup(dir, name.as_bytes()).unwrap(), None);
        assert_eq!(read_node(&overlay, node).unwrap(), b"UPwer");
    }
    assert!(list(&overlay, "d").is_empty());
    drop(overlay);
    assert!(list(&stack.open(""), "d").is_empty());
}

#[test]
fn of_a_creation_in_a_directory_and_its_removal_one_wins() {
    let stack = Stack::new(1);
    for number in 0..300 {
        match number % 3 {
            0 => fs::create_dir(stack.path(&format!("l0/d{number}"))).unwrap(),
            1 => fs::create_dir(stack.path(&format!("u/d{number}"))).unwrap(),
            _ => {
                stack.file(&format!("l0/d{number}/x"), "lower");
            }
        }
    }
    let overlay = stack.open("");
    let mut created = 0;
    for number in 0..300 {
        let name = format!("d{number}");
        let node = walk(&overlay, &name).unwrap();
        if number % 3 == 2 {
            overlay.unlink(node, b"x").unwrap();
        }
        let start = Barrier::new(2);
        let (made, removed) = thread::scope(|scope| {
            let maker = scope.spawn(|| {
                start.wait();
                overlay.mkdir(&me(), node, b"x", 0o755).map(drop)
            });
            start.wait();
            let removed = overlay.rmdir(NodeId::ROOT, name.as_bytes());
            (maker.join().unwrap(), removed)
        });
        match (made, removed) {
            (Ok(()), Err(Errno::NOTEMPTY)) => {
                created += 1;
                assert_eq!(list(&overlay, &name), ["x"]);
            }
            (Err(Errno::NOENT), Ok(())) => {
                assert_eq!(overlay.lookup(NodeId::ROOT, name.as_bytes()).unwrap(), None);
            }
            other => panic!("{name}: {other:?}"),
        }
    }
    assert_eq!(list(&overlay, "").len(), created);
    drop(overlay);
    assert_eq!(list(&stack.open(""), "").len(), created);
}

#[test]
fn renames_that_cross_each_other_and_removals_do_not_deadlock() {
    let stack = Stack::new(1);
    stack.file("l0/a/b/c/f", "").file("l0/x/y/z/f", "");
    let overlay = stack.open("");
    let nodes: Vec<NodeId> = ["", "a", "a/b", "a/b/c", "x", "x/y", "x/y/z"]
        .iter()
        .map(|path| walk(&overlay, path).unwrap())
        .collect();
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        for worker in 0..4_usize {
            let (overlay, nodes, done) = (&overlay, &nodes, &done);
            scope.spawn(move || {
                let mut seed = worker * 7919 + 1;
                let mut next = |below: usize| {
                    seed =
                        seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    (seed >> 33) % below
                };
                for _ in 0..800 {
                    let (from, to) = (nodes[next(nodes.len())], nodes[next(nodes.len())]);
                    let (old, new) = (["d", "e"][next(2)], ["d", "e"][next(2)]);
                    // Any of them may meet what another worker did: only the outcome of all counts.
                    let outcome = match next(4) {
                        0 => overlay.mkdir(&me(), from, old.as_bytes(), 0o755).map(drop),
                        1 => overlay.rmdir(from, old.as_bytes()),
                        2 => overlay.rename(from, old.as_bytes(), to, new.as_bytes(), 0),
                        _ => overlay.rename(from, old.as_bytes(), to, new.as_bytes(), 2),
                    };
                    let allowed = [Errno::EXIST, Errno::NOENT, Errno::NOTEMPTY, Errno::INVAL, Errno::LOOP];
                    if let Err(error) = outcome {
                        assert!(allowed.contains(&error), "{error:?}");
                    }
                }
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
    });
    assert_eq!(done.load(Ordering::Relaxed), 4);
    let served = merged(&overlay);
    drop(overlay);
    let found = merged(&stack.open(""));
    assert_eq!(served, found, "{}", view::difference(&served, &found));
}

#[test]
fn a_listing_shows_every_lasting_name_once_whatever_comes_and_goes() {
    let stack = Stack::new(2);
    for number in 0..300 {
        stack.file(&format!("l{}/d/stays{number:03}", number % 2), "");
    }
    for number in 0..50 {
        stack.file(&format!("l0/d/lower{number}"), "");
    }
    let overlay = stack.open("");
    let dir = walk(&overlay, "d").unwrap();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        for worker in 0..2 {
            let (overlay, stop) = (&overlay, &stop);
            scope.spawn(move || {
                while !stop.load(Ordering::Relaxed) {
                    for number in (worker..50).step_by(2) {
                        let name = format!("lower{number}");
                        overlay.unlink(dir, name.as_bytes()).unwrap();
                        let (_, opened) = overlay.create(&me(), dir, name.as_bytes(), 0o644, O_RDWR).unwrap();
                        overlay.release(opened.handle);
                        let moved = format!("moved{number}");
                        overlay.rename(dir, name.as_bytes(), dir, moved.as_bytes(), 0).unwrap();
                        overlay.rename(dir, moved.as_bytes(), dir, name.as_bytes(), 0).unwrap();
                    }
                }
            });
        }
        for round in 0..60 {
            let mut names = Names::default();
            overlay.read_dir(dir, 0, round % 2 == 0, &mut names).unwrap();
            let stays = names.0.iter().filter(|(name, _)| name.starts_with(b"stays")).count();
            assert_eq!(stays, 300);
        }
        stop.store(true, Ordering::Relaxed);
    });
    assert_eq!(list(&overlay, "d").len(), 350);
}

#[test]
fn hard_links_are_one_inode_under_every_name() {
    let stack = Stack::new(1);
    stack.file("l0/f", "content").file("l0/d/other", "");
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    let dir = walk(&overlay, "d").unwrap();
    overlay.link(node, dir, b"g").unwrap();
    write(&overlay, "d/g", 0, "CON");
    assert_eq!(read(&overlay, "f"), "CONtent");
    assert_eq!(common::attr(&overlay, "f"), common::attr(&overlay, "d/g"));
    assert_eq!(common::attr(&overlay, "f").nlink, 2);
    drop(overlay);
    let overlay = stack.open("");
    assert_eq!(walk(&overlay, "f").unwrap(), walk(&overlay, "d/g").unwrap(), "also after a new assembly");
    overlay.rename(NodeId::ROOT, b"f", walk(&overlay, "d").unwrap(), b"g", 0).unwrap();
    assert_eq!(read(&overlay, "f"), "CONtent", "a rename onto the same inode does nothing");
}

#[test]
fn a_file_whose_names_go_all_at_once_stays_for_who_has_it() {
    let stack = Stack::new(1);
    for number in 0..8 {
        fs::create_dir(stack.path(&format!("l0/d{number}"))).unwrap();
    }
    let overlay = stack.open("");
    let dirs: Vec<NodeId> = (0..8).map(|number| walk(&overlay, &format!("d{number}")).unwrap()).collect();
    for _ in 0..50 {
        let (entry, opened) = overlay.create(&me(), NodeId::ROOT, b"f", 0o644, O_RDWR).unwrap();
        overlay.write(opened.handle, 0, b"content", None).unwrap();
        overlay.release(opened.handle);
        for dir in &dirs {
            overlay.link(entry.node, *dir, b"f").unwrap();
        }
        overlay.unlink(NodeId::ROOT, b"f").unwrap();
        let start = Barrier::new(8);
        thread::scope(|scope| {
            for dir in &dirs {
                let (overlay, start) = (&overlay, &start);
                scope.spawn(move || {
                    start.wait();
                    overlay.unlink(*dir, b"f").unwrap();
                });
            }
        });
        assert_eq!(overlay.getattr(entry.node, None).unwrap().nlink, 0);
        assert_eq!(read_node(&overlay, entry.node).unwrap(), b"content");
    }
}

#[test]
fn a_lower_file_that_is_open_shows_what_is_written_after_its_copy_up() {
    let stack = Stack::new(1);
    stack.file("l0/f", "lower");
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    let early = overlay.open(&me(), node, 0, false).unwrap();
    let mut data = [0; 16];
    assert_eq!(overlay.read(early.handle, 0, &mut data).unwrap(), 5);
    write(&overlay, "f", 5, " and upper");
    assert_eq!(overlay.read(early.handle, 0, &mut data).unwrap(), 15);
    assert_eq!(&data[..15], b"lower and upper");
    overlay.unlink(NodeId::ROOT, b"f").unwrap();
    write_node(&overlay, node, b"LOWER").unwrap();
    overlay.read(early.handle, 0, &mut data).unwrap();
    assert_eq!(&data[..15], b"LOWER and upper");
    assert_eq!(overlay.lseek(early.handle, 0, 4).unwrap(), 15);
}

/// Remembers what it was given, as the kernel does.
struct Client<'a> {
    overlay: &'a Overlay,
    lookups: Mutex<BTreeMap<u64, u64>>,
}

impl Client<'_> {
    fn count(&self, entry: Entry) -> NodeId {
        *self.lookups.lock().unwrap().entry(entry.node.0).or_default() += 1;
        entry.node
    }

    fn count_some(&self, outcome: Result<Entry, Errno>) {
        if let Ok(entry) = outcome {
            self.count(entry);
        }
    }

    fn find(&self, parent: NodeId, name: &str) -> Option<NodeId> {
        self.overlay.lookup(parent, name.as_bytes()).unwrap().map(|entry| self.count(entry))
    }

    fn list(&self, dir: NodeId) {
        let mut names = Names::default();
        self.overlay.read_dir(dir, 0, true, &mut names).unwrap();
        for (_, entry) in names.0 {
            entry.map(|entry| self.count(entry));
        }
    }

    fn forget_all(&self) {
        for (node, count) in std::mem::take(&mut *self.lookups.lock().unwrap()) {
            // In two parts, as it may come.
            self.overlay.forget(NodeId(node), count / 2);
            self.overlay.forget(NodeId(node), count - count / 2);
        }
    }
}

/// One of everything that makes, moves or removes nodes, at random.
fn act(client: &Client<'_>, dirs: &[NodeId], next: &mut dyn FnMut(usize) -> usize) {
    let o = client.overlay;
    let (from, to) = (dirs[next(dirs.len())], dirs[next(dirs.len())]);
    let (name, other) = (format!("n{}", next(6)), format!("n{}", next(6)));
    // What fails has counted nothing.
    match next(12) {
        0 => client.count_some(o.mkdir(&me(), from, name.as_bytes(), 0o755)),
        1 => client.count_some(o.symlink(&me(), from, name.as_bytes(), b"t")),
        2 => {
            if let Ok((entry, opened)) = o.create(&me(), from, name.as_bytes(), 0o644, O_RDWR) {
                client.count(entry);
                o.release(opened.handle);
            }
        }
        3 => o.unlink(from, name.as_bytes()).unwrap_or(()),
        4 => o.rmdir(from, name.as_bytes()).unwrap_or(()),
        5 | 6 => o.rename(from, name.as_bytes(), to, other.as_bytes(), 0).unwrap_or(()),
        7 => o.rename(from, name.as_bytes(), to, other.as_bytes(), 2).unwrap_or(()),
        8 => {
            if let Some(node) = client.find(from, &name) {
                client.count_some(o.link(node, to, other.as_bytes()));
                o.set_xattr(node, b"user.a", b"b", 0, false).unwrap_or(());
            }
        }
        9 => client.list(from),
        10 => {
            let (entry, opened) = o.tmpfile(&me(), from, 0o600, O_RDWR).unwrap();
            client.count(entry);
            if next(2) == 0 {
                client.count_some(o.link(entry.node, to, other.as_bytes()));
            }
            o.release(opened.handle);
        }
        _ => {
            client.find(from, &name);
        }
    }
}

#[test]
fn forgetting_everything_frees_all_nodes_whatever_was_done() {
    let indexed = rustix::process::geteuid().is_root();
    for (threads, options) in [(1, ""), (4_usize, ""), (1, "index=on"), (4, "index=on")] {
        if !options.is_empty() && !indexed {
            continue;
        }
        let stack = Stack::new(2);
        for number in 0..6 {
            stack.file(&format!("l0/n{number}"), "").file(&format!("l1/d{}/n{number}", number % 3), "");
        }
        for name in ["l1/d0/n1", "l1/d1/n0", "l1/d2/n4"] {
            fs::hard_link(stack.path("l1/d0/n0"), stack.path(name)).unwrap();
        }
        let overlay = stack.open(options);
        let client = Client { overlay: &overlay, lookups: Mutex::default() };
        for round in 0..4 {
            let mut dirs = vec![NodeId::ROOT];
            dirs.extend((0..3).filter_map(|number| client.find(NodeId::ROOT, &format!("d{number}"))));
            thread::scope(|scope| {
                for worker in 0..threads {
                    let (client, dirs) = (&client, &dirs);
                    scope.spawn(move || {
                        let mut seed = (round * 10 + worker) as u64 + 1;
                        let mut next = |below: usize| {
                            seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                            usize::try_from(seed >> 33).unwrap() % below
                        };
                        for _ in 0..400 {
                            act(client, dirs, &mut next);
                        }
                    });
                }
            });
            client.forget_all();
            assert_eq!(overlay.remembered(), 1, "round {round} of {threads} threads: only the root is left");
        }
        let served = merged(&overlay);
        assert_eq!(overlay.remembered(), 1);
        drop(overlay);
        let found = merged(&stack.open(options));
        assert_eq!(served, found, "{threads} {options}: {}", view::difference(&served, &found));
    }
}

#[test]
fn no_descriptor_is_left_open_when_the_engine_goes() {
    // In a process of its own: other tests open descriptors beside this one.
    let own = std::env::var_os("PLYFS_COUNT_DESCRIPTORS").is_some();
    if !own {
        let status = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "no_descriptor_is_left_open_when_the_engine_goes"])
            .env("PLYFS_COUNT_DESCRIPTORS", "1")
            .status();
        assert!(status.unwrap().success());
        return;
    }
    let count = || {
        let links = fs::read_dir("/proc/self/fd").unwrap();
        let mut open: Vec<_> = links.filter_map(|link| fs::read_link(link.unwrap().path()).ok()).collect();
        open.sort();
        open
    };
    let stack = Stack::new(1);
    stack.file("l0/d/f", "x").file("l0/d/e/g", "y").file("l0/h", "z");
    drop(stack.open(""));
    let before = count();
    let overlay = stack.open("");
    write(&overlay, "d/e/g", 0, "new");
    let opened = overlay.open(&me(), walk(&overlay, "h").unwrap(), O_RDWR, false).unwrap();
    overlay.unlink(NodeId::ROOT, b"h").unwrap();
    list(&overlay, "d");
    overlay.rename(NodeId::ROOT, b"d", NodeId::ROOT, b"moved", 0).unwrap();
    overlay.release(opened.handle);
    drop((opened, overlay));
    assert_eq!(count(), before);
}

#[test]
fn a_directory_keeps_its_times_when_what_is_in_it_is_copied_up() {
    let stack = Stack::new(1);
    stack.file("l0/d/f", "x").file("l0/d/e/g", "").file("u/p/own", "").file("l0/p/f", "");
    let old = std::time::SystemTime::UNIX_EPOCH + Duration::from_secs(1_000_000);
    for dir in ["l0/d/e", "l0/d", "u/p"] {
        fs::File::open(stack.path(dir)).unwrap().set_modified(old).unwrap();
    }
    let overlay = stack.open("");
    write(&overlay, "d/f", 0, "y");
    let deep = walk(&overlay, "d/e").unwrap();
    overlay.setattr(&me(), deep, None, &chmod(0o700)).unwrap();
    write(&overlay, "p/f", 0, "y");
    for dir in ["u/d", "u/d/e", "u/p"] {
        assert_eq!(fs::metadata(stack.path(dir)).unwrap().modified().unwrap(), old, "{dir}");
    }
    overlay.unlink(walk(&overlay, "d").unwrap(), b"f").unwrap();
    assert_ne!(fs::metadata(stack.path("u/d")).unwrap().modified().unwrap(), old, "a removal is a change");
}

#[test]
fn a_directory_is_found_that_was_moved_out_of_one_that_a_lower_layer_had_renamed() {
    if !rustix::process::geteuid().is_root() {
        return;
    }
    for redirect in [&b"original"[..], b"/original"] {
        let stack = Stack::new(2);
        stack.file("l1/original/d/e/f", "found");
        fs::create_dir(stack.path("l0/renamed")).unwrap();
        common::set_xattr(&stack.path("l0/renamed"), "trusted.overlay.redirect", redirect);
        let overlay = stack.open("redirect_dir=on");
        assert_eq!(read(&overlay, "renamed/d/e/f"), "found");
        let parent = walk(&overlay, "renamed").unwrap();
        overlay.rename(parent, b"d", NodeId::ROOT, b"moved", 0).unwrap();
        let moved = walk(&overlay, "moved").unwrap();
        overlay.rename(moved, b"e", NodeId::ROOT, b"inner", 0).unwrap();
        assert_eq!(read(&overlay, "inner/f"), "found");
        drop(overlay);
        let overlay = stack.open("redirect_dir=on");
        assert_eq!(read(&overlay, "inner/f"), "found", "also after a new assembly");
        drop(overlay);
        if common::kernel_can_be_asked() {
            let _mounted = stack.kernel("redirect_dir=on");
            assert_eq!(fs::read_to_string(stack.path("m/inner/f")).unwrap(), "found", "and by the kernel");
        }
    }
}

#[test]
fn a_file_that_may_only_grow_or_not_change_is_not_opened_for_other_writing() {
    const APPEND_ONLY: u32 = 0x20;
    const IMMUTABLE: u32 = 0x10;
    if !rustix::process::geteuid().is_root() {
        return;
    }
    let stack = Stack::new(1);
    stack.file("u/f", "old");
    let overlay = stack.open("");
    let node = walk(&overlay, "f").unwrap();
    if overlay.set_inode_flags(node, APPEND_ONLY).is_err() {
        return;
    }
    let reader = overlay.open(&me(), node, 0, false).unwrap();
    let refused = overlay.open(&me(), node, O_RDWR, false).map(drop);
    let append = overlay.open(&me(), node, O_WRONLY | O_APPEND, false);
    let appended = append.and_then(|opened| overlay.write(opened.handle, 3, b" new", None));
    overlay.set_inode_flags(node, IMMUTABLE).unwrap();
    overlay.release(reader.handle);
    let immutable = overlay.open(&me(), node, O_RDWR, false).map(drop);
    overlay.set_inode_flags(node, 0).unwrap();
    assert_eq!((refused, appended), (Err(Errno::PERM), Ok(4)));
    assert_eq!(immutable, Err(Errno::PERM));
    assert_eq!(read(&overlay, "f"), "old new");
    write(&overlay, "f", 0, "OLD");
    assert_eq!(read(&overlay, "f"), "OLD new", "once the flag is gone it is written again");
}

#[test]
fn a_listing_that_made_room_for_another_is_made_again() {
    const MANY: usize = 51_000;
    let memory = std::path::Path::new("/dev/shm");
    let dir = if memory.is_dir() { tempfile::TempDir::new_in(memory) } else { tempfile::TempDir::new() };
    let stack = Stack::within(dir.unwrap(), 1);
    let mut nodes = Vec::new();
    for dir in ["one", "two"] {
        fs::create_dir(stack.path(&format!("l0/{dir}"))).unwrap();
        for number in 0..MANY {
            fs::File::create(stack.path(&format!("l0/{dir}/f{number}"))).unwrap();
        }
    }
    let overlay = stack.open("");
    for _ in 0..2 {
        for dir in ["one", "two"] {
            let node = walk(&overlay, dir).unwrap();
            nodes.push(node);
            let mut names = Names::default();
            overlay.read_dir(node, 0, false, &mut names).unwrap();
            assert_eq!(names.0.len(), MANY);
        }
    }
    overlay.unlink(nodes[0], b"f7").unwrap();
    let mut names = Names::default();
    overlay.read_dir(nodes[0], 0, false, &mut names).unwrap();
    assert_eq!(names.0.len(), MANY - 1);
}
