//! Mounts, in a mount namespace of the test thread's own, so that nothing is left however it ends.

#![allow(clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "a test may panic")]

mod common;

use std::os::fd::AsFd;
use std::path::Path;

use common::{name, root_or_skip};
use plyfs_sys::mount::{
    self, HeldMount, MountAttributes, MountFlags, MountPropagationFlags, Namespaces, OpenTreeFlags,
};
use plyfs_sys::{Dir, DirMut, Errno, OFlags, device, mountinfo};

/// Runs `test` on a thread with a private mount namespace and a tmpfs at a temporary directory.
fn in_own_namespace(test: impl FnOnce(&Path) + Send + 'static) {
    if !root_or_skip("mount") {
        return;
    }
    let work = move || {
        let temp = tempfile::tempdir().expect("tempdir");
        mount::unshare(Namespaces { mount: true, ..Namespaces::default() }).expect("unshare");
        let private = MountPropagationFlags::PRIVATE | MountPropagationFlags::REC;
        mount::set_propagation(Path::new("/"), private).expect("make private");
        mount::mount(c"plyfs-test", temp.path(), c"tmpfs", MountFlags::empty(), b"size=1m,mode=0755")
            .expect("tmpfs");
        test(temp.path());
        mount::unmount_detached(temp.path()).expect("unmount");
    };
    std::thread::spawn(work).join().expect("the test's thread");
}

/// `/proc/self` is the main thread's view; this one's namespace is another.
fn own_mounts() -> Vec<mountinfo::MountInfo> {
    mountinfo::parse(&std::fs::read("/proc/thread-self/mountinfo").expect("mountinfo"))
}

#[test]
fn a_mount_appears_in_mountinfo_with_what_it_was_given() {
    in_own_namespace(|base| {
        let odd = base.join("a b\\c\n");
        std::fs::create_dir(&odd).expect("mkdir");
        mount::mount(c"source", &odd, c"tmpfs", MountFlags::NOSUID | MountFlags::RDONLY, b"size=64k")
            .expect("mount");
        let found = own_mounts().into_iter().find(|mount| mount.target == odd).expect("in mountinfo");
        assert_eq!((found.fstype.as_str(), found.source.to_str()), ("tmpfs", Some("source")));
        assert!(found.has_option("nosuid") && found.has_option("size=64k") && found.has_option("ro"));
        let dir = Dir::open_root(&odd).expect("open");
        assert_eq!(dir.mount_id(), Ok(found.id));
        assert_eq!((dir.is_readonly_mount(), dir.is_nosuid_mount()), (Ok(true), Ok(true)));
        drop(dir);
        mount::unmount(&odd).expect("unmount");
        assert_eq!(mount::unmount(&odd), Err(Errno::INVAL));
    });
}

#[test]
fn a_held_mount_is_detached_and_what_took_its_place_stays() {
    in_own_namespace(|base| {
        let at = base.join("at");
        std::fs::create_dir(&at).expect("mkdir");
        let mount_here =
            |source| mount::mount(source, &at, c"tmpfs", MountFlags::empty(), b"size=64k").expect("mount");
        mount_here(c"first");
        let held = HeldMount::at(&at).expect("open");
        assert_eq!(held.id(), mount::mount_id(&at));
        assert_eq!(mount::unmount(&at), Err(Errno::BUSY), "it is in use while it is held");
        held.detach().expect("detach");
        assert_eq!(mount::unmount(&at), Err(Errno::INVAL), "it is gone");

        mount_here(c"second");
        let held = HeldMount::at(&at).expect("open");
        mount::unmount_detached(&at).expect("unmount");
        mount_here(c"successor");
        assert_ne!(held.id(), mount::mount_id(&at));
        assert_eq!(held.detach(), Err(Errno::INVAL));
        let there = own_mounts().into_iter().find(|mount| mount.target == at).expect("still mounted");
        assert_eq!(there.source, "successor");
    });
}

#[test]
fn a_detached_copy_is_made_read_only_and_attached() {
    in_own_namespace(|base| {
        for entry in ["from", "to", "over"] {
            std::fs::create_dir(base.join(entry)).expect("mkdir");
        }
        std::fs::write(base.join("from/file"), b"x").expect("write");
        let root = Dir::open_root(base).expect("open");
        let tree =
            mount::open_tree(&root, Path::new("from"), OpenTreeFlags::OPEN_TREE_CLONE).expect("open_tree");
        let read_only = MountAttributes { set: mount::ATTR_RDONLY | mount::ATTR_NODEV, ..Default::default() };
        mount::set_attributes(&tree, &read_only, false).expect("mount_setattr");
        mount::attach(&tree, &root, Path::new("to")).expect("move_mount");
        let copy = DirMut::open_root(&base.join("to")).expect("open");
        assert!(copy.stat_at(name("file")).is_ok());
        assert_eq!(copy.create_dir(name("d"), 0o700), Err(Errno::ROFS));
        assert_eq!(copy.is_readonly_mount(), Ok(true));
        let again =
            mount::open_tree(&root, Path::new("from"), OpenTreeFlags::OPEN_TREE_CLONE).expect("open_tree");
        mount::attach_over(&again, Dir::open_root(&base.join("over")).expect("open")).expect("move_mount");
        assert!(base.join("over/file").exists());
    });
}

