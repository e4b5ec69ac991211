//! Random lower layers, over the same names as the operations.

use super::generate::{Sort, acl, mode, moment, name, pick, xattr};
use super::op::PathArg;
use crate::acl as posix_acl;
use crate::features::Features;
use crate::layer::{Kind, TreeSpec};
use crate::sandbox::Space;
use fastrand::Rng;
use std::collections::BTreeSet;

/// The size of a file with a hole at its start. The kernel's copy-up looks for data at each MiB only, and fills smaller
/// holes; so the data lies where a MiB starts, and what is seen of holes afterwards does not depend on it.
const SPARSE: u64 = (2 << 20) + 5000;

/// How deep directories nest.
const DEPTH: u32 = 3;

/// Makes `count` layers, topmost first, with everything below each of `bases` (of which `""` is the root).
pub fn random(
    rng: &mut Rng,
    count: usize,
    bases: &[String],
    features: &Features,
    space: Space,
) -> Vec<TreeSpec> {
    // Many layers hold less each, so that trees stay about the same size.
    let entries = (60 / count).max(6);
    (0..count)
        .map(|_| {
            let (spec, taken) = (TreeSpec::new(), BTreeSet::new());
            let mut layer = Layer { rng, features, space, spec, taken, files: Vec::new() };
            layer.base(b"");
            for base in bases {
                layer.base(base.as_bytes());
                layer.files.clear();
                let mut left = entries;
                layer.fill(base.as_bytes(), DEPTH, &mut left);
            }
            layer.spec
        })
        .collect()
}

struct Layer<'a> {
    rng: &'a mut Rng,
    features: &'a Features,
    space: Space,
    spec: TreeSpec,
    taken: BTreeSet<Vec<u8>>,
    /// Of the current base, to link to.
    files: Vec<Vec<u8>>,
}

impl Layer<'_> {
    /// A directory that anyone may change.
    fn base(&mut self, path: &[u8]) {
        if self.taken.insert(path.to_vec()) {
            self.add(path, Kind::Dir);
            self.change(|spec, _| spec.mode(0o777));
        }
    }

    fn fill(&mut self, dir: &[u8], depth: u32, left: &mut usize) {
        let here = self.rng.usize(2..9);
        for _ in 0..here {
            let sort = if depth > 0 && self.rng.u32(..5) < 2 { Sort::Dir } else { Sort::File };
            let name = name(self.rng, sort);
            let path = if dir.is_empty() { name } else { [dir, b"/", name.as_slice()].concat() };
            if *left == 0 || !self.taken.insert(path.clone()) {
                continue;
            }
            *left -= 1;
            match self.rng.u32(..10) {
                0 => self.add(&path, Kind::Char(0, 0)),
                _ if sort == Sort::Dir => self.directory(&path, depth, left),
                _ => self.not_directory(&path),
            }
        }
    }

    fn directory(&mut self, path: &[u8], depth: u32, left: &mut usize) {
        self.add(path, Kind::Dir);
        if self.rng.u32(..8) == 0 {
            let namespace = self.features.namespace();
            self.change(|spec, _| spec.opaque(namespace));
        }
        if self.rng.u32(..8) == 0 {
            self.change(|spec, rng| spec.xattr(posix_acl::DEFAULT, valid_acl(rng)));
        }
        self.attributes(Sort::Dir, true);
        self.fill(path, depth - 1, left);
    }

    fn not_directory(&mut self, path: &[u8]) {
        match self.rng.u32(..20) {
            0..14 => self.file(path),
            14 | 15 => {
                let sort = if self.rng.bool() { Sort::Dir } else { Sort::File };
                let target = name(self.rng, sort);
                self.add(path, Kind::Symlink(target));
            }
            16 | 17 if !self.files.is_empty() && !self.is_too_long(path) => {
                let of = pick(self.rng, &self.files);
                self.add(path, Kind::HardLink(of));
            }
            _ => {
                // Device nodes cannot be made in a user namespace.
                let kinds: &[Kind] = match self.space {
                    Space::Mounts => &[Kind::Fifo, Kind::Socket, Kind::Char(1, 3), Kind::Block(240, 5)],
                    Space::User => &[Kind::Fifo, Kind::Socket],
                };
                let kind = pick(self.rng, kinds);
                self.add(path, kind);
                self.attributes(Sort::File, false);
            }
        }
    }

    fn file(&mut self, path: &[u8]) {
        let sizes = [0, 1, 10, 4096, 5000, 20_000, 70_000, SPARSE];
        let least = usize::from(self.features.has("metacopy=on"));
        let size = pick(self.rng, sizes.get(least..).unwrap_or(&sizes));
        let byte = self.rng.u8(1..);
        let extents = match size {
            0 => vec![],
            SPARSE => vec![(SPARSE - 5000, vec![byte; 5000])],
            _ => vec![(0, vec![byte; usize::try_from(size).unwrap_or(0)])],
        };
        self.add(path, Kind::File { extents, size });
        if !self.is_too_long(path) {
            self.files.push(path.to_vec());
        }
        if self.rng.u32(..8) == 0 {
            self.change(|spec, rng| spec.xattr(posix_acl::ACCESS, valid_acl(rng)));
        }
        self.attributes(Sort::File, true);
    }

    /// Whether a redirect to it might not be possible: see known.rs.
    fn is_too_long(&self, path: &[u8]) -> bool {
        self.features.has("metacopy=on") && path.len() > 200
    }

    fn add(&mut self, path: &[u8], kind: Kind) {
        let spec = std::mem::take(&mut self.spec);
        let (sec, nsec) = moment(self.rng);
        self.spec = spec.entry(path, kind).time(sec, nsec);
    }

    fn change(&mut self, change: impl FnOnce(TreeSpec, &mut Rng) -> TreeSpec) {
        let spec = std::mem::take(&mut self.spec);
        self.spec = change(spec, self.rng);
    }

    fn attributes(&mut self, sort: Sort, user_xattrs: bool) {
        let has_acl = self.spec.entries.last().is_some_and(|entry| !entry.xattrs.is_empty());
        if !has_acl {
            self.change(|spec, rng| spec.mode(mode(rng, sort)));
        }
        self.change(|spec, rng| {
            let ids = [0, 0, 1000, 1001];
            let (uid, gid) = (pick(rng, &ids), pick(rng, &ids));
            spec.owner(uid, gid)
        });
        if user_xattrs && self.rng.u32(..6) == 0 {
            self.change(|spec, rng| {
                loop {
                    let (name, value) = xattr(rng);
                    if name == "user.a" || name == "user.b" {
                        return spec.xattr(name, value);
                    }
                }
            });
        }
    }
}

