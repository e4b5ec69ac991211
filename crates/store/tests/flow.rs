//! The store's main road: import, create, mount, diff, commit, save, load, remove; and who wins when two meet.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink as link};
use std::path::Path;

use common::{Home, Raw, dir, entry, file, hardlink, is_root, open, symlink, tar};
use plyfs_store::{Backend, Changes, Compression, Format, Image};

/// A small root with one of everything.
fn base() -> Vec<u8> {
    tar(&[
        dir(".").mode(0o751),
        dir("etc"),
        file("etc/f", "old"),
        file("etc/g", "gone"),
        file("etc/shadow", "secret").mode(0o640).owner(0, 42),
        dir("d"),
        file("d/old", "x"),
        dir("d/sub"),
        file("d/sub/deep", "x"),
        dir("usr"),
        dir("usr/share"),
        file("usr/share/doc", "doc").pax("mtime", b"1500000000.123456789"),
        hardlink("usr/share/doc2", "usr/share/doc"),
        symlink("bin", "usr/bin"),
        file("suid", "s").mode(0o4755),
        Raw { dev: (1, 3), ..entry(b'3', "null") },
        entry(b'6', "fifo"),
    ])
}

/// Everything a tree shows, by path.
fn tree(root: &Path) -> BTreeMap<String, String> {
    let mut out = BTreeMap::new();
    let mut inodes: BTreeMap<u64, String> = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(p) = todo.pop() {
        let m = fs::symlink_metadata(&p).unwrap();
        let rel = p.strip_prefix(root).unwrap().display().to_string();
        let content = if m.is_dir() {
            todo.extend(fs::read_dir(&p).unwrap().map(|e| e.unwrap().path()));
            String::new()
        } else if m.is_symlink() {
            fs::read_link(&p).unwrap().display().to_string()
        } else if m.is_file() {
            fs::read_to_string(&p).unwrap()
        } else {
            m.rdev().to_string()
        };
        let size = if m.is_dir() { 0 } else { m.size() };
        out.insert(
            rel.clone(),
            format!(
                "{:o} {}:{} {} {}.{} {content}",
                m.mode(),
                m.uid(),
                m.gid(),
                size,
                m.mtime(),
                m.mtime_nsec()
            ),
        );
        if m.nlink() > 1 && !m.is_dir() {
            let first = inodes.entry(m.ino()).or_insert_with(|| rel.clone()).clone();
            out.insert(format!("{rel} is"), first);
        }
    }
    let groups: BTreeMap<String, Vec<String>> = out.iter().filter(|(k, _)| k.ends_with(" is")).fold(
        BTreeMap::new(),
        |mut g: BTreeMap<String, Vec<String>>, (k, v)| {
            g.entry(v.clone()).or_default().push(k.clone());
            g
        },
    );
    out.retain(|k, _| !k.ends_with(" is"));
    for members in groups.into_values() {
        out.insert(format!("linked: {members:?}"), String::new());
    }
    out
}

fn changes_of(h: &Home, c: &str) -> Vec<String> {
    h.store
        .diff(c)
        .unwrap()
        .iter()
        .map(|c| format!("{} {}", c.kind.letter(), String::from_utf8_lossy(&c.path)))
        .collect()
}

