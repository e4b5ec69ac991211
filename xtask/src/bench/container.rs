//! `cargo xtask bench-container`: what people do in a container, step by step, in a Debian root of three layers on
//! plyfs, on the kernel's overlay and on fuse-overlayfs.
//!
//! Each step is timed alone; what it did is looked at afterwards, untimed, and must be what it is on the kernel's
//! overlay. The steps follow one another in one mount, as they would in a container.

use std::collections::HashMap;
use std::fs;
use std::path::PathBuf;
use std::time::Instant;

use anyhow::{Context, Result, bail};

use super::peers::{Bench, Mount};
use super::report::{median, significant};
use super::row::Peer;
use super::{binaries, interrupted};
use crate::real_trees::{layers, work};
use crate::workspace;

/// Options of `cargo xtask bench-container`.
#[derive(clap::Args)]
pub struct Args {
    /// Where to work; deleted at the end
    #[arg(long, default_value = "target/bench")]
    dir: PathBuf,
    /// Where the layers are made and kept for the next time; target/real-trees if left out
    #[arg(long)]
    layers: Option<PathBuf>,
    /// How many times each peer does all steps
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// Only plyfs and the kernel
    #[arg(long)]
    without_rival: bool,
    /// Where the figures go as JSON
    #[arg(long, default_value = "target/bench-container.json")]
    json: PathBuf,
    /// The plyfs to measure, instead of building this workspace's
    #[arg(long, value_name = "PROGRAM")]
    plyfs: Option<PathBuf>,
    /// Mount options for every mount of plyfs
    #[arg(long, value_name = "OPTIONS")]
    plyfs_options: Option<String>,
}

/// What the whole may take, in times of the kernel's overlay.
const DEMANDED: f64 = 1.3;

struct Step {
    name: &'static str,
    /// Timed.
    work: &'static str,
    /// Prints what the work made; the same on every peer.
    check: &'static str,
}

/// Defines `tree DIR`, which prints a digest of all names, types, modes, owners, targets, link counts and contents.
const TREE: &str = r"tree() { (cd $1 && { find . ! -type d -printf '%p %y %m %U:%G %n %s %l\n' -o -printf '%p %y %m %U:%G\n'
    find . -type f -print0 | xargs -0 -r sha256sum; } | LC_ALL=C sort | sha256sum); }
";

