//! `plyfs demo`: a tour in a temporary directory. Each step shows a command, runs it, and shows what it did to the union
//! and to the upper.

mod tree;

use std::ffi::OsString;
use std::fs::DirBuilder;
use std::io::{IsTerminal, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use plyfs_core::Settings;
use plyfs_fuse::Running;
use plyfs_sys::creds;
use signal_hook::consts::{SIGHUP, SIGINT, SIGTERM};

use crate::args::DemoArgs;
use crate::changes::{self, Comparison};
use crate::demo::tree::Tree;
use crate::failure::{Context, Failure, Outcome};
use crate::paint::Paint;
use crate::trial::remove_tree;
use crate::union;

/// Time to read a step.
const PAUSE: Duration = Duration::from_secs(12);

/// The exit code after an interrupt: 128 and the signal's number.
const INTERRUPTED: u8 = 130;

/// A step that a program could have done: what to say, what to run.
struct Step {
    title: &'static str,
    says: &'static str,
    command: &'static str,
}

const LAYERS: Step = Step {
    title: "Two layers",
    says: "A base, and an application over it. Both are plain directories; nothing will ever write to them.",
    command: "mkdir -p base/etc base/docs app/etc upper work merged\n\
              echo 'from base' > base/etc/name\n\
              echo 'old' > base/etc/legacy\n\
              echo 'page' > base/docs/page\n\
              echo 'from app' > app/etc/name",
};

const STEPS: [Step; 4] = [
    Step {
        title: "Copy-up",
        says: "The first write to a lower file copies it to the upper. The layers stay as they are.",
        command: "echo 'and mine' >> merged/etc/name",
    },
    Step {
        title: "Whiteout",
        says: "What is deleted cannot be taken out of a layer: a whiteout in the upper hides it.",
        command: "rm merged/etc/legacy",
    },
    Step {
        title: "Directory rename",
        says: "A directory of a layer is renamed without copying it: the upper says where its content is.",
        command: "mv merged/docs merged/manual",
    },
    Step {
        title: "Opaque directory",
        says: "A directory that was deleted and made again hides all that the layers have under its name.",
        command: "rm -r merged/etc\nmkdir merged/etc\necho 'all new' > merged/etc/fresh",
    },
];

/// `plyfs demo`.
pub fn run(args: &DemoArgs, out: &mut dyn Write) -> Outcome<()> {
    let interrupted = Arc::new(AtomicBool::new(false));
    for signal in [SIGINT, SIGTERM, SIGHUP] {
        signal_hook::flag::register(signal, Arc::clone(&interrupted)).context(|| "cannot handle signals")?;
    }
    let place = make_place()?;
    let pauses = !args.fast && std::io::stdout().is_terminal();
    let mut tour = Tour {
        place: &place,
        out,
        paint: Paint::for_stream(&std::io::stdout()),
        pauses,
        number: 0,
        interrupted,
    };
    let toured = tour.go();
    remove_tree(&place).context(|| format!("{}: cannot remove it", place.display()))?;
    toured
}

fn make_place() -> Outcome<PathBuf> {
    let place = std::env::temp_dir().join(format!("plyfs-demo-{}", std::process::id()));
    DirBuilder::new().mode(0o700).create(&place).context(|| place.display().to_string())?;
    Ok(place)
}

struct Tour<'a> {
    place: &'a Path,
    out: &'a mut dyn Write,
    paint: Paint,
    pauses: bool,
    number: usize,
    interrupted: Arc<AtomicBool>,
}