/// Everything that a container may do to its root.
fn change(m: &Path) {
    fs::write(m.join("etc/h"), "added").unwrap();
    fs::write(m.join("etc/f"), "new").unwrap();
    fs::remove_file(m.join("etc/g")).unwrap();
    fs::remove_dir_all(m.join("d")).unwrap();
    fs::create_dir(m.join("d")).unwrap();
    fs::create_dir(m.join("d/sub")).unwrap();
    fs::write(m.join("d/z"), "z").unwrap();
    fs::hard_link(m.join("etc/h"), m.join("etc/h2")).unwrap();
    link("h", m.join("etc/link")).unwrap();
    fs::set_permissions(m.join("suid"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::remove_file(m.join("fifo")).unwrap();
    fs::create_dir(m.join("fifo")).unwrap();
}

const CHANGES: &[&str] = &[
    "C /d",
    "D /d/old",
    "C /d/sub",
    "D /d/sub/deep",
    "A /d/z",
    "C /etc",
    "C /etc/f",
    "D /etc/g",
    "A /etc/h",
    "A /etc/h2",
    "A /etc/link",
    "C /fifo",
    "C /suid",
];

fn commit(h: &Home, c: &str, name: &str) -> Image {
    h.store.commit(c, name, &Changes::default()).unwrap()
}

#[test]
fn an_imported_tree_is_what_the_tar_says() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    let i = h.import(&base(), "base:1").unwrap();
    let t = tree(&h.top(&i));
    assert_eq!(t["etc/shadow"], "100640 0:42 6 1610612736.0 secret");
    assert_eq!(t["usr/share/doc"], "100644 0:0 3 1500000000.123456789 doc");
    assert_eq!(t["suid"].split(' ').next(), Some("104755"));
    assert_eq!(t["null"].split(' ').next(), Some("20644"));
    assert_eq!(t[""].split(' ').next(), Some("40751"));
    assert!(t.keys().any(|k| k.contains("usr/share/doc is") && k.contains("usr/share/doc2 is")));
    assert_eq!(i.layers.last().unwrap().diff_id.to_string().len(), 71);
}

/// The issue's own example, on each backend that mounts here.
#[test]
fn what_a_container_changed_is_listed_committed_and_shown_again() {
    if !is_root() {
        return;
    }
    for backend in [Backend::Kernel, Backend::Copy] {
        let h = Home::new();
        h.import(&base(), "base:1").unwrap();
        h.store.create("base:1", Some("c1"), None).unwrap();
        let m = h.store.mount("c1", backend).unwrap();
        assert_eq!(fs::metadata(&m).unwrap().mode() & 0o7777, 0o751, "the root is the image's");
        change(&m);
        let seen = tree(&m);
        assert!(h.store.unmount("c1", false).unwrap());
        assert_eq!(changes_of(&h, "c1"), CHANGES, "{backend:?}");
        let image = commit(&h, "c1", "base:2");
        h.store.create("base:2", Some("c2"), None).unwrap();
        let again = h.store.mount("c2", Backend::Kernel).unwrap();
        assert_eq!(tree(&again), seen, "{backend:?}");
        h.store.unmount("c2", false).unwrap();
        assert!(changes_of(&h, "c2").is_empty());
        // The layer holds markers, not devices: any reader of layers understands it.
        assert_eq!(image.layers.len(), 2);
    }
}

#[test]
fn the_same_changes_give_the_same_digest() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    h.import(&base(), "base:1").unwrap();
    h.store.create("base:1", Some("c1"), None).unwrap();
    let m = h.store.mount("c1", Backend::Kernel).unwrap();
    change(&m);
    h.store.unmount("c1", false).unwrap();
    let (a, b) = (commit(&h, "c1", "a:1"), commit(&h, "c1", "b:1"));
    assert_eq!((a.manifest, a.config), (b.manifest, b.config));
    let z = h
        .store
        .commit("c1", "z:1", &Changes { compression: Some(Compression::Zstd), ..Changes::default() })
        .unwrap();
    assert_eq!(a.layers[1].diff_id, z.layers[1].diff_id);
    assert_ne!(a.layers[1].blob, z.layers[1].blob);
}

/// Commits "c1" and shows what a container of that image has.
fn view_of_commit(h: &Home) -> BTreeMap<String, String> {
    commit(h, "c1", "base:2");
    h.store.create("base:2", Some("c2"), None).unwrap();
    let now = tree(&h.store.mount("c2", Backend::Kernel).unwrap());
    h.store.unmount("c2", false).unwrap();
    now
}