fn valid_acl(rng: &mut Rng) -> Vec<u8> {
    loop {
        let acl = acl(rng);
        if acl.len() > 4 {
            return acl;
        }
    }
}

/// The paths of all layers' entries below `base`, relative to it, each once.
pub fn paths_below(layers: &[TreeSpec], base: &str) -> Vec<Vec<u8>> {
    let prefix = if base.is_empty() { String::new() } else { format!("{base}/") };
    let entries = layers.iter().flat_map(|layer| &layer.entries);
    let below: BTreeSet<Vec<u8>> =
        entries.filter_map(|entry| entry.path.strip_prefix(prefix.as_bytes())).map(<[u8]>::to_vec).collect();
    below.into_iter().collect()
}

/// An entry in one line.
pub fn describe(entry: &crate::layer::Entry) -> String {
    let kind = match &entry.kind {
        Kind::File { extents, size } => {
            let byte = extents.first().and_then(|(_, data)| data.first()).unwrap_or(&0);
            format!("file of {size} bytes {byte}")
        }
        Kind::Symlink(target) => format!("symlink to {:?}", PathArg(target.clone())),
        Kind::HardLink(of) => format!("hard link to {:?}", PathArg(of.clone())),
        Kind::Char(0, 0) => "whiteout".to_owned(),
        other => format!("{other:?}").to_lowercase(),
    };
    let mode = entry.mode.map(|mode| format!(" mode {mode:o}")).unwrap_or_default();
    let owner = entry.owner.map(|(uid, gid)| format!(" owner {uid}:{gid}")).unwrap_or_default();
    let xattrs: String =
        entry.xattrs.iter().map(|(name, value)| format!(" {name}=\"{}\"", value.escape_ascii())).collect();
    format!("{:?} {kind}{mode}{owner}{xattrs}", PathArg(entry.path.clone()))
}
