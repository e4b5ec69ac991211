//! Every operation is stopped at every fault point it passes. After a crash the next assembly shows the old tree or the
//! new one, the lower layers are as they were and work is empty; after a failed system call the same engine goes on
//! serving what is on disk.
#![allow(
    clippy::unwrap_used,
    clippy::panic,
    clippy::indexing_slicing,
    clippy::print_stderr,
    reason = "a test may fail by panicking"
)]

#[path = "common/view.rs"]
mod view;

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use plyfs_core::{Caller, Errno, NodeId, Overlay, SetAttr, Settings, Time, TimeSet};
use plyfs_format::StackSpec;
use plyfs_sys::Faults;
use plyfs_sys::fault::Action;
use rustix::fs::{CWD, FileType, Mode, XattrFlags, makedev, mknodat};
use tempfile::TempDir;
use view::{View, difference, merged, on_disk};

type Outcome = Result<(), Errno>;

/// Who the operations are made for, where it does not matter.
fn me() -> Caller {
    let own = fs::metadata("/proc/self").unwrap();
    Caller { uid: own.uid(), gid: own.gid(), pid: 0, umask: 0o022 }
}

fn is_root() -> bool {
    rustix::process::geteuid().is_root()
}

/// Two lower layers and an upper that holds some of everything.
struct Stack {
    dir: TempDir,
    options: &'static str,
    prefix: &'static str,
    /// Whiteouts are `.wh.` files.
    named: bool,
}

/// The options of the stack in which whiteouts are `.wh.` files.
const NAMED: &str = ",redirect_dir=on";

impl Stack {
    fn new(options: &'static str) -> Self {
        // In memory where that can be had: thousands of these are made.
        let memory = Path::new("/dev/shm");
        let dir = if memory.is_dir() { TempDir::new_in(memory) } else { TempDir::new() }.unwrap();
        // The engine may have left the ids of the last creator on this thread; its umask is 0 from the first time on.
        plyfs_sys::creds::prepare_thread();
        plyfs_sys::creds::assume_mounter().unwrap();
        let prefix = if is_root() && !options.contains("userxattr") { "trusted" } else { "user" };
        let stack = Self { dir, options, prefix, named: options == NAMED };
        for name in ["l0", "l1", "u", "w"] {
            fs::create_dir(stack.path(name)).unwrap();
        }
        stack.fill_lowers();
        stack.fill_upper();
        stack
    }

    fn path(&self, path: &str) -> PathBuf {
        self.dir.path().join(path)
    }

    fn file(&self, path: &str, content: &str) {
        let path = self.path(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, content).unwrap();
    }

    fn mode(&self, path: &str, mode: u32) {
        fs::set_permissions(self.path(path), fs::Permissions::from_mode(mode)).unwrap();
    }

    fn xattr(&self, path: &str, name: &str, value: &[u8]) {
        rustix::fs::lsetxattr(self.path(path), name, value, XattrFlags::empty()).unwrap();
    }

    fn node(&self, path: &str, kind: FileType, rdev: u64) {
        mknodat(CWD, self.path(path), kind, Mode::from_raw_mode(0o640), rdev).unwrap();
    }

    fn whiteout(&self, path: &str) {
        fs::create_dir_all(self.path(path).parent().unwrap()).unwrap();
        self.node(path, FileType::CharacterDevice, 0);
    }

