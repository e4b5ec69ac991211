//! Images in the store: names, listing, inspection, removal. Owns what `images`, `inspect`, `tag`, `rmi` and
//! `history` say; how images come in and go out is in other modules.

use std::collections::BTreeSet;

use serde::Serialize;
use serde_json::{Value, json};

use crate::db::{Blob, Container, Image, Layer, Name, Tx};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::journal::{self, Plan, Work};
use crate::publish::Publication;
use crate::store::{Store, find_image};

/// A line of `images`.
#[derive(Debug, Clone, Serialize)]
pub struct Listed {
    /// All names; none for an image that only a container uses.
    pub names: Vec<String>,
    /// The digest of the configuration.
    pub id: Digest,
    /// The digest of the manifest.
    pub digest: Digest,
    /// When it was made.
    pub created: Option<String>,
    /// Number of layers.
    pub layers: usize,
    /// Bytes of file data in all layers.
    pub size: u64,
}

/// A line of `history`.
#[derive(Debug, Clone, Serialize)]
pub struct Step {
    /// When it was done.
    pub created: String,
    /// The command.
    pub created_by: String,
    /// Free text.
    pub comment: String,
    /// Bytes of file data in the layer; none for a step without a layer.
    pub size: Option<u64>,
    /// The layer's DiffID.
    pub diff_id: Option<Digest>,
}

impl Store {
    /// All images.
    pub fn images(&self) -> Result<Vec<Listed>> {
        self.read(|tx| {
            let names = tx.all::<Name>()?;
            let mut out = Vec::new();
            for i in tx.all::<Image>()? {
                let mine = names.iter().filter(|n| n.manifest == i.manifest);
                let mut size = 0;
                for l in &i.layers {
                    size += tx.get::<Layer>(&l.chain.hex())?.map_or(0, |l| l.size);
                }
                out.push(Listed {
                    names: mine.map(|n| n.name.clone()).collect(),
                    id: i.config,
                    digest: i.manifest,
                    created: i.created,
                    layers: i.layers.len(),
                    size,
                });
            }
            out.sort_by(|a, b| a.names.cmp(&b.names));
            Ok(out)
        })
    }

    /// One image, by name, digest or the start of its id.
    pub fn image(&self, name: &str) -> Result<Image> {
        self.read(|tx| find_image(tx, name))
    }

    /// All that is known of an image or a container, as docker prints it.
    pub fn inspect(&self, name: &str) -> Result<Value> {
        match self.container(name) {
            Ok(c) => self.inspect_container(&c),
            Err(Error::NotFound { .. }) => self.inspect_image(name),
            Err(e) => Err(e),
        }
    }

    fn inspect_image(&self, name: &str) -> Result<Value> {
        let i = self.image(name)?;
        let config = self.image_config(&i)?.json();
        let names = self.read(|tx| tx.all::<Name>())?;
        let tags: Vec<&str> =
            names.iter().filter(|n| n.manifest == i.manifest).map(|n| n.name.as_str()).collect();
        let mut dirs =
            self.layer_dirs(i.layers.last().map(|l| &l.chain))?.into_iter().map(|d| d.display().to_string());
        let upper = dirs.next();
        let lower: Vec<String> = dirs.collect();
        Ok(json!({
            "Id": i.config, "Digest": i.manifest, "RepoTags": tags, "Created": i.created,
            "Architecture": config.get("architecture"), "Os": config.get("os"),
            "Config": config.get("config"), "History": config.get("history"), "RootFS": {
                "Type": "layers", "Layers": i.layers.iter().map(|l| l.diff_id).collect::<Vec<_>>() },
            "Layers": i.layers,
            "GraphDriver": {"Name": "overlay2", "Data": {"LowerDir": lower.join(":"), "UpperDir": upper}},
        }))
    }

    fn inspect_container(&self, c: &Container) -> Result<Value> {
        let dir = self.layout().layer(&c.id);
        let lower: Vec<String> =
            self.layer_dirs(c.top.as_ref())?.iter().map(|d| d.display().to_string()).collect();
        Ok(json!({
            "Id": c.id, "Name": c.name, "Image": c.image, "ImageName": c.image_name, "Created": c.created,
            "Mounted": self.is_mounted(c)?, "Backend": c.backend, "SizeLimit": c.size_limit,
            "GraphDriver": {"Name": "overlay2", "Data": {
                "LowerDir": lower.join(":"), "UpperDir": dir.join("diff"),
                "WorkDir": dir.join("work"), "MergedDir": dir.join("merged") }},
        }))
    }

