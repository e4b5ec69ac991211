//! `check`: does the store hold what it says, and `--repair`.
//!
//! Owns the list of what can be wrong. Each layer is unpacked again from its blob, whose digest is verified, and
//! compared file by file: content, owners, modes, times, attributes. What cannot be repaired harms the images
//! that use it and no other.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, RenameFlags};
use serde::Serialize;

use crate::apply;
use crate::beneath::{self, Root, join};
use crate::blob;
use crate::db::{Blob, Container, Image, Layer, Name};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::gc::orphans;
use crate::journal::{Plan, Work};
use crate::owner::Ids;
use crate::publish::{lower_text, write_index};
use crate::stack::Stack;
use crate::store::Store;
use crate::tree::{self, Source};
use crate::unpack;

/// One thing that is wrong.
#[derive(Debug, Clone, Serialize)]
pub struct Problem {
    /// What it concerns: "layer sha256:…", "container c1".
    pub what: String,
    /// What is wrong.
    pub why: String,
    /// The images and containers that it harms.
    pub harms: Vec<String>,
    /// Whether it was put right.
    pub repaired: bool,
    /// Only worth knowing: nothing reads wrong for it.
    pub harmless: bool,
}

/// How much to look at.
#[derive(Debug, Clone, Copy, Default)]
pub struct CheckOptions {
    /// Put right what can be.
    pub repair: bool,
    /// Leave out the content of blobs and layers.
    pub quick: bool,
}

impl Store {
    /// Looks for damage.
    pub fn check(&self, options: CheckOptions) -> Result<Vec<Problem>> {
        let mut c = Checker { store: self, options, problems: Vec::new(), who: Vec::new() };
        c.run()?;
        Ok(c.problems)
    }
}

/// An image or container by what it needs.
struct User {
    name: String,
    needs: Vec<Digest>,
}

struct Checker<'a> {
    store: &'a Store,
    options: CheckOptions,
    problems: Vec<Problem>,
    who: Vec<User>,
}