    fn fill_lowers(&self) {
        let files = ["low", "low2", "exec", "owned", "color", "both", "probe", "covered", "gone", "marked"];
        for name in files {
            self.file(&format!("l1/{name}"), &format!("lower content of {name}"));
        }
        self.file("l0/both", "upper of the lowers");
        self.file("l1/nothing", "");
        self.mode("l1/exec", 0o755);
        self.xattr("l1/color", "user.color", b"blue");
        for dir in ["gone-dir", "marked-dir", "op", "full", "m", "w", "w2", "w3", "covered-dir"] {
            self.file(&format!("l1/{dir}/a"), dir);
            self.file(&format!("l1/{dir}/b"), dir);
        }
        self.file("l1/d/f1", "f1");
        self.file("l0/d/top", "top");
        self.file("l1/d/sub/f2", "f2");
        self.file("l1/d/sub/deep/f3", "f3");
        self.mode("l1/d/sub", 0o750);
        fs::create_dir(self.path("l1/empty")).unwrap();
        fs::hard_link(self.path("l1/low2"), self.path("l1/low2-link")).unwrap();
        symlink("low", self.path("l1/sym")).unwrap();
        self.node("l1/fifo", FileType::Fifo, 0);
        self.node("l1/probe-fifo", FileType::Fifo, 0);
        self.node("l1/socket", FileType::Socket, 0);
        self.fill_holes();
        if is_root() {
            self.node("l1/dev", FileType::CharacterDevice, makedev(1, 3));
            std::os::unix::fs::chown(self.path("l1/owned"), Some(1000), Some(1000)).unwrap();
            self.mode("l1/exec", 0o4755);
            // cap_net_raw+ep, version 2.
            let capability = [1, 0, 0, 2, 0, 32, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
            self.xattr("l1/color", "security.capability", &capability);
        }
    }

    fn fill_holes(&self) {
        let file = fs::File::create(self.path("l1/holes")).unwrap();
        file.set_len(300_000).unwrap();
        std::os::unix::fs::FileExt::write_all_at(&file, b"data", 200_000).unwrap();
    }

    fn fill_upper(&self) {
        self.file("u/up", "upper");
        self.file("u/up2", "upper two");
        self.file("u/probe", "covers");
        self.file("u/covered", "covers");
        self.file("u/ud/x", "in a pure upper directory");
        fs::create_dir(self.path("u/ud-empty")).unwrap();
        fs::create_dir(self.path("u/covered-dir")).unwrap();
        self.file("u/m/c", "merged");
        for name in ["u/w/a", "u/w/b", "u/w2/a", "u/w2/b", "u/w3/a", "u/w3/b", "u/gone", "u/gone-dir"] {
            self.whiteout(name);
        }
        self.whiteout("u/ww/only");
        self.file("u/op/shown", "shown");
        self.xattr("u/op", &format!("{}.overlay.opaque", self.prefix), b"y");
        self.file("u/.wh.marked", "");
        self.file("u/.wh.marked-dir", "");
        fs::hard_link(self.path("u/up2"), self.path("u/up2-link")).unwrap();
        symlink("up", self.path("u/up-sym")).unwrap();
        self.mode("u/w2", 0o711);
    }

    fn open(&self, faults: &Faults) -> Overlay {
        let root = self.dir.path().display();
        let options = self.options;
        let text = format!("lowerdir={root}/l0:{root}/l1,upperdir={root}/u,workdir={root}/w{options}");
        let spec = StackSpec::parse(&[text]).unwrap().spec;
        let settings = Settings {
            faults: faults.clone(),
            wait_for_upper: Duration::ZERO,
            named_whiteouts: self.named,
            ..Settings::default()
        };
        Overlay::assemble(&spec, &settings).unwrap()
    }

    /// What an assembly that starts anew shows.
    fn view(&self) -> View {
        let overlay = self.open(&Faults::new());
        let left = fs::read_dir(self.path("w/work")).unwrap().count();
        assert_eq!(left, 0, "work is empty after the assembly");
        merged(&overlay)
    }

    /// What lies in work beside the one shared whiteout.
    fn temporaries(&self) -> Vec<String> {
        let mut whiteouts = 0;
        let mut found = Vec::new();
        for entry in fs::read_dir(self.path("w/work")).unwrap() {
            let entry = entry.unwrap();
            let meta = entry.metadata().unwrap();
            if meta.file_type().is_char_device() && meta.rdev() == 0 && whiteouts == 0 {
                whiteouts += 1;
            } else {
                found.push(entry.file_name().into_string().unwrap());
            }
        }
        found
    }
}

type Step = fn(&Overlay) -> Outcome;

/// An operation of one or several steps. A crash may come between two steps.
#[derive(Clone)]
struct Operation {
    name: &'static str,
    steps: Vec<Step>,
    /// What one of the steps does first, on its own.
    first: Option<Step>,
}

impl Operation {
    fn run(&self, overlay: &Overlay) -> Outcome {
        self.steps.iter().try_for_each(|step| step(overlay))
    }

