//! The steps that podman does alike as root and without.

use std::fs;
use std::thread;

use anyhow::{Context, Result, bail, ensure};

use super::client::{self, Backend, Client, Owner};
use super::images::{self, BUSYBOX};
use super::registry::Registry;
use super::{Scene, Verdict};

/// The containers that run at once in [`twenty`].
const AT_ONCE: usize = 20;

/// Changes that cover what an upper layer can hold; run in a container of the busybox image.
pub const CHANGES: &str = "set -e
    rm /bin/vi
    mv /etc/group /etc/group.old
    mkdir /new && echo content > /new/file && ln /new/file /new/link && ln -s file /new/symbolic
    rm -rf /usr/share/doc && mkdir /usr/share/doc && echo only > /usr/share/doc/only
    mv /var/lib/data /var/lib/moved
    chmod 600 /etc/passwd && chown 1000:1000 /etc/passwd
    echo more >> /var/lib/moved/record3
    mkfifo /new/fifo
    rm -rf /tmp/gone && mkdir /tmp/gone && rmdir /tmp/gone";

/// Holds in every container of an image with [`CHANGES`].
pub const CHANGED: &str = "set -e
    test ! -e /bin/vi
    test ! -e /etc/group && grep -q user /etc/group.old
    test $(stat -c %h /new/file) = 2 && test $(cat /new/symbolic) = content
    test $(ls /usr/share/doc) = only
    test ! -e /var/lib/data && test $(ls /var/lib/moved | wc -l) = 50
    test $(stat -c %a:%u:%g /etc/passwd) = 600:1000:1000
    test $(wc -c < /var/lib/moved/record3) = 305
    test -p /new/fifo && test ! -e /tmp/gone
    echo all-as-changed";

/// One container through its life: run, exec, changes, `podman diff`, commit, stop, kill.
pub fn basics(scene: &Scene, owner: Owner) -> Result<Verdict> {
    client::with(scene, owner, Backend::Plyfs, |client| {
        images::import_busybox(client)?;
        is_on_plyfs(client)?;
        client.podman(&["run", "-d", "--name", "one", BUSYBOX, "/bin/sleep", "3600"])?;
        shell(client, "one", CHANGES)?;
        says(&shell(client, "one", CHANGED)?, "all-as-changed")?;
        diff(&client.podman(&["diff", "one"])?)?;
        client.podman(&["commit", "one", "localhost/changed:1"])?;
        says(&run(client, &[], "localhost/changed:1", CHANGED)?, "all-as-changed")?;
        client.podman(&["stop", "--time", "1", "one"])?;
        client.podman(&["start", "one"])?;
        says(&shell(client, "one", CHANGED)?, "all-as-changed")?;
        client.podman(&["kill", "one"])?;
        client.podman(&["rm", "--force", "one"])?;
        // The image is as it was.
        says(&run(client, &[], BUSYBOX, "test -e /bin/vi && ls /usr/share/doc | wc -l")?, "50")
    })?;
    Ok(Verdict::Passed)
}

/// A Dockerfile of ten steps; its image to a registry, removed, fetched and run again.
pub fn build(scene: &Scene, owner: Owner) -> Result<Verdict> {
    let registry = Registry::start(scene)?;
    let context = build_context(scene)?.display().to_string();
    let remote = format!("{}/built:1", registry.address);
    client::with(scene, owner, Backend::Plyfs, |client| {
        images::import_busybox(client)?;
        client.podman(&["build", "--network=host", "-t", &remote, &context])?;
        says(&run(client, &[], &remote, BUILT)?, "all-as-built")?;
        client.podman(&["push", "--tls-verify=false", &remote])?;
        client.podman(&["rmi", "--all", "--force"])?;
        client.podman(&["pull", "--tls-verify=false", &remote])?;
        says(&run(client, &[], &remote, BUILT)?, "all-as-built")
    })?;
    drop(registry);
    Ok(Verdict::Passed)
}

