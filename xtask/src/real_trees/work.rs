//! What is done in the mount, by programs of the tree itself, and which of its results cannot be the same twice.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Result, bail};
use plyfs_testkit::compare::Difference;

use crate::child;

const STEP_LIMIT: Duration = Duration::from_secs(20 * 60);

/// Times and names of git's commits are given, so that the commits are the same.
const ENVIRONMENT: [(&str, &str); 9] = [
    ("PATH", "/usr/sbin:/usr/bin:/sbin:/bin"),
    ("HOME", "/root"),
    ("LC_ALL", "C"),
    ("GIT_AUTHOR_NAME", "A"),
    ("GIT_AUTHOR_EMAIL", "a@example.org"),
    ("GIT_AUTHOR_DATE", "2001-02-03T04:05:06Z"),
    ("GIT_COMMITTER_NAME", "A"),
    ("GIT_COMMITTER_EMAIL", "a@example.org"),
    ("GIT_COMMITTER_DATE", "2001-02-03T04:05:06Z"),
];

/// `/dev` and `/proc` vanish with the namespace; nothing of them is in the tree.
const ENTER: &str =
    r#"mount --rbind /dev "$1/dev" && mount -t proc proc "$1/proc" && exec chroot "$1" sh -euc "$2""#;

const GIT: &str = "mkdir /work && cd /work && git clone -q /src/repo clone && cd clone && git log --format=%H
    git mv d1 moved && git rm -qr d2 && echo '// more' >> d3/f3.c && git add -A && git commit -qm second
    git log --format='%H %T' && git status --porcelain && git branch side HEAD~1 && git checkout -q side && git merge -q main
    git -c pack.threads=1 gc -q && git fsck --strict && git diff --stat HEAD~1
    cd /src/repo && echo '// more' >> d4/f4.c && git commit -qam third && git status --porcelain && git log --format=%H";

const COMPILE: &str = "cp -a /src/repo /work/build && cd /work/build && make -s && ./main && rm -f *.o
    cd /src/repo && make -s && ./main && git status --porcelain | wc -l";

const FILES: &str = "tar -C /usr/share -cf /work/share.tar --sort=name --mtime=@0 zoneinfo && tar -tf /work/share.tar | wc -l
    mkdir /work/share && tar -C /work/share -xf /work/share.tar && cp -a /usr/share/zoneinfo /work/copy
    mv /usr/share/zoneinfo /usr/share/zones && mv /usr/share/zones/Europe /usr/share/zones/Europa
    rm -rf /usr/share/common-licenses && mkdir /usr/share/common-licenses && rm -rf /usr/share/perl5 /usr/share/completion
    chmod -R g+w /usr/share/zones && chown -R daemon:games /usr/share/zones/Asia && chmod u+s /usr/bin/jq
    find / -xdev -newer /src/repo/Makefile -type d | wc -l && find / -xdev | wc -l";

/// All steps in the tree at `root`; returns what those printed that print the same each time.
pub fn all(root: &Path, packages: &[String]) -> Result<String> {
    let install = format!(
        "export DEBIAN_FRONTEND=noninteractive; apt-get -qq install -y --no-install-recommends {0} && dpkg --audit && dpkg -V {0}",
        packages.join(" ")
    );
    step(root, &install)?;
    let mut output = Vec::new();
    for script in [GIT, COMPILE, FILES] {
        output.extend(step(root, script)?);
    }
    Ok(output.join("\n"))
}

/// Runs a script in the tree at `root`, which must succeed, and returns the lines that it printed.
pub fn step(root: &Path, script: &str) -> Result<Vec<String>> {
    let mut command = Command::new("unshare");
    command.args(["--mount", "sh", "-c", ENTER, "sh"]).arg(root).arg(script);
    command.env_clear().envs(ENVIRONMENT);
    let outcome = child::run_silent(&mut command, STEP_LIMIT)?;
    if !outcome.success() {
        bail!("a step failed: {script}");
    }
    Ok(outcome.lines)
}

/// Whether a difference is one of contents that hold a time or an inode number, so that no two runs agree.
pub fn is_volatile(difference: &Difference) -> bool {
    const LOGS: &[u8] = b"var/log/";
    // Set to the present by git when it would write an object that is there: also for files whose entry in its index is as
    // young as the index, which depends on the clock.
    const OBJECTS: &[u8] = b"/.git/objects/";
    const CACHES: [&[u8]; 4] = [
        b"var/cache/apt/pkgcache.bin",
        b"var/cache/apt/srcpkgcache.bin",
        // Holds inode numbers and change times of libraries.
        b"var/cache/ldconfig/aux-cache",
        // Kept by apt with the time of the request.
        b"var/lib/apt/extended_states",
    ];
    let path = difference.path.as_slice();
    if path.windows(OBJECTS.len()).any(|part| part == OBJECTS) {
        return matches!(difference.field, "mtime" | "atime");
    }
    let holds = path.starts_with(LOGS)
        || CACHES.contains(&path)
        // Holds inode numbers and times of the work tree; its checksum ends it. The log of references holds times.
        || path.ends_with(b"/.git/index");
    holds && matches!(difference.field, "content" | "size")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_contents_of_files_that_hold_times_are_passed_over() {
        let of = |path: &str, field| Difference {
            path: path.as_bytes().to_vec(),
            field,
            left: String::new(),
            right: String::new(),
        };
        assert!(is_volatile(&of("var/log/dpkg.log", "content")));
        assert!(is_volatile(&of("work/clone/.git/index", "content")));
        assert!(!is_volatile(&of("work/clone/.git/index", "mode")));
        assert!(is_volatile(&of("src/repo/.git/objects/a0/f8", "mtime")));
        assert!(!is_volatile(&of("src/repo/.git/objects/a0/f8", "content")));
        assert!(!is_volatile(&of("usr/bin/jq", "content")));
        assert!(!is_volatile(&of("var/log/dpkg.log", "presence")));
    }
}
