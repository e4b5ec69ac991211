//! File handles of a real mount with `nfs_export=on`: taken by name_to_handle_at(2), they open the same object by
//! open_by_handle_at(2) after the kernel forgot it, and after a remount.
//!
//! Needs root and `/dev/fuse`; where they are missing the test says so and passes, unless `PLYFS_TESTS_STRICT=1`.
#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test fails by a panic")]

use std::fs;
use std::io::{Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use plyfs_core::{Overlay, Settings};
use plyfs_format::{FileHandle, Name, StackSpec};
use plyfs_fuse::{MountOptions, Running, Session};
use plyfs_sys::handle::open_by_handle;
use plyfs_sys::{Dir, Errno, OFlags};
use plyfs_testkit::need::{Need, met};
use tempfile::TempDir;

struct Mount {
    running: Option<Running>,
    root: TempDir,
}

impl Mount {
    /// Two lowers, with what the tests take handles of.
    fn new() -> Self {
        let root = tempfile::tempdir().expect("temporary directory");
        let path = |name: &str| root.path().join(name);
        for dir in ["top/d/sub", "bottom/d/sub", "upper", "work", "merged"] {
            fs::create_dir_all(path(dir)).expect("mkdir");
        }
        for file in
            ["top/lower", "top/copied", "top/d/in-d", "bottom/d/sub/deep", "bottom/linked", "bottom/gone"]
        {
            fs::write(path(file), file).expect("write");
        }
        fs::hard_link(path("bottom/linked"), path("bottom/link")).expect("link");
        symlink("target", path("bottom/symlink")).expect("symlink");
        let mut mount = Self { running: None, root };
        mount.mount();
        mount
    }

    fn mount(&mut self) {
        let path = |name: &str| self.root.path().join(name).display().to_string();
        let layers = format!("lowerdir={}:{},upperdir={}", path("top"), path("bottom"), path("upper"));
        let options = format!("{layers},workdir={},redirect_dir=on,nfs_export=on", path("work"));
        let spec = StackSpec::parse(&[options]).expect("options").spec;
        let overlay = Overlay::assemble(&spec, &Settings::default()).expect("assemble");
        let session = Session::mount(overlay, &self.at(""), &MountOptions::default()).expect("mount");
        self.running = Some(session.spawn().expect("threads"));
    }

    fn unmount(&mut self) {
        if let Some(running) = self.running.take() {
            running.unmounter().unmount_or_detach();
            running.join().expect("served to the end");
        }
    }

    fn at(&self, path: &str) -> PathBuf {
        self.root.path().join("merged").join(path)
    }

    fn handle(&self, path: &str) -> FileHandle {
        let path = self.at(path);
        let parent = Dir::open_root(path.parent().expect("parent")).expect("open");
        let name = path.file_name().expect("name").as_encoded_bytes();
        parent.file_handle(Name::new(name).expect("name")).expect("name_to_handle_at").expect("a handle")
    }

    fn open(&self, handle: &FileHandle, flags: OFlags) -> Result<fs::File, Errno> {
        let mount = fs::File::open(self.at("")).expect("open");
        open_by_handle(mount.as_fd(), handle, flags).map(fs::File::from)
    }

    fn read(&self, handle: &FileHandle) -> String {
        let mut text = String::new();
        self.open(handle, OFlags::RDONLY).expect("by handle").read_to_string(&mut text).expect("read");
        text
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        self.unmount();
    }
}

fn can_run() -> bool {
    met(&[Need::Root, Need::Fuse])
}

/// What a path is: its handle, number, type and content.
struct Known {
    path: &'static str,
    handle: FileHandle,
    ino: u64,
    mode: u32,
    content: Option<String>,
}

impl Known {
    fn of(mount: &Mount, path: &'static str) -> Self {
        let meta = fs::symlink_metadata(mount.at(path)).expect("stat");
        let content = meta.is_file().then(|| fs::read_to_string(mount.at(path)).expect("read"));
        Self { path, handle: mount.handle(path), ino: meta.ino(), mode: meta.mode(), content }
    }

    fn check(&self, mount: &Mount, when: &str) {
        let opened = mount.open(&self.handle, OFlags::PATH | OFlags::NOFOLLOW);
        let opened = opened.unwrap_or_else(|errno| panic!("{when}: {}: {errno}", self.path));
        let meta = opened.metadata().expect("stat");
        assert_eq!((meta.ino(), meta.mode()), (self.ino, self.mode), "{when}: {}", self.path);
        if let Some(content) = &self.content {
            assert_eq!(&mount.read(&self.handle), content, "{when}: {}", self.path);
        }
    }
}

/// Has the kernel forget what it can; what it keeps all the same is found without asking, which is as good.
fn drop_caches() {
    if let Err(error) = fs::write("/proc/sys/vm/drop_caches", "2") {
        eprintln!("the kernel forgets nothing: {error}");
    }
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).expect("list").map(|entry| entry.expect("entry").file_name());
    let mut names: Vec<_> = entries.map(|name| name.into_string().expect("text")).collect();
    names.sort();
    names
}

