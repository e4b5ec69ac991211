//! skopeo, podman and umoci read what plyfs saves and pushes, and plyfs what they do: with equal digests, equal trees.
//!
//! The image has two layers that hold all that a tar can: owners, modes, times, attributes, links, devices, FIFOs, holes,
//! strange names, whiteouts, an opaque directory.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use plyfs_testkit::compare::compare;
use plyfs_testkit::snapshot::{Clock, Shot, Snapshot, Stamp, View};
use serde_json::Value;

use super::client::{self, Backend, Client, Owner};
use super::registry::Registry;
use super::{Scene, Verdict};
use crate::child;

const LIMIT: Duration = Duration::from_secs(600);
const SHOWN: usize = 15;

const FIRST: &str = "mkdir -p bin deep/gone opaque/below dev && cp /bin/busybox bin/sh
    echo one > file && chown 1000:2000 file && chmod 4711 file && touch -d '2001-02-03 04:05:06.123456789 UTC' file
    ln file hard && ln file deep/hard && ln -s ../file symbolic && chown -h 5:6 symbolic && mkfifo -m 640 fifo && mknod dev/null c 1 3 && mknod dev/disk b 8 17
    truncate -s 8M sparse && echo end >> sparse && printf x | dd of=sparse bs=1 seek=1048576 conv=notrunc status=none
    setfattr -n user.note -v value file && setfattr -n user.dir -v \"a b\" deep && cp /bin/busybox capable && setcap cap_net_raw+ep capable
    touch \"$(printf 'not\\377utf8')\" \"$(printf 'new\\nline')\" '-dash' ' space' && touch $(printf 'n%.0s' $(seq 255))
    d=long; for n in $(seq 12); do d=$d/$(printf 'd%.0s' $(seq 100)); done; mkdir -p $d && touch $d/end && ln -s /$d long.link
    echo 1 > deep/gone/1; echo 2 > opaque/2; echo 3 > opaque/below/3; echo removed > removed; mkdir -m 1777 tmp; chmod 751 opaque; touch -d @-5 before-1970
    chown 3000000:4000000 tmp; touch -d '2010-01-01' deep opaque tmp dev bin .";
const SECOND: &str = "rm removed && rm -r deep/gone && rm -r opaque && mkdir opaque && echo 4 > opaque/4 && chmod 700 file
    echo more >> sparse && mv bin programs && mkdir bin && ln hard again && rm fifo && mkdir fifo && setfattr -x user.note file && touch -d '2012-03-04 05:06:07' opaque fifo";

/// Both ways, for each compression.
pub fn both_ways(scene: &Scene) -> Result<Verdict> {
    for compression in ["gzip", "zstd"] {
        let home = scene.directory(&format!("interchange-{compression}"), 0, 0o755)?;
        let image = Image { scene, home, compression };
        let result = image.all();
        // What a failed step left mounted would be reported in place of the failure.
        let unmounted = image.plyfs(&["umount", "--force", "look"]);
        result.with_context(|| compression.to_owned())?;
        unmounted?;
    }
    Ok(Verdict::Passed)
}

struct Image<'s> {
    scene: &'s Scene,
    home: PathBuf,
    compression: &'static str,
}

/// What must be the same wherever the image went.
#[derive(Debug, PartialEq, Eq)]
struct Digests {
    manifest: String,
    config: String,
    layers: Vec<String>,
    diff_ids: Vec<String>,
}

