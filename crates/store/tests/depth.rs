//! Many layers and many containers: as many as the store promises.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;

use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use common::{Home, dir, file, is_root, tar};
use plyfs_store::{Backend, Changes, Digest, Image};
use serde_json::json;

/// An image of `count` layers, as a docker archive that is loaded: each has a file of its own and one that all have.
fn load(h: &Home, count: usize) -> Image {
    let layers: Vec<Vec<u8>> = (0..count)
        .map(|n| tar(&[dir("d"), file(&format!("d/f{n}"), "x"), file("common", &n.to_string())]))
        .collect();
    let ids: Vec<String> = layers.iter().map(|l| Digest::of(l).to_string()).collect();
    let config = json!({"architecture": "amd64", "os": "linux", "config": {}, "rootfs": {"type": "layers", "diff_ids": ids}});
    let names: Vec<String> = (0..count).map(|n| format!("{n}.tar")).collect();
    let manifest = json!([{"Config": "config.json", "RepoTags": ["deep:1"], "Layers": names}]);
    let raw = |name: &str, data: Vec<u8>| common::Raw { data, ..file(name, "") };
    let mut entries: Vec<_> = names.iter().zip(layers).map(|(n, l)| raw(n, l)).collect();
    entries.push(raw("config.json", config.to_string().into_bytes()));
    entries.push(raw("manifest.json", manifest.to_string().into_bytes()));
    let archive = h.path("deep.tar");
    fs::write(&archive, tar(&entries)).unwrap();
    h.store.load(&archive).unwrap().remove(0)
}

#[test]
fn an_image_of_500_layers_is_mounted_compared_and_committed() {
    if !is_root() {
        return;
    }
    let h = Home::new();
    // One fewer, since the commit adds one.
    let image = load(&h, 499);
    assert_eq!(image.layers.len(), 499);
    h.store.create("deep:1", Some("c"), None).unwrap();
    let m = h.store.mount("c", Backend::Kernel).unwrap();
    assert_eq!(fs::read_dir(m.join("d")).unwrap().count(), 499);
    assert_eq!(fs::read_to_string(m.join("common")).unwrap(), "498");
    fs::write(m.join("d/new"), "new").unwrap();
    fs::remove_file(m.join("d/f3")).unwrap();
    h.store.unmount("c", false).unwrap();
    let changes: Vec<String> =
        h.store.diff("c").unwrap().iter().map(|c| String::from_utf8_lossy(&c.path).into()).collect();
    assert_eq!(changes, ["/d", "/d/f3", "/d/new"]);
    let made = h.store.commit("c", "deep:2", &Changes::default()).unwrap();
    assert_eq!(made.layers.len(), 500);
    h.store.create("deep:2", Some("e"), None).unwrap();
    let m = h.store.mount("e", Backend::Kernel).unwrap();
    assert_eq!(fs::read_dir(m.join("d")).unwrap().count(), 499);
    assert!(!m.join("d/f3").exists() && m.join("d/new").exists());
    h.store.unmount("e", false).unwrap();
}

/// Bytes on disk of a tree.
fn usage(root: &Path) -> u64 {
    let below = fs::read_dir(root).map_or(0, |d| d.map(|e| usage(&e.unwrap().path())).sum());
    let m = fs::symlink_metadata(root).unwrap();
    let below = if m.is_dir() { below } else { 0 };
    m.blocks() * 512 + below
}

#[test]
fn a_container_takes_less_than_100_kilobytes() {
    let h = Home::new();
    load(&h, 20);
    let before = usage(&h.root());
    let count = 50;
    for n in 0..count {
        h.store.create("deep:1", Some(&format!("c{n}")), None).unwrap();
    }
    let each = (usage(&h.root()) - before) / count;
    assert!(each < 100_000, "{each} bytes");
}
