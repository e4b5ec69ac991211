//! Removal of what nothing uses: records without users, and files without records.
//!
//! Owns the search for orphans on disk. It runs inside one database write transaction, so that nothing that
//! another process is about to publish can look like one; what a command at work relies on is pinned.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;

use serde::Serialize;

use crate::db::{Blob, Container, Layer, Record, Tx};
use crate::durable;
use crate::error::{Context, Result};
use crate::journal::{self, Plan};
use crate::layout::Layout;
use crate::store::Store;
use crate::usage;

/// What `gc` removed.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Collected {
    /// Layers that no image has.
    pub layers: Vec<String>,
    /// Blobs that no image has.
    pub blobs: Vec<String>,
    /// Directories of containers that are gone.
    pub containers: Vec<String>,
    /// Short links to nothing.
    pub links: Vec<String>,
    /// Bytes given back.
    pub bytes: u64,
}

impl Store {
    /// Removes everything that no image and no container uses.
    pub fn gc(&self) -> Result<Collected> {
        let partial = crate::registry::download::sweep(&self.layout)?;
        let mut bytes = 0;
        let plan = self.delete(|tx| {
            let mut plan = self.sweep(tx)?;
            orphans(&self.layout, tx, &mut plan)?;
            bytes = self.weigh(&plan)?;
            Ok(plan)
        })?;
        let Plan { layers, blobs, containers, links } = plan;
        Ok(Collected {
            layers: layers.into_iter().map(|(id, _)| id).collect(),
            blobs,
            containers,
            links,
            bytes: bytes + partial,
        })
    }

    fn weigh(&self, plan: &Plan) -> Result<u64> {
        let layers = plan.layers.iter().map(|(id, _)| self.layout.layer(id));
        let blobs = plan.blobs.iter().map(|b| self.layout.blobs().join(b));
        let containers = plan.containers.iter().map(|c| self.layout.container(c));
        let mut sum = 0;
        for p in layers.chain(blobs).chain(containers).filter(|p| p.symlink_metadata().is_ok()) {
            sum += usage::of(&p).at("measure", &p)?.0;
        }
        Ok(sum)
    }
}

/// Adds what lies on disk and is in no record.
pub(crate) fn orphans(layout: &Layout, tx: &Tx<'_>, plan: &mut Plan) -> Result<()> {
    let pins = journal::pins(layout)?;
    let (layers, containers) = (tx.all::<Layer>()?, tx.all::<Container>()?);
    let mut links: BTreeSet<String> = layers.iter().map(|l| l.link.clone()).collect();
    links.extend(containers.iter().map(|c| c.link.clone()));
    let mut known: BTreeSet<String> = layers.iter().map(Record::key).collect();
    known.extend(containers.iter().map(Record::key));
    let planned: BTreeSet<String> = plan.layers.iter().map(|(id, _)| id.clone()).collect();
    for id in unknown(&layout.overlay2(), &known)?.into_iter().filter(|n| n != "l" && !planned.contains(n)) {
        let link = durable::read_small(&layout.layer(&id).join("link"), 64).unwrap_or_default();
        plan.layers.push((id, String::from_utf8(link).unwrap_or_default()));
    }
    links.extend(plan.layers.iter().map(|(_, l)| l.clone()));
    plan.links = unknown(&layout.links(), &links)?;
    let mut blobs: BTreeSet<String> = tx.all::<Blob>()?.iter().map(Record::key).collect();
    blobs.extend(plan.blobs.iter().cloned());
    plan.blobs.extend(unknown(&layout.blobs(), &blobs)?.into_iter().filter(|b| !pins.contains(b)));
    let ids: BTreeSet<String> = containers.iter().map(Record::key).collect();
    plan.containers = unknown(&layout.containers(), &ids)?;
    Ok(())
}

/// Names in a directory of the store that are not `known`; hidden ones are the store's own.
fn unknown(dir: &Path, known: &BTreeSet<String>) -> Result<Vec<String>> {
    let mut out = Vec::new();
    for e in fs::read_dir(dir).at("open", dir)? {
        let name = e.at("read", dir)?.file_name().to_string_lossy().into_owned();
        if !name.starts_with('.') && !known.contains(&name) {
            out.push(name);
        }
    }
    out.sort();
    Ok(out)
}