/// Read-only root, volumes, user namespaces.
pub fn options(scene: &Scene, owner: Owner) -> Result<Verdict> {
    client::with(scene, owner, Backend::Plyfs, |client| {
        images::import_busybox(client)?;
        let read_only = "touch /new 2>&1 | grep -q 'Read-only' && touch /tmp/new && echo refused";
        says(&run(client, &["--read-only"], BUSYBOX, read_only)?, "refused")?;
        client.podman(&["volume", "create", "shared"])?;
        // A volume that is empty takes over what the image has there.
        let volume = ["-v", "shared:/var/lib/data"];
        run(client, &volume, BUSYBOX, "echo kept > /var/lib/data/record0; rm /var/lib/data/record1")?;
        let seen = run(client, &volume, BUSYBOX, "cat /var/lib/data/record0; ls /var/lib/data | wc -l")?;
        says(&seen, "kept")?;
        says(&seen, "49")?;
        client.podman(&["volume", "rm", "shared"])?;
        // Everything of the image belongs to root, and what is changed to who changed it.
        let owners = "set -e; test $(stat -c %u:%g /etc/passwd /bin /bin/busybox | sort -u) = 0:0
            chown 5:6 /etc/group; test $(stat -c %u:%g /etc/group) = 5:6; rm /bin/vi; echo x >> /etc/passwd; echo mapped";
        says(&run(client, &["--userns=auto"], BUSYBOX, owners)?, "mapped")?;
        if owner == Owner::User {
            let keep = ["--userns=keep-id", "--user=0"];
            says(&run(client, &keep, BUSYBOX, owners)?, "mapped")?;
            let own = "id -u; touch /tmp/mine && stat -c %u /tmp/mine";
            says(&run(client, &["--userns=keep-id", "-w", "/tmp"], BUSYBOX, own)?, "54321")?;
        } else {
            let mapping = ["--uidmap=0:200000:65536", "--gidmap=0:200000:65536"];
            says(&run(client, &mapping, BUSYBOX, owners)?, "mapped")?;
        }
        Ok(())
    })?;
    Ok(Verdict::Passed)
}

/// Twenty containers on one image: started at once, each with changes of its own, stopped and killed at once.
pub fn twenty(scene: &Scene, owner: Owner) -> Result<Verdict> {
    client::with(scene, owner, Backend::Plyfs, |client| {
        images::import_busybox(client)?;
        let names: Vec<_> = (0..AT_ONCE).map(|number| format!("many{number}")).collect();
        at_once(&names, |name| {
            client.podman(&["run", "-d", "--name", name, BUSYBOX, "/bin/sleep", "3600"]).map(drop)
        })?;
        at_once(&names, |name| {
            shell(client, name, &format!("{CHANGES}\necho {name} > /new/who"))?;
            says(&shell(client, name, CHANGED)?, "all-as-changed")?;
            says(&shell(client, name, "cat /new/who")?, name)
        })?;
        let (stopped, killed) = names.split_at(AT_ONCE / 2);
        at_once(stopped, |name| client.podman(&["stop", "--time", "1", name]).map(drop))?;
        at_once(killed, |name| client.podman(&["kill", name]).map(drop))?;
        at_once(&names, |name| client.podman(&["rm", "--force", name]).map(drop))
    })?;
    Ok(Verdict::Passed)
}

/// Does `work` for each name in a thread of its own.
fn at_once(names: &[String], work: impl Fn(&str) -> Result<()> + Sync) -> Result<()> {
    thread::scope(|scope| {
        let work = &work;
        let threads: Vec<_> = names.iter().map(|name| (name, scope.spawn(move || work(name)))).collect();
        for (name, thread) in threads {
            match thread.join() {
                Ok(result) => result.with_context(|| name.clone())?,
                Err(_) => bail!("{name}: the thread panicked"),
            }
        }
        Ok(())
    })
}