    /// How an image was made, newest step first.
    pub fn history(&self, name: &str) -> Result<Vec<Step>> {
        let i = self.image(name)?;
        let config = self.image_config(&i)?;
        let mut layers = i.layers.iter();
        let mut out = Vec::new();
        for h in config.history() {
            let text = |k: &str| h.get(k).and_then(Value::as_str).unwrap_or_default().to_owned();
            let empty = h.get("empty_layer").and_then(Value::as_bool).unwrap_or(false);
            let layer = if empty { None } else { layers.next() };
            let size = match layer {
                Some(l) => self.read(|tx| tx.get::<Layer>(&l.chain.hex()))?.map(|l| l.size),
                None => None,
            };
            out.push(Step {
                created: text("created"),
                created_by: text("created_by"),
                comment: text("comment"),
                size,
                diff_id: layer.map(|l| l.diff_id),
            });
        }
        out.reverse();
        Ok(out)
    }

    /// Gives an image another name.
    pub fn tag(&self, image: &str, name: &str) -> Result<()> {
        let name = crate::reference::with_tag(name)?;
        let work = Work::begin(&self.layout)?;
        let manifest = self.image(image)?.manifest;
        self.publish(work, &Publication { names: vec![Name { name, manifest }], ..Publication::default() })
    }

    /// Takes away a name; with the last one the image goes, and what only it used. By id, or with `force`,
    /// all names go. An image that a container uses stays.
    pub fn remove_image(&self, name: &str, force: bool) -> Result<Removed> {
        let mut removed = Removed::default();
        self.delete(|tx| {
            let i = find_image(tx, name)?;
            let all: Vec<Name> = tx.all::<Name>()?.into_iter().filter(|n| n.manifest == i.manifest).collect();
            let typed = crate::reference::with_tag(name)?;
            let by_name = all.iter().any(|n| n.name == typed);
            let user = tx.all::<Container>()?.into_iter().find(|c| c.image == i.manifest);
            let last = !by_name || all.len() == 1 || force;
            if let (Some(c), true) = (&user, last) {
                return Err(Error::InUse {
                    what: "image",
                    name: name.into(),
                    by: format!("container \"{}\"", c.name),
                });
            }
            if !by_name && all.len() > 1 && !force {
                let by = format!("{} names; remove those, or use --force", all.len());
                return Err(Error::InUse { what: "image", name: name.into(), by });
            }
            for n in all.iter().filter(|n| last || n.name == typed) {
                tx.remove::<Name>(&n.name)?;
                removed.names.push(n.name.clone());
            }
            if !last {
                return Ok(Plan::default());
            }
            tx.remove::<Image>(&i.manifest.hex())?;
            removed.image = Some(i.config);
            self.sweep(tx)
        })?;
        Ok(removed)
    }

    /// Removes the records of everything that no image and no container uses, and plans its deletion.
    pub(crate) fn sweep(&self, tx: &Tx<'_>) -> Result<Plan> {
        let pins = journal::pins(&self.layout)?;
        let (mut layers, mut blobs) = (BTreeSet::new(), BTreeSet::new());
        for i in tx.all::<Image>()? {
            blobs.extend([i.manifest.hex(), i.config.hex()]);
            blobs.extend(i.layers.iter().map(|l| l.blob.hex()));
            layers.extend(i.layers.iter().map(|l| l.chain.hex()));
        }
        let mut plan = Plan::default();
        for l in tx.all::<Layer>()? {
            let id = l.chain.hex();
            if !layers.contains(&id) && !pins.contains(&id) {
                tx.remove::<Layer>(&id)?;
                plan.layers.push((id, l.link));
            }
        }
        for b in tx.all::<Blob>()? {
            let id = b.digest.hex();
            if !blobs.contains(&id) && !pins.contains(&id) {
                tx.remove::<Blob>(&id)?;
                plan.blobs.push(id);
            }
        }
        Ok(plan)
    }
}

/// What `rmi` took away.
#[derive(Debug, Default, Clone, Serialize)]
pub struct Removed {
    /// Names.
    pub names: Vec<String>,
    /// The image, if it went with its last name.
    pub image: Option<Digest>,
}