#[test]
fn resolution_crosses_mounts_and_stat_tells_so() {
    in_own_namespace(|base| {
        std::fs::create_dir_all(base.join("sub/inner")).expect("mkdir");
        std::fs::create_dir(base.join("other")).expect("mkdir");
        std::fs::create_dir(base.join("other/deep")).expect("mkdir");
        mount::bind(&base.join("other"), &base.join("sub/inner"), false).expect("bind");
        let root = Dir::open_root(base).expect("open");
        let inner = root.open_dir(&common::rel("sub/inner/deep")).expect("over the mount");
        assert_ne!(inner.mount_id(), root.mount_id());
        let child =
            root.open_dir(&common::rel("sub")).expect("open").child_dir(name("inner")).expect("child");
        assert_eq!(child.mount_id(), inner.mount_id());
        mount::remount_bind(&base.join("sub/inner"), MountFlags::RDONLY).expect("remount");
        assert_eq!((inner.is_readonly_mount(), root.is_readonly_mount()), (Ok(true), Ok(false)));
    });
}

#[test]
fn a_file_system_is_made_by_the_new_mount_api() {
    in_own_namespace(|base| {
        std::fs::create_dir(base.join("at")).expect("mkdir");
        let parameters = [mount::Parameter::Text(c"size", c"64k"), mount::Parameter::Flag(c"inode64")];
        let made = mount::new_filesystem(c"tmpfs", &parameters, 0).expect("fsmount");
        mount::attach_over(&made, Dir::open_root(&base.join("at")).expect("open")).expect("move_mount");
        let found =
            own_mounts().into_iter().find(|mount| mount.target == base.join("at")).expect("in mountinfo");
        assert!(found.has_option("size=64k"));
        let wrong = [mount::Parameter::Text(c"no_such_option", c"1")];
        assert_eq!(mount::new_filesystem(c"tmpfs", &wrong, 0).map(drop), Err(Errno::INVAL));
    });
}

#[test]
fn a_fuse_connection_is_mounted_waited_for_and_ended() {
    in_own_namespace(|base| {
        let device = match device::open_dev_fuse() {
            Err(error) => {
                eprintln!("skipped: /dev/fuse: {error}");
                return;
            }
            Ok(device) => device,
        };
        let at = base.join("fuse");
        std::fs::create_dir(&at).expect("mkdir");
        let options = b"rootmode=40755,user_id=0,group_id=0,default_permissions";
        mount::mount_fuse(device.as_fd(), c"src", &at, "plyfs", MountFlags::NOSUID, options).expect("mount");
        let found = own_mounts().into_iter().find(|mount| mount.target == at).expect("in mountinfo");
        assert_eq!(found.fstype, "fuse.plyfs");
        let [ready] = device::wait([device.as_fd()], None).expect("poll");
        assert!(ready.readable && !ready.closed, "the kernel has sent INIT: {ready:?}");
        let mut request = vec![0; 1 << 20];
        let mut parts = [std::io::IoSliceMut::new(&mut request)];
        let size = device::read_request(device.as_fd(), &mut parts).expect("read INIT");
        assert!(size >= 40 + 16, "{size}");
        assert_eq!(request.get(4..8), Some(&26_u32.to_ne_bytes()[..]), "FUSE_INIT");
        let second = device::clone_dev(device.as_fd()).expect("clone");
        mount::unmount_detached(&at).expect("unmount");
        let [ready] = device::wait([second.as_fd()], None).expect("poll");
        assert!(ready.closed);
        let mut parts = [std::io::IoSliceMut::new(&mut request)];
        assert_eq!(device::read_request(second.as_fd(), &mut parts), Err(Errno::NODEV));
    });
}

#[test]
fn waiting_ends_with_time_or_with_the_first_ready_descriptor() {
    let (read, write) = rustix::pipe::pipe().expect("pipe");
    let (other, _keep) = rustix::pipe::pipe().expect("pipe");
    let short = Some(std::time::Duration::from_millis(1));
    let none = device::wait([read.as_fd(), other.as_fd()], short).expect("poll");
    assert!(none.iter().all(|ready| *ready == device::Ready::default()));
    rustix::io::write(&write, b"x").expect("write");
    let [first, second] = device::wait([read.as_fd(), other.as_fd()], None).expect("poll");
    assert!(first.readable && !second.readable);
    device::set_nonblocking(other.as_fd(), true).expect("fcntl");
    assert_eq!(rustix::io::read(&other, &mut [0; 1]), Err(Errno::AGAIN));
    assert!(rustix::fs::fcntl_getfl(&other).expect("flags").contains(OFlags::NONBLOCK));
}
