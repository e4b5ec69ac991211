//! The lower layers: a Debian root as debootstrap makes it, a compiler and git on top, and what was then removed,
//! moved and changed, so that there are whiteouts, opaque and redirected directories.
//!
//! They are made once, with the kernel's overlay, and kept. Where packages come from is what this machine's apt says,
//! passed on when the layers are made.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use plyfs_testkit::mount::{Driver, Stack};

use super::work;
use crate::child;

const BOOTSTRAP_LIMIT: Duration = Duration::from_secs(30 * 60);
const PROBE_LIMIT: Duration = Duration::from_secs(60);
/// Written last: without it the layers are made anew.
const COMPLETE: &str = "complete";

/// What the second layer adds.
const TOOLS: &str = "apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends gcc libc6-dev make git";

/// What the third layer changes.
const CHANGES: &str = "rm -rf /usr/share/doc && mkdir -p /usr/share/doc && echo new > /usr/share/doc/README
    mv /usr/share/perl5 /usr/share/perl5.moved && mv /usr/share/perl5.moved/Git /usr/share/
    mv /usr/share/Git /usr/share/perl5.moved/ && mv /usr/share/perl5.moved /usr/share/perl5
    mv /usr/share/bash-completion /usr/share/completion
    rm -f /var/log/*.log /var/log/apt/* && chmod 0711 /opt && ln /etc/hostname /etc/hostname.link
    mkdir -p /src/repo && cd /src/repo && git init -q -b main .
    for n in $(seq 1 200); do mkdir -p d$((n % 10)) && echo \"int f$n(void) { return $n; }\" > d$((n % 10))/f$n.c; done
    printf 'all:\\n\\tgcc -O1 -c d*/*.c && ar rcs libf.a *.o && gcc -o main main.c libf.a\\n' > Makefile
    printf '#include <stdio.h>\\nint f7(void);\\nint main(void) { printf(\"%%d\\\\n\", f7()); return 0; }\\n' > main.c
    git add . && git commit -q -m first";

/// What a container's work needs besides: Python's pip, packages to install and to purge, a repository, sources, a wheel.
const CONTAINER: &str = "apt-get -qq update
    DEBIAN_FRONTEND=noninteractive apt-get -qq install -y --no-install-recommends python3-pip python3-wheel vim
    mkdir -p /material/debs /material/wheels && cd /material/debs && chown _apt . && apt-get -qq download cmake-data hello tree
    mkdir -p /material/repo && cd /material/repo && git init -q -b main .
    for d in $(seq 1 60); do mkdir d$d; for f in $(seq 1 50); do seq $d $((d + f * 9)) > d$d/f$f; done; done
    git add . && git commit -qm first && git mv d1 moved && git commit -qm second && git gc -q
    mkdir -p /material/c && cd /material/c
    for n in $(seq 1 80); do printf '#include <stdio.h>\n#include <stdlib.h>\n#include <string.h>\n#include <unistd.h>\nint f%d(void) { return (int) strlen(\"%d\"); }\n' $n $n > f$n.c; done
    printf 'int f9(void);\n#include <stdio.h>\nint main(void) { printf(\"%%d\\\\n\", f9()); return 0; }\n' > main.c
    printf 'prog: $(patsubst %%.c,%%.o,$(wildcard *.c))\n\tgcc -o $@ $^\n' > Makefile
    mkdir -p /tmp/wheel/plywood && cd /tmp/wheel
    for n in $(seq 1 800); do echo \"VALUE = $n\" > plywood/m$n.py; done; touch plywood/__init__.py
    mkdir plywood-1.dist-info && printf 'Wheel-Version: 1.0\nGenerator: plyfs\nRoot-Is-Purelib: true\nTag: py3-none-any\n' > plywood-1.dist-info/WHEEL
    printf 'Metadata-Version: 2.1\nName: plywood\nVersion: 1\n' > plywood-1.dist-info/METADATA
    printf 'plywood-1.dist-info/RECORD,,\n' > plywood-1.dist-info/RECORD
    python3 -c 'import shutil; shutil.make_archive(\"/material/wheels/plywood-1-py3-none-any\", \"zip\", \".\")'
    mv /material/wheels/plywood-1-py3-none-any.zip /material/wheels/plywood-1-py3-none-any.whl && rm -rf /tmp/wheel";