#[test]
fn a_handle_opens_its_object_after_the_kernel_forgot_it_and_after_a_remount() {
    if !can_run() {
        return;
    }
    let mut mount = Mount::new();
    fs::create_dir(mount.at("new")).expect("mkdir");
    fs::write(mount.at("new/file"), "created").expect("write");
    fs::hard_link(mount.at("new/file"), mount.at("second")).expect("link");
    fs::OpenOptions::new()
        .append(true)
        .open(mount.at("copied"))
        .expect("open")
        .write_all(b"!")
        .expect("write");
    let before = ["d", "d/sub", "lower"].map(|path| mount.handle(path));
    fs::rename(mount.at("d"), mount.at("e")).expect("rename");
    fs::rename(mount.at("lower"), mount.at("e/renamed")).expect("rename");
    assert_eq!(
        ["e", "e/sub", "e/renamed"].map(|path| mount.handle(path)),
        before,
        "a rename changes no handle"
    );
    let paths = [
        "new",
        "new/file",
        "second",
        "copied",
        "e",
        "e/sub",
        "e/sub/deep",
        "e/in-d",
        "e/renamed",
        "linked",
        "link",
        "symlink",
    ];
    let known = paths.map(|path| Known::of(&mount, path));
    drop_caches();
    known.iter().for_each(|known| known.check(&mount, "forgotten"));
    mount.unmount();
    mount.mount();
    known.iter().for_each(|known| known.check(&mount, "remounted"));
    known.iter().rev().for_each(|known| assert_eq!(mount.handle(known.path), known.handle, "{}", known.path));
    mount.unmount();
    mount.mount();
    // A directory by its handle is a whole one, and where it belongs.
    let sub = mount.open(&known[5].handle, OFlags::RDONLY | OFlags::DIRECTORY).expect("by handle");
    let by_fd =
        |fd: &fs::File| PathBuf::from(format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(fd)));
    assert_eq!(fs::read_link(by_fd(&sub)).expect("readlink"), mount.at("e/sub"));
    assert_eq!(names(&by_fd(&sub)), ["deep"]);
}

#[test]
fn what_a_handle_opened_can_be_written_and_is_found_by_name() {
    if !can_run() {
        return;
    }
    let mut mount = Mount::new();
    fs::write(mount.at("created"), "").expect("write");
    let handles = ["lower", "d/sub/deep", "linked", "created"].map(|path| mount.handle(path));
    mount.unmount();
    mount.mount();
    for (number, handle) in handles.iter().enumerate() {
        let mut file = mount.open(handle, OFlags::RDWR | OFlags::TRUNC).expect("by handle");
        write!(file, "written {number}").expect("write");
    }
    for (number, handle) in handles.iter().enumerate() {
        assert_eq!(mount.read(handle), format!("written {number}"));
    }
    let check = |mount: &Mount| {
        for (number, path) in ["lower", "d/sub/deep", "link", "created"].into_iter().enumerate() {
            assert_eq!(
                fs::read_to_string(mount.at(path)).expect("read"),
                format!("written {number}"),
                "{path}"
            );
        }
    };
    check(&mount);
    mount.unmount();
    mount.mount();
    check(&mount);
    assert_eq!(fs::read_to_string(mount.root.path().join("top/lower")).expect("read"), "top/lower");
}