    /// What may have been done when it was interrupted, beside all and nothing.
    fn parts(&self) -> Vec<Vec<Step>> {
        let prefixes = (1..self.steps.len()).map(|count| self.steps[..count].to_vec());
        prefixes.chain(self.first.map(|first| vec![first])).collect()
    }
}

/// Several steps.
macro_rules! steps {
    ($name:expr, $($step:expr),+ $(,)?) => {
        Operation { name: $name, steps: vec![$($step as Step),+], first: None }
    };
}

fn all_or_nothing(operations: Vec<(&'static str, Step)>) -> Vec<Operation> {
    let whole = |(name, step)| Operation { name, steps: vec![step], first: None };
    operations.into_iter().map(whole).collect()
}

fn find(o: &Overlay, path: &str) -> Result<NodeId, Errno> {
    let mut node = NodeId::ROOT;
    for name in path.split('/').filter(|name| !name.is_empty()) {
        node = o.lookup(node, name.as_bytes())?.ok_or(Errno::NOENT)?.node;
    }
    Ok(node)
}

fn split<'a>(o: &Overlay, path: &'a str) -> Result<(NodeId, &'a [u8]), Errno> {
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", path));
    Ok((find(o, parent)?, name.as_bytes()))
}

fn write(o: &Overlay, path: &str, offset: u64, data: &[u8]) -> Outcome {
    let opened = o.open(&me(), find(o, path)?, 2, false)?;
    let written = o.write(opened.handle, offset, data, Some(&me()));
    o.release(opened.handle);
    written.map(drop)
}

fn open(o: &Overlay, path: &str, flags: u32) -> Outcome {
    let opened = o.open(&me(), find(o, path)?, flags, false)?;
    o.release(opened.handle);
    Ok(())
}

fn create(o: &Overlay, path: &str) -> Outcome {
    let (parent, name) = split(o, path)?;
    let (_, opened) = o.create(&me(), parent, name, 0o664, 2)?;
    o.release(opened.handle);
    Ok(())
}

fn mkdir(o: &Overlay, path: &str) -> Outcome {
    let (parent, name) = split(o, path)?;
    o.mkdir(&me(), parent, name, 0o775).map(drop)
}

fn mkfifo(o: &Overlay, path: &str) -> Outcome {
    let (parent, name) = split(o, path)?;
    o.mknod(&me(), parent, name, 0o010_640, (0, 0)).map(drop)
}

fn mkfile(o: &Overlay, path: &str) -> Outcome {
    let (parent, name) = split(o, path)?;
    o.mknod(&me(), parent, name, 0o100_640, (0, 0)).map(drop)
}

fn mklink(o: &Overlay, path: &str) -> Outcome {
    let (parent, name) = split(o, path)?;
    o.symlink(&me(), parent, name, b"target").map(drop)
}

fn unlink(o: &Overlay, path: &str) -> Outcome {
    let (parent, name) = split(o, path)?;
    o.unlink(parent, name)
}

fn rmdir(o: &Overlay, path: &str) -> Outcome {
    let (parent, name) = split(o, path)?;
    o.rmdir(parent, name)
}

fn link(o: &Overlay, from: &str, to: &str) -> Outcome {
    let (parent, name) = split(o, to)?;
    o.link(find(o, from)?, parent, name).map(drop)
}

fn rename(o: &Overlay, from: &str, to: &str) -> Outcome {
    move_with(o, from, to, 0)
}

fn exchange(o: &Overlay, from: &str, to: &str) -> Outcome {
    move_with(o, from, to, 2)
}

fn move_with(o: &Overlay, from: &str, to: &str, flags: u32) -> Outcome {
    let (parent, name) = split(o, from)?;
    let (new_parent, new_name) = split(o, to)?;
    o.rename(parent, name, new_parent, new_name, flags)
}

fn set(o: &Overlay, path: &str, set: SetAttr) -> Outcome {
    o.setattr(&me(), find(o, path)?, None, &set).map(drop)
}

fn mode(mode: u32) -> SetAttr {
    SetAttr { mode: Some(mode), ..SetAttr::default() }
}

fn size(size: u64) -> SetAttr {
    SetAttr { size: Some(size), ..SetAttr::default() }
}

fn owner(id: u32) -> SetAttr {
    SetAttr { uid: Some(id), gid: Some(id), ..SetAttr::default() }
}

fn strip_privileges() -> SetAttr {
    SetAttr { kill_priv: true, ..SetAttr::default() }
}

fn times() -> SetAttr {
    let at = TimeSet::At(Time { sec: -5, nsec: 7 });
    SetAttr { atime: Some(at), mtime: Some(at), ..SetAttr::default() }
}

fn put_xattr(o: &Overlay, path: &str) -> Outcome {
    o.set_xattr(find(o, path)?, b"user.new", b"value", 0, false)
}

fn tmpfile(o: &Overlay, parent: &str, name: &str) -> Outcome {
    let parent = find(o, parent)?;
    let (entry, opened) = o.tmpfile(&me(), parent, 0o600, 2)?;
    let done = o.write(opened.handle, 0, b"unnamed", None);
    let done = done.and_then(|_| o.link(entry.node, parent, name.as_bytes()));
    o.release(opened.handle);
    done.map(drop)
}

/// A file that is open while its name goes, and is written after that.
fn write_removed(o: &Overlay, path: &str) -> Outcome {
    let opened = o.open(&me(), find(o, path)?, 0, false)?;
    let node = find(o, path)?;
    let done = unlink(o, path).and_then(|()| {
        let writer = o.open(&me(), node, 2, false)?;
        let written = o.write(writer.handle, 0, b"unseen", None);
        o.release(writer.handle);
        written.map(drop)
    });
    o.release(opened.handle);
    done
}

fn copy_range(o: &Overlay, from: &str, to: &str) -> Outcome {
    let source = o.open(&me(), find(o, from)?, 0, false)?;
    let target = o.open(&me(), find(o, to)?, 2, false);
    let done = target.and_then(|target| {
        let copied = o.copy_file_range(source.handle, 0, target.handle, 0, 5);
        o.release(target.handle);
        copied
    });
    o.release(source.handle);
    done.map(drop)
}

fn fallocate(o: &Overlay, path: &str) -> Outcome {
    let opened = o.open(&me(), find(o, path)?, 2, false)?;
    let done = o.fallocate(opened.handle, 0, 0, 5000);
    o.release(opened.handle);
    done
}

fn sync(o: &Overlay, path: &str) -> Outcome {
    let node = find(o, path)?;
    o.fsync_node(node, false)
}

fn copy_ups() -> Vec<Operation> {
    all_or_nothing(vec![
        ("write a lower file", |o| write(o, "low", 3, b"NEW")),
        ("write a lower file that is two directories down", |o| write(o, "d/sub/deep/f3", 0, b"NEW")),
        ("write a file of the upper one of two lowers", |o| write(o, "both", 0, b"NEW")),
        ("write a lower file with holes", |o| write(o, "holes", 100, b"NEW")),
        ("write an empty lower file", |o| write(o, "nothing", 0, b"NEW")),
        ("write a lower file with two links", |o| write(o, "low2", 0, b"NEW")),
        ("write an upper file", |o| write(o, "up", 0, b"NEW")),
        ("open a lower file for writing", |o| open(o, "low", 1)),
        ("open a lower file with O_TRUNC", |o| open(o, "low", 1 | 0o1000)),
        ("open an upper file with O_TRUNC", |o| open(o, "up", 1 | 0o1000)),
        ("cut a lower file", |o| set(o, "low", size(5))),
        ("lengthen a lower file", |o| set(o, "low", size(5000))),
        ("cut a lower file to nothing", |o| set(o, "low", size(0))),
        ("cut an upper file", |o| set(o, "up", size(2))),
        ("chmod a lower file", |o| set(o, "low", mode(0o600))),
        ("chmod a lower file with holes", |o| set(o, "holes", mode(0o600))),
        ("chmod a lower directory", |o| set(o, "d/sub", mode(0o700))),
        ("chmod a merged directory", |o| set(o, "m", mode(0o700))),
        ("chmod an upper file", |o| set(o, "up", mode(0o600))),
        ("chmod the root", |o| set(o, "", mode(0o711))),
        ("set times of a lower file", |o| set(o, "low", times())),
        ("set times of a lower symlink", |o| set(o, "sym", times())),
        ("set times of a lower FIFO", |o| set(o, "fifo", times())),
        ("chmod a lower socket", |o| set(o, "socket", mode(0o600))),
        ("set an attribute of a lower file", |o| put_xattr(o, "low")),
        ("set an attribute of a lower directory", |o| put_xattr(o, "d/sub")),
        ("set an attribute of an upper file", |o| put_xattr(o, "up")),
        ("remove an attribute of a lower file", |o| o.remove_xattr(&me(), find(o, "color")?, b"user.color")),
        ("copy a range to a lower file", |o| copy_range(o, "up", "low")),
        ("allocate in a lower file", |o| fallocate(o, "low")),
        ("sync an upper file", |o| sync(o, "up")),
        ("sync an upper directory", |o| sync(o, "ud")),
    ])
}

fn privileged() -> Vec<Operation> {
    all_or_nothing(vec![
        ("chown a lower file", |o| set(o, "low", owner(7))),
        ("chown a lower symlink", |o| set(o, "sym", owner(7))),
        ("chown a lower device", |o| set(o, "dev", owner(7))),
        ("chmod a lower device", |o| set(o, "dev", mode(0o600))),
        ("chmod a lower file of somebody else", |o| set(o, "owned", mode(0o600))),
        ("chown an upper directory", |o| set(o, "ud", owner(7))),
        ("make a device", |o| o.mknod(&me(), NodeId::ROOT, b"new", 0o020_640, (1, 5)).map(drop)),
        ("create a file for somebody else over a whiteout", |o| {
            let caller = Caller { uid: 1000, gid: 1000, pid: 0, umask: 0o027 };
            let (_, opened) = o.create(&caller, NodeId::ROOT, b"gone", 0o666, 2)?;
            o.release(opened.handle);
            Ok(())
        }),
    ])
}

fn creations() -> Vec<Operation> {
    all_or_nothing(vec![
        ("create a file", |o| create(o, "new")),
        ("create a file in a lower directory", |o| create(o, "d/sub/deep/new")),
        ("create a file in an upper directory", |o| create(o, "ud/new")),
        ("create a file over a whiteout", |o| create(o, "gone")),
        ("create a file over the whiteout of a directory", |o| create(o, "gone-dir")),
        ("create a file over a whiteout in a merged directory", |o| create(o, "w/a")),
        ("create a file over a mark", |o| create(o, "marked")),
        ("create a file over the mark of a directory", |o| create(o, "marked-dir")),
        ("make a directory", |o| mkdir(o, "new")),
        ("make a directory in a merged directory", |o| mkdir(o, "m/new")),
        ("make a directory over a whiteout", |o| mkdir(o, "gone")),
        ("make a directory over the whiteout of a directory", |o| mkdir(o, "gone-dir")),
        ("make a directory over a mark", |o| mkdir(o, "marked")),
        ("make a directory over the mark of a directory", |o| mkdir(o, "marked-dir")),
        ("make a symlink", |o| mklink(o, "new")),
        ("make a symlink over a whiteout", |o| mklink(o, "gone")),
        ("make a FIFO", |o| mkfifo(o, "new")),
        ("make a FIFO over a whiteout", |o| mkfifo(o, "gone")),
        ("make a file by mknod", |o| mkfile(o, "d/new")),
        ("make a file by mknod over a whiteout", |o| mkfile(o, "gone")),
        ("make an unnamed file and link it", |o| tmpfile(o, "", "new")),
        ("make an unnamed file and link it over a whiteout", |o| tmpfile(o, "", "gone")),
        ("link a lower file", |o| link(o, "low", "new")),
        ("link a lower file over a whiteout", |o| link(o, "low", "gone")),
        ("link a lower symlink", |o| link(o, "sym", "m/new")),
        ("link an upper file", |o| link(o, "up", "ud/new")),
        ("link an upper file into a lower directory", |o| link(o, "up", "d/sub/new")),
    ])
}

fn removals() -> Vec<Operation> {
    all_or_nothing(vec![
        ("unlink an upper file", |o| unlink(o, "up")),
        ("unlink a lower file", |o| unlink(o, "low")),
        ("unlink a lower file in a lower directory", |o| unlink(o, "d/sub/f2")),
        ("unlink an upper file that covers a lower one", |o| unlink(o, "covered")),
        ("unlink one of two links", |o| unlink(o, "up2")),
        ("unlink a lower symlink", |o| unlink(o, "sym")),
        ("unlink an upper symlink", |o| unlink(o, "up-sym")),
        ("unlink a file in a merged directory", |o| unlink(o, "m/a")),
        ("unlink a file in an opaque directory", |o| unlink(o, "op/shown")),
        ("remove an empty upper directory", |o| rmdir(o, "ud-empty")),
        ("remove an empty lower directory", |o| rmdir(o, "empty")),
        ("remove a merged directory that whiteouts fill", |o| rmdir(o, "w")),
        ("remove a pure upper directory that holds a whiteout", |o| rmdir(o, "ww")),
    ])
}

fn renames() -> Vec<Operation> {
    all_or_nothing(vec![
        ("rename an upper file", |o| rename(o, "up", "new")),
        ("rename a lower file", |o| rename(o, "low", "new")),
        ("rename a lower file with holes", |o| rename(o, "holes", "m/new")),
        ("rename a lower file to another lower directory", |o| rename(o, "d/f1", "d/sub/new")),
        ("rename an upper file over an upper file", |o| rename(o, "up", "ud/x")),
        ("rename an upper file over a lower file", |o| rename(o, "up", "low")),
        ("rename a lower file over a lower file", |o| rename(o, "low", "both")),
        ("rename a lower file over an upper file", |o| rename(o, "low", "up")),
        ("rename an upper file over one of two links", |o| rename(o, "up", "up2")),
        ("rename an upper file over a whiteout", |o| rename(o, "up", "gone")),
        ("rename a lower file over a whiteout", |o| rename(o, "low", "gone")),
        ("rename a lower file over the whiteout of a directory", |o| rename(o, "low", "gone-dir")),
        ("rename a lower file over a mark", |o| rename(o, "low", "marked")),
        ("rename a covering file away", |o| rename(o, "covered", "new")),
        ("rename a lower symlink", |o| rename(o, "sym", "new")),
        ("rename a lower FIFO", |o| rename(o, "fifo", "ud/new")),
        ("rename without replacing", |o| move_with(o, "low", "new", 1)),
        ("rename an upper directory", |o| rename(o, "ud", "new")),
        ("rename an upper directory into a merged one", |o| rename(o, "ud", "m/new")),
        ("rename an upper directory over a whiteout", |o| rename(o, "ud", "gone-dir")),
        ("rename an upper directory over a mark", |o| rename(o, "ud", "marked-dir")),
        ("rename an upper directory over an empty upper one", |o| rename(o, "ud", "ud-empty")),
        ("rename an upper directory over an empty lower one", |o| rename(o, "ud", "empty")),
        ("rename an upper directory over one that whiteouts fill", |o| rename(o, "ud", "w2")),
        ("rename an upper directory over a pure one with a whiteout", |o| rename(o, "ud", "ww")),
        ("exchange two upper files", |o| exchange(o, "up", "up2")),
        ("exchange an upper and a lower file", |o| exchange(o, "up", "low")),
        ("exchange two lower files of two directories", |o| exchange(o, "low", "d/sub/f2")),
        ("exchange a file and an upper directory", |o| exchange(o, "low", "ud")),
        ("exchange two upper directories", |o| exchange(o, "ud", "ud-empty")),
    ])
}

/// Operations of several steps, and such whose work shows in parts: privileges go before data is written.
fn in_steps() -> Vec<Operation> {
    let strip = |name, step: Step, first: Step| Operation { name, steps: vec![step], first: Some(first) };
    vec![
        strip(
            "write a lower file with a capability",
            |o| write(o, "color", 0, b"NEW"),
            |o| set(o, "color", strip_privileges()),
        ),
        strip(
            "write a lower set-user-id file",
            |o| write(o, "exec", 0, b"NEW"),
            |o| set(o, "exec", strip_privileges()),
        ),
        strip("write a lower file that was removed", |o| write_removed(o, "low"), |o| unlink(o, "low")),
        strip("write an upper file that was removed", |o| write_removed(o, "up"), |o| unlink(o, "up")),
        steps!("chmod, then write a file", |o| set(o, "low", mode(0o600)), |o| write(o, "low", 0, b"NEW")),
        steps!("chmod, then cut a file", |o| set(o, "low", mode(0o600)), |o| set(o, "low", size(4))),
        steps!("chmod, then open a file with O_TRUNC", |o| set(o, "owned", mode(0o600)), |o| open(
            o,
            "owned",
            1 | 0o1000
        )),
        steps!(
            "chmod, then write a file with a capability",
            |o| set(o, "color", mode(0o600)),
            |o| set(o, "color", strip_privileges()),
            |o| write(o, "color", 0, b"NEW")
        ),
        steps!("chmod, then rename a file", |o| set(o, "holes", mode(0o600)), |o| rename(
            o, "holes", "m/new"
        )),
        steps!("chmod, then link a file", |o| set(o, "holes", mode(0o600)), |o| link(o, "holes", "m/new")),
        steps!("chmod, then unlink a file", |o| set(o, "low", mode(0o600)), |o| unlink(o, "low")),
        steps!(
            "remove a lower directory after its files",
            |o| unlink(o, "full/a"),
            |o| unlink(o, "full/b"),
            |o| rmdir(o, "full")
        ),
        steps!("remove a directory and make it again", |o| rmdir(o, "w"), |o| mkdir(o, "w")),
    ]
}

/// What needs redirects, in several steps.
fn redirects_in_steps() -> Vec<Operation> {
    vec![
        steps!("rename a directory, then what is in it", |o| rename(o, "d", "new"), |o| rename(
            o, "new/sub", "moved"
        )),
        steps!("rename a directory twice", |o| rename(o, "d", "new"), |o| rename(o, "new", "ud/newer")),
        steps!("remove a renamed directory", |o| rename(o, "w", "ud/new"), |o| rmdir(o, "ud/new")),
    ]
}

/// Names of a lower file with several, which an index keeps together.
fn linked() -> Vec<Operation> {
    let mut all = all_or_nothing(vec![
        ("write a lower file by one of its names", |o| write(o, "low2-link", 0, b"NEW")),
        ("chmod a lower file with two names", |o| set(o, "low2", mode(0o600))),
        ("unlink one of two names of a lower file", |o| unlink(o, "low2")),
        ("rename one of two names of a lower file", |o| rename(o, "low2", "m/new")),
        ("rename a file over one of two names of a lower file", |o| rename(o, "up", "low2")),
        ("rename one of two names of a lower file over a file", |o| rename(o, "low2", "up")),
        ("rename one of two names of a lower file over a whiteout", |o| rename(o, "low2", "gone")),
        ("exchange one of two names of a lower file", |o| exchange(o, "low2", "d/f1")),
        ("give a lower file a third name", |o| link(o, "low2", "ud/new")),
    ]);
    all.push(steps!("write a lower file by both names", |o| write(o, "low2", 0, b"NEW"), |o| write(
        o,
        "low2-link",
        3,
        b"NEWER"
    )));
    all.push(steps!("unlink both names of a lower file", |o| unlink(o, "low2"), |o| unlink(o, "low2-link")));
    all.push(steps!(
        "write a lower file, then unlink its names",
        |o| write(o, "low2", 0, b"NEW"),
        |o| unlink(o, "low2-link"),
        |o| unlink(o, "low2")
    ));
    all
}

/// What needs redirects.
fn redirects() -> Vec<Operation> {
    all_or_nothing(vec![
        ("rename a lower directory", |o| rename(o, "d", "new")),
        ("rename a merged directory", |o| rename(o, "m", "new")),
        ("rename a merged directory into an upper one", |o| rename(o, "m", "ud/new")),
        ("rename a lower directory into a merged one", |o| rename(o, "d/sub", "m/new")),
        ("rename a lower directory over a whiteout", |o| rename(o, "d", "gone-dir")),
        ("rename a lower directory over an empty lower one", |o| rename(o, "d", "empty")),
        ("rename a lower directory over one that whiteouts fill", |o| rename(o, "d", "w2")),
        ("rename a whiteout-filled directory over another", |o| rename(o, "w", "w2")),
        ("exchange two lower directories", |o| exchange(o, "d", "full")),
        ("exchange a merged directory and a file", |o| exchange(o, "m", "low")),
        ("exchange directories of two parents", |o| exchange(o, "d/sub", "m")),
    ])
}

fn operations(options: &str) -> Vec<Operation> {
    if options.contains("index=on") {
        return [linked(), removals()].concat();
    }
    if options.contains("nfs_export=on") {
        return [linked(), removals(), redirects()].concat();
    }
    let mut all = [linked(), copy_ups(), creations(), removals(), renames(), in_steps()].concat();
    if !options.contains("userxattr") && is_root() {
        all.extend(redirects());
        all.extend(redirects_in_steps());
    }
    if is_root() {
        all.extend(privileged());
    }
    all
}

/// The tree before and after an operation, and how many fault points it passes.
struct Reference {
    old: View,
    new: View,
    /// After some of the steps.
    parts: Vec<View>,
    points: u64,
}

impl Reference {
    fn allows(&self, view: &View) -> bool {
        *view == self.old || *view == self.new || self.parts.contains(view)
    }
}

fn reference(operation: &Operation, options: &'static str) -> Reference {
    let name = operation.name;
    let stack = Stack::new(options);
    let old = stack.view();
    let faults = Faults::new();
    let overlay = stack.open(&faults);
    faults.count();
    operation.run(&overlay).unwrap_or_else(|error| panic!("{name}: {error}"));
    let points = faults.hits();
    let served = merged(&overlay);
    drop(overlay);
    let new = stack.view();
    assert_eq!(served, new, "{name}: what is served is what is on disk\n{}", difference(&served, &new));
    assert!(points > 0, "{name}: no fault point is passed");
    let parts = operation.parts().into_iter().map(|steps| {
        let stack = Stack::new(options);
        let overlay = stack.open(&Faults::new());
        steps.iter().try_for_each(|step| step(&overlay)).unwrap();
        merged(&overlay)
    });
    Reference { old, new, parts: parts.collect(), points }
}

/// Stops an operation at its nth point; the next assembly must show all of it or nothing.
fn crash(operation: &Operation, options: &'static str, reference: &Reference, nth: u64) {
    let name = operation.name;
    let stack = Stack::new(options);
    let lowers = [on_disk(&stack.path("l0")), on_disk(&stack.path("l1"))];
    let faults = Faults::new();
    let overlay = stack.open(&faults);
    faults.arm(nth, Action::Crash);
    let outcome = operation.run(&overlay);
    assert!(faults.has_crashed(), "{name}: point {nth} is passed every time");
    drop(overlay);
    let after = stack.view();
    assert!(
        reference.allows(&after),
        "{name}, crash at point {nth} ({outcome:?}): neither old nor new\nold | found\n{}new | found\n{}",
        difference(&reference.old, &after),
        difference(&reference.new, &after)
    );
    let left = [on_disk(&stack.path("l0")), on_disk(&stack.path("l1"))];
    assert!(lowers == left, "{name}, crash at point {nth}: a lower layer changed");
}

/// Lets one system call of an operation fail. The engine goes on: it serves what is on disk, can do the operation still,
/// and leaves nothing in work.
fn fail(operation: &Operation, options: &'static str, reference: &Reference, nth: u64, errno: Errno) {
    let name = operation.name;
    let what = format!("{name}, {errno:?} at point {nth}");
    let stack = Stack::new(options);
    let faults = Faults::new();
    let overlay = stack.open(&faults);
    if errno == Errno::IO {
        // With everything looked up and listed before.
        merged(&overlay);
    }
    faults.arm(nth, Action::Fail(errno));
    let outcome = operation.run(&overlay);
    faults.disarm();
    let served = merged(&overlay);
    let is_old = served == reference.old;
    assert!(
        reference.allows(&served),
        "{what} ({outcome:?}): neither old nor new\nold | served\n{}new | served\n{}",
        difference(&reference.old, &served),
        difference(&reference.new, &served)
    );
    if outcome.is_ok() {
        assert_eq!(served, reference.new, "{what}: success\n{}", difference(&served, &reference.new));
    } else if is_old {
        operation.run(&overlay).unwrap_or_else(|error| panic!("{what}: again: {error}"));
        let again = merged(&overlay);
        assert_eq!(again, reference.new, "{what}: again\n{}", difference(&again, &reference.new));
    }
    // Both need temporaries, before which what was left is removed.
    set(&overlay, "probe-fifo", mode(0o600)).unwrap();
    unlink(&overlay, "probe").unwrap();
    assert_eq!(stack.temporaries(), Vec::<String>::new(), "{what}: work");
    let served = merged(&overlay);
    drop(overlay);
    let found = stack.view();
    assert_eq!(served, found, "{what}: served | on disk\n{}", difference(&served, &found));
}

/// How many operations are tried at once: most of the time goes by in waiting for mounts to be taken down.
const WORKERS: usize = 4;

fn run_all(options: &'static str) {
    let operations = operations(options);
    let (next, points) = (AtomicUsize::new(0), AtomicU64::new(0));
    let broken = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for _ in 0..WORKERS {
            scope.spawn(|| {
                while let Some(operation) = operations.get(next.fetch_add(1, Ordering::Relaxed)) {
                    // The others are tried all the same.
                    match std::panic::catch_unwind(|| interrupt_everywhere(operation, options)) {
                        Ok(count) => {
                            points.fetch_add(count, Ordering::Relaxed);
                        }
                        Err(_) => broken.lock().unwrap().push(operation.name),
                    }
                }
            });
        }
    });
    let broken = broken.into_inner().unwrap();
    let (count, points) = (operations.len(), points.into_inner());
    eprintln!("{count} operations, interrupted at {points} points");
    assert!(broken.is_empty(), "{broken:#?}");
}

