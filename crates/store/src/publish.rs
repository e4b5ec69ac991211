//! Makes staged things visible: layers, blobs, images and names, all or none.
//!
//! Owns the order: data synced, journal synced, then inside one database transaction the renames, the
//! directories synced, the records; the commit is the instant at which everything is there. Owns the reverse
//! as well: records first, then the renames into the trash.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::json;

use crate::db::{Blob, Container, Image, Layer, Name, Tx};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::journal::{self, Plan, Work};
use crate::layout::Layout;
use crate::manifest::{self, Index};
use crate::store::Store;

/// What a command adds to the store.
#[derive(Default)]
pub(crate) struct Publication {
    /// Unpacked layers, and the staged directory of each.
    pub layers: Vec<(Layer, PathBuf)>,
    /// Complete blobs, and the staged file of each.
    pub blobs: Vec<(Blob, PathBuf)>,
    /// Images; their layers and blobs are above or in the store already.
    pub images: Vec<Image>,
    /// Names to set.
    pub names: Vec<Name>,
}

impl Store {
    /// Makes `p` visible. `work` holds the staged data and ends here.
    pub(crate) fn publish(&self, mut work: Work, p: &Publication) -> Result<()> {
        if !p.layers.is_empty() || !p.blobs.is_empty() {
            durable::sync_fs(self.layout.root())?;
        }
        work.journal(&Plan {
            layers: p.layers.iter().map(|(l, _)| (l.chain.hex(), l.link.clone())).collect(),
            blobs: p.blobs.iter().map(|(b, _)| b.digest.hex()).collect(),
            ..Plan::default()
        })?;
        self.write(|tx| {
            place_blobs(&self.layout, tx, p)?;
            place_layers(&self.layout, tx, &work, p)?;
            for i in &p.images {
                require_parts(tx, i)?;
                tx.put(i)?;
            }
            for n in &p.names {
                if !tx.has::<Image>(&n.manifest.hex())? {
                    return Err(Error::NotFound { what: "image", name: n.manifest.to_string() });
                }
                tx.put(n)?;
            }
            write_index(&self.layout, tx)
        })?;
        work.finish()
    }

    /// Makes a container's layer and record visible.
    pub(crate) fn publish_container(
        &self,
        mut work: Work,
        c: &Container,
        staged: &Path,
        bundle_dir: &Path,
    ) -> Result<()> {
        work.journal(&Plan {
            layers: vec![(c.id.clone(), c.link.clone())],
            containers: vec![c.id.clone()],
            ..Plan::default()
        })?;
        self.write(|tx| {
            if tx.all::<Container>()?.iter().any(|o| o.name == c.name) {
                return Err(Error::Exists { what: "container", name: c.name.clone() });
            }
            if !tx.has::<Image>(&c.image.hex())? {
                return Err(Error::NotFound { what: "image", name: c.image_name.clone() });
            }
            let (to, bundle) = (self.layout.layer(&c.id), self.layout.container(&c.id));
            fs::rename(staged, &to).at("rename", &to)?;
            fs::rename(bundle_dir, &bundle).at("rename", &bundle)?;
            link_layer(&self.layout, &c.id, &c.link)?;
            for d in [self.layout.overlay2(), self.layout.links(), self.layout.containers()] {
                durable::sync_dir(&d)?;
            }
            tx.put(c)
        })?;
        work.finish()
    }

