//! Registries: pull and push by the OCI distribution-spec.
//!
//! Owns the two operations; `client.rs` speaks HTTP, `auth.rs` knows who one is. The client is our own over
//! `ureq`: the one maintained client crate (`oci-client`) brings tokio and reqwest into every command that pulls,
//! has no resume, and believes lengths.

mod auth;
mod client;
pub(crate) mod download;
mod helper;
mod push;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use crate::ahead::{self, Trees, Unpacked};
use crate::archive::for_this_machine;
use crate::blob::Staged;
use crate::db::{Blob, Image, Origin};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::ingest::Incoming;
use crate::journal::Work;
use crate::manifest::{self, Descriptor, Manifest, read_index, read_manifest};
use crate::reference::{Reference, with_tag};
use crate::store::Store;
use crate::unpack::Unpacking;
use client::Client;

/// How a registry is talked to.
#[derive(Debug, Clone)]
pub struct RegistryOptions {
    /// Whether TLS and its certificates are insisted on.
    pub tls_verify: bool,
    /// How many layers move at a time.
    pub jobs: usize,
    /// The file with credentials; none for podman's and docker's usual places.
    pub auth_file: Option<std::path::PathBuf>,
    /// Seconds without a byte after which a connection is given up.
    pub stall: u64,
}

impl Default for RegistryOptions {
    fn default() -> RegistryOptions {
        RegistryOptions { tls_verify: true, jobs: 4, auth_file: None, stall: 30 }
    }
}

impl Store {
    /// Fetches an image. Nothing of it is visible before every digest was checked.
    pub fn pull(&self, name: &str, options: &RegistryOptions) -> Result<Image> {
        let reference = remote(&Reference::parse(name)?);
        let client = Client::connect(&reference, options, "pull")?;
        let (media_type, bytes) = self.fetch_manifest(&client, &reference)?;
        let m = read_manifest(&bytes)?;
        if m.config.size > manifest::MAX_CONFIG {
            return Err(Error::invalid("manifest", "the configuration is too large"));
        }
        let work = Work::begin(&self.layout)?;
        let config = client.blob_bytes(&m.config)?;
        let (blobs, trees) = self.fetch_layers(&work, &client, &m, options)?;
        let origin = Origin { reference: name.to_owned(), tls_verify: options.tls_verify };
        let names = if reference.digest.is_some() { Vec::new() } else { vec![with_tag(name)?] };
        let incoming = Incoming { manifest: bytes, media_type, config, names, origin: Some(origin) };
        let image = self.ingest(work, vec![incoming], &blobs, trees)?.into_iter().next();
        download::discard(&self.layout, blobs.keys())?;
        image.ok_or_else(|| Error::Damaged("an image was lost".into()))
    }

    /// Follows an index to this machine's manifest.
    fn fetch_manifest(&self, client: &Client, reference: &Reference) -> Result<(String, Vec<u8>)> {
        let mut selector = reference.selector();
        for _ in 0..4 {
            let (media_type, bytes) = client.manifest(&selector)?;
            match media_type.as_str() {
                manifest::INDEX | manifest::DOCKER_INDEX => {
                    selector = for_this_machine(&read_index(&bytes)?.manifests, "index")?.digest.to_string();
                }
                _ => return Ok((media_type, bytes)),
            }
        }
        Err(Error::invalid("index", "indexes nest too deep"))
    }

    /// Downloads the layers that are not here, several at a time, and unpacks [`ahead::workers`] of them meanwhile.
    fn fetch_layers(
        &self,
        work: &Work,
        client: &Client,
        m: &Manifest,
        options: &RegistryOptions,
    ) -> Result<(BTreeMap<Digest, Staged>, Trees)> {
        let mut wanted: Vec<&Descriptor> = Vec::new();
        self.write(|tx| {
            for d in &m.layers {
                work.pin(&d.digest.hex())?;
                if !tx.has::<Blob>(&d.digest.hex())? && !wanted.iter().any(|w| w.digest == d.digest) {
                    wanted.push(d);
                }
            }
            Ok(())
        })?;
        let done = Mutex::new((BTreeMap::new(), Trees::new()));
        let at_work = AtomicUsize::new(0);
        parallel(options.jobs, &wanted, |d| {
            let free = at_work.fetch_add(1, Ordering::Relaxed) < ahead::workers();
            let fetched = self.fetch_layer(work, client, d, free);
            at_work.fetch_sub(1, Ordering::Relaxed);
            let (staged, tree) = fetched?;
            let mut done = done.lock().unwrap_or_else(PoisonError::into_inner);
            done.0.insert(staged.digest, staged);
            done.1.extend(tree.map(|t| (d.digest, t)));
            Ok(())
        })?;
        Ok(done.into_inner().unwrap_or_else(PoisonError::into_inner))
    }

