//! Pull and push, with a registry that stalls, lies about length or digest, and drops connections: always a clear
//! error, a store that passes `check`, and a repeat that succeeds.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::indexing_slicing, reason = "tests")]

mod common;
#[path = "common/registry.rs"]
mod registry;

use common::{Home, file, tar};
use plyfs_store::{CheckOptions, RegistryOptions};
use registry::{Fault, Registry};

fn options() -> RegistryOptions {
    RegistryOptions { tls_verify: false, stall: 1, ..RegistryOptions::default() }
}

/// A registry with one image, and the image's manifest.
fn with_image() -> (Registry, plyfs_store::Digest) {
    let r = Registry::start();
    let h = Home::new();
    let text: String = (0..2_000).map(|n| format!("{n}\n")).collect();
    h.import(&tar(&[file("f", &text)]), "x:1").unwrap();
    let d = h.store.push("x:1", &format!("{}/x:1", r.address), &options()).unwrap();
    (r, d)
}

#[test]
fn what_is_pushed_is_pulled_with_the_same_digests() {
    let (r, pushed) = with_image();
    let h = Home::new();
    let name = format!("{}/x:1", r.address);
    let i = h.store.pull(&name, &options()).unwrap();
    assert_eq!(i.manifest, pushed);
    assert_eq!(h.store.image(&name).unwrap().manifest, pushed);
    assert_eq!(std::fs::read_to_string(h.top(&i).join("f")).unwrap().lines().count(), 2_000);
    r.set(Fault::None);
    h.store.pull(&name, &options()).unwrap();
    let layers =
        r.state.lock().unwrap().log.iter().filter(|l| l.contains(&i.layers[0].blob.to_string())).count();
    assert_eq!(layers, 0, "a layer that is here is not fetched again");
    let by_digest = Home::new();
    assert_eq!(
        by_digest.store.pull(&format!("{}/x@{pushed}", r.address), &options()).unwrap().manifest,
        pushed
    );
}

#[test]
fn a_registry_that_misbehaves_leaves_nothing_and_a_repeat_succeeds() {
    let (r, pushed) = with_image();
    let name = format!("{}/x:1", r.address);
    for (fault, kind, why) in [
        (Fault::Stall, "registry", "127.0.0.1"),
        (Fault::Drop, "registry", "127.0.0.1"),
        (Fault::Longer, "invalid", "announces"),
        (Fault::Shorter, "registry", "ends after"),
        (Fault::Other, "digest", "digest"),
    ] {
        let h = Home::new();
        r.set(fault);
        let e = h.store.pull(&name, &options()).expect_err("a fault");
        assert_eq!(e.kind(), kind, "{fault:?}: {e}");
        assert!(e.to_string().contains(why), "{fault:?}: {e}");
        assert_eq!(h.leftovers(), [] as [&str; 0], "{fault:?}");
        assert!(h.store.check(CheckOptions::default()).unwrap().is_empty());
        r.set(Fault::None);
        assert_eq!(h.store.pull(&name, &options()).unwrap().manifest, pushed, "{fault:?}, then the repeat");
        assert!(h.store.check(CheckOptions::default()).unwrap().is_empty());
    }
}

#[test]
fn a_dropped_connection_is_resumed_where_it_stopped() {
    let (r, pushed) = with_image();
    let h = Home::new();
    r.set(Fault::DropOnce);
    assert_eq!(h.store.pull(&format!("{}/x:1", r.address), &options()).unwrap().manifest, pushed);
    let log = r.state.lock().unwrap().log.clone();
    assert!(log.iter().any(|l| l.contains("bytes=") && !l.contains("bytes=0-")), "{log:?}");
    // The same from one command to the next.
    let h = Home::new();
    r.set(Fault::Drop);
    h.store.pull(&format!("{}/x:1", r.address), &options()).expect_err("a fault");
    r.set(Fault::None);
    h.store.pull(&format!("{}/x:1", r.address), &options()).unwrap();
    let log = r.state.lock().unwrap().log.clone();
    assert!(log.iter().any(|l| l.contains("bytes=")), "{log:?}");
}

