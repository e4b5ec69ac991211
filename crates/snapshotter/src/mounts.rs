//! Which mount shows a snapshot.
//!
//! Owns the choice between a bind, the kernel's overlay and plyfs over FUSE, and the options of each, as containerd's
//! mount package takes them. Does no I/O and mounts nothing: containerd and its shims do.

use std::path::Path;

use crate::backend::Backends;
use crate::error::{Error, Result};
use crate::home::Home;
use crate::idmap::Mapping;
use crate::info::Kind;
use crate::ledger::Chain;

/// One mount, as containerd's API describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Mount {
    /// The file system's type.
    pub fstype: String,
    /// What is mounted.
    pub source: String,
    /// Options as in fstab.
    pub options: Vec<String>,
}

impl Mount {
    /// Whether plyfs serves it.
    pub fn is_fuse(&self) -> bool {
        self.fstype == FUSE_TYPE
    }
}

/// The type by which containerd calls `mount.fuse3`, and that `plyfs`.
const FUSE_TYPE: &str = "fuse3.plyfs";
/// Most layers that the kernel's overlay takes (`OVL_MAX_STACK`).
const KERNEL_LAYERS: usize = 500;
/// What mount(2) takes of options: one page with the closing zero. containerd shortens the lower layers to paths
/// relative to their common directory before it counts.
const KERNEL_OPTIONS: usize = 4095;

/// The mount that shows the snapshot of `chain`.
pub fn mount(home: &Home, backends: &Backends, chain: &Chain) -> Result<Mount> {
    let record = &chain.record;
    let mapping = Mapping::from_labels(&record.labels)?;
    match (record.kind, chain.parents.as_slice()) {
        (Kind::Active, []) => bind(&home.diff(record.id), "rw", mapping.as_ref()),
        (_, []) => bind(&home.diff(record.id), "ro", mapping.as_ref()),
        (Kind::View, [only]) => bind(&home.diff(*only), "ro", mapping.as_ref()),
        _ => overlay(home, backends, chain, mapping.as_ref()),
    }
}

fn bind(source: &Path, access: &str, mapping: Option<&Mapping>) -> Result<Mount> {
    let mut options: Vec<String> = mapping.into_iter().flat_map(Mapping::containerd_options).collect();
    options.extend([access.to_owned(), "rbind".to_owned()]);
    Ok(Mount { fstype: "bind".into(), source: text(source)?, options })
}

fn overlay(home: &Home, backends: &Backends, chain: &Chain, mapping: Option<&Mapping>) -> Result<Mount> {
    let layers = layer_options(home, chain)?;
    let fits = chain.parents.len() <= KERNEL_LAYERS && shortened_length(&layers, chain) <= KERNEL_OPTIONS;
    match &backends.kernel {
        Some(kernel) if fits => {
            let mut options: Vec<String> =
                mapping.into_iter().flat_map(Mapping::containerd_options).collect();
            options.push("index=off".into());
            if kernel.userxattr {
                options.push("userxattr".into());
            }
            options.extend(layers);
            Ok(Mount { fstype: "overlay".into(), source: "overlay".into(), options })
        }
        _ if backends.fuse => {
            let mut options: Vec<String> = mapping.into_iter().flat_map(Mapping::plyfs_options).collect();
            options.extend(layers);
            Ok(Mount { fstype: FUSE_TYPE.into(), source: "plyfs".into(), options })
        }
        Some(_) => Err(Error::FailedPrecondition(format!(
            "{} layers are too many for one mount of the kernel's overlay, and the FUSE backend is switched off",
            chain.parents.len()
        ))),
        None => Err(Error::FailedPrecondition("no backend can mount an overlay here".into())),
    }
}

/// `workdir`, `upperdir` and `lowerdir`, in containerd's order.
fn layer_options(home: &Home, chain: &Chain) -> Result<Vec<String>> {
    let mut options = Vec::new();
    if chain.record.kind == Kind::Active {
        options.push(format!("workdir={}", text(&home.work(chain.record.id))?));
        options.push(format!("upperdir={}", text(&home.diff(chain.record.id))?));
    }
    let lowers = chain.parents.iter().map(|id| text(&home.diff(*id))).collect::<Result<Vec<_>>>()?;
    options.push(format!("lowerdir={}", lowers.join(":")));
    Ok(options)
}

