//! Images made here: from a root file system (a directory or a tar), and from a container's changes.
//!
//! Owns the configuration that such an image gets. The image's date is that of its newest file, so that the
//! same content gives the same image.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::Read;
use std::path::Path;

use serde_json::{Value, json};

use crate::ahead::{Trees, Unpacked};
use crate::apply::Applied;
use crate::blob::{self, Compression, Staged};
use crate::db::{Container, Image};
use crate::diff::{self, Diff};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::ingest::Incoming;
use crate::journal::Work;
use crate::manifest::{self, Config, Descriptor};
use crate::progress::Counted;
use crate::stack::Stack;
use crate::store::Store;
use crate::time;
use crate::unpack::{self, Order, Unpacking};

/// How an image made here differs from the default.
#[derive(Debug, Default, Clone)]
pub struct Changes {
    /// How its layer is compressed; none keeps an imported tar as it is, and takes gzip for a new one.
    pub compression: Option<Compression>,
    /// The message in its history.
    pub message: String,
    /// The command a container runs.
    pub cmd: Option<Vec<String>>,
    /// What the command is given to.
    pub entrypoint: Option<Vec<String>>,
    /// Environment, `KEY=VALUE`.
    pub env: Vec<String>,
    /// The user.
    pub user: Option<String>,
    /// The working directory.
    pub workdir: Option<String>,
}

impl Changes {
    fn apply(&self, config: &mut Config) {
        let mut set = |key: &str, v: Option<Value>| {
            if let Some(v) = v {
                config.set_run(key, v);
            }
        };
        set("Cmd", self.cmd.clone().map(Value::from));
        set("Entrypoint", self.entrypoint.clone().map(Value::from));
        set("User", self.user.clone().map(Value::from));
        set("WorkingDir", self.workdir.clone().map(Value::from));
        if !self.env.is_empty() {
            let key = |e: &str| e.split('=').next().unwrap_or_default().to_owned();
            let mut env = config.run_list("Env");
            env.retain(|e| !self.env.iter().any(|n| key(n) == key(e)));
            env.extend(self.env.iter().cloned());
            config.set_run("Env", env.into());
        }
    }
}