/// The layers of a container for the benchmark, topmost first: plain ones, without redirects. Made if they are not there.
pub fn container(home: &Path) -> Result<Vec<PathBuf>> {
    let [_, tools, base] =
        <[PathBuf; 3]>::try_from(lowers(home)?).map_err(|_| anyhow!("not three layers"))?;
    let (material, complete) = (home.join("container"), home.join("container-complete"));
    if !complete.exists() {
        println!("making {}", material.display());
        if material.exists() {
            fs::remove_dir_all(&material).with_context(|| material.display().to_string())?;
        }
        layer(home, &[tools.clone(), base.clone()], &material, CONTAINER, "off")?;
        fs::write(&complete, "").context("marking the layer complete")?;
    }
    Ok(vec![material, tools, base])
}

/// The layers below `home`, topmost first; made if they are not there.
pub fn lowers(home: &Path) -> Result<Vec<PathBuf>> {
    let layers = ["changes", "tools", "base"].map(|name| home.join(name));
    if !home.join(COMPLETE).exists() {
        println!("real-trees: making the layers below {}", home.display());
        make(home, &layers)?;
    }
    Ok(layers.to_vec())
}

fn make(home: &Path, [changes, tools, base]: &[PathBuf; 3]) -> Result<()> {
    if home.exists() {
        fs::remove_dir_all(home).with_context(|| home.display().to_string())?;
    }
    fs::create_dir_all(home).with_context(|| home.display().to_string())?;
    let source = source()?;
    let mut bootstrap = Command::new("debootstrap");
    bootstrap.args(["--variant=minbase", &source.suite]).arg(base).arg(&source.uri);
    if !child::run_silent(&mut bootstrap, BOOTSTRAP_LIMIT)?.success() {
        bail!("debootstrap failed");
    }
    pass_on_apt(base)?;
    layer(home, std::slice::from_ref(base), tools, TOOLS, "on")?;
    layer(home, &[tools.clone(), base.clone()], changes, CHANGES, "on")?;
    fs::write(home.join(COMPLETE), "").context("marking the layers complete")
}

/// Makes `upper` by running a script over `lowers`.
fn layer(home: &Path, lowers: &[PathBuf], upper: &Path, script: &str, redirect: &str) -> Result<()> {
    let [work, target] = ["work", "merged"].map(|name| home.join(name));
    for path in [upper, &work, &target] {
        fs::create_dir_all(path).with_context(|| path.display().to_string())?;
    }
    let stack = Stack {
        lowers: lowers.to_vec(),
        upper: Some((upper.to_owned(), work.clone())),
        options: vec![format!("redirect_dir={redirect}")],
    };
    let mounted = Driver::Kernel.mount(&stack, &target)?;
    work::step(mounted.path(), script).with_context(|| format!("making {}", upper.display()))?;
    mounted.unmount()?;
    fs::remove_dir_all(&work).with_context(|| work.display().to_string())
}

/// Where this machine gets its own packages from.
struct Source {
    uri: String,
    suite: String,
}

fn source() -> Result<Source> {
    let mut targets = Command::new("apt-get");
    targets.args(["indextargets", "--format", "$(REPO_URI) $(RELEASE) $(CREATED_BY)"]);
    let outcome = child::run_quiet(&mut targets, PROBE_LIMIT)?;
    let mut lines = outcome.lines.iter().map(|line| line.split_whitespace().collect::<Vec<_>>());
    match lines.find(|words| words.get(2) == Some(&"Packages")).as_deref() {
        Some([uri, suite, ..]) => Ok(Source { uri: (*uri).to_owned(), suite: (*suite).to_owned() }),
        _ => bail!("apt-get knows no source of packages"),
    }
}

/// Copies the sources, the keys, and how to reach them; not the hooks of this machine's own programs.
fn pass_on_apt(base: &Path) -> Result<()> {
    let script = r#"cp -a /etc/apt/sources.list /etc/apt/sources.list.d "$1"/etc/apt/ 2>/dev/null || true
        ls "$1"/etc/apt/sources.list.d/* >/dev/null 2>&1 && rm -f "$1"/etc/apt/sources.list
        cp -a /usr/share/keyrings/. "$1"/usr/share/keyrings/
        cp -a /etc/apt/trusted.gpg.d/. "$1"/etc/apt/trusted.gpg.d/
        apt-config dump | grep '^Acquire::' > "$1"/etc/apt/apt.conf.d/90machine
        cat /etc/resolv.conf > "$1"/etc/resolv.conf; cat /etc/hosts > "$1"/etc/hosts"#;
    let mut command = Command::new("sh");
    command.args(["-c", script, "sh"]).arg(base);
    if child::run_silent(&mut command, PROBE_LIMIT)?.success() {
        Ok(())
    } else {
        bail!("apt's configuration")
    }
}
