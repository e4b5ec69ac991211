//! What containerd's own suite (core/snapshots/testsuite) asks of every snapshotter, asked through the socket.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::{MetadataExt, chown, symlink};
use std::path::Path;
use std::time::SystemTime;

use common::{Labels, Mounted, Served, cannot_mount, gc_root, labels, mkdir, refused, tree, write};
use plyfs_snapshotter::proto::snapshots::{Info, Kind};
use tonic::Code;

type Layer = Box<dyn Fn(&Path)>;

/// Prepares on `parent`, lets `change` write to the mount, and commits as `name`.
async fn layer(s: &mut Served, parent: &str, name: &str, change: impl Fn(&Path)) {
    let key = format!("{name}-active");
    let mounts = s.prepare(&key, parent).await.unwrap();
    let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
    change(&mounted.0);
    drop(mounted);
    s.commit(name, &key).await.unwrap();
}

/// Stacks the layers, and compares each, prepared and viewed, with the same changes made to a plain directory.
async fn same_as_flat(s: &mut Served, layers: Vec<Layer>) {
    let flat = s.dir.path().join("flat");
    mkdir(&flat, 0o755);
    let mut parent = String::new();
    for (n, change) in layers.iter().enumerate() {
        let key = format!("prepare-{n}");
        let mounts = s.prepare(&key, &parent).await.unwrap();
        let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
        assert_eq!(tree(&mounted.0), tree(&flat), "layer {n}, before");
        change(&flat);
        change(&mounted.0);
        assert_eq!(tree(&mounted.0), tree(&flat), "layer {n}, after");
        drop(mounted);
        parent = format!("committed-{n}");
        s.commit(&parent, &key).await.unwrap();
        let view = format!("view-{n}");
        let mounts = s.view(&view, &parent).await.unwrap();
        let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
        assert_eq!(tree(&mounted.0), tree(&flat), "layer {n}, viewed");
        drop(mounted);
        s.remove(&view).await.unwrap();
    }
}

fn boxed(change: impl Fn(&Path) + 'static) -> Layer {
    Box::new(change)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_is_prepared_written_committed_viewed_and_removed() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    let initial = |root: &Path| {
        write(root.join("foo"), "foo\n", 0o777);
        mkdir(root.join("a"), 0o755);
        mkdir(root.join("a/b"), 0o755);
        mkdir(root.join("a/b/c"), 0o755);
    };
    layer(&mut s, "", "committed", initial).await;
    let first = s.stat("committed").await.unwrap();
    assert_eq!((first.parent.as_str(), first.kind()), ("", Kind::Committed));
    refused(s.stat("committed-active").await, Code::NotFound);

    let mounts = s.prepare("next", "committed").await.unwrap();
    let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
    let plain = tempfile::tempdir_in(s.dir.path()).unwrap();
    let flat = plain.path().join("flat");
    mkdir(&flat, 0o755);
    initial(&flat);
    assert_eq!(tree(&mounted.0), tree(&flat));
    for root in [&mounted.0, &flat] {
        write(root.join("bar"), "bar\n", 0o777);
        write(root.join("foo"), "bar\n", 0o777);
        fs::remove_dir_all(root.join("a/b")).unwrap();
    }
    drop(mounted);
    let info = s.stat("next").await.unwrap();
    assert_eq!((info.parent.as_str(), info.kind()), ("committed", Kind::Active));
    s.commit("second", "next").await.unwrap();
    let second = s.stat("second").await.unwrap();
    assert_eq!((second.parent.as_str(), second.kind()), ("committed", Kind::Committed));
    refused(s.stat("next").await, Code::NotFound);
    assert_eq!(s.list(&[]).await.unwrap(), [first, second]);

    let mounts = s.view("look", "second").await.unwrap();
    let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
    assert_eq!(tree(&mounted.0), tree(&flat));
    drop(mounted);
    s.remove("look").await.unwrap();
    assert!(refused(s.remove("committed").await, Code::FailedPrecondition).contains("remove"));
    s.remove("second").await.unwrap();
    s.remove("committed").await.unwrap();
    s.cleanup().await.unwrap();
    assert_eq!(fs::read_dir(s.root().join("overlay2")).unwrap().count(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_mounted_snapshot_is_active_and_can_be_committed_while_mounted() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    let mounts = s.prepare("k", "").await.unwrap();
    let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
    write(mounted.0.join("foo"), "foo\n", 0o777);
    let info = s.stat("k").await.unwrap();
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind()), ("k", "", Kind::Active));
    s.commit("c", "k").await.unwrap();
    let info = s.stat("c").await.unwrap();
    assert_eq!((info.name.as_str(), info.parent.as_str(), info.kind()), ("c", "", Kind::Committed));
    refused(s.mounts("c").await, Code::FailedPrecondition);
}

