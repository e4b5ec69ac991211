//! From manifest, configuration and blobs to an image in the store: whatever the source (archive,
//! registry, import, commit), this is the one way in.
//!
//! Owns the checks that make an image consistent, the choice of what must be unpacked, and unpacking on all
//! cores. Nothing is visible before [`Store::publish`].

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::ahead::{self, Trees, Unpacked};
use crate::apply::{self, Applied};
use crate::blob::Staged;
use crate::db::{Blob, Image, ImageLayer, Layer, Name, Origin};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::journal::Work;
use crate::layout::{self, new_link};
use crate::manifest::{Config, Manifest, read_manifest};
use crate::publish::Publication;
use crate::store::Store;
use crate::unpack;

/// An image on its way in.
pub(crate) struct Incoming {
    /// The manifest's bytes, as they are to be stored.
    pub manifest: Vec<u8>,
    /// Its media type.
    pub media_type: String,
    /// The configuration's bytes.
    pub config: Vec<u8>,
    /// The names to give it.
    pub names: Vec<String>,
    /// Where it came from.
    pub origin: Option<Origin>,
}

/// One layer to unpack.
struct Job {
    layer: Layer,
    below: Vec<Digest>,
    blob: PathBuf,
    dir: PathBuf,
    /// Its tree, where that was unpacked with the download.
    ahead: Option<Unpacked>,
}

impl Job {
    fn what(&self) -> String {
        format!("layer {}", self.layer.diff_id.hex().get(..12).unwrap_or_default())
    }
}

impl Store {
    /// Takes images in; `blobs` holds the staged blobs of their layers that the store does not have, and `trees` those that
    /// are unpacked already.
    pub(crate) fn ingest(
        &self,
        work: Work,
        incoming: Vec<Incoming>,
        blobs: &BTreeMap<Digest, Staged>,
        mut trees: Trees,
    ) -> Result<Vec<Image>> {
        let mut p = Publication::default();
        let mut jobs: BTreeMap<Digest, Job> = BTreeMap::new();
        let mut small = 0usize;
        for i in incoming {
            let image = self.describe(&i)?;
            self.plan_layers(&work, &image, blobs, &mut trees, &mut jobs)?;
            for bytes in [&i.manifest, &i.config] {
                small += 1;
                let path = work.path(&format!("small-{small}"));
                durable::create(&path, bytes, 0o644)?;
                p.blobs.push((Blob { digest: Digest::of(bytes), size: bytes.len() as u64 }, path));
            }
            p.names.extend(i.names.into_iter().map(|name| Name { name, manifest: image.manifest }));
            p.images.push(image);
        }
        let used = |d: &Digest| p.images.iter().any(|i| i.layers.iter().any(|l| l.blob == *d));
        let fresh = blobs.values().filter(|s| used(&s.digest));
        p.blobs.extend(fresh.map(|s| (Blob { digest: s.digest, size: s.size }, s.path.clone())));
        p.layers = self.unpack_all(jobs)?;
        self.publish(work, &p)?;
        Ok(p.images)
    }

    /// Checks that manifest and configuration belong together.
    fn describe(&self, i: &Incoming) -> Result<Image> {
        let m: Manifest = read_manifest(&i.manifest)?;
        let found = Digest::of(&i.config);
        if found != m.config.digest {
            return Err(Error::Digest {
                what: "image configuration".into(),
                expected: m.config.digest.to_string(),
                found: found.to_string(),
            });
        }
        let config = Config::read(&i.config)?;
        let ids = config.diff_ids()?;
        if ids.len() != m.layers.len() {
            let why = format!("{} layers, but {} DiffIDs in the configuration", m.layers.len(), ids.len());
            return Err(Error::invalid("manifest", why));
        }
        let mut chain: Option<Digest> = None;
        let mut layers = Vec::new();
        for (d, diff_id) in m.layers.iter().zip(ids) {
            let c = diff_id.chain(chain.as_ref());
            chain = Some(c);
            layers.push(ImageLayer {
                blob: d.digest,
                size: d.size,
                media_type: d.media_type.clone(),
                diff_id,
                chain: c,
            });
        }
        Ok(Image {
            manifest: Digest::of(&i.manifest),
            config: found,
            layers,
            manifest_size: i.manifest.len() as u64,
            media_type: i.media_type.clone(),
            created: config.created().map(str::to_owned),
            origin: i.origin.clone(),
        })
    }

    /// Pins the layers and blobs that are here already, and makes jobs of the others.
    fn plan_layers(
        &self,
        work: &Work,
        image: &Image,
        blobs: &BTreeMap<Digest, Staged>,
        trees: &mut Trees,
        jobs: &mut BTreeMap<Digest, Job>,
    ) -> Result<()> {
        self.write(|tx| {
            let mut below: Vec<Digest> = Vec::new();
            for l in &image.layers {
                work.pin(&l.chain.hex())?;
                work.pin(&l.blob.hex())?;
                let stored = tx.has::<Blob>(&l.blob.hex())?;
                let path = match blobs.get(&l.blob) {
                    Some(s) if s.size != l.size => {
                        let why =
                            format!("blob {} has {} bytes, the manifest says {}", l.blob, s.size, l.size);
                        return Err(Error::invalid("manifest", why));
                    }
                    Some(s) => s.path.clone(),
                    None if stored => self.layout.blob(&l.blob),
                    None => return Err(Error::NotFound { what: "blob", name: l.blob.to_string() }),
                };
                if !tx.has::<Layer>(&l.chain.hex())? && !jobs.contains_key(&l.chain) {
                    let dir = work.path(&format!("layer-{}", l.chain.hex()));
                    let layer = Layer {
                        chain: l.chain,
                        diff_id: l.diff_id,
                        parent: below.last().copied(),
                        link: new_link()?,
                        blob: l.blob,
                        size: 0,
                        entries: 0,
                    };
                    let ahead = trees.remove(&l.blob);
                    jobs.insert(l.chain, Job { layer, below: below.clone(), blob: path, dir, ahead });
                }
                below.push(l.chain);
            }
            Ok(())
        })
    }