const STEPS: &[Step] = &[
    Step {
        name: "tar -c of 10,000 files",
        work: "mkdir /work && tar -C /usr -cf /work/a.tar share lib/python3 lib/gcc",
        check: "tar -tf /work/a.tar | LC_ALL=C sort | sha256sum",
    },
    Step {
        name: "tar -x",
        work: "mkdir /work/tar && tar -C /work/tar -xf /work/a.tar",
        check: "tree /work/tar && diff -r --no-dereference /usr/share /work/tar/share",
    },
    Step {
        name: "cp -a",
        work: "cp -a /usr/share /work/share && cp -a /usr/lib/python3 /usr/lib/git-core /work",
        check: "tree /work/share && tree /work/python3 && tree /work/git-core && diff -r --no-dereference /usr/share /work/share",
    },
    Step {
        name: "dpkg -i",
        work: "dpkg -i /material/debs/*.deb",
        check: "dpkg --audit; dpkg -V cmake-data hello tree; hello; tree /usr/share/cmake-*; dpkg -l | sha256sum",
    },
    Step {
        name: "apt-get purge",
        work: "DEBIAN_FRONTEND=noninteractive apt-get -qq purge -y vim vim-runtime vim-common cmake-data",
        check: "dpkg --audit; dpkg -l | sha256sum; ls -d /usr/share/vim /usr/share/cmake* /usr/bin/vim 2>&1 || tree /usr/bin",
    },
    Step {
        name: "git clone",
        work: "git clone -q --no-local /material/repo /work/clone && cd /work/clone && git status --short",
        check: "cd /work/clone && git fsck --strict 2>&1; git log --format='%H %T'; rm -rf .git/index && git reset -q && git status --short; tree moved; tree d7",
    },
    Step {
        name: "C build",
        work: "cp -r /material/c /work/c && cd /work/c && make -s -j2",
        check: "cd /work/c && ./prog && ls | sha256sum && sha256sum main.o f80.o",
    },
    Step {
        name: "pip install",
        work: "pip install -q --no-index --break-system-packages --root-user-action=ignore /material/wheels/*.whl",
        check: "cd / && python3 -c 'import plywood.m77; print(plywood.m77.VALUE)'; pip list 2>/dev/null; ls /usr/local/lib/python3*/dist-packages/plywood | sha256sum",
    },
    Step {
        name: "find",
        work: "find / -xdev -newer /material/c/Makefile > /dev/null",
        check: "find / -xdev | grep -vF -e .git/ -e /var/log -e /var/cache -e /proc/ -e /dev/ | LC_ALL=C sort | sha256sum",
    },
    Step {
        name: "grep -r",
        work: "grep -rl 'GNU General Public' /usr/share /usr/lib > /work/found",
        check: "LC_ALL=C sort /work/found | sha256sum",
    },
    Step {
        name: "chown -R of 10,000 files",
        work: "chown -R 1000:1000 /usr/share /usr/lib/python3 /usr/lib/gcc",
        check: "tree /usr/share; tree /usr/lib/python3; tree /usr/lib/gcc; find /usr/share ! -uid 1000 | wc -l",
    },
    Step {
        name: "rm -rf",
        work: "rm -rf /work /usr/share /usr/lib/python3 /material",
        check: "for gone in /work /usr/share /usr/lib/python3 /material; do test ! -e $gone; done; ls / /usr /usr/lib | sha256sum; mkdir /usr/share && ls -A /usr/share | wc -l",
    },
];

/// Measures, prints the table, and fails if a step of plyfs is not right.
pub fn run(args: &Args) -> Result<()> {
    if !rustix::process::geteuid().is_root() {
        bail!("the benchmark mounts: it needs root");
    }
    interrupted::watch()?;
    let home =
        args.layers.clone().map_or_else(|| Ok(workspace::root()?.join("target/real-trees")), anyhow::Ok)?;
    let lowers = layers::container(&home)?;
    let bench = Bench::new(&args.dir, binaries(args.plyfs.as_deref(), false)?)?;
    let mut peers = vec![Peer::Kernel, Peer::Plyfs, Peer::FuseOverlayfs];
    peers.retain(|peer| *peer != Peer::FuseOverlayfs || !args.without_rival);
    let mut seen = Seen::default();
    for round in 0..args.rounds {
        let mut mounts = Vec::new();
        for peer in &peers {
            let options = args.plyfs_options.as_deref().filter(|_| *peer == Peer::Plyfs);
            let options: Vec<_> = options.into_iter().collect();
            mounts.push((*peer, bench.mount_over(*peer, lowers.clone(), &options).context("mount")?));
        }
        all_steps(&bench, &mounts, round, &mut seen)?;
    }
    drop(bench);
    seen.print(&peers);
    seen.write_json(&args.json, &peers)?;
    seen.judge()
}

/// Each step on every peer before the next: what one deletes slows down what another creates later, since ext4 passes over
/// inodes that were freed a moment ago. The peers take turns in being first.
fn all_steps(bench: &Bench, mounts: &[(Peer, Mount)], round: usize, seen: &mut Seen) -> Result<()> {
    for (number, step) in STEPS.iter().enumerate() {
        let mut said = Vec::new();
        let turn = (round + number) % mounts.len();
        for (peer, mount) in mounts.iter().cycle().skip(turn).take(mounts.len()) {
            interrupted::check()?;
            bench.sync()?;
            let start = Instant::now();
            let worked = work::step(&mount.root, step.work);
            let took = start.elapsed().as_secs_f64() * 1e3;
            println!("{}: {}: {} ms", peer.name(), step.name, significant(took));
            seen.times.entry((step.name, *peer)).or_default().push(took);
            let lines = worked.and_then(|_| work::step(&mount.root, &format!("{TREE}{}", step.check)));
            said.push((*peer, lines.map(|lines| lines.join("\n")).map_err(|error| format!("{error:#}"))));
        }
        seen.compare(step.name, &said);
    }
    Ok(())
}

