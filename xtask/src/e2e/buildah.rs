//! `buildah bud`: what it builds on plyfs equals what it builds on the kernel's overlayfs.

use std::path::Path;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use plyfs_testkit::compare::compare;
use plyfs_testkit::snapshot::{Clock, Shot, Snapshot, View};
use rustix::fs::FileType;

use super::client::{self, Backend, Client, Owner};
use super::{Scene, Verdict, images, podman};

const SHOWN: usize = 20;

/// Builds the Dockerfile with and without layers on both, and compares the images' trees file by file.
pub fn equal(scene: &Scene) -> Result<Verdict> {
    let context = podman::build_context(scene)?.display().to_string();
    let clock = Clock::start();
    // Layers keep whole seconds: whatever is built from now on was, even so, after the clock's start.
    thread::sleep(Duration::from_millis(1100));
    let build = |client: &Client<'_>| {
        images::import_busybox(client)?;
        let layered = tree_of(client, "--layers=true", &context, clock).context("with layers")?;
        let flat = tree_of(client, "--layers=false", &context, clock).context("without layers")?;
        Ok([layered, flat])
    };
    let ours = client::with(scene, Owner::Root, Backend::Plyfs, build).context("on plyfs")?;
    let kernels =
        client::with(scene, Owner::Root, Backend::Kernel, build).context("on the kernel's overlay")?;
    for (ours, kernels) in ours.iter().zip(&kernels) {
        let differences = compare(ours, kernels);
        if !differences.is_empty() {
            let shown: Vec<_> = differences.iter().take(SHOWN).map(ToString::to_string).collect();
            bail!("{} differences, plyfs / kernel:\n{}", differences.len(), shown.join("\n"));
        }
    }
    Ok(Verdict::Passed)
}

/// Builds, and reads back the tree of the image.
fn tree_of(client: &Client<'_>, layers: &str, context: &str, clock: Clock) -> Result<Snapshot> {
    let network = ["--isolation=oci", "--network=host"];
    client.buildah(&["bud", layers, network[0], network[1], "-t", "localhost/bud:1", context])?;
    podman::says(&podman::run(client, &[], "localhost/bud:1", podman::BUILT)?, "all-as-built")?;
    let name = last(&client.buildah(&["from", "--pull-never", "localhost/bud:1"])?)?;
    let mounted = last(&client.buildah(&["mount", &name])?)?;
    let mut tree = Snapshot::take(Path::new(&mounted), View::Merged, clock)?;
    // The link count of a directory tells whether layers were merged for it, which is no part of an image.
    let is_directory = |shot: &&mut Shot| FileType::from_raw_mode(shot.mode) == FileType::Directory;
    tree.entries.values_mut().filter(is_directory).for_each(|shot| shot.nlink = 0);
    client.buildah(&["umount", &name])?;
    client.buildah(&["rm", &name])?;
    client.buildah(&["rmi", "--force", "localhost/bud:1"])?;
    Ok(tree)
}

fn last(lines: &[String]) -> Result<String> {
    lines.last().cloned().context("no output")
}
