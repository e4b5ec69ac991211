//! `plyfs diff`: what an upper changes, by the format on disk.

#![allow(clippy::unwrap_used, clippy::indexing_slicing, reason = "helpers of tests")]

mod common;

use common::{Place, as_root};
use plyfs_testkit::layer::{Namespace, TreeSpec};

fn diff(place: &Place, lowers: &[&str]) -> Vec<String> {
    let mut arguments = vec!["diff", "upper"];
    for lower in lowers {
        arguments.extend(["--lower", lower]);
    }
    place.run(&arguments).lines().map(str::to_owned).collect()
}

#[test]
fn what_was_done_through_the_mount_is_reported_once_and_exactly() {
    as_root("what_was_done_through_the_mount_is_reported_once_and_exactly", |place| {
        place.sh("mkdir -p a/etc a/dir/sub b/etc b/gone; echo a > a/etc/f; echo same > b/etc/same
                  echo x > b/etc/mode; echo y > b/etc/touched; echo z > b/gone/z; echo 1 > a/dir/one
                  echo 2 > a/dir/sub/two; echo m > a/movable; echo w > a/written; echo r > a/replaced");
        place.mount(&["a", "b"]);
        place.sh("cd merged; echo more >> etc/f; chmod 600 etc/mode; touch etc/touched; rm -r gone; mv dir dir2
                  echo 3 > dir2/three; rm dir2/one; mv movable moved; echo new > new; ln -s new link
                  printf w2 > written; rm replaced; mkdir replaced; echo in > replaced/in; cat etc/same > /dev/null");
        assert_eq!(diff(place, &["a", "b"]), diff(place, &["a:b"]));
        assert_eq!(
            diff(place, &["a", "b"]),
            [
                "R /dir -> /dir2",
                "D /dir2/one",
                "A /dir2/three",
                "M /etc/f",
                "M /etc/mode (mode)",
                "M /etc/touched (times)",
                "D /gone",
                "A /link",
                "R /movable -> /moved",
                "A /new",
                "D /replaced",
                "A /replaced",
                "A /replaced/in",
                "M /written",
            ]
        );
        let json = place.run(&["diff", "upper", "--lower", "a", "--lower", "b", "--json"]);
        let all: Vec<serde_json::Value> =
            json.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let of = |path: &str| all.iter().find(|one| one["path"] == path).unwrap();
        assert_eq!(of("/dir2")["from"], "/dir");
        assert_eq!(of("/etc/mode")["what"], serde_json::json!(["mode"]));
        assert_eq!(of("/etc/touched")["what"], serde_json::json!(["times"]));
        assert_eq!(of("/etc/f")["what"], serde_json::json!(["content"]));
        assert_eq!(of("/gone")["type"], "directory");
        assert_eq!(of("/written")["size"], 2);
        place.umount();
    });
}

#[test]
fn an_opaque_directory_is_reported_by_what_it_hides_and_brings() {
    as_root("an_opaque_directory_is_reported_by_what_it_hides_and_brings", |place| {
        place.sh("mkdir -p a/d/sub a/d/kept; echo 1 > a/d/x; echo 2 > a/d/y; echo 3 > a/d/sub/z; echo 4 > a/d/kept/k");
        place.mount(&["a"]);
        place.sh("cd merged; rm -r d; mkdir d; cp ../a/d/x d/x; touch -r ../a/d/x d/x; echo changed > d/y; mkdir d/kept");
        assert_eq!(diff(place, &["a"]), ["D /d/sub", "D /d/kept/k", "M /d/y"]);
        place.umount();
    });
}

#[test]
fn what_was_moved_away_and_replaced_is_a_rename_and_an_addition() {
    as_root("what_was_moved_away_and_replaced_is_a_rename_and_an_addition", |place| {
        place.sh("mkdir -p a/one/in a/two; echo 1 > a/one/f; echo 2 > a/two/g; echo i > a/one/in/i");
        place.mount(&["a"]);
        place.sh("cd merged; mv one/in apart; mv one tmp; mv two one; mv tmp two; mkdir fresh; mv one fresh/one; mkdir one");
        let lines = diff(place, &["a"]);
        assert_eq!(
            lines,
            ["R /one/in -> /apart", "A /fresh", "R /two -> /fresh/one", "A /one", "R /one -> /two"],
        );
        place.umount();
    });
}

#[test]
fn deletions_are_understood_in_the_forms_of_image_layers() {
    let place = Place::new();
    place.sh("mkdir -p a/d upper/d; echo 1 > a/f; echo 2 > a/g; echo 3 > a/d/x; echo 4 > a/d/y
              : > upper/.wh.f; : > upper/d/.wh..wh..opq; echo 5 > upper/d/x; : > upper/.wh.never-was; : > upper/.wh..wh.plnk");
    assert_eq!(diff(&place, &["a"]), ["D /d/y", "M /d/x", "D /f"]);
}

#[test]
fn an_upper_of_a_user_namespace_is_read_by_its_own_attributes() {
    let place = Place::new();
    place.sh("mkdir -p a/dir a/opaque upper; echo x > a/dir/f; echo y > a/opaque/old");
    let upper = TreeSpec::new()
        .dir("renamed")
        .xattr("user.overlay.redirect", "dir")
        .file(".wh.dir", "")
        .dir("opaque")
        .opaque(Namespace::User);
    upper.build(&place.at("upper")).unwrap();
    rustix::fs::setxattr(place.at("upper"), "user.overlay.impure", b"y", rustix::fs::XattrFlags::empty())
        .unwrap();
    let lines: Vec<String> = diff(&place, &["a"]).into_iter().filter(|line| !line.starts_with('M')).collect();
    assert_eq!(lines, ["D /opaque/old", "R /dir -> /renamed"]);
}

#[test]
fn attributes_that_belong_to_the_overlay_are_no_change_and_others_are() {
    as_root("attributes_that_belong_to_the_overlay_are_no_change_and_others_are", |place| {
        place.write("a/d/f", "x");
        place.write("a/g", "y");
        place.mount(&["a"]);
        place.sh("cd merged; : > d/new; rm d/new; chown 7 g; setfattr -n user.x -v 1 d/f");
        assert_eq!(diff(place, &["a"]), ["M /d/f (xattrs)", "M /g (owner)"]);
        let ignoring = place.run(&["diff", "upper", "--lower", "a", "--ignore-owner"]);
        assert_eq!(ignoring, "M /d/f (xattrs)\n");
        place.umount();
    });
}

#[test]
fn a_file_with_metadata_only_is_compared_by_its_metadata() {
    as_root("a_file_with_metadata_only_is_compared_by_its_metadata", |place| {
        place.write("a/f", "data");
        place.dirs(&["upper", "work", "merged"]);
        place.run(&["mount", "-o", "lowerdir=a,upperdir=upper,workdir=work,metacopy=on", "merged"]);
        place.sh("chmod 600 merged/f");
        let json = place.run(&["diff", "upper", "--lower", "a", "--json"]);
        let one: serde_json::Value = serde_json::from_str(json.trim()).unwrap();
        assert_eq!(one["what"], serde_json::json!(["mode"]));
        place.umount();
    });
}

#[test]
fn what_the_kernels_overlay_wrote_is_read_alike() {
    as_root("what_the_kernels_overlay_wrote_is_read_alike", |place| {
        use plyfs_testkit::need::{Need, met};
        if !met(&[Need::Filesystem("overlay")]) {
            return;
        }
        place.sh("mkdir -p a/d a/e b upper work merged; echo 1 > a/d/f; echo 2 > a/e/g; echo 3 > b/h
            mount -t overlay o -o lowerdir=a:b,upperdir=upper,workdir=work,redirect_dir=on,metacopy=on merged
            cd merged; mv d d2; rm h; rm -r e; mkdir e; echo 4 > e/new; chmod 600 d2/f");
        assert_eq!(diff(place, &["a", "b"]), ["R /d -> /d2", "M /d2/f (mode)", "D /e/g", "A /e/new", "D /h"]);
        place.sh("umount merged");
    });
}