/// All times, and which steps went wrong.
#[derive(Default)]
struct Seen {
    times: HashMap<(&'static str, Peer), Vec<f64>>,
    wrong: Vec<(&'static str, Peer)>,
}

/// What the check of a step printed, or why it failed.
type Said = Result<String, String>;

impl Seen {
    /// The kernel's overlay says what is right.
    fn compare(&mut self, step: &'static str, said: &[(Peer, Said)]) {
        let Some((_, right)) = said.iter().find(|(peer, _)| *peer == Peer::Kernel) else { return };
        for (peer, said) in said {
            if said != right || said.is_err() {
                println!("{}: {step} is not right: {said:?}; the kernel's overlay: {right:?}", peer.name());
                self.wrong.push((step, *peer));
            }
        }
    }

    fn figure(&self, step: &'static str, peer: Peer) -> Option<f64> {
        median(self.times.get(&(step, peer))?)
    }

    fn whole(&self, peer: Peer) -> Option<f64> {
        STEPS.iter().map(|step| self.figure(step.name, peer)).sum()
    }

    fn print(&self, peers: &[Peer]) {
        print!("| step |");
        peers.iter().for_each(|peer| print!(" {} ms |", peer.name()));
        println!(" plyfs/kernel | fuse-overlayfs/kernel |");
        for step in STEPS {
            let cell = |peer: &Peer| {
                let mark = if self.wrong.contains(&(step.name, *peer)) { " WRONG" } else { "" };
                self.figure(step.name, *peer).map_or(String::new(), |figure| significant(figure) + mark)
            };
            line(step.name, peers.iter().map(cell), |peer| self.figure(step.name, peer));
        }
        let cell = |peer: &Peer| self.whole(*peer).map_or(String::new(), significant);
        line("the whole", peers.iter().map(cell), |peer| self.whole(peer));
    }

    fn write_json(&self, path: &PathBuf, peers: &[Peer]) -> Result<()> {
        let of = |step: &Step| {
            let samples: HashMap<_, _> =
                peers.iter().map(|peer| (peer.name(), self.times.get(&(step.name, *peer)))).collect();
            serde_json::json!({ "step": step.name, "ms": samples })
        };
        let text = serde_json::to_string_pretty(&STEPS.iter().map(of).collect::<Vec<_>>())?;
        fs::write(path, text).with_context(|| path.display().to_string())
    }

    fn judge(&self) -> Result<()> {
        if let (Some(plyfs), Some(kernel)) = (self.whole(Peer::Plyfs), self.whole(Peer::Kernel)) {
            let verdict = if plyfs <= kernel * DEMANDED { "met" } else { "missed" };
            println!("demanded: at most {DEMANDED} x kernel; {verdict}: {:.2}", plyfs / kernel);
        }
        let wrong: Vec<_> = self.wrong.iter().filter(|(_, peer)| *peer == Peer::Plyfs).collect();
        if wrong.is_empty() { Ok(()) } else { bail!("not right on plyfs: {wrong:?}") }
    }
}

fn line(name: &str, cells: impl Iterator<Item = String>, figure: impl Fn(Peer) -> Option<f64>) {
    print!("| {name} |");
    cells.for_each(|cell| print!(" {cell} |"));
    let ratio = |peer| Some(figure(peer)? / figure(Peer::Kernel)?);
    let shown = |peer| ratio(peer).map_or(String::new(), |ratio| format!("{ratio:.2}"));
    println!(" {} | {} |", shown(Peer::Plyfs), shown(Peer::FuseOverlayfs));
}