fn interrupt_everywhere(operation: &Operation, options: &'static str) -> u64 {
    let reference = reference(operation, options);
    for nth in 1..=reference.points {
        crash(operation, options, &reference, nth);
        fail(operation, options, &reference, nth, Errno::IO);
        if options.is_empty() {
            fail(operation, options, &reference, nth, Errno::NOSPC);
        }
    }
    reference.points
}

#[test]
fn every_operation_is_whole_or_not_at_all() {
    run_all("");
}

#[test]
fn every_operation_is_whole_or_not_at_all_with_user_attributes() {
    run_all(",userxattr");
}

#[test]
fn every_operation_is_whole_or_not_at_all_where_attributes_are_copied_without_data() {
    if !is_root() {
        eprintln!("skipped: metacopy needs root");
        return;
    }
    run_all(",metacopy=on");
}

#[test]
fn every_operation_is_whole_or_not_at_all_where_whiteouts_are_files() {
    run_all(NAMED);
}

#[test]
fn every_operation_is_whole_or_not_at_all_with_an_index() {
    if !is_root() {
        eprintln!("skipped: file handles need root");
        return;
    }
    run_all(",index=on");
}

#[test]
fn every_operation_is_whole_or_not_at_all_where_file_handles_last() {
    if !is_root() {
        eprintln!("skipped: file handles need root");
        return;
    }
    run_all(",nfs_export=on");
}