#[test]
fn credentials_come_from_the_auth_file_and_wrong_ones_are_told() {
    let (r, pushed) = with_image();
    r.state.lock().unwrap().auth = Some("dTpw".into());
    let h = Home::new();
    let name = format!("{}/x:1", r.address);
    let file = h.path("auth.json");
    let with = |auth: &str| {
        std::fs::write(&file, format!(r#"{{"auths": {{"{}": {{"auth": "{auth}"}}}}}}"#, r.address)).unwrap();
        RegistryOptions { auth_file: Some(file.clone()), ..options() }
    };
    let o = with("d3JvbmcK");
    assert!(h.store.pull(&name, &o).unwrap_err().to_string().contains("credentials"));
    let o = with("dTpw");
    assert_eq!(h.store.pull(&name, &o).unwrap().manifest, pushed);
}

/// Not a test of its own: a pull with helpers on its PATH, which only another process can have. Runs only when it is told what.
#[test]
fn pull_with_helpers() {
    let Ok(job) = std::env::var("PLYFS_TEST_PULL") else { return };
    let [root, auth, name] = job.split(' ').collect::<Vec<_>>()[..] else { panic!("{job}") };
    let o = RegistryOptions { auth_file: Some(auth.into()), ..options() };
    match common::open(std::path::Path::new(root)).pull(name, &o) {
        Ok(i) => println!("pulled {}", i.manifest),
        Err(e) => println!("failed {e}"),
    }
}

#[test]
fn credential_helpers_are_asked_and_their_failures_told() {
    use std::os::unix::fs::PermissionsExt;
    let (r, pushed) = with_image();
    r.state.lock().unwrap().auth = Some("dTpw".into());
    let h = Home::new();
    let bin = h.path("bin");
    std::fs::create_dir(&bin).unwrap();
    for (name, script) in [
        // Answers for this registry alone, and only if it is asked as the protocol has it.
        (
            "good",
            format!(
                "read -r s; test \"$1 $s\" = \"get {}\" && echo '{{\"ServerURL\":\"s\",\"Username\":\"u\",\"Secret\":\"p\"}}'",
                r.address
            ),
        ),
        ("wrong", "echo '{\"Username\":\"u\",\"Secret\":\"hush\"}'".into()),
        ("empty", "echo credentials not found in native keychain; exit 1".into()),
        ("locked", "echo the key ring is locked; exit 1".into()),
        ("garbage", "echo hush".into()),
        ("token", "echo '{\"Username\":\"<token>\",\"Secret\":\"hush\"}'".into()),
    ] {
        let p = bin.join(format!("docker-credential-{name}"));
        std::fs::write(&p, format!("#!/bin/sh\n{script}\n")).unwrap();
        std::fs::set_permissions(&p, std::fs::Permissions::from_mode(0o755)).unwrap();
    }
    let a = &r.address;
    let good = format!("pulled {pushed}");
    for (n, (file, want)) in [
        (format!(r#"{{"credHelpers": {{"{a}": "good"}}}}"#), &good[..]),
        (r#"{"credsStore": "good"}"#.into(), &good),
        // The registry's own helper comes before the one for all, and both before what the file says.
        (format!(r#"{{"credHelpers": {{"{a}": "good"}}, "credsStore": "wrong"}}"#), &good),
        (format!(r#"{{"credsStore": "good", "auths": {{"{a}": {{"auth": "d3JvbmcK"}}}}}}"#), &good),
        // One that knows nothing leaves it to the file; so does one for all that fails or is missing.
        (format!(r#"{{"credsStore": "empty", "auths": {{"{a}": {{"auth": "dTpw"}}}}}}"#), &good),
        (format!(r#"{{"credsStore": "locked", "auths": {{"{a}": {{"auth": "dTpw"}}}}}}"#), &good),
        (format!(r#"{{"credsStore": "absent", "auths": {{"{a}": {{"auth": "dTpw"}}}}}}"#), &good),
        (format!(r#"{{"credHelpers": {{"{a}": "wrong"}}}}"#), "credentials"),
        (
            format!(r#"{{"credHelpers": {{"{a}": "locked"}}}}"#),
            "docker-credential-locked: the key ring is locked",
        ),
        (format!(r#"{{"credHelpers": {{"{a}": "garbage"}}}}"#), "did not answer with JSON"),
        (format!(r#"{{"credHelpers": {{"{a}": "token"}}}}"#), "identity token"),
        (format!(r#"{{"credHelpers": {{"{a}": "../bin/good"}}}}"#), "is no name"),
    ]
    .into_iter()
    .enumerate()
    {
        let auth = h.path("config.json");
        std::fs::write(&auth, &file).unwrap();
        let job = format!("{} {} {a}/x:1", h.path(&format!("s{n}")).display(), auth.display());
        let path = format!("{}:{}", bin.display(), std::env::var("PATH").unwrap());
        let out = std::process::Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "pull_with_helpers", "--nocapture"])
            .env("PLYFS_TEST_PULL", job)
            .env("PATH", path)
            .output()
            .unwrap();
        let text = String::from_utf8_lossy(&out.stdout).into_owned() + &String::from_utf8_lossy(&out.stderr);
        assert!(text.contains(want) && !text.contains("hush"), "{file}: {text}");
    }
}

#[test]
fn a_damaged_blob_is_fetched_again_by_repair() {
    let (r, _) = with_image();
    let h = Home::new();
    let i = h.store.pull(&format!("{}/x:1", r.address), &options()).unwrap();
    let p = h.store.layout().blob(&i.layers[0].blob);
    let mut bytes = std::fs::read(&p).unwrap();
    bytes[5000] ^= 4;
    std::fs::write(&p, bytes).unwrap();
    let found = h.store.check(CheckOptions { repair: true, quick: false }).unwrap();
    assert!(found.iter().all(|p| p.repaired), "{found:?}");
    assert!(h.store.check(CheckOptions::default()).unwrap().is_empty());
}

#[test]
fn an_image_or_registry_that_is_not_there_is_said_to_be() {
    let r = Registry::start();
    let h = Home::new();
    assert_eq!(h.store.pull(&format!("{}/none:1", r.address), &options()).unwrap_err().kind(), "not-found");
    // A port that nobody listens on.
    let l = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let dead = l.local_addr().unwrap();
    drop(l);
    assert_eq!(h.store.pull(&format!("{dead}/x:1"), &options()).unwrap_err().kind(), "registry");
}