    /// Deletes what `choose` removes from the database and names in its plan.
    pub(crate) fn delete(&self, choose: impl FnOnce(&Tx<'_>) -> Result<Plan>) -> Result<Plan> {
        let mut work = Work::begin(&self.layout)?;
        let plan = self.write(|tx| {
            let plan = choose(tx)?;
            work.journal(&plan)?;
            write_index(&self.layout, tx)?;
            Ok(plan)
        })?;
        // What another command published again in the meantime is in the database again, and stays.
        self.write(|tx| take_back(&self.layout, tx, &plan, &|n| work.path(n)))?;
        work.finish()?;
        Ok(plan)
    }

    /// Removes what commands that died left behind. Every command begins with it.
    pub(crate) fn recover(&self) -> Result<()> {
        for d in journal::dead(&self.layout)? {
            if let Some(plan) = &d.plan {
                tracing::info!("taking back what an interrupted command left");
                self.write(|tx| {
                    take_back(&self.layout, tx, plan, &|n| d.trash(n))?;
                    write_index(&self.layout, tx)
                })?;
            }
            d.bury()?;
        }
        Ok(())
    }
}

fn place_blobs(layout: &Layout, tx: &Tx<'_>, p: &Publication) -> Result<()> {
    for (b, staged) in &p.blobs {
        if !tx.has::<Blob>(&b.digest.hex())? {
            let to = layout.blob(&b.digest);
            fs::rename(staged, &to).at("rename", &to)?;
            tx.put(b)?;
        }
    }
    durable::sync_dir(&layout.blobs())
}

fn place_layers(layout: &Layout, tx: &Tx<'_>, work: &Work, p: &Publication) -> Result<()> {
    for (l, staged) in &p.layers {
        let id = l.chain.hex();
        // Another process was faster: its layer is as good, but has another link.
        if tx.has::<Layer>(&id)? {
            continue;
        }
        let to = layout.layer(&id);
        if to.symlink_metadata().is_ok() {
            fs::rename(&to, work.path(&format!("orphan-{id}"))).at("rename", &to)?;
        }
        // `lower` names links; those of parents that another process published are its, not ours.
        if let Some(parent) = &l.parent {
            rewrite_lower(layout, tx, staged, parent)?;
        }
        fs::rename(staged, &to).at("rename", &to)?;
        link_layer(layout, &id, &l.link)?;
        tx.put(l)?;
    }
    durable::sync_dir(&layout.overlay2())?;
    durable::sync_dir(&layout.links())
}

fn rewrite_lower(layout: &Layout, tx: &Tx<'_>, staged: &Path, parent: &Digest) -> Result<()> {
    let want = lower_text(layout, tx, parent)?;
    let path = staged.join("lower");
    let have = durable::read_small(&path, 1 << 16)?;
    if have == want.as_bytes() { Ok(()) } else { durable::replace(&path, want.as_bytes(), 0o644) }
}

/// The text of `lower` for a layer on `parent`: the links of `parent` and all below it.
pub(crate) fn lower_text(layout: &Layout, tx: &Tx<'_>, parent: &Digest) -> Result<String> {
    let mut links = Vec::new();
    let mut next = Some(*parent);
    while let Some(chain) = next {
        let l: Layer = tx
            .get(&chain.hex())?
            .ok_or_else(|| Error::NotFound { what: "layer", name: chain.to_string() })?;
        links.push(format!("l/{}", l.link));
        next = l.parent;
        if links.len() > crate::MAX_DEPTH {
            return Err(Error::Damaged(format!(
                "{}: the layers' parents run in a circle",
                layout.root().display()
            )));
        }
    }
    Ok(links.join(":"))
}

fn link_layer(layout: &Layout, id: &str, link: &str) -> Result<()> {
    let p = layout.link(link);
    std::os::unix::fs::symlink(format!("../{id}/diff"), &p).at("link", &p)
}

fn require_parts(tx: &Tx<'_>, i: &Image) -> Result<()> {
    let missing = |what, d: &Digest| Err(Error::NotFound { what, name: d.to_string() });
    for d in [&i.manifest, &i.config].into_iter().chain(i.layers.iter().map(|l| &l.blob)) {
        if !tx.has::<Blob>(&d.hex())? {
            return missing("blob", d);
        }
    }
    match i.layers.iter().find_map(|l| match tx.has::<Layer>(&l.chain.hex()) {
        Ok(true) => None,
        Ok(false) => Some(missing("layer", &l.chain)),
        Err(e) => Some(Err(e)),
    }) {
        Some(r) => r,
        None => Ok(()),
    }
}

/// Moves what `plan` names, and the database does not know, out of sight.
fn take_back(layout: &Layout, tx: &Tx<'_>, plan: &Plan, trash: &dyn Fn(&str) -> PathBuf) -> Result<()> {
    for (id, link) in &plan.layers {
        let owner = match tx.get::<Layer>(id)? {
            Some(l) => Some(l.link),
            None => tx.get::<Container>(id)?.map(|c| c.link),
        };
        if owner.as_ref() != Some(link) && !link.is_empty() {
            durable::remove_file(&layout.link(link))?;
        }
        if owner.is_none() {
            move_away(&layout.layer(id), &trash(id))?;
        }
    }
    for link in &plan.links {
        let taken = tx.all::<Layer>()?.iter().any(|l| l.link == *link)
            || tx.all::<Container>()?.iter().any(|c| c.link == *link);
        if !taken {
            durable::remove_file(&layout.link(link))?;
        }
    }
    for b in &plan.blobs {
        if !tx.has::<Blob>(b)? {
            durable::remove_file(&layout.blobs().join(b))?;
        }
    }
    for c in &plan.containers {
        if !tx.has::<Container>(c)? {
            move_away(&layout.container(c), &trash(&format!("bundle-{c}")))?;
        }
    }
    Ok(())
}

fn move_away(from: &Path, to: &Path) -> Result<()> {
    match fs::rename(from, to) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        r => r.at("rename", from),
    }
}

/// Writes `index.json` from the database: other tools read the store's images as an OCI layout.
pub(crate) fn write_index(layout: &Layout, tx: &Tx<'_>) -> Result<()> {
    let mut manifests = Vec::new();
    for n in tx.all::<Name>()? {
        if let Some(i) = tx.get::<Image>(&n.manifest.hex())? {
            let mut d = manifest::descriptor(&i.media_type, i.manifest, i.manifest_size);
            d.annotations.insert("org.opencontainers.image.ref.name".into(), json!(n.name));
            manifests.push(d);
        }
    }
    let index = Index { schema_version: 2, media_type: manifest::INDEX.into(), manifests };
    let path = layout.images().join("index.json");
    let text = serde_json::to_vec(&index).at("encode", &path)?;
    match durable::read_small(&path, 64 << 20) {
        Ok(old) if old == text => Ok(()),
        _ => durable::replace(&path, &text, 0o644),
    }
}
