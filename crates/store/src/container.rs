//! Containers: a writable layer on an image. Owns creation, names, and removal; mounting is mount.rs's.

use std::collections::BTreeSet;
use std::path::PathBuf;

use crate::apply;
use crate::db::{Container, Image, Layer, Tx};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::journal::{Plan, Work};
use crate::layout::{self, new_link};
use crate::publish::lower_text;
use crate::quota;
use crate::run::State;
use crate::store::{Store, find_image};
use crate::time;

impl Store {
    /// Makes a container on an image. Without a name it gets the start of its id.
    ///
    /// Costs the same for any image: a few directories and two small files.
    pub fn create(&self, image: &str, name: Option<&str>, size_limit: Option<u64>) -> Result<Container> {
        let work = Work::begin(&self.layout)?;
        let id = durable::random_hex(32)?;
        let name = name.map_or_else(|| id.chars().take(12).collect(), str::to_owned);
        check_name(&name)?;
        let (found, lower) = self.read(|tx| {
            let i = find_image(tx, image)?;
            let top = i.layers.last().map(|l| l.chain);
            let lower = top.map(|t| lower_text(&self.layout, tx, &t)).transpose()?;
            Ok((i, lower))
        })?;
        let mut c = Container {
            id,
            name,
            image: found.manifest,
            image_name: image.to_owned(),
            top: found.layers.last().map(|l| l.chain),
            link: new_link()?,
            created: time::now(),
            mounts: 0,
            backend: None,
            size_limit,
            project: None,
        };
        let (layer, bundle) = (work.path("layer"), work.path("bundle"));
        layout::make_layer(&layer, &c.link, lower.as_deref(), true)?;
        c.project = size_limit.map(|n| quota::set(&layer, n)).transpose()?;
        // The merged root shows the upper's attributes, so the upper begins with the image's.
        if let Some(top) = &c.top {
            let below = self.layout.layer(&top.hex()).join("diff");
            apply::fill_implied(&layer.join("diff"), &BTreeSet::from([Vec::new()]), &[below])?;
            self.ownership.mark(&layer.join("diff"))?;
        }
        durable::new_dir(&bundle, 0o700)?;
        if let Err(e) = self.publish_container(work, &c, &layer, &bundle) {
            self.clear_quota(&c);
            return Err(e);
        }
        Ok(c)
    }

    /// All containers, by name.
    pub fn containers(&self) -> Result<Vec<Container>> {
        let mut all = self.read(|tx| tx.all::<Container>())?;
        all.sort_by(|a, b| a.name.cmp(&b.name));
        Ok(all)
    }

    /// One container, by name or the start of its id.
    pub fn container(&self, name: &str) -> Result<Container> {
        self.read(|tx| find(tx, name))
    }

    /// Removes a container and what it changed. With `force` it is unmounted first.
    pub fn remove_container(&self, name: &str, force: bool) -> Result<Container> {
        let c = self.container(name)?;
        if let State::Running(_) = self.state(&c)? {
            if !force {
                let by = "it is running".to_owned();
                return Err(Error::InUse { what: "container", name: c.name, by });
            }
            self.stop(&c.id, std::time::Duration::ZERO)?;
        }
        let c = match self.container(&c.id) {
            // Its supervisor removed it when it ended.
            Err(Error::NotFound { .. }) => return Ok(c),
            r => r?,
        };
        if self.is_mounted(&c)? {
            if !force {
                let by = "it is mounted".to_owned();
                return Err(Error::InUse { what: "container", name: c.name, by });
            }
            self.unmount_all(&c)?;
        }
        self.delete(|tx| {
            if !tx.remove::<Container>(&c.id)? {
                return Err(Error::NotFound { what: "container", name: c.name.clone() });
            }
            let layers = vec![(c.id.clone(), c.link.clone())];
            Ok(Plan { layers, containers: vec![c.id.clone()], ..Plan::default() })
        })?;
        self.clear_quota(&c);
        Ok(c)
    }

    /// A limit that stays behind harms nobody: its project is not used again.
    fn clear_quota(&self, c: &Container) {
        if let Some(Err(e)) = c.project.map(|p| quota::clear(self.layout.root(), p)) {
            tracing::warn!("{e}");
        }
    }

    /// The directories of a layer and all below it, topmost first.
    pub(crate) fn layer_dirs(&self, top: Option<&Digest>) -> Result<Vec<PathBuf>> {
        self.read(|tx| {
            let mut dirs = Vec::new();
            let mut next = top.copied();
            while let Some(chain) = next {
                let l: Layer = tx
                    .get(&chain.hex())?
                    .ok_or_else(|| Error::NotFound { what: "layer", name: chain.to_string() })?;
                dirs.push(self.layout.layer(&chain.hex()).join("diff"));
                next = l.parent;
            }
            Ok(dirs)
        })
    }

    /// The writable layer and all below it.
    pub(crate) fn container_dirs(&self, c: &Container) -> Result<Vec<PathBuf>> {
        let mut dirs = vec![self.layout.layer(&c.id).join("diff")];
        dirs.extend(self.layer_dirs(c.top.as_ref())?);
        Ok(dirs)
    }

    /// The image's configuration.
    pub(crate) fn image_config(&self, i: &Image) -> Result<crate::manifest::Config> {
        let path = self.layout.blob(&i.config);
        let bytes = durable::read_small(&path, crate::manifest::MAX_CONFIG)?;
        let found = Digest::of(&bytes);
        if found != i.config {
            return Err(Error::Digest {
                what: path.display().to_string(),
                expected: i.config.to_string(),
                found: found.to_string(),
            });
        }
        crate::manifest::Config::read(&bytes)
    }

    /// Bytes and inodes that a container's writable layer takes.
    pub fn container_usage(&self, c: &Container) -> Result<(u64, u64)> {
        crate::usage::of(&self.layout.layer(&c.id).join("diff")).at("measure", self.layout.layer(&c.id))
    }
}

/// Finds a container by name, id, or the start of its id.
pub(crate) fn find(tx: &Tx<'_>, name: &str) -> Result<Container> {
    let all = tx.all::<Container>()?;
    if let Some(c) = all.iter().find(|c| c.name == name || c.id == name) {
        return Ok(c.clone());
    }
    let mut by_id = all.into_iter().filter(|c| name.len() >= 4 && c.id.starts_with(name));
    match (by_id.next(), by_id.next()) {
        (Some(c), None) => Ok(c),
        (Some(_), Some(_)) => {
            Err(Error::invalid(format!("container \"{name}\""), "several containers' ids begin so"))
        }
        (None, _) => Err(Error::NotFound { what: "container", name: name.into() }),
    }
}

/// Names go into paths of runtimes and into messages: docker's grammar.
fn check_name(name: &str) -> Result<()> {
    let ok = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-');
    let first = name.bytes().next().is_some_and(|b| b.is_ascii_alphanumeric());
    if first && name.bytes().all(ok) && name.len() <= 128 {
        return Ok(());
    }
    Err(Error::invalid(
        format!("container name \"{}\"", name.escape_default()),
        "expected letters, digits and [_.-], beginning with a letter or digit",
    ))
}
