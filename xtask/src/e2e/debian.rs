//! What people do in containers of a distribution: packages, a C build, git, pip.

use anyhow::Result;

use super::client::{self, Backend, Owner};
use super::images::{self, DEBIAN};
use super::podman::{says, shell};
use super::{Scene, Verdict};

/// Each with the line that it must end with.
const WORK: &[(&str, &str)] = &[
    (
        "export DEBIAN_FRONTEND=noninteractive
         apt-get update -qq && apt-get install -y -qq --no-install-recommends gcc libc6-dev make git python3-pip python3-setuptools python3-wheel
         echo installed=$?",
        "installed=0",
    ),
    ("dpkg --verify gcc git make && dpkg -i /var/cache/apt/archives/make_*.deb >/dev/null; echo again=$?", "again=0"),
    ("apt-get purge -y -qq make && test ! -e /usr/bin/make && test ! -e /usr/share/doc/make; echo purged=$?", "purged=0"),
    ("apt-get install -y -qq make && make --version >/dev/null; echo back=$?", "back=0"),
    ("dpkg --audit && dpkg --verify git python3-pip make; echo sound=$?", "sound=0"),
    (
        "set -e; mkdir /src && cd /src && git init -q . && git config user.email a@b && git config user.name n
         for n in $(seq 40); do printf 'int f%d(void) { return %d; }\\n' $n $n > f$n.c; done
         printf 'int f40(void);\\n#include <stdio.h>\\nint main(void) { printf(\"answer %%d\\\\n\", f40()); }\\n' > main.c
         printf 'prog: $(patsubst %%.c,%%.o,$(wildcard *.c))\\n\\tcc -o $@ $^\\n' > Makefile
         git add . && git commit -q -m first && git clone -q /src /clone && cd /clone && git fsck --strict && git status --short && make -s -j4 && ./prog",
        "answer 40",
    ),
    ("cd /clone && make -s clean 2>/dev/null; rm *.o prog && git gc -q && git repack -adq && git fsck && git status --short | wc -l", "0"),
    (
        "set -e; mkdir -p /pkg/plypkg && cd /pkg && echo 'value = 7' > plypkg/__init__.py
         printf 'from setuptools import setup\\nsetup(name=\"plypkg\", version=\"1\", packages=[\"plypkg\"])\\n' > setup.py
         pip install --quiet --no-index --no-build-isolation --break-system-packages --root-user-action=ignore . && cd / && python3 -c 'import plypkg; print(\"seven\", plypkg.value)'
         pip uninstall --quiet -y --break-system-packages --root-user-action=ignore plypkg && ! python3 -c 'import plypkg' 2>/dev/null",
        "seven 7",
    ),
    ("cp -a /usr /usr.copy && diff -r --no-dereference /usr /usr.copy && rm -rf /usr.copy; echo copied=$?", "copied=0"),
    ("chown -R 1000:1000 /etc/apt /usr/share/doc && find /usr/share/doc ! -uid 1000 | wc -l", "0"),
];

/// Does all of [`WORK`] in one container, commits it, and looks at the result in another.
pub fn work(scene: &Scene, owner: Owner) -> Result<Verdict> {
    client::with(scene, owner, Backend::Plyfs, |client| {
        images::import_debian(client)?;
        client.podman(&["run", "-d", "--name", "debian", DEBIAN, "/bin/sleep", "36000"])?;
        for (script, expected) in WORK {
            says(&shell(client, "debian", script)?, expected)?;
        }
        client.podman(&["commit", "debian", "localhost/worked:1"])?;
        let look =
            "dpkg --verify git python3-pip make && cd /clone && git fsck && git status --short | wc -l";
        says(&super::podman::run(client, &[], "localhost/worked:1", look)?, "0")
    })?;
    Ok(Verdict::Passed)
}