impl Tour<'_> {
    fn go(&mut self) -> Outcome<()> {
        self.begin(&LAYERS)?;
        self.show(&[Tree::plain("app", &self.at("app"))?, Tree::plain("base", &self.at("base"))?])?;
        let union = self.union()?;
        for step in &STEPS {
            self.begin(step)?;
            self.show_union("merged", "upper")?;
        }
        let second = self.second_upper()?;
        self.difference()?;
        drop(second);
        drop(union);
        self.end()
    }

    fn union(&mut self) -> Outcome<Running> {
        self.heading(
            "The union",
            "All of it in one place: where both layers have a file, the topmost is seen.",
        )?;
        let running = self.mount("upper", "work", "merged")?;
        self.show_union("merged", "upper")?;
        Ok(running)
    }

    fn second_upper(&mut self) -> Outcome<Running> {
        self.heading(
            "Two uppers, one set of layers",
            "A second union of the same layers costs nothing and sees nothing of the first.",
        )?;
        self.run("mkdir upper2 work2 merged2")?;
        let running = self.mount("upper2", "work2", "merged2")?;
        self.run("echo 'second' > merged2/etc/second")?;
        self.show(&[
            Tree::plain("merged", &self.at("merged"))?,
            Tree::plain("merged2", &self.at("merged2"))?,
            Tree::upper("upper2", &self.at("upper2"))?,
        ])?;
        Ok(running)
    }

    fn difference(&mut self) -> Outcome<()> {
        self.heading(
            "What changed",
            "The upper is all there is to keep, to throw away, or to commit to a directory.",
        )?;
        self.command("plyfs diff upper --lower app --lower base")?;
        let comparison = Comparison {
            upper: self.at("upper"),
            lowers: vec![self.at("app"), self.at("base")],
            ignore_owner: false,
        };
        let (out, paint) = (&mut *self.out, self.paint);
        changes::walk(&comparison, &mut |change| Ok(writeln!(out, "   {}", changes::line(&change, paint))?))?;
        self.pause()
    }

    fn end(&mut self) -> Outcome<()> {
        self.heading(
            "The end",
            "Both unions are unmounted and everything is removed. To try it on this machine:",
        )?;
        self.command("plyfs try -- sh")
    }

    fn begin(&mut self, step: &Step) -> Outcome<()> {
        self.heading(step.title, step.says)?;
        self.run(step.command)
    }

    fn heading(&mut self, title: &str, says: &str) -> Outcome<()> {
        self.number += 1;
        let title = self.paint.bold(&format!("{}. {title}", self.number));
        writeln!(self.out, "\n{title}\n   {says}\n")?;
        Ok(())
    }

    /// Shows a command and runs it in the demo's directory.
    fn run(&mut self, command: &str) -> Outcome<()> {
        self.command(command)?;
        let status = Command::new("sh").arg("-ec").arg(command).current_dir(self.place).status();
        let status = status.context(|| "cannot run sh")?;
        if status.success() {
            Ok(())
        } else {
            Err(Failure::new(format!("the demo's command failed: {command}")))
        }
    }

    fn command(&mut self, command: &str) -> Outcome<()> {
        for line in command.lines() {
            writeln!(self.out, "   $ {}", self.paint.renamed(line))?;
        }
        self.out.flush()?;
        Ok(())
    }

    fn mount(&mut self, upper: &str, work: &str, merged: &str) -> Outcome<Running> {
        let user = if creds::has_cap_sys_admin_init() { "" } else { ",userxattr,redirect_dir=on" };
        self.command(&format!(
            "plyfs mount -o lowerdir=app:base,upperdir={upper},workdir={work}{user} {merged}"
        ))?;
        let at = |name: &str| self.place.join(name).display().to_string();
        let options = format!(
            "lowerdir={}:{},upperdir={},workdir={}{user}",
            at("app"),
            at("base"),
            at(upper),
            at(work)
        );
        let spec = union::parse(&[OsString::from(options)])?;
        let session = union::mount(&spec, &Settings::default(), &self.place.join(merged), None)?;
        session.spawn().context(|| merged.to_owned())
    }

    fn show_union(&mut self, merged: &str, upper: &str) -> Outcome<()> {
        let mut trees = vec![Tree::plain(merged, &self.at(merged))?];
        let title =
            if tree::is_empty(&self.at(upper))? { format!("{upper} (empty)") } else { upper.to_owned() };
        trees.push(Tree::upper(&title, &self.at(upper))?);
        self.show(&trees)
    }

    fn show(&mut self, trees: &[Tree]) -> Outcome<()> {
        write!(self.out, "\n{}", Tree::beside(trees))?;
        self.pause()
    }

    fn pause(&mut self) -> Outcome<()> {
        self.out.flush()?;
        let until = Instant::now() + if self.pauses { PAUSE } else { Duration::ZERO };
        // A signal must not leave a dead mount behind: it ends the tour here, where everything can be removed.
        while Instant::now() < until && !self.interrupted.load(Ordering::Relaxed) {
            std::thread::sleep(Duration::from_millis(50));
        }
        if self.interrupted.load(Ordering::Relaxed) { Err(Failure::silent(INTERRUPTED)) } else { Ok(()) }
    }

    fn at(&self, name: &str) -> PathBuf {
        self.place.join(name)
    }
}