/// Redirects and metacopies in an upper, as a kernel with these features on leaves them.
#[test]
fn redirects_and_metacopies_are_committed_as_the_merged_view_shows_them() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    let i = h.import(&base(), "base:1").unwrap();
    let c = h.store.create("base:1", Some("c1"), None).unwrap();
    let d = h.store.layout().layer(&c.id);
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=on,metacopy=on,index=off",
        h.top(&i).display(),
        d.join("diff").display(),
        d.join("work").display()
    );
    let m = d.join("merged");
    let status = std::process::Command::new("mount")
        .args(["-t", "overlay", "-o", &options, "overlay"])
        .arg(&m)
        .status()
        .unwrap();
    assert!(status.success());
    fs::rename(m.join("d"), m.join("moved")).unwrap();
    fs::rename(m.join("usr"), m.join("etc/usr")).unwrap();
    fs::write(m.join("moved/sub/more"), "m").unwrap();
    fs::set_permissions(m.join("etc/f"), fs::Permissions::from_mode(0o600)).unwrap();
    fs::rename(m.join("etc/f"), m.join("etc/renamed")).unwrap();
    fs::create_dir(m.join("d")).unwrap();
    let seen = tree(&m);
    rustix::mount::unmount(&m, rustix::mount::UnmountFlags::empty()).unwrap();
    let has = |p: &str, a: &str| {
        let mut v = [0u8; 256];
        rustix::fs::lgetxattr(d.join("diff").join(p), format!("trusted.overlay.{a}"), &mut v[..]).is_ok()
    };
    assert!(
        has("moved", "redirect") && has("etc/renamed", "metacopy"),
        "the kernel made what is to be tested"
    );
    assert_eq!(view_of_commit(&h), seen);
    let listed = changes_of(&h, "c1");
    for want in [
        "A /moved",
        "A /moved/old",
        "A /moved/sub/deep",
        "A /moved/sub/more",
        "D /usr",
        "A /etc/usr/share/doc",
        "D /etc/f",
        "A /etc/renamed",
        "C /d",
        "D /d/old",
    ] {
        assert!(listed.iter().any(|l| l == want), "{want} in {listed:?}");
    }
}

/// Hard links of the image, copied up by a kernel with `index=on`: all names show what one was given.
#[test]
fn indexed_hard_links_are_committed_as_the_merged_view_shows_them() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    let i = h
        .import(
            &tar(&[
                dir("a"),
                dir("b"),
                dir("b/deep"),
                file("a/one", "old"),
                hardlink("b/deep/two", "a/one"),
                hardlink("b/three", "a/one"),
                file("a/mode", "kept"),
                hardlink("b/mode", "a/mode"),
                file("a/gone", "gone"),
                hardlink("b/gone1", "a/gone"),
                hardlink("b/gone2", "a/gone"),
                file("a/same", "same"),
                hardlink("b/same", "a/same"),
            ]),
            "base:1",
        )
        .unwrap();
    let c = h.store.create("base:1", Some("c1"), None).unwrap();
    let d = h.store.layout().layer(&c.id);
    let at = |p: &str| d.join(p).display().to_string();
    let options = format!(
        "lowerdir={},upperdir={},workdir={},redirect_dir=on,metacopy=on,index=on",
        h.top(&i).display(),
        at("diff"),
        at("work")
    );
    let m = d.join("merged");
    let mut mount = std::process::Command::new("mount");
    assert!(mount.args(["-t", "overlay", "-o", &options, "overlay"]).arg(&m).status().unwrap().success());
    fs::write(m.join("a/one"), "new, and longer").unwrap();
    fs::remove_file(m.join("b/three")).unwrap();
    fs::set_permissions(m.join("b/mode"), fs::Permissions::from_mode(0o640)).unwrap();
    fs::write(m.join("a/gone"), "changed").unwrap();
    fs::remove_file(m.join("a/gone")).unwrap();
    assert_eq!(fs::read_to_string(m.join("b/deep/two")).unwrap(), "new, and longer");
    let seen = tree(&m);
    rustix::mount::unmount(&m, rustix::mount::UnmountFlags::empty()).unwrap();
    assert!(fs::read_dir(d.join("work/index")).unwrap().count() >= 3, "the kernel made what is to be tested");
    assert_eq!(view_of_commit(&h), seen);
    let listed = changes_of(&h, "c1");
    for want in [
        "C /a/one",
        "C /b/deep/two",
        "D /b/three",
        "C /a/mode",
        "C /b/mode",
        "D /a/gone",
        "C /b/gone1",
        "C /b/gone2",
    ] {
        assert!(listed.iter().any(|l| l == want), "{want} in {listed:?}");
    }
    assert!(!listed.iter().any(|l| l.contains("same")), "{listed:?}");
}