impl Checker<'_> {
    fn run(&mut self) -> Result<()> {
        for why in self.store.db_integrity()? {
            self.report("metadata database", &why, &[], false);
        }
        self.who = self.users()?;
        let blobs = self.store.read(|tx| tx.all::<Blob>())?;
        let layers = self.store.read(|tx| tx.all::<Layer>())?;
        for b in &blobs {
            self.blob(b)?;
        }
        for l in &layers {
            self.layer(l)?;
        }
        for c in self.store.containers()? {
            self.container(&c)?;
        }
        self.orphans()?;
        if self.options.repair {
            self.store.write(|tx| write_index(&self.store.layout, tx))?;
        }
        Ok(())
    }

    fn users(&self) -> Result<Vec<User>> {
        self.store.read(|tx| {
            let names = tx.all::<Name>()?;
            let mut out = Vec::new();
            for i in tx.all::<Image>()? {
                let mut needs = vec![i.manifest, i.config];
                needs.extend(i.layers.iter().flat_map(|l| [l.blob, l.chain]));
                let called =
                    names.iter().filter(|n| n.manifest == i.manifest).map(|n| format!("image {}", n.name));
                out.extend(called.map(|name| User { name, needs: needs.clone() }));
                let containers = tx.all::<Container>()?.into_iter().filter(|c| c.image == i.manifest);
                out.extend(
                    containers.map(|c| User { name: format!("container {}", c.name), needs: needs.clone() }),
                );
            }
            Ok(out)
        })
    }

    fn report(&mut self, what: &str, why: &str, harmed: &[Digest], repaired: bool) {
        let harms = self
            .who
            .iter()
            .filter(|u| harmed.iter().any(|d| u.needs.contains(d)))
            .map(|u| u.name.clone())
            .collect();
        self.problems.push(Problem { what: what.into(), why: why.into(), harms, repaired, harmless: false });
    }

    fn note(&mut self, what: &str, why: &str) {
        let (what, why) = (what.into(), why.into());
        self.problems.push(Problem { what, why, harms: Vec::new(), repaired: false, harmless: true });
    }

    fn blob(&mut self, b: &Blob) -> Result<()> {
        let path = self.store.layout.blob(&b.digest);
        let Some(why) = self.blob_problem(b, &path)? else { return Ok(()) };
        let repaired = self.options.repair && self.fetch_again(b)?;
        self.report(&format!("blob {}", b.digest), &why, &[b.digest], repaired);
        Ok(())
    }

    fn blob_problem(&self, b: &Blob, path: &Path) -> Result<Option<String>> {
        let m = match path.symlink_metadata() {
            Ok(m) => m,
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(Some("missing".into())),
            Err(e) => return Err(e).at("stat", path),
        };
        if m.len() != b.size {
            return Ok(Some(format!("{} bytes, expected {}", m.len(), b.size)));
        }
        if self.options.quick {
            return Ok(None);
        }
        let (found, _) = blob::digest_file(path)?;
        Ok((found != b.digest).then(|| format!("its bytes have the digest {found}")))
    }

    /// From the registry that an image with this blob came from.
    fn fetch_again(&self, b: &Blob) -> Result<bool> {
        let images = self.store.read(|tx| tx.all::<Image>())?;
        let uses = |i: &&Image| {
            [i.manifest, i.config].contains(&b.digest) || i.layers.iter().any(|l| l.blob == b.digest)
        };
        for i in images.iter().filter(uses) {
            if let Some(o) = &i.origin {
                match self.store.fetch_blob_again(o, b) {
                    Ok(()) => return Ok(true),
                    Err(e) => tracing::warn!("fetching {} again: {e}", b.digest),
                }
            }
        }
        Ok(false)
    }

    fn layer(&mut self, l: &Layer) -> Result<()> {
        let dir = self.store.layout.layer(&l.chain.hex());
        let lower = match &l.parent {
            Some(p) => Some(self.store.read(|tx| lower_text(&self.store.layout, tx, p))?),
            None => None,
        };
        let what = format!("layer {}", l.chain);
        let harmed = [l.chain];
        if dir.join("diff").symlink_metadata().is_err() {
            let repaired = self.options.repair && self.rebuild(l, lower.as_deref())?;
            self.report(&what, "its directory is missing", &harmed, repaired);
            return Ok(());
        }
        self.furniture(&what, &dir, &l.chain.hex(), &l.link, lower.as_deref(), &harmed, false)?;
        self.dangling(l)?;
        if self.options.quick {
            return Ok(());
        }
        match self.compare(l, &dir) {
            Ok(None) => {}
            Ok(Some(why)) => {
                let repaired = self.options.repair && self.rebuild(l, lower.as_deref())?;
                self.report(&what, &why, &harmed, repaired);
            }
            // A damaged blob is reported as such; the layer cannot be compared with it.
            Err(Error::Digest { .. } | Error::Invalid { .. } | Error::NotFound { .. }) => {
                self.note(&what, "cannot be compared: its blob is damaged");
            }
            Err(e) => return Err(e),
        }
        Ok(())
    }

    /// The small files, links and modes beside a layer's content.
    #[allow(clippy::too_many_arguments)]
    fn furniture(
        &mut self,
        what: &str,
        dir: &Path,
        id: &str,
        link: &str,
        lower: Option<&str>,
        harmed: &[Digest],
        writable: bool,
    ) -> Result<()> {
        let mut texts = vec![("link", Some(link))];
        texts.push(("lower", lower));
        texts.push(("committed", (!writable).then_some("")));
        for (name, want) in texts {
            let p = dir.join(name);
            let have = durable::read_small(&p, 1 << 20).ok();
            if have.as_deref() != want.map(str::as_bytes) {
                if let (true, Some(w)) = (self.options.repair, want) {
                    durable::replace(&p, w.as_bytes(), if name == "committed" { 0o600 } else { 0o644 })?;
                } else if self.options.repair {
                    durable::remove_file(&p)?;
                }
                self.report(what, &format!("wrong or missing file \"{name}\""), harmed, self.options.repair);
            }
        }
        let (l, want) = (self.store.layout.link(link), PathBuf::from(format!("../{id}/diff")));
        if fs::read_link(&l).ok().as_ref() != Some(&want) {
            if self.options.repair {
                durable::remove_file(&l)?;
                std::os::unix::fs::symlink(&want, &l).at("link", &l)?;
            }
            self.report(what, &format!("lost link l/{link}"), harmed, self.options.repair);
        }
        let mut modes = vec![(dir.to_owned(), 0o710)];
        if writable {
            modes.extend([(dir.join("work"), 0o700), (dir.join("merged"), 0o700)]);
        }
        for (p, want) in modes {
            self.mode(what, &p, want, harmed)?;
        }
        Ok(())
    }

    fn mode(&mut self, what: &str, p: &Path, want: u32, harmed: &[Digest]) -> Result<()> {
        match fs::symlink_metadata(p) {
            Ok(m) if m.permissions().mode() & 0o7777 & !want == 0 => Ok(()),
            Ok(m) => {
                let why = format!(
                    "{} has mode {:o}, expected {want:o}",
                    p.display(),
                    m.permissions().mode() & 0o7777
                );
                // What is mounted on `merged` shows its own root.
                if crate::mount::mounted_type(p)?.is_some() {
                    return Ok(());
                }
                if self.options.repair {
                    durable::ensure_dir(p, want)?;
                }
                self.report(what, &why, harmed, self.options.repair);
                Ok(())
            }
            Err(_) => {
                if self.options.repair {
                    durable::ensure_dir(p, want)?;
                }
                self.report(what, &format!("{} is missing", p.display()), harmed, self.options.repair);
                Ok(())
            }
        }
    }

    /// Unpacks the blob again and compares; says what differs first.
    fn compare(&self, l: &Layer, dir: &Path) -> Result<Option<String>> {
        let work = Work::begin(&self.store.layout)?;
        let fresh = self.unpack_again(&work, l)?;
        let r = differs(&Root::open(&fresh)?, &Root::open(&dir.join("diff"))?)?;
        work.finish()?;
        Ok(r)
    }

    fn unpack_again(&self, work: &Work, l: &Layer) -> Result<PathBuf> {
        let blob = self.store.layout.blob(&l.blob);
        if !blob.exists() {
            return Err(Error::NotFound { what: "blob", name: l.blob.to_string() });
        }
        let fresh = work.path("diff");
        durable::new_dir(&fresh, 0o755)?;
        let short: String = l.diff_id.hex().chars().take(12).collect();
        let task = self
            .store
            .options
            .progress
            .task(&format!("checking {short}"), blob.metadata().ok().map(|m| m.len()));
        let order = self.store.order(format!("layer {short}"), fresh.clone(), None, true);
        let (applied, _) = unpack::unpack(&blob, Some(&l.diff_id), order, &*task)?;
        let lowers = self.store.layer_dirs(l.parent.as_ref())?;
        apply::fill_implied(&fresh, &applied.implied, &lowers)?;
        Ok(fresh)
    }

    /// Puts a freshly unpacked tree in the damaged one's place. Not below a mounted container: the kernel
    /// forbids changing a layer under a mount.
    fn rebuild(&self, l: &Layer, lower: Option<&str>) -> Result<bool> {
        for c in self.store.containers()? {
            let below = self.store.layer_dirs(c.top.as_ref())?;
            if below.contains(&self.store.layout.layer(&l.chain.hex()).join("diff"))
                && self.store.is_mounted(&c)?
            {
                tracing::warn!("layer {} is not repaired: container {} is mounted", l.chain, c.name);
                return Ok(false);
            }
        }
        let work = Work::begin(&self.store.layout)?;
        let fresh = match self.unpack_again(&work, l) {
            Ok(f) => f,
            Err(Error::Digest { .. } | Error::Invalid { .. } | Error::NotFound { .. }) => return Ok(false),
            Err(e) => return Err(e),
        };
        durable::sync_fs(&fresh)?;
        let dir = self.store.layout.layer(&l.chain.hex());
        let diff = dir.join("diff");
        if !dir.exists() {
            crate::layout::make_layer(&dir, &l.link, lower, false)?;
        }
        if !diff.exists() {
            durable::new_dir(&diff, 0o755)?;
        }
        rustix::fs::renameat_with(CWD, &fresh, CWD, &diff, RenameFlags::EXCHANGE).at("exchange", &diff)?;
        durable::sync_dir(&dir)?;
        work.finish()?;
        Ok(true)
    }

    /// Whiteouts of nothing: made by builders, harmless, but worth knowing.
    fn dangling(&mut self, l: &Layer) -> Result<()> {
        let dirs = self.store.layer_dirs(Some(&l.chain))?;
        let own = Root::open(dirs.first().map_or(Path::new("/nonexistent"), |d| d))?;
        let below = Stack::open(dirs.get(1..).unwrap_or_default(), false, self.store.ownership)?;
        let mut count = 0u64;
        let mut first = None;
        let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
        while let Some(dir) = todo.pop() {
            let fd = own.dir(&dir).at("open", own.show(&dir))?;
            for n in beneath::names(fd.as_fd()).at("read", own.show(&dir))? {
                let rel = join(&dir, &n);
                let Some(st) = own.stat(&rel)? else { continue };
                if beneath::kind(&st) == FileType::Directory {
                    todo.push(rel);
                } else if beneath::is_whiteout_device(&st) && below.resolve(0, &rel)?.is_none() {
                    count += 1;
                    first.get_or_insert(rel);
                }
            }
        }
        if let Some(f) = first {
            let what = format!("layer {}", l.chain);
            self.note(&what, &format!("{count} dangling whiteouts, the first is /{}", f.escape_ascii()));
        }
        Ok(())
    }

    fn container(&mut self, c: &Container) -> Result<()> {
        let what = format!("container {}", c.name);
        let dir = self.store.layout.layer(&c.id);
        if dir.join("diff").symlink_metadata().is_err() {
            self.problems.push(Problem {
                what: what.clone(),
                why: "its writable layer is missing".into(),
                harms: vec![what],
                repaired: false,
                harmless: false,
            });
            return Ok(());
        }
        let lower = match &c.top {
            Some(t) => Some(self.store.read(|tx| lower_text(&self.store.layout, tx, t))?),
            None => None,
        };
        self.furniture(&what, &dir, &c.id, &c.link, lower.as_deref(), &[], true)
    }

    fn orphans(&mut self) -> Result<()> {
        let mut plan = Plan::default();
        self.store.write(|tx| orphans(&self.store.layout, tx, &mut plan))?;
        let mut found: Vec<String> = plan.layers.iter().map(|(id, _)| format!("overlay2/{id}")).collect();
        found.extend(plan.links.iter().map(|l| format!("overlay2/l/{l}")));
        found.extend(plan.blobs.iter().map(|b| format!("images/blobs/sha256/{b}")));
        found.extend(plan.containers.iter().map(|c| format!("containers/{c}")));
        if !found.is_empty() && self.options.repair {
            self.store.gc()?;
        }
        for f in found {
            self.report(&f, "belongs to nothing", &[], self.options.repair);
        }
        Ok(())
    }
}