/// Runs a script in a new container, which is removed.
pub fn run(client: &Client<'_>, options: &[&str], image: &str, script: &str) -> Result<Vec<String>> {
    let mut args = vec!["run", "--rm"];
    args.extend(options);
    args.extend([image, "/bin/sh", "-c", script]);
    client.podman(&args)
}

/// Runs a script in a running container.
pub fn shell(client: &Client<'_>, container: &str, script: &str) -> Result<Vec<String>> {
    client.podman(&["exec", container, "/bin/sh", "-c", script])
}

/// Fails unless one of `lines` is `expected`.
pub fn says(lines: &[String], expected: &str) -> Result<()> {
    ensure!(lines.iter().any(|line| line.trim() == expected), "{expected:?} expected: {}", lines.join("\n"));
    Ok(())
}

/// Whatever else is tested, a container's root must be plyfs.
fn is_on_plyfs(client: &Client<'_>) -> Result<()> {
    let table = run(client, &[], BUSYBOX, "grep ' / ' /proc/self/mountinfo")?;
    let kind = format!(" - {} ", client.expected_type());
    ensure!(table.iter().any(|line| line.contains(&kind)), "not{kind}: {}", table.join("\n"));
    Ok(())
}

/// What `podman diff` must say of [`CHANGES`].
fn diff(lines: &[String]) -> Result<()> {
    let expected = [
        "D /bin/vi",
        "D /etc/group",
        "A /etc/group.old",
        "A /new/file",
        "A /new/link",
        "A /new/symbolic",
        "A /new/fifo",
        "C /etc/passwd",
        "A /usr/share/doc/only",
        "C /usr/share/doc",
        "D /usr/share/doc/page7",
        "D /var/lib/data",
        "A /var/lib/moved/record3",
        "A /var/lib/moved/record49",
    ];
    for line in expected {
        says(lines, line).context("podman diff")?;
    }
    let listed = lines.iter().any(|line| line.contains("/tmp/gone") || line.contains("/.wh."));
    ensure!(!listed, "podman diff lists what never was: {}", lines.join("\n"));
    Ok(())
}

/// The directory of a Dockerfile of ten steps, each with something that layers can get wrong.
pub fn build_context(scene: &Scene) -> Result<std::path::PathBuf> {
    let context = scene.directory("context", 0, 0o755)?;
    fs::write(context.join("Dockerfile"), DOCKERFILE)?;
    fs::create_dir_all(context.join("tree/deep"))?;
    fs::write(context.join("tree/deep/file"), "copied\n")?;
    Ok(context)
}

const DOCKERFILE: &str = "FROM localhost/busybox:1
RUN mkdir -p /app/old/sub && echo one > /app/old/sub/one && echo two > /app/two
RUN rm /bin/vi && rm -rf /usr/share/doc
RUN mv /app/old /app/new && mv /var/lib/data /var/lib/moved
COPY tree /app/tree
RUN rm -rf /app/new && mkdir /app/new && echo again > /app/new/again
RUN chown 1000:1000 /app/two && chmod 4750 /app/two && ln /app/two /app/three
RUN mkdir /usr/share/doc && echo page > /usr/share/doc/page && ln -s ../usr/share/doc/page /app/alias
RUN rm /app/tree/deep/file && rmdir /app/tree/deep && echo file > /app/tree/deep
RUN cp -a /var/lib/moved /var/lib/data && rm /var/lib/moved/record1 && mkfifo /app/fifo
";

/// Holds in every container of an image of [`DOCKERFILE`].
pub const BUILT: &str = "set -e
    test ! -e /bin/vi
    test $(ls /usr/share/doc) = page && test $(cat /app/alias) = page
    test $(ls /app/new) = again && test ! -e /app/old
    test $(ls /var/lib/data | wc -l) = 50 && test $(ls /var/lib/moved | wc -l) = 49
    test $(cat /app/tree/deep) = file
    test $(stat -c %a:%u:%g:%h /app/three) = 4750:1000:1000:2
    test -p /app/fifo
    echo all-as-built";