/// The length of all options once the lower layers are named relative to their common directory.
fn shortened_length(options: &[String], chain: &Chain) -> usize {
    let fixed: usize =
        options.iter().filter(|option| !option.starts_with("lowerdir=")).map(|option| option.len() + 1).sum();
    let lowers: usize = chain.parents.iter().map(|id| id.to_string().len() + "/diff:".len()).sum();
    fixed + "lowerdir=,index=off,userxattr".len() + lowers
}

fn text(path: &Path) -> Result<String> {
    path.to_str()
        .map(str::to_owned)
        .ok_or_else(|| Error::InvalidArgument(format!("{} is not valid UTF-8", path.display())))
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::backend::Kernel;
    use crate::info::{Labels, Record, Usage};

    fn chain(kind: Kind, parents: Vec<u64>, labels: Labels) -> Chain {
        let now = SystemTime::UNIX_EPOCH;
        let record =
            Record { id: 9, kind, parent: None, created: now, updated: now, labels, usage: Usage::default() };
        Chain { record, parents }
    }

    fn home() -> (tempfile::TempDir, Home) {
        let dir = tempfile::tempdir().unwrap();
        let home = Home::open(&dir.path().join("r")).unwrap();
        (dir, home)
    }

    fn kernel(userxattr: bool, fuse: bool) -> Backends {
        Backends { kernel: Some(Kernel { userxattr }), fuse, reason: String::new() }
    }

    const FUSE: Backends = Backends { kernel: None, fuse: true, reason: String::new() };

    #[test]
    fn one_layer_is_a_bind_and_several_are_an_overlay() {
        let (_dir, home) = home();
        let root = home.root().to_str().unwrap().to_owned();
        let d = |id: u64| format!("{root}/overlay2/{id}/diff");
        let show = |kind, parents: &[u64], backends: &Backends| {
            let m = mount(&home, backends, &chain(kind, parents.to_vec(), Labels::new())).unwrap();
            (m.fstype, m.source, m.options.join(","))
        };
        let k = kernel(false, true);
        assert_eq!(show(Kind::Active, &[], &k), ("bind".into(), d(9), "rw,rbind".into()));
        assert_eq!(show(Kind::View, &[], &k), ("bind".into(), d(9), "ro,rbind".into()));
        assert_eq!(show(Kind::View, &[3], &FUSE), ("bind".into(), d(3), "ro,rbind".into()));
        let view = format!("index=off,lowerdir={}:{}", d(4), d(3));
        assert_eq!(show(Kind::View, &[4, 3], &k), ("overlay".into(), "overlay".into(), view));
        let layers = format!("workdir={root}/overlay2/9/work,upperdir={},lowerdir={}", d(9), d(3));
        let active = format!("index=off,userxattr,{layers}");
        assert_eq!(
            show(Kind::Active, &[3], &kernel(true, true)),
            ("overlay".into(), "overlay".into(), active)
        );
        assert_eq!(show(Kind::Active, &[3], &FUSE), ("fuse3.plyfs".into(), "plyfs".into(), layers));
    }

    #[test]
    fn a_chain_too_long_for_the_kernel_goes_to_fuse_or_is_refused() {
        let (_dir, home) = home();
        let long = chain(Kind::Active, (1000..1501).collect(), Labels::new());
        assert_eq!(mount(&home, &kernel(false, true), &long).unwrap().fstype, "fuse3.plyfs");
        assert!(matches!(mount(&home, &kernel(false, false), &long), Err(Error::FailedPrecondition(_))));
        let page = chain(Kind::Active, (1000..1420).collect(), Labels::new());
        assert_eq!(mount(&home, &kernel(false, true), &page).unwrap().fstype, "fuse3.plyfs");
        let fits = chain(Kind::Active, (1000..1128).collect(), Labels::new());
        assert_eq!(mount(&home, &kernel(false, true), &fits).unwrap().fstype, "overlay");
    }

    #[test]
    fn mapped_ids_are_told_to_whoever_maps_them() {
        let (_dir, home) = home();
        let labels = Labels::from([
            ("containerd.io/snapshot/uidmapping".into(), "0:1000:65536".into()),
            ("containerd.io/snapshot/gidmapping".into(), "0:1000:65536".into()),
        ]);
        let chain = chain(Kind::Active, vec![3], labels);
        let k = mount(&home, &kernel(false, true), &chain).unwrap();
        assert!(
            k.options.starts_with(&["uidmap=0:1000:65536".into(), "gidmap=0:1000:65536".into()]),
            "{k:?}"
        );
        let f = mount(&home, &FUSE, &chain).unwrap();
        assert!(f.options.contains(&"uidmapping=0:1000:65536".to_owned()), "{f:?}");
    }
}