/// The first difference between what should be and what is.
fn differs(want: &Root, have: &Root) -> Result<Option<String>> {
    let mut todo: Vec<Vec<u8>> = vec![Vec::new()];
    while let Some(rel) = todo.pop() {
        let show = |why: &str| Some(format!("/{}: {why}", rel.escape_ascii()));
        let (Some(a), Some(b)) = (want.stat(&rel)?, have.stat(&rel)?) else { return Ok(show("missing")) };
        let dirs = [&a, &b].iter().all(|s| beneath::kind(s) == FileType::Directory);
        if dirs {
            let (na, nb) = (names(want, &rel)?, names(have, &rel)?);
            let odd = na.iter().find(|n| !nb.contains(n)).or_else(|| nb.iter().find(|n| !na.contains(n)));
            if let Some(n) = odd {
                return Ok(show(&format!("\"{}\" is missing or too many", n.escape_ascii())));
            }
            todo.extend(na.iter().map(|n| join(&rel, n)));
        }
        // Records are compared below, as they are.
        let source =
            |at, stat| Source { at: (at, &rel[..]), data: None, stat, ids: Ids::KEPT, records: false };
        if tree::entry(&rel, &source(want, &a))? != tree::entry(&rel, &source(have, &b))? {
            return Ok(show("owner, mode, time, type or attributes differ"));
        }
        if tree::raw_xattrs(want, &rel)? != tree::raw_xattrs(have, &rel)? {
            return Ok(show("the overlay's attributes differ"));
        }
        if beneath::kind(&a) == FileType::RegularFile && !same_content(want, have, &rel)? {
            return Ok(show("its content differs"));
        }
    }
    Ok(None)
}

fn names(r: &Root, rel: &[u8]) -> Result<Vec<Vec<u8>>> {
    let fd = r.dir(rel).at("open", r.show(rel))?;
    beneath::names(fd.as_fd()).at("read", r.show(rel))
}

fn same_content(a: &Root, b: &Root, rel: &[u8]) -> Result<bool> {
    use std::io::Read;
    let (Some(mut fa), Some(mut fb)) = (beneath::open_regular(a, rel)?, beneath::open_regular(b, rel)?)
    else {
        return Ok(false);
    };
    let (mut ba, mut bb) = (vec![0u8; 128 << 10], vec![0u8; 128 << 10]);
    loop {
        let n = fa.read(&mut ba).at("read", a.show(rel))?;
        let part = bb.get_mut(..n).unwrap_or_default();
        match fb.read_exact(part) {
            Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(false),
            r => r.at("read", b.show(rel))?,
        }
        if ba.get(..n) != Some(&*part) {
            return Ok(false);
        }
        if n == 0 {
            return Ok(true);
        }
    }
}