    fn fetch_layer(
        &self,
        work: &Work,
        client: &Client,
        d: &Descriptor,
        unpack: bool,
    ) -> Result<(Staged, Option<Unpacked>)> {
        let short: String = d.digest.hex().chars().take(12).collect();
        let task = self.options.progress.task(&format!("fetching {short}"), Some(d.size));
        let dir = work.path(&format!("ahead-{}", d.digest.hex()));
        let ahead = match unpack {
            true => {
                crate::durable::new_dir(&dir, 0o755)?;
                Some(Unpacking::start(self.order(format!("layer {short}"), dir.clone(), Some(d.size), true))?)
            }
            false => None,
        };
        let (staged, ahead) = download::blob(&self.layout, work, client, d, ahead, &*task)?;
        Ok((staged, ahead.map(|u| Unpacked { dir, done: u.finish() })))
    }

    /// Fetches a damaged blob of the store again and puts it in place.
    pub(crate) fn fetch_blob_again(&self, origin: &Origin, b: &Blob) -> Result<()> {
        let reference = remote(&Reference::parse(&origin.reference)?);
        let options = RegistryOptions { tls_verify: origin.tls_verify, ..RegistryOptions::default() };
        let client = Client::connect(&reference, &options, "pull")?;
        let work = Work::begin(&self.layout)?;
        let to = self.layout.blob(&b.digest);
        let staged = work.path("again");
        // A manifest is no blob to a registry.
        match client.manifest(&b.digest.to_string()) {
            Ok((_, bytes)) => crate::durable::create(&staged, &bytes, 0o644)?,
            Err(_) => {
                let d = manifest::descriptor("", b.digest, b.size);
                let task = self.options.progress.task("fetching a blob again", Some(b.size));
                let (got, _) = download::blob(&self.layout, &work, &client, &d, None, &*task)?;
                crate::error::Context::at(std::fs::rename(&got.path, &staged), "rename", &staged)?;
            }
        }
        crate::durable::sync_fs(self.layout.root())?;
        crate::error::Context::at(std::fs::rename(&staged, &to), "rename", &to)?;
        crate::durable::sync_dir(&self.layout.blobs())?;
        work.finish()
    }
}

/// A name without a registry is Docker Hub's, as docker has it.
fn remote(r: &Reference) -> Reference {
    let mut r = r.clone();
    match r.registry.as_deref() {
        None | Some("docker.io" | "index.docker.io") => {
            r.registry = Some("registry-1.docker.io".into());
            if !r.repository.contains('/') {
                r.repository = format!("library/{}", r.repository);
            }
        }
        Some(_) => {}
    }
    r
}

/// Runs `f` on each item, `jobs` at a time; the first error stops the rest.
fn parallel<T: Sync>(jobs: usize, items: &[T], f: impl Fn(&T) -> Result<()> + Sync) -> Result<()> {
    let next = AtomicUsize::new(0);
    let failed: Mutex<Option<Error>> = Mutex::new(None);
    std::thread::scope(|s| {
        for _ in 0..jobs.max(1).min(items.len()) {
            s.spawn(|| {
                while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
                    if let Err(e) = f(item) {
                        next.store(items.len(), Ordering::Relaxed);
                        failed.lock().unwrap_or_else(PoisonError::into_inner).get_or_insert(e);
                    }
                }
            });
        }
    });
    failed.into_inner().unwrap_or_else(PoisonError::into_inner).map_or(Ok(()), Err)
}