impl Image<'_> {
    fn all(&self) -> Result<()> {
        self.make()?;
        self.plyfs(&["create", "inter:2", "look"])?;
        let mounted = self.plyfs(&["mount", "look"])?;
        let tree = tree(Path::new(mounted.last().context("no path")?))?;
        let digests = self.digests("inter:2")?;
        self.skopeo(&digests).context("skopeo")?;
        if self.compression == "gzip" {
            // umoci of this age knows no zstd.
            self.umoci(&tree).context("umoci")?;
        }
        client::with(self.scene, Owner::Root, Backend::Kernel, |client| {
            self.podman(client, &digests, &tree).context("podman")
        })
    }

    /// `inter:2`: an imported directory, and what a container changed.
    fn make(&self) -> Result<()> {
        let root = self.path("root");
        fs::create_dir(&root)?;
        shell(&root, FIRST).context("making the first layer")?;
        let root = root.display().to_string();
        self.plyfs(&["import", "--compression", self.compression, &root, "inter:1"])?;
        self.plyfs(&["create", "inter:1", "change"])?;
        let merged = self.plyfs(&["mount", "change"])?;
        shell(Path::new(merged.last().context("no path")?), SECOND).context("making the second layer")?;
        self.plyfs(&["umount", "change"])?;
        self.plyfs(&["commit", "--compression", self.compression, "change", "inter:2"]).map(drop)
    }

    /// Archives and a registry: what skopeo copies stays byte for byte, and plyfs takes it back as the same image.
    fn skopeo(&self, digests: &Digests) -> Result<()> {
        let (archive, layout, back) = (self.show("a.tar"), self.show("layout"), self.show("back"));
        self.plyfs(&["save", "--format", "oci-archive", "-o", &archive, "inter:2"])?;
        self.plyfs(&["save", "--format", "oci-dir", "-o", &layout, "inter:2"])?;
        let registry = Registry::start(self.scene)?;
        let (pushed, copied) =
            (format!("{}/pushed:2", registry.address), format!("{}/copied:2", registry.address));
        self.plyfs(&["push", "--tls-verify=false", "inter:2", &pushed])?;
        let places = [
            format!("oci-archive:{archive}:inter:2"),
            format!("oci:{layout}:inter:2"),
            format!("docker://{pushed}"),
        ];
        for place in &places {
            let found = skopeo_digests(place)?;
            ensure!(found == *digests, "{place}: {found:?}, not {digests:?}");
        }
        let copy = |from: &str, to: &str| {
            let tls = ["--src-tls-verify=false", "--dest-tls-verify=false"];
            tool(
                "skopeo",
                &["--insecure-policy", "copy", "-q", "--preserve-digests", tls[0], tls[1], from, to],
            )
        };
        copy(&format!("docker://{pushed}"), &format!("oci:{back}:inter:3"))?;
        copy(&places[0], &format!("docker://{copied}"))?;
        let other = Image { scene: self.scene, home: self.path("other"), compression: self.compression };
        other.plyfs(&["load", &back])?;
        other.plyfs(&["pull", "--tls-verify=false", &copied])?;
        for name in ["inter:3", &copied] {
            let found = other.digests(name)?;
            ensure!(found == *digests, "plyfs has {name} as {found:?}, not {digests:?}");
        }
        let problems = other.plyfs(&["check"])?;
        ensure!(problems.iter().all(|line| !line.contains("damaged")), "check: {problems:?}");
        Ok(())
    }

    /// umoci unpacks the same tree, and what it packs plyfs shows as it was.
    fn umoci(&self, right: &Snapshot) -> Result<()> {
        let layout = self.show("umoci");
        let mut copy = vec!["--insecure-policy", "copy", "-q", "--preserve-digests"];
        let (from, to) = (format!("oci:{}:inter:2", self.show("layout")), format!("oci:{layout}:two"));
        copy.extend([from.as_str(), &to]);
        tool("skopeo", &copy)?;
        let (bundle, image) = (self.show("bundle"), format!("{layout}:two"));
        tool("umoci", &["unpack", "--image", &image, &bundle])?;
        same("umoci's unpacked tree", right, &tree(&self.path("bundle/rootfs"))?)?;
        shell(
            &self.path("bundle/rootfs"),
            "rm -r again programs && echo umoci > umoci && touch -d @1 umoci .",
        )?;
        let changed = tree(&self.path("bundle/rootfs"))?;
        tool("umoci", &["repack", "--image", &format!("{layout}:three"), &bundle])?;
        self.plyfs(&["load", &layout])?;
        self.shows("three", &changed).context("repacked by umoci")
    }

    /// podman loads and pulls it with the same digests and tree, and what podman commits, saves and pushes plyfs shows as it was.
    fn podman(&self, client: &Client<'_>, digests: &Digests, right: &Snapshot) -> Result<()> {
        let registry = Registry::start(self.scene)?;
        let pushed = format!("{}/pushed:2", registry.address);
        self.plyfs(&["push", "--tls-verify=false", "inter:2", &pushed])?;
        let docker = self.show("docker.tar");
        self.plyfs(&["save", "--format", "docker-archive", "-o", &docker, "inter:2"])?;
        client.podman(&["pull", "-q", "--tls-verify=false", &pushed])?;
        podman_has(client, &pushed, digests, right).context("pulled")?;
        let manifest = client.podman(&["image", "inspect", "--format", "{{.Digest}}", &pushed])?;
        ensure!(manifest.last() == Some(&digests.manifest), "podman's digest: {manifest:?}");
        client.podman(&["rmi", "--force", &pushed])?;
        let archives = [docker, self.show("a.tar")];
        for archive in &archives {
            client.podman(&["load", "-q", "-i", archive])?;
            let name = client.podman(&["images", "-q", "--no-trunc"])?;
            let name = name.last().context("nothing was loaded")?.clone();
            podman_has(client, &name, digests, right).with_context(|| archive.clone())?;
            client.podman(&["rmi", "--force", &name])?;
        }
        client.podman(&["pull", "-q", "--tls-verify=false", &pushed])?;
        client.podman(&["create", "--name", "more", &pushed, "/bin/sh"])?;
        let mounted = client.podman(&["mount", "more"])?;
        shell(
            Path::new(mounted.last().context("no path")?),
            "rm again && echo podman > podman && touch -d @1 podman .",
        )?;
        client.podman(&["umount", "more"])?;
        client.podman(&["commit", "-q", "more", "localhost/more:1"])?;
        let changed = podman_tree(client, "localhost/more:1")?;
        let again = format!("{}/more:1", registry.address);
        client.podman(&["push", "-q", "--tls-verify=false", "localhost/more:1", &again])?;
        self.plyfs(&["pull", "--tls-verify=false", &again])?;
        self.shows_as_podman(&again, &changed).context("pushed by podman")?;
        let there = skopeo_digests(&format!("docker://{again}"))?;
        ensure!(self.digests(&again)? == there, "plyfs has other digests than the registry");
        // Tools of this age put no zstd into a docker-archive.
        let formats = if self.compression == "gzip" {
            &["docker-archive", "oci-archive"][..]
        } else {
            &["oci-archive"]
        };
        for format in formats {
            // By skopeo: `podman save` of this image fails in itself ("write too long").
            let file = self.show(&format!("back-{format}"));
            let (from, to) = (format!("docker://{again}"), format!("{format}:{file}:localhost/more:1"));
            tool("skopeo", &["--insecure-policy", "copy", "-q", "--src-tls-verify=false", &from, &to])?;
            self.plyfs(&["load", &file])?;
            self.shows_as_podman("localhost/more:1", &changed).context(*format)?;
            self.plyfs(&["rmi", "localhost/more:1"])?;
        }
        client.podman(&["rm", "--force", "more"]).map(drop)
    }

    /// An image in plyfs's store has this tree.
    fn shows(&self, image: &str, right: &Snapshot) -> Result<()> {
        same(image, right, &self.tree_of(image)?)
    }

    fn shows_as_podman(&self, image: &str, right: &Snapshot) -> Result<()> {
        same(image, right, &as_podman(self.tree_of(image)?))
    }

    fn tree_of(&self, image: &str) -> Result<Snapshot> {
        self.plyfs(&["create", image, "shown"])?;
        let mounted = self.plyfs(&["mount", "shown"])?;
        let seen = tree(Path::new(mounted.last().context("no path")?));
        self.plyfs(&["umount", "shown"])?;
        self.plyfs(&["rm", "shown"])?;
        seen
    }

    fn digests(&self, name: &str) -> Result<Digests> {
        let told: Value = serde_json::from_str(&self.plyfs(&["--json", "inspect", name])?.join("\n"))?;
        let image = told.get(0).context("no image")?;
        let blobs = at(image, "/Layers").as_array().context("no layers")?;
        Ok(Digests {
            manifest: text(at(image, "/Digest")),
            config: text(at(image, "/Id")),
            layers: blobs.iter().map(|layer| text(at(layer, "/blob"))).collect(),
            diff_ids: texts(at(image, "/RootFS/Layers")),
        })
    }

    fn plyfs(&self, args: &[&str]) -> Result<Vec<String>> {
        let mut command = Command::new(&self.scene.plyfs);
        command.arg("--root").arg(self.path("store")).arg("--quiet").args(args);
        finish(&mut command)
    }

    fn path(&self, name: &str) -> PathBuf {
        self.home.join(name)
    }

    fn show(&self, name: &str) -> String {
        self.path(name).display().to_string()
    }
}