#[test]
fn a_handle_is_stale_once_its_object_is_gone() {
    if !can_run() {
        return;
    }
    let mut mount = Mount::new();
    fs::create_dir(mount.at("new")).expect("mkdir");
    fs::write(mount.at("new/file"), "created").expect("write");
    fs::write(mount.at("copied"), "copied").expect("write");
    let paths = ["gone", "copied", "new/file", "new", "symlink"];
    let handles = paths.map(|path| mount.handle(path));
    for path in ["gone", "copied", "new/file", "symlink"] {
        fs::remove_file(mount.at(path)).expect("unlink");
    }
    fs::remove_dir(mount.at("new")).expect("rmdir");
    // In the place of what is gone comes another object.
    fs::write(mount.at("gone"), "another").expect("write");
    fs::create_dir(mount.at("new")).expect("mkdir");
    let stale = |mount: &Mount, when: &str| {
        for (handle, path) in handles.iter().zip(paths) {
            let opened = mount.open(handle, OFlags::PATH | OFlags::NOFOLLOW);
            assert_eq!(opened.map(drop), Err(Errno::STALE), "{when}: {path}");
        }
    };
    stale(&mount, "removed");
    drop_caches();
    stale(&mount, "forgotten");
    mount.unmount();
    mount.mount();
    stale(&mount, "remounted");
}

#[test]
fn an_open_file_lives_on_when_its_last_name_goes_or_another_takes_it() {
    if !can_run() {
        return;
    }
    let mount = Mount::new();
    let open = |path: &str| {
        fs::OpenOptions::new().read(true).write(true).open(mount.at(path)).expect("open for writing")
    };
    let files = [open("copied"), open("lower"), open("linked"), open("d/in-d")];
    fs::remove_file(mount.at("copied")).expect("unlink");
    fs::rename(mount.at("gone"), mount.at("lower")).expect("rename over it");
    fs::remove_file(mount.at("linked")).expect("unlink one name");
    fs::remove_file(mount.at("link")).expect("unlink the other");
    fs::write(mount.at("new"), "new").expect("write");
    fs::rename(mount.at("new"), mount.at("d/in-d")).expect("rename over it");
    drop_caches();
    for mut file in files {
        assert_eq!(file.metadata().expect("fstat").nlink(), 0);
        file.write_all(b"written").expect("write");
        file.sync_all().expect("fsync");
        file.set_len(5).expect("truncate");
        let mut text = [0; 16];
        let count = std::os::unix::fs::FileExt::read_at(&file, &mut text, 0).expect("read");
        assert_eq!(&text[..count], b"writt");
        assert_eq!(file.metadata().expect("fstat").len(), 5);
    }
}

#[test]
fn a_lower_file_opened_by_its_handle_has_no_link_once_it_is_unlinked() {
    if !can_run() {
        return;
    }
    let mut mount = Mount::new();
    let handle = mount.handle("lower");
    mount.unmount();
    mount.mount();
    let file = mount.open(&handle, OFlags::RDONLY).expect("by handle");
    assert_eq!(file.metadata().expect("fstat").nlink(), 1);
    fs::remove_file(mount.at("lower")).expect("unlink");
    assert_eq!(file.metadata().expect("fstat").nlink(), 0);
}

#[test]
fn a_handle_that_nobody_gave_opens_nothing_and_harms_nobody() {
    if !can_run() {
        return;
    }
    let mut mount = Mount::new();
    let handles = ["lower", "d"].map(|path| mount.handle(path));
    mount.unmount();
    mount.mount();
    for handle in &handles {
        for bit in 0..handle.bytes().len() * 8 {
            let mut bytes = handle.bytes().to_vec();
            bytes[bit / 8] ^= 1 << (bit % 8);
            let forged = FileHandle::new(handle.kind(), &bytes).expect("length");
            let opened = mount.open(&forged, OFlags::PATH | OFlags::NOFOLLOW);
            assert_eq!(opened.map(drop), Err(Errno::STALE), "bit {bit}");
        }
        mount.open(handle, OFlags::PATH).expect("the true one");
    }
    // A bit that says that a lower file is of upper would make it one that can be written.
    assert_eq!(fs::read_to_string(mount.at("lower")).expect("read"), "top/lower");
    assert_eq!(names(&mount.at("d")), ["in-d", "sub"]);
}