#[tokio::test(flavor = "multi_thread")]
async fn parents_are_told_one_step_at_a_time() {
    let mut s = Served::start().await;
    s.prepare("a-active", "").await.unwrap();
    s.commit("a", "a-active").await.unwrap();
    s.prepare("b-active", "a").await.unwrap();
    s.commit("b", "b-active").await.unwrap();
    assert_eq!(s.stat("b").await.unwrap().parent, "a");
    assert_eq!(s.stat("a").await.unwrap().parent, "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_used_once_whatever_for() {
    let mut s = Served::start().await;
    s.prepare("p", "").await.unwrap();
    s.commit("base", "p").await.unwrap();
    s.prepare("k", "base").await.unwrap();
    refused(s.view("k", "base").await, Code::AlreadyExists);
    refused(s.prepare("k", "base").await, Code::AlreadyExists);
    s.view("v", "base").await.unwrap();
    refused(s.view("v", "base").await, Code::AlreadyExists);
    refused(s.prepare("base", "base").await, Code::AlreadyExists);
    refused(s.commit("base", "k").await, Code::AlreadyExists);
    refused(s.commit("v", "k").await, Code::AlreadyExists);
    assert_eq!(s.stat("k").await.unwrap().kind(), Kind::Active);
}

#[tokio::test(flavor = "multi_thread")]
async fn only_what_can_be_is_a_parent_is_committed_or_mounted() {
    let mut s = Served::start().await;
    refused(s.prepare("k", "nothing").await, Code::NotFound);
    refused(s.view("k", "nothing").await, Code::NotFound);
    refused(s.prepare("", "").await, Code::InvalidArgument);
    s.prepare("k", "").await.unwrap();
    refused(s.prepare("on-active", "k").await, Code::InvalidArgument);
    refused(s.commit("", "k").await, Code::InvalidArgument);
    refused(s.commit("c", "nothing").await, Code::NotFound);
    s.view("v", "").await.unwrap();
    refused(s.commit("c", "v").await, Code::FailedPrecondition);
    refused(s.mounts("nothing").await, Code::NotFound);
    refused(s.remove("nothing").await, Code::NotFound);
    refused(s.usage("nothing").await, Code::NotFound);
    s.commit("c", "k").await.unwrap();
    refused(s.commit("d", "c").await, Code::FailedPrecondition);
    let long = labels(&[("l", &"x".repeat(4096))]);
    refused(s.prepare_with("long", "", long).await, Code::InvalidArgument);
    refused(s.stat("long").await, Code::NotFound);
    assert_eq!(s.mounts("v").await.unwrap(), s.mounts("v").await.unwrap());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_without_a_parent_can_get_one_when_it_is_committed() {
    let mut s = Served::start().await;
    for name in ["a", "b"] {
        s.prepare("k", "").await.unwrap();
        s.commit(name, "k").await.unwrap();
    }
    s.prepare("late", "").await.unwrap();
    refused(s.commit_with("c", "late", "nothing", gc_root()).await, Code::NotFound);
    s.commit_with("c", "late", "a", gc_root()).await.unwrap();
    assert_eq!(s.stat("c").await.unwrap().parent, "a");
    refused(s.remove("a").await, Code::FailedPrecondition);
    s.prepare("early", "a").await.unwrap();
    refused(s.commit_with("d", "early", "b", gc_root()).await, Code::InvalidArgument);
    s.commit_with("d", "early", "a", gc_root()).await.unwrap();
    s.remove("d").await.unwrap();
    s.remove("c").await.unwrap();
    s.remove("a").await.unwrap();
}

async fn base(s: &mut Served) {
    s.prepare("c1-a", "").await.unwrap();
    s.commit("c1", "c1-a").await.unwrap();
    s.prepare("c2-a", "c1").await.unwrap();
    s.commit("c2", "c2-a").await.unwrap();
    s.prepare("a1", "c2").await.unwrap();
    s.prepare("a2", "").await.unwrap();
    s.view("v1", "c2").await.unwrap();
    s.view("v2", "").await.unwrap();
}

fn time(stamp: Option<prost_types::Timestamp>) -> SystemTime {
    stamp.unwrap().try_into().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn labels_are_updated_whole_or_by_name_and_nothing_else_is() {
    let mut s = Served::start().await;
    let before = SystemTime::now();
    base(&mut s).await;
    let after = SystemTime::now();
    for (name, kind, parent) in [
        ("c1", Kind::Committed, ""),
        ("c2", Kind::Committed, "c1"),
        ("a1", Kind::Active, "c2"),
        ("a2", Kind::Active, ""),
        ("v1", Kind::View, "c2"),
        ("v2", Kind::View, ""),
    ] {
        let same = |info: &Info, expected: &Labels| {
            assert_eq!((info.name.as_str(), info.kind(), info.parent.as_str()), (name, kind, parent));
            assert_eq!(&info.labels, expected, "{name}");
        };
        let mut info = s.stat(name).await.unwrap();
        same(&info, &gc_root());
        let created = info.created_at;
        assert!((before..=after).contains(&time(created)), "{name}");
        assert_eq!(info.updated_at, created);

        info.parent = "doesnotexist".into();
        info.labels = labels(&[("l1", "v1"), ("l2", "v2"), ("l3", "v3"), ("containerd.io/gc.root", "r")]);
        let expected = info.labels.clone();
        let start = SystemTime::now();
        let mut info = s.update(info, &[]).await.unwrap();
        same(&info, &expected);
        assert_eq!(info.created_at, created);
        assert!((start..=SystemTime::now()).contains(&time(info.updated_at)));
        assert_eq!(s.stat(name).await.unwrap(), info);

        info.labels = labels(&[("l1", "updated"), ("l4", "v4")]);
        let mut info = s.update(info, &["labels.l1", "labels.l2"]).await.unwrap();
        same(&info, &labels(&[("l1", "updated"), ("l3", "v3"), ("containerd.io/gc.root", "r")]));

        info.labels = labels(&[("l4", "v4"), ("containerd.io/gc.root", "r")]);
        let expected = info.labels.clone();
        let mut info = s.update(info, &["labels"]).await.unwrap();
        same(&info, &expected);

        info.parent = "doesnotexist".into();
        for field in ["parent", "kind", "name", "created_at", "label"] {
            refused(s.update(info.clone(), &["labels.l4", field]).await, Code::InvalidArgument);
        }
        same(&s.stat(name).await.unwrap(), &expected);
    }
    refused(s.update(Info { name: "x".into(), ..Info::default() }, &[]).await, Code::NotFound);
}

#[tokio::test(flavor = "multi_thread")]
async fn removed_keys_and_names_are_free_again() {
    let mut s = Served::start().await;
    s.prepare("committed-a", "").await.unwrap();
    s.commit("committed-1", "committed-a").await.unwrap();
    s.prepare("reuse-1", "committed-1").await.unwrap();
    s.remove("reuse-1").await.unwrap();
    s.view("reuse-1", "committed-1").await.unwrap();
    s.remove("reuse-1").await.unwrap();
    s.prepare("reuse-1", "").await.unwrap();
    s.remove("committed-1").await.unwrap();
    s.commit("committed-1", "reuse-1").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_snapshot_in_the_middle_stays_as_long_as_one_stands_on_it() {
    let mut s = Served::start().await;
    s.prepare("x", "").await.unwrap();
    s.commit("base", "x").await.unwrap();
    s.prepare("y", "base").await.unwrap();
    s.commit("middle", "y").await.unwrap();
    s.prepare("top", "middle").await.unwrap();
    s.view("look", "middle").await.unwrap();
    refused(s.remove("middle").await, Code::FailedPrecondition);
    s.remove("top").await.unwrap();
    refused(s.remove("middle").await, Code::FailedPrecondition);
    s.remove("look").await.unwrap();
    s.remove("middle").await.unwrap();
    s.remove("base").await.unwrap();
    assert_eq!(s.list(&[]).await.unwrap(), []);
}

#[tokio::test(flavor = "multi_thread")]
async fn walking_finds_what_the_filters_say() {
    let mut s = Served::start().await;
    let root = labels(&[("containerd.io/gc.root", "check-walk")]);
    let with = |l: &str| labels(&[("containerd.io/gc.root", "check-walk"), ("l", l)]);
    s.prepare_with("a-np", "", root.clone()).await.unwrap();
    s.prepare_with("p-tmp", "", root.clone()).await.unwrap();
    s.commit_with("p", "p-tmp", "", root.clone()).await.unwrap();
    s.prepare_with("a", "p", root.clone()).await.unwrap();
    s.view_with("v", "p", root.clone()).await.unwrap();
    s.prepare_with("p-wl-tmp", "", root).await.unwrap();
    s.commit_with("p-wl", "p-wl-tmp", "", with("1")).await.unwrap();
    s.prepare_with("a-wl", "p-wl", with("2")).await.unwrap();
    s.view_with("v-wl", "p-wl", with("3")).await.unwrap();
    s.prepare_with("a-np-wl", "", with("2")).await.unwrap();
    s.prepare_with("bystander", "", Labels::new()).await.unwrap();

    let root = "labels.\"containerd.io/gc.root\"==check-walk";
    let and_root = |filter: &str| format!("{filter},{root}");
    for (filters, expected) in [
        (vec![root.to_owned()], "a a-np a-np-wl a-wl p p-wl v v-wl"),
        (vec![and_root("kind==active")], "a a-np a-np-wl a-wl"),
        (vec![and_root("kind==view")], "v v-wl"),
        (vec![and_root("kind==committed")], "p p-wl"),
        (vec!["name==p".into(), "name==a-np-wl".into()], "a-np-wl p"),
        (vec!["name==a-wl,labels.l".into()], "a-wl"),
        (vec!["parent==p".into()], "a v"),
        (vec![and_root("parent!=\"\"")], "a a-wl v v-wl"),
        (vec!["labels.l".into()], "a-np-wl a-wl p-wl v-wl"),
        (vec!["labels.l==2".into()], "a-np-wl a-wl"),
        (vec!["name~=^a-".into()], "a-np a-np-wl a-wl"),
    ] {
        let filters: Vec<&str> = filters.iter().map(String::as_str).collect();
        let found = s.list(&filters).await.unwrap();
        let mut names: Vec<&str> = found.iter().map(|info| info.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names.join(" "), expected, "{filters:?}");
        for info in &found {
            assert_eq!(&s.stat(&info.name).await.unwrap(), info, "stat within a walk");
        }
    }
    refused(s.list(&["kind="]).await, Code::InvalidArgument);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_long_list_arrives_whole() {
    let mut s = Served::start().await;
    s.prepare("x", "").await.unwrap();
    s.commit("base", "x").await.unwrap();
    for n in 0..250 {
        s.view(&format!("v{n}"), "base").await.unwrap();
    }
    assert_eq!(s.list(&[]).await.unwrap().len(), 251);
    assert_eq!(s.list(&["kind==view"]).await.unwrap().len(), 250);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_view_is_read_only_however_it_is_mounted() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    s.prepare("x", "").await.unwrap();
    s.commit("one", "x").await.unwrap();
    s.prepare("y", "one").await.unwrap();
    s.commit("two", "y").await.unwrap();
    for (parent, fstype) in [("", "bind"), ("one", "bind"), ("two", "overlay")] {
        let mounts = s.view("v", parent).await.unwrap();
        assert_eq!(mounts[0].r#type, fstype);
        let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
        let e = fs::write(mounted.0.join("testfile"), "x").unwrap_err();
        assert_eq!(e.kind(), std::io::ErrorKind::ReadOnlyFilesystem);
        drop(mounted);
        s.remove("v").await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn files_are_updated_across_layers() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    let layers = vec![
        boxed(|root| {
            mkdir(root.join("etc"), 0o700);
            write(root.join("etc/hosts"), "mydomain 10.0.0.1", 0o644);
            write(root.join("etc/profile"), "PATH=/usr/bin", 0o644);
            write(root.join("updated"), "1", 0o600);
        }),
        boxed(|root| {
            write(root.join("etc/hosts"), "mydomain 10.0.0.2", 0o644);
            write(root.join("etc/profile"), "PATH=/usr/bin", 0o666);
            mkdir(root.join("root"), 0o700);
            write(root.join("root/.bashrc"), "PATH=/usr/sbin:/usr/bin", 0o644);
        }),
        boxed(|root| fs::set_permissions(root.join("updated"), mode(0o4711)).unwrap()),
    ];
    same_as_flat(&mut s, layers).await;
}

fn mode(bits: u32) -> fs::Permissions {
    std::os::unix::fs::PermissionsExt::from_mode(bits)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_removed_directory_comes_back_empty_and_a_removed_file_not_at_all() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    let layers = vec![
        boxed(|root| {
            mkdir(root.join("dir"), 0o700);
            write(root.join("dir/file"), "hello", 0o644);
            write(root.join("foo"), "foo\n", 0o777);
            write(root.join("foobar"), "foobar\n", 0o777);
        }),
        boxed(|root| {
            fs::remove_dir_all(root.join("dir")).unwrap();
            fs::remove_file(root.join("foobar")).unwrap();
        }),
        boxed(|root| {
            mkdir(root.join("dir"), 0o700);
            write(root.join("dir/new"), "new", 0o644);
        }),
        boxed(|_| {}),
    ];
    same_as_flat(&mut s, layers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn owners_and_directory_modes_survive_a_commit() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    let layers = vec![
        boxed(|root| {
            mkdir(root.join("opt"), 0o700);
            mkdir(root.join("opt/a"), 0o755);
            write(root.join("opt/a/b"), "hello", 0o644);
            mkdir(root.join("d1"), 0o700);
            mkdir(root.join("d2"), 0o711);
        }),
        boxed(|root| {
            chown(root.join("opt"), Some(1), Some(1)).unwrap();
            chown(root.join("opt/a/b"), Some(2), Some(3)).unwrap();
            fs::set_permissions(root.join("d1"), mode(0o1777)).unwrap();
            mkdir(root.join("d2/in"), 0o750);
        }),
        boxed(|root| fs::set_permissions(root.join("d2"), mode(0o2755)).unwrap()),
    ];
    same_as_flat(&mut s, layers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn files_moved_and_renamed_between_layers_are_where_they_were_put() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    let layers = vec![
        boxed(|root| {
            mkdir(root.join("dir1"), 0o700);
            write(root.join("dir1/f1"), "Hello", 0o644);
            mkdir(root.join("dir2"), 0o700);
            write(root.join("dir2/f2"), "...", 0o644);
            mkdir(root.join("somefiles"), 0o700);
            write(root.join("somefiles/f1"), "was here first", 0o644);
            write(root.join("somefiles/f2"), "over", 0o644);
            symlink("f1", root.join("somefiles/link")).unwrap();
        }),
        boxed(|root| {
            mkdir(root.join("dir3"), 0o700);
            write(root.join("dir3/f1"), "Hello", 0o644);
            fs::remove_dir_all(root.join("dir1")).unwrap();
            fs::hard_link(root.join("dir2/f2"), root.join("dir3/f2")).unwrap();
            fs::remove_file(root.join("dir2/f2")).unwrap();
            fs::rename(root.join("somefiles/f1"), root.join("somefiles/f2")).unwrap();
            fs::rename(root.join("somefiles/link"), root.join("moved")).unwrap();
        }),
    ];
    same_as_flat(&mut s, layers).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn the_root_has_mode_0755_and_then_its_parents() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    let shown = |mounts: &[_], at: &Path| {
        let mounted = Mounted::at(at, mounts);
        let meta = fs::metadata(&mounted.0).unwrap();
        (meta.mode() & 0o7777, meta.uid())
    };
    let at = s.dir.path().join("m");
    let mounts = s.prepare("x", "").await.unwrap();
    assert_eq!(shown(&mounts, &at), (0o755, 0));
    {
        let mounted = Mounted::at(&at, &mounts);
        fs::set_permissions(&mounted.0, mode(0o1750)).unwrap();
        chown(&mounted.0, Some(7), None).unwrap();
        fs::set_permissions(&mounted.0, mode(0o1750)).unwrap();
    }
    s.commit("base", "x").await.unwrap();
    let mounts = s.prepare("y", "base").await.unwrap();
    assert_eq!(shown(&mounts, &at), (0o1750, 7));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hundred_and_twenty_eight_layers_mount_and_show_the_same_as_one() {
    if cannot_mount() {
        return;
    }
    let mut s = Served::start().await;
    let flat = s.dir.path().join("flat");
    mkdir(&flat, 0o755);
    let mut parent = String::new();
    for n in 0..128 {
        let key = format!("prepare-{n}");
        let mounts = s.prepare(&key, &parent).await.unwrap();
        let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
        for root in [&flat, &mounted.0] {
            if n == 0 {
                write(root.join("bottom"), "way at the bottom\n", 0o777);
                mkdir(root.join("addhere"), 0o755);
                mkdir(root.join("onlyme"), 0o755);
            }
            write(root.join("overwriteme"), &format!("{n} was here\n"), 0o777);
            write(root.join(format!("addhere/file-{n}")), "same\n", 0o755);
            fs::remove_dir_all(root.join("onlyme")).unwrap();
            mkdir(root.join("onlyme"), 0o755);
            write(root.join(format!("onlyme/file-{n}")), "only me!\n", 0o777);
        }
        if n % 16 == 15 {
            assert_eq!(tree(&mounted.0), tree(&flat), "layer {n}");
        }
        drop(mounted);
        parent = format!("committed-{n}");
        s.commit(&parent, &key).await.unwrap();
    }
    let mounts = s.view("full", &parent).await.unwrap();
    assert!(mounts[0].options.join(",").len() > 4096, "long enough to need care");
    let mounted = Mounted::at(&s.dir.path().join("m"), &mounts);
    assert_eq!(tree(&mounted.0), tree(&flat));
}