#[test]
fn images_travel_through_archives_with_their_digests() {
    let h = Home::new();
    h.import(&base(), "base:1").unwrap();
    if is_root() {
        h.store.create("base:1", Some("c1"), None).unwrap();
        change(&h.store.mount("c1", Backend::Copy).unwrap());
        h.store.unmount("c1", false).unwrap();
        commit(&h, "c1", "base:2");
    } else {
        h.store.tag("base:1", "base:2").unwrap();
    }
    let want = h.store.image("base:2").unwrap();
    for (format, keeps_blobs) in [
        (Format::OciArchive, true),
        (Format::OciDir, true),
        (Format::DockerArchive, false),
        (Format::DockerDir, false),
    ] {
        for compression in [Compression::None, Compression::Gzip, Compression::Zstd] {
            let out = h.path(&format!("{format:?}-{compression:?}"));
            h.store.save(&["base:2".into()], format, compression, &out).unwrap();
            let other = Home::new();
            let got = other.store.load(&out).unwrap();
            assert_eq!(got[0].config, want.config, "{format:?}");
            assert_eq!(
                got[0].manifest == want.manifest,
                keeps_blobs || got[0].layers.iter().zip(&want.layers).all(|(a, b)| a.blob == b.blob)
            );
            assert_eq!(other.store.image("base:2").unwrap().manifest, got[0].manifest);
            assert_eq!(tree(&other.top(&got[0])), tree(&h.top(&want)));
            if matches!(format, Format::OciDir | Format::DockerDir) {
                break;
            }
        }
    }
}

#[test]
fn layers_are_stored_once_and_go_with_their_last_user() {
    let h = Home::new();
    h.import(&base(), "base:1").unwrap();
    h.import(&base(), "other:1").unwrap();
    assert_eq!(h.store.images().unwrap().len(), 1, "the same content is the same image");
    h.store.create("base:1", Some("c1"), None).unwrap();
    assert!(h.store.remove_image("base:1", false).unwrap().image.is_none(), "it has another name");
    assert_eq!(h.store.remove_image("other:1", false).unwrap_err().kind(), "in-use");
    h.store.remove_container("c1", false).unwrap();
    assert!(h.store.remove_image("other:1", false).unwrap().image.is_some());
    assert_eq!(h.leftovers(), [] as [&str; 0]);
}

#[test]
fn a_mounted_container_is_not_removed_and_mounts_are_counted() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    h.import(&base(), "base:1").unwrap();
    h.store.create("base:1", Some("c1"), None).unwrap();
    let m = h.store.mount("c1", Backend::Auto).unwrap();
    assert_eq!(h.store.mount("c1", Backend::Auto).unwrap(), m);
    assert_eq!(h.store.remove_container("c1", false).unwrap_err().kind(), "in-use");
    assert!(!h.store.unmount("c1", false).unwrap());
    assert!(m.join("etc/f").exists());
    assert!(h.store.unmount("c1", false).unwrap());
    assert_eq!(h.store.unmount("c1", false).unwrap_err().kind(), "not-found");
    h.store.mount("c1", Backend::Kernel).unwrap();
    h.store.remove_container("c1", true).unwrap();
    assert!(!h.leftovers().iter().any(|l| l.starts_with("containers")));
}

