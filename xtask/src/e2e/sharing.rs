//! Mounts beside and inside one another: two users on the same lowers, and plyfs in a container that is on plyfs.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};

use super::Verdict;
use super::client::{self, Backend, Owner, as_user};
use super::images::{self, DEBIAN};
use super::podman::says;
use super::scene::{Scene, USERS, User};
use crate::child;

const LIMIT: Duration = Duration::from_secs(120);

/// Two users mount the same lowers, each with an upper of its own; neither sees what the other does, nor do the lowers.
pub fn two_users(scene: &Scene) -> Result<Verdict> {
    let lower = images::busybox_root(scene)?;
    let before = listing(&lower)?;
    let [first, second] = &USERS;
    let (one, two) = (mount(scene, first, &lower)?, mount(scene, second, &lower)?);
    let result = both_change(scene, &one, &two);
    for (user, target) in [(first, &one), (second, &two)] {
        let target = target.display().to_string();
        as_user_does(scene, user, &[&scene.plyfs.display().to_string(), "umount", &target])?;
    }
    result?;
    ensure!(listing(&lower)? == before, "the shared lower has changed");
    Ok(Verdict::Passed)
}

fn both_change(scene: &Scene, one: &Path, two: &Path) -> Result<()> {
    let [first, second] = &USERS;
    let script = |user: &str, target: &Path| {
        format!(
            "set -e; cd {}; rm bin/vi; echo {user} > usr/share/doc/page1; mv var/lib/data/record2 var/lib/data/{user}
             mkdir {user}; rm -rf etc; mkdir etc; echo {user} > etc/only",
            target.display()
        )
    };
    as_user_does(scene, first, &["sh", "-c", &script("first", one)])?;
    let untouched = format!(
        "cd {} && test -e bin/vi && grep -q 'page 1' usr/share/doc/page1 && test ! -e first && test -e etc/passwd",
        two.display()
    );
    as_user_does(scene, second, &["sh", "-c", &untouched])?;
    as_user_does(scene, second, &["sh", "-c", &script("second", two)])?;
    for (user, name, target) in [(first, "first", one), (second, "second", two)] {
        let seen = format!(
            "cd {} && cat usr/share/doc/page1 && test $(ls etc) = only && test -e var/lib/data/{name} \
             && test ! -e var/lib/data/record2 && test ! -e bin/vi",
            target.display()
        );
        says(&as_user_does(scene, user, &["sh", "-c", &seen])?, name)?;
    }
    Ok(())
}

fn mount(scene: &Scene, user: &User, lower: &Path) -> Result<PathBuf> {
    let base = user.home(scene).join("shared");
    for name in ["upper", "work", "merged"] {
        let path = base.join(name);
        as_user_does(scene, user, &["mkdir", "-p", &path.display().to_string()])?;
    }
    // A user may change only what is shown as the user's own.
    let options = format!(
        "lowerdir={},upperdir={1}/upper,workdir={1}/work,squash_to_uid={2},squash_to_gid={2}",
        lower.display(),
        base.display(),
        user.id
    );
    let target = base.join("merged");
    let line = [&scene.fuse_overlayfs.display().to_string(), "-o", &options, &target.display().to_string()];
    as_user_does(scene, user, &line.map(|word| word as &str))?;
    Ok(target)
}

fn as_user_does(scene: &Scene, user: &User, line: &[&str]) -> Result<Vec<String>> {
    let (program, args) = line.split_first().context("no program")?;
    let outcome = child::run_quiet(as_user(user, scene, program).args(args), LIMIT)?;
    if !outcome.success() {
        bail!("{}: {}\n{}", user.name, line.join(" "), outcome.lines.join("\n"));
    }
    Ok(outcome.lines)
}

/// Every name with its type, mode, owner, size and times.
fn listing(root: &Path) -> Result<Vec<String>> {
    let mut find = Command::new("find");
    find.arg(root).args(["-printf", "%P %y %m %U:%G %s %T@ %C@\n"]);
    let outcome = child::run_quiet(&mut find, LIMIT)?;
    ensure!(outcome.success(), "find {} failed", root.display());
    let mut lines = outcome.lines;
    lines.sort();
    Ok(lines)
}

/// In a container whose root is plyfs, with a volume at `/layers`: a union of directories of that root, changed, unmounted,
/// and mounted again; on it one more. An upper on the root itself is refused: it could hold no whiteouts.
const NESTED: &str = "set -e
    grep -q ' / .* fuse.plyfs ' /proc/self/mountinfo
    cd /layers && mkdir upper work upper2 work2 /merged /merged2 /bad /badwork
    first=lowerdir=/usr:/etc,upperdir=/layers/upper,workdir=/layers/work
    /plyfs mount -o $first /merged
    rm -rf /merged/share/doc && mkdir /merged/share/doc && echo inner > /merged/share/doc/inner
    mv /merged/bin /merged/programs && chown -R 7:7 /merged/lib/apt && echo more >> /merged/passwd
    test -x /merged/programs/perl && test -e /usr/bin/perl && test ! -e /merged/bin
    cp -a /merged/share/zoneinfo /merged/copy && diff -r /merged/copy /usr/share/zoneinfo
    /plyfs umount /merged
    /plyfs mount -o $first /merged
    test \"$(ls /merged/share/doc)\" = inner && test -x /merged/programs/perl && tail -n 1 /merged/passwd | grep -q more
    test $(stat -c %u /merged/lib/apt/methods/file) = 7 && test $(stat -c %u /usr/lib/apt/methods/file) = 0
    /plyfs mount -o lowerdir=/merged,upperdir=/layers/upper2,workdir=/layers/work2 /merged2
    rm -rf /merged2/programs && test ! -e /merged2/programs && test -x /merged/programs/perl
    test \"$(ls /merged2/share/doc)\" = inner && mv /merged2/share /merged2/moved && test -e /merged/share/doc/inner
    /plyfs umount /merged2; /plyfs umount /merged
    ! /plyfs mount -o lowerdir=/usr,upperdir=/bad,workdir=/badwork /merged 2>/layers/refusal
    grep -q 'it is a union itself' /layers/refusal
    echo nested";

/// plyfs inside a container on plyfs, and one more on that.
pub fn nested(scene: &Scene) -> Result<Verdict> {
    client::with(scene, Owner::Root, Backend::Plyfs, |client| {
        images::import_debian(client)?;
        let binary = format!("{}:/plyfs:ro", scene.plyfs.display());
        let mut line = vec!["run", "--rm", "--device=/dev/fuse", "--cap-add=SYS_ADMIN"];
        line.extend(["-v", &binary, "-v", "/layers", DEBIAN, "/bin/sh", "-c", NESTED]);
        says(&client.podman(&line)?, "nested")
    })?;
    Ok(Verdict::Passed)
}