/// The configuration and tree that podman has of an image.
fn podman_has(client: &Client<'_>, name: &str, digests: &Digests, right: &Snapshot) -> Result<()> {
    let told = client.podman(&["image", "inspect", name])?.join("\n");
    let told: Value = serde_json::from_str(&told).context("podman image inspect")?;
    let image = told.get(0).context("no image")?;
    ensure!(
        digests.config.ends_with(&text(at(image, "/Id"))),
        "podman's configuration: {}",
        at(image, "/Id")
    );
    let ids = texts(at(image, "/RootFS/Layers"));
    ensure!(ids == digests.diff_ids, "podman's DiffIDs: {ids:?}, not {:?}", digests.diff_ids);
    same("podman's tree", &as_podman(right.clone()), &podman_tree(client, name)?)
}

/// podman gives the root directory a mode and time of its own, and takes a time before 1970 for 1970.
fn as_podman(mut tree: Snapshot) -> Snapshot {
    tree.entries.retain(|path, _| !path.is_empty() && path != b"before-1970");
    tree
}

fn podman_tree(client: &Client<'_>, name: &str) -> Result<Snapshot> {
    let mounted = client.podman(&["image", "mount", name])?;
    let seen = tree(Path::new(mounted.last().context("no path")?));
    client.podman(&["image", "umount", "--force", name])?;
    seen.map(as_podman)
}