impl Store {
    /// Makes an image of one layer from a root file system: a directory, a tar (compressed or not), or `-`.
    pub fn import(&self, from: &Path, name: &str, changes: &Changes) -> Result<Image> {
        let work = Work::begin(&self.layout)?;
        let tree = work.path("tree");
        durable::new_dir(&tree, 0o755)?;
        let order = self.order("the archive".into(), tree.clone(), None, false);
        let (staged, (applied, diff_id)) = match from.is_dir() {
            true => self.stage_root(&work, from, changes, order)?,
            false => self.stage_rootfs(&work, from, changes, order)?,
        };
        if applied.entries == 0 {
            return Err(Error::invalid("the archive", "an empty one is no root file system"));
        }
        let mut config = Config::empty();
        config.set_run("Env", json!(["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]));
        config.set_run("Cmd", json!(["/bin/sh"]));
        changes.apply(&mut config);
        let file = from.file_name().unwrap_or_default().to_string_lossy();
        let created = time::dated(applied.newest);
        config.push_layer(&diff_id, &created, &format!("plyfs import {file}"), &changes.message)?;
        let trees = Trees::from([(staged.digest, Unpacked { dir: tree, done: Ok((applied, diff_id)) })]);
        self.take_made(work, &config, Vec::new(), staged, name, trees)
    }

    /// Makes an image of a container: its image, and one layer with what it changed.
    pub fn commit(&self, container: &str, name: &str, changes: &Changes) -> Result<Image> {
        let work = Work::begin(&self.layout)?;
        let c = self.read(|tx| crate::container::find(tx, container))?;
        let base = self.read(|tx| {
            tx.get::<Image>(&c.image.hex())?
                .ok_or_else(|| Error::NotFound { what: "image", name: c.image_name.clone() })
        })?;
        let diff = self.open_diff(&c)?;
        let mut newest = None;
        let how = changes.compression.unwrap_or_default();
        let to = work.path("layer.tar");
        let (staged, diff_id) = blob::compose(to.clone(), how, |out| {
            newest = diff.tar(out, &to)?.0;
            Ok(())
        })?;
        let mut config = self.image_config(&base)?;
        changes.apply(&mut config);
        config.push_layer(&diff_id, &time::dated(newest), "plyfs commit", &changes.message)?;
        let layers =
            base.layers.iter().map(|l| manifest::descriptor(&l.media_type, l.blob, l.size)).collect();
        self.take_made(work, &config, layers, staged, name, Trees::new())
    }

    /// What a container changed.
    pub fn diff(&self, container: &str) -> Result<Vec<crate::Change>> {
        let c = self.read(|tx| crate::container::find(tx, container))?;
        self.open_diff(&c)?.changes()
    }

    /// Writes a container's whole file system, or an image's, as a tar.
    pub fn export(&self, name: &str, out: &mut dyn std::io::Write) -> Result<()> {
        let stack = match self.read(|tx| crate::container::find(tx, name)) {
            Ok(c) => self.container_stack(&c)?,
            Err(Error::NotFound { .. }) => {
                let i = self.read(|tx| crate::store::find_image(tx, name))?;
                let dirs = self.layer_dirs(i.layers.last().map(|l| &l.chain))?;
                Stack::open(&dirs, false, self.ownership)?
            }
            Err(e) => return Err(e),
        };
        diff::export(&stack, out, Path::new("the archive")).map(drop)
    }

    /// A container's merged view, without a mount.
    pub(crate) fn container_stack(&self, c: &Container) -> Result<Stack> {
        let work = self.layout.layer(&c.id).join("work");
        Stack::open(&self.container_dirs(c)?, true, self.ownership)?.with_index(&work)
    }

    pub(crate) fn open_diff(&self, c: &Container) -> Result<Diff> {
        let layer = self.layout.layer(&c.id);
        Diff::open(layer.join("diff"), &layer.join("work"), self.layer_dirs(c.top.as_ref())?, self.ownership)
    }

    fn take_made(
        &self,
        work: Work,
        config: &Config,
        mut layers: Vec<Descriptor>,
        top: Staged,
        name: &str,
        trees: Trees,
    ) -> Result<Image> {
        layers.push(manifest::descriptor(top.compression.media_type(), top.digest, top.size));
        let config = config.write()?;
        let incoming = Incoming {
            manifest: manifest::write_manifest(&config, layers)?,
            media_type: manifest::MANIFEST.into(),
            config,
            names: vec![crate::reference::with_tag(name)?],
            origin: None,
        };
        let blobs = BTreeMap::from([(top.digest, top)]);
        let made = self.ingest(work, vec![incoming], &blobs, trees)?;
        made.into_iter().next().ok_or_else(|| Error::Damaged("an image was lost".into()))
    }

    /// A directory as a layer: everything in it, in one tar.
    fn stage_root(&self, work: &Work, from: &Path, changes: &Changes, order: Order) -> Result<Base> {
        let from = durable::absolute(from)?;
        if self.layout.root().starts_with(&from) {
            return Err(Error::Unsupported(format!(
                "the store lies inside {}: give a --root outside",
                from.display()
            )));
        }
        let stack = Stack::of_directory(&from, order.ownership)?;
        let task = self.options.progress.task(&format!("importing {}", from.display()), None);
        let to = work.path("layer.tar");
        let (staged, _) = blob::compose(to.clone(), changes.compression.unwrap_or_default(), |out| {
            diff::export(&stack, &mut CountedWrite { inner: out, task: &*task }, &to).map(drop)
        })?;
        let task = self.options.progress.task("unpacking", Some(staged.size));
        let unpacked = unpack::unpack(&staged.path, None, order, &*task)?;
        Ok((staged, unpacked))
    }

    /// A tar as a layer: unpacked while it is read, kept as it is, unless another compression is asked for.
    fn stage_rootfs(&self, work: &Work, from: &Path, changes: &Changes, order: Order) -> Result<Base> {
        let (input, size) = blob::open_input(from)?;
        let task = self.options.progress.task(&format!("importing {}", from.display()), size);
        let counted = Counted { inner: input, task: &*task };
        let mut u = Unpacking::start(Order { compressed: size, ..order })?;
        let mut wanted = true;
        let staged = blob::stage(counted, work.path("layer"), self.options.limits.bytes, &mut |part| {
            wanted = u.feed(part);
            // The end of this error is that of the threads, which `finish` below tells.
            if wanted { Ok(()) } else { Err(Error::invalid("the archive", "cannot be unpacked")) }
        });
        if !wanted {
            u.finish()?;
            return Err(Error::Damaged("unpacking ended early".into()));
        }
        let staged = staged?;
        let unpacked = u.finish()?;
        let staged = match changes.compression {
            Some(how) if how != staged.compression => {
                let mut input =
                    blob::decoder(File::open(&staged.path).at("open", &staged.path)?).at("read", from)?;
                let to = work.path("layer.tar");
                let (again, _) = blob::compose(to.clone(), how, |out| pump(&mut input, from, out, &to))?;
                again
            }
            _ => staged,
        };
        Ok((staged, unpacked))
    }
}

/// A base layer's blob, and what was unpacked of it with its DiffID.
type Base = (Staged, (Applied, Digest));

/// Copies all; says which of the two sides failed.
fn pump(input: &mut dyn Read, from: &Path, out: &mut dyn std::io::Write, to: &Path) -> Result<()> {
    let mut buf = vec![0u8; 256 << 10];
    loop {
        match input.read(&mut buf) {
            Ok(0) => return Ok(()),
            Ok(n) => out.write_all(buf.get(..n).unwrap_or_default()).at("write", to)?,
            Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e).at("read", from),
        }
    }
}

/// Counts what is written into a task.
struct CountedWrite<'a> {
    inner: &'a mut dyn std::io::Write,
    task: &'a dyn crate::progress::Task,
}

impl std::io::Write for CountedWrite<'_> {
    fn write(&mut self, buf: &[u8]) -> std::io::Result<usize> {
        let n = self.inner.write(buf)?;
        self.task.add(n as u64);
        Ok(n)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.inner.flush()
    }
}