/// More layers than a page of mount options holds.
#[test]
fn two_hundred_layers_mount_and_the_topmost_wins() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    let layers: Vec<Vec<u8>> =
        (0..200).map(|n| tar(&[file("layer", &n.to_string()), file(&format!("own-{n}"), "")])).collect();
    let archive = docker_dir(&h, &layers, "n:199");
    h.store.load(&archive).unwrap();
    h.store.create("n:199", Some("c"), None).unwrap();
    let m = h.store.mount("c", Backend::Kernel).unwrap();
    assert_eq!(fs::read_to_string(m.join("layer")).unwrap(), "199");
    assert!((0..200).all(|n| m.join(format!("own-{n}")).exists()));
    h.store.unmount("c", false).unwrap();
}

#[test]
fn two_processes_that_import_the_same_image_leave_one() {
    let h = Home::new();
    let p = h.path("t");
    fs::write(&p, base()).unwrap();
    let root = h.root();
    std::thread::scope(|s| {
        for n in 0..4 {
            let (p, root) = (&p, &root);
            s.spawn(move || {
                let store = open(root);
                for _ in 0..5 {
                    store.import(p, &format!("x:{n}"), &Changes::default()).unwrap();
                    store.create(&format!("x:{n}"), None, None).unwrap();
                }
            });
        }
    });
    assert_eq!(h.store.images().unwrap().len(), 1);
    assert_eq!(h.store.containers().unwrap().len(), 20);
    let staged = h.leftovers().into_iter().filter(|l| l.starts_with("staging")).count();
    assert_eq!(staged, 0);
}

/// Implied directories look as the layer below says.
#[test]
fn a_layer_without_its_parent_directories_does_not_change_them() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    // A second layer made by hand: only p/q/f.
    let layer = tar(&[file("p/q/f", "x")]);
    let lower = tar(&[dir("p").mode(0o1777).owner(7, 8), dir("p/q").mode(0o700)]);
    let docker = docker_dir(&h, &[lower, layer], "b:1");
    let i = h.store.load(&docker).unwrap().remove(0);
    let p = fs::metadata(h.top(&i).join("p")).unwrap();
    assert_eq!((p.mode() & 0o7777, p.uid(), p.gid()), (0o1777, 7, 8));
    assert_eq!(fs::metadata(h.top(&i).join("p/q")).unwrap().mode() & 0o7777, 0o700);
}

/// A docker archive as a directory, from layers' tars.
fn docker_dir(h: &Home, layers: &[Vec<u8>], name: &str) -> std::path::PathBuf {
    let dir = h.path("docker");
    fs::create_dir(&dir).unwrap();
    let mut files = Vec::new();
    for (n, l) in layers.iter().enumerate() {
        fs::write(dir.join(format!("{n}.tar")), l).unwrap();
        files.push(format!("{n}.tar"));
    }
    let ids: Vec<String> = layers.iter().map(|l| plyfs_store::Digest::of(l).to_string()).collect();
    let config = serde_json::json!({"architecture": "amd64", "os": "linux", "rootfs": {"type": "layers", "diff_ids": ids}});
    fs::write(dir.join("c.json"), config.to_string()).unwrap();
    let list = serde_json::json!([{"Config": "c.json", "RepoTags": [name], "Layers": files}]);
    fs::write(dir.join("manifest.json"), list.to_string()).unwrap();
    dir
}

#[test]
fn save_writes_into_a_pipe_and_through_a_link_and_replaces_neither() {
    use std::os::unix::fs::FileTypeExt;
    let h = Home::new();
    h.import(&tar(&[file("f", "1")]), "base:1").unwrap();
    let save = |to: &Path| {
        h.store.save(&["base:1".into()], Format::OciArchive, Compression::None, to).unwrap();
    };
    let plain = h.path("plain.tar");
    save(&plain);
    let want = fs::read(&plain).unwrap();

    fs::create_dir(h.path("there")).unwrap();
    let (link, target) = (h.path("link"), h.path("there/out.tar"));
    std::os::unix::fs::symlink("there/out.tar", &link).unwrap();
    // At first the link leads nowhere, then to a file.
    for _ in 0..2 {
        save(&link);
        assert!(link.is_symlink());
        assert!(fs::read(&target).unwrap() == want);
        fs::write(&target, "old").unwrap();
    }

    let fifo = h.path("fifo");
    let mode = rustix::fs::Mode::from_raw_mode(0o600);
    rustix::fs::mknodat(rustix::fs::CWD, &fifo, rustix::fs::FileType::Fifo, mode, 0).unwrap();
    let reader = std::thread::spawn({
        let fifo = fifo.clone();
        move || fs::read(fifo).unwrap()
    });
    save(&fifo);
    assert!(reader.join().unwrap() == want);
    assert!(fs::symlink_metadata(&fifo).unwrap().file_type().is_fifo());
    save(Path::new("/dev/null"));
    assert!(fs::symlink_metadata("/dev/null").unwrap().file_type().is_char_device());
}