    /// Unpacks all jobs, several at a time; then gives implied directories what lower layers say.
    fn unpack_all(&self, jobs: BTreeMap<Digest, Job>) -> Result<Vec<(Layer, PathBuf)>> {
        let mut jobs: Vec<Job> = jobs.into_values().collect();
        jobs.sort_by_key(|j| j.below.len());
        self.lay_out(&jobs)?;
        let mut done = jobs.iter_mut().map(take_ahead).collect::<Result<Vec<Option<Applied>>>>()?;
        let rest: Vec<&Job> = jobs.iter().zip(&done).filter(|(_, d)| d.is_none()).map(|(j, _)| j).collect();
        let mut unpacked = self.run_jobs(&rest)?.into_iter();
        done.iter_mut().filter(|d| d.is_none()).for_each(|d| *d = unpacked.next());
        let staged: BTreeMap<Digest, PathBuf> =
            jobs.iter().map(|j| (j.layer.chain, j.dir.join("diff"))).collect();
        let mut out = Vec::new();
        for (mut j, a) in jobs.into_iter().zip(done.into_iter().flatten()) {
            let lowers: Vec<PathBuf> = j
                .below
                .iter()
                .rev()
                .map(|c| staged.get(c).cloned().unwrap_or_else(|| self.layout.layer(&c.hex()).join("diff")))
                .collect();
            apply::fill_implied(&j.dir.join("diff"), &a.implied, &lowers)?;
            if a.skipped_xattrs > 0 {
                tracing::warn!(
                    "layer {}: {} attributes could not be kept here",
                    j.layer.diff_id,
                    a.skipped_xattrs
                );
            }
            (j.layer.size, j.layer.entries) = (a.size, a.entries);
            out.push((j.layer, j.dir));
        }
        Ok(out)
    }

    /// Makes the directories of all new layers, with their `lower` files.
    fn lay_out(&self, jobs: &[Job]) -> Result<()> {
        let fresh: BTreeMap<Digest, &str> =
            jobs.iter().map(|j| (j.layer.chain, j.layer.link.as_str())).collect();
        for j in jobs {
            let links = self.read(|tx| {
                let link = |c: &Digest| -> Result<String> {
                    if let Some(l) = fresh.get(c) {
                        return Ok(format!("l/{l}"));
                    }
                    let l: Option<Layer> = tx.get(&c.hex())?;
                    l.map(|l| format!("l/{}", l.link))
                        .ok_or_else(|| Error::NotFound { what: "layer", name: c.to_string() })
                };
                j.below.iter().rev().map(link).collect::<Result<Vec<_>>>()
            })?;
            let lower = (!links.is_empty()).then(|| links.join(":"));
            layout::make_layer(&j.dir, &j.layer.link, lower.as_deref(), false)?;
        }
        Ok(())
    }

    fn run_jobs(&self, jobs: &[&Job]) -> Result<Vec<Applied>> {
        let workers = ahead::workers().min(jobs.len());
        let next = AtomicUsize::new(0);
        let results: Mutex<BTreeMap<usize, Result<Applied>>> = Mutex::new(BTreeMap::new());
        std::thread::scope(|s| {
            for _ in 0..workers {
                s.spawn(|| {
                    loop {
                        let n = next.fetch_add(1, Ordering::Relaxed);
                        let Some(j) = jobs.get(n) else { return };
                        let r = self.run_job(j);
                        if r.is_err() {
                            // The others stop at their next layer.
                            next.store(jobs.len(), Ordering::Relaxed);
                        }
                        results.lock().unwrap_or_else(PoisonError::into_inner).insert(n, r);
                    }
                });
            }
        });
        let results = results.into_inner().unwrap_or_else(PoisonError::into_inner);
        let done = results.into_values().collect::<Result<Vec<_>>>()?;
        if done.len() == jobs.len() {
            Ok(done)
        } else {
            Err(Error::Damaged("an unpacking thread died".into()))
        }
    }

    fn run_job(&self, j: &Job) -> Result<Applied> {
        let size = std::fs::metadata(&j.blob).map(|m| m.len()).ok();
        let task = self.options.progress.task(&format!("unpacking {}", j.what()), size);
        let order = self.order(j.what(), j.dir.join("diff"), size, true);
        unpack::unpack(&j.blob, Some(&j.layer.diff_id), order, &*task).map(|(applied, _)| applied)
    }
}

/// Puts a tree that was unpacked ahead in its place, if it is what the image promises.
fn take_ahead(j: &mut Job) -> Result<Option<Applied>> {
    let Some(u) = j.ahead.take() else { return Ok(None) };
    let (applied, diff_id) = u.done?;
    unpack::require_diff_id(&j.what(), &j.layer.diff_id, &diff_id)?;
    let to = j.dir.join("diff");
    std::fs::rename(&u.dir, &to).at("rename", &to)?;
    Ok(Some(applied))
}