fn skopeo_digests(place: &str) -> Result<Digests> {
    let raw = |more: &[&str]| {
        let mut args = vec!["inspect", "--raw", "--tls-verify=false"];
        args.extend(more);
        args.push(place);
        let mut command = Command::new("skopeo");
        let output = command.args(&args).output().context("skopeo")?;
        ensure!(output.status.success(), "skopeo {args:?}: {}", String::from_utf8_lossy(&output.stderr));
        Ok(output.stdout)
    };
    let bytes = raw(&[])?;
    let manifest: Value = serde_json::from_slice(&bytes)?;
    let config: Value = serde_json::from_slice(&raw(&["--config"])?)?;
    let blobs = at(&manifest, "/layers").as_array().context("no layers")?;
    Ok(Digests {
        manifest: sha256(&bytes)?,
        config: text(at(&manifest, "/config/digest")),
        layers: blobs.iter().map(|layer| text(at(layer, "/digest"))).collect(),
        diff_ids: texts(at(&config, "/rootfs/diff_ids")),
    })
}

fn sha256(bytes: &[u8]) -> Result<String> {
    let mut file = tempfile::NamedTempFile::new()?;
    std::io::Write::write_all(&mut file, bytes)?;
    let line = tool("sha256sum", &[&file.path().display().to_string()])?;
    let line = line.first().context("sha256sum")?;
    Ok(format!("sha256:{}", line.split(' ').next().unwrap_or_default()))
}

fn at<'v>(value: &'v Value, pointer: &str) -> &'v Value {
    value.pointer(pointer).unwrap_or(&Value::Null)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

fn texts(value: &Value) -> Vec<String> {
    value.as_array().map(|all| all.iter().map(text).collect()).unwrap_or_default()
}

/// All that a tar keeps: no access and change times. Links are compared by which names share an inode: a union counts also
/// those names of a lower inode that an upper hides.
fn tree(root: &Path) -> Result<Snapshot> {
    let mut tree = Snapshot::take(root, View::Merged, Clock::never())?;
    let none = Stamp::Exact(0, 0);
    tree.entries.values_mut().for_each(|shot| forget(shot, none));
    Ok(tree)
}

fn forget(shot: &mut Shot, none: Stamp) {
    (shot.atime, shot.ctime) = (none, none);
    // Writers of the older header keep whole seconds: what is compared is what every one keeps.
    if let Stamp::Exact(seconds, _) = shot.mtime {
        shot.mtime = Stamp::Exact(seconds, 0);
    }
    shot.nlink = 0;
    shot.listing.clear();
}

fn same(what: &str, right: &Snapshot, seen: &Snapshot) -> Result<()> {
    let differences = compare(right, seen);
    if differences.is_empty() {
        return Ok(());
    }
    let shown: Vec<_> = differences.iter().take(SHOWN).map(ToString::to_string).collect();
    bail!("{what}: {} differences, right / seen:\n{}", differences.len(), shown.join("\n"))
}

fn shell(directory: &Path, script: &str) -> Result<()> {
    finish(Command::new("bash").args(["-euc", script]).current_dir(directory)).map(drop)
}

fn tool(program: &str, args: &[&str]) -> Result<Vec<String>> {
    finish(Command::new(program).args(args))
}

fn finish(command: &mut Command) -> Result<Vec<String>> {
    let outcome = child::run_quiet(command, LIMIT)?;
    if !outcome.success() {
        bail!("{command:?}:\n{}", outcome.lines.join("\n"));
    }
    Ok(outcome.lines)
}