/// What a program in a container says of its own files' owners is nobody's business: the kernel's overlay passes the attribute
/// on to the upper, and no store of root's has it from elsewhere.
#[test]
fn records_of_owners_that_a_program_set_on_its_files_are_dropped() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    h.import(&tar(&[dir("."), dir("home").owner(1000, 1000)]), "base:1").unwrap();
    h.store.create("base:1", Some("c1"), None).unwrap();
    let m = h.store.mount("c1", Backend::Kernel).unwrap();
    set_records(&m.join("home"));
    h.store.unmount("c1", false).unwrap();

    let mut exported = Vec::new();
    h.store.export("c1", &mut exported).unwrap();
    let committed = commit(&h, "c1", "base:2");
    let imported = h.import(&exported, "base:3").unwrap();
    h.store.mount("c1", Backend::Copy).unwrap();
    let of = |root: &Path| {
        let (t, name) = (tree(root), |n: &str| root.join("home").join(n));
        assert!(fs::metadata(name("dev")).unwrap().is_file(), "{}", root.display());
        let list = rustix::fs::llistxattr(name("evil"), &mut [0u8; 0][..]);
        assert_eq!(list.unwrap(), 0, "{}: no attribute is left of it", root.display());
        (t["home/evil"].clone(), t["home/dev"].clone(), t["home"].split(' ').nth(1).unwrap().to_owned())
    };
    let seen = of(&h.store.merged(&h.store.container("c1").unwrap()));
    assert!(seen.0.starts_with("100644 1000:1000 ") && seen.1.starts_with("100644 1000:1000 "), "{seen:?}");
    assert_eq!(seen.2, "1000:1000");
    assert_eq!(of(&h.top(&committed)), seen);
    assert_eq!(of(&h.top(&imported)), seen);
    h.store.unmount("c1", false).unwrap();
    assert!(h.store.check(plyfs_store::CheckOptions::default()).unwrap().is_empty());
}

/// In a thread that is user 1000, whose directory `home` is.
fn set_records(home: &Path) {
    use rustix::fs::{Mode, OFlags, XattrFlags};
    let dir = fs::File::open(home).unwrap();
    let user = move || {
        rustix::thread::set_thread_groups(&[]).unwrap();
        let gid = rustix::process::Gid::from_raw(1000);
        rustix::thread::set_thread_res_gid(gid, gid, gid).unwrap();
        let uid = rustix::process::Uid::from_raw(1000);
        rustix::thread::set_thread_res_uid(uid, uid, uid).unwrap();
        for (name, record) in [("evil", "0:0:0104755"), ("dev", "1000:1000:060666:block-254-0")] {
            let flags = OFlags::CREATE | OFlags::WRONLY | OFlags::EXCL;
            let f = rustix::fs::openat(&dir, name, flags, Mode::from_raw_mode(0o644)).unwrap();
            let key = "user.containers.override_stat";
            rustix::fs::fsetxattr(&f, key, record.as_bytes(), XattrFlags::empty()).unwrap();
        }
        rustix::fs::fsetxattr(&dir, "user.containers.override_stat", b"0:0:755", XattrFlags::empty())
            .unwrap();
    };
    std::thread::spawn(user).join().unwrap();
}
