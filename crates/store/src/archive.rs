//! Images in archives: reads docker-archive and OCI layouts, as a tar (compressed or not) or a directory.
//!
//! Owns finding out which of the two it is, and matching their files to blobs. All files are staged and
//! digested before anything in them is believed, though what may be a layer is unpacked meanwhile (ahead.rs); names in the
//! archive are keys, never paths on disk.

use std::collections::BTreeMap;
use std::io::Read;
use std::path::Path;

use serde::Deserialize;
use serde_json::Value;

use crate::ahead::Ahead;
use crate::beneath::{self, Root};
use crate::blob::{self, Staged};
use crate::db::Image;
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::ingest::Incoming;
use crate::journal::Work;
use crate::manifest::{self, Config, Descriptor, read_index, read_manifest};
use crate::progress::Counted;
use crate::store::Store;
use crate::tar::{Kind, Reader};

/// How deep indexes may nest.
const MAX_NESTING: usize = 4;

/// One image in docker-archive's `manifest.json`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct DockerImage {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    #[serde(default)]
    layers: Vec<String>,
}

/// The files of an archive by their name in it.
type Files = BTreeMap<String, Staged>;

impl Store {
    /// Loads the images of an archive or a directory; `-` is standard input.
    pub fn load(&self, from: &Path) -> Result<Vec<Image>> {
        let work = Work::begin(&self.layout)?;
        let mut ahead = Ahead::new(self, &work)?;
        let files = match from.is_dir() {
            true => self.stage_dir(&mut ahead, from)?,
            false => self.stage_tar(&mut ahead, from)?,
        };
        let trees = ahead.finish();
        let what = from.display().to_string();
        let (incoming, blobs) = if files.contains_key("index.json") {
            oci(&files, &what)?
        } else if files.contains_key("manifest.json") {
            docker(&files, &what)?
        } else {
            return Err(Error::invalid(
                what,
                "neither an OCI layout (index.json) nor a docker archive (manifest.json)",
            ));
        };
        if incoming.is_empty() {
            return Err(Error::invalid(what, "holds no image"));
        }
        self.ingest(work, incoming, &blobs, trees)
    }

    fn stage_tar(&self, ahead: &mut Ahead<'_>, from: &Path) -> Result<Files> {
        let (input, size) = blob::open_input(from)?;
        let task = self.options.progress.task(&format!("reading {}", from.display()), size);
        let input = blob::decoder(Counted { inner: input, task: &*task }).at("read", from)?;
        let mut tar = Reader::new(input, from.display().to_string(), self.options.limits, true);
        let mut files = Files::new();
        let mut links: Vec<(String, Vec<u8>)> = Vec::new();
        while let Some(e) = tar.next_entry()? {
            let Ok(name) = String::from_utf8(e.path.clone()) else { continue };
            match &e.kind {
                Kind::File if e.sparse.is_none() => {
                    let staged = ahead.stage(&name, e.size, EntryData(&mut tar))?;
                    files.insert(name, staged);
                }
                // Old docker archives hold a layer that two images share once, and links to it.
                Kind::Hardlink(t) => links.push((name, t.clone())),
                Kind::Symlink(t) => links.push((name.clone(), resolve(&name, t))),
                _ => {}
            }
        }
        for (name, target) in links {
            if let Some(s) = std::str::from_utf8(&target).ok().and_then(|t| files.get(t)).cloned() {
                files.insert(name, s);
            }
        }
        Ok(files)
    }

    /// Files of a directory: only those that a layout can consist of.
    fn stage_dir(&self, ahead: &mut Ahead<'_>, from: &Path) -> Result<Files> {
        let root = Root::open(&durable::absolute(from)?)?;
        let mut files = Files::new();
        let mut todo: Vec<(Vec<u8>, usize)> = vec![(Vec::new(), 0)];
        while let Some((dir, depth)) = todo.pop() {
            let fd = root.dir(&dir).at("open", root.show(&dir))?;
            for name in beneath::names(std::os::fd::AsFd::as_fd(&fd)).at("read", root.show(&dir))? {
                let rel = beneath::join(&dir, &name);
                let st = root.stat(&rel)?;
                let is_dir = st.as_ref().is_some_and(|s| beneath::kind(s) == rustix::fs::FileType::Directory);
                if is_dir && depth < 3 {
                    todo.push((rel, depth + 1));
                } else if let (Some(f), Ok(key)) =
                    (beneath::open_regular(&root, &rel)?, String::from_utf8(rel))
                {
                    let size = f.metadata().at("stat", root.show(key.as_bytes()))?.len();
                    let task = self.options.progress.task(&key, Some(size));
                    let staged = ahead.stage(&key, size, Counted { inner: f, task: &*task })?;
                    files.insert(key, staged);
                }
            }
        }
        Ok(files)
    }
}

/// The present entry's data as a stream.
struct EntryData<'a, R>(&'a mut Reader<R>);

impl<R: Read> Read for EntryData<'_, R> {
    fn read(&mut self, buf: &mut [u8]) -> std::io::Result<usize> {
        self.0.read_data(buf).map_err(std::io::Error::other)
    }
}

/// A relative link's target as a name in the archive.
fn resolve(link: &str, target: &[u8]) -> Vec<u8> {
    let (dir, _) = beneath::split(link.as_bytes());
    let mut parts: Vec<&[u8]> = dir.split(|b| *b == b'/').filter(|p| !p.is_empty()).collect();
    for c in target.split(|b| *b == b'/') {
        match c {
            b"" | b"." => {}
            b".." => drop(parts.pop()),
            c => parts.push(c),
        }
    }
    parts.join(&b'/')
}

type Loaded = (Vec<Incoming>, BTreeMap<Digest, Staged>);

fn oci(files: &Files, what: &str) -> Result<Loaded> {
    let mut blobs = BTreeMap::new();
    for (name, s) in files {
        let Some(hex) = name.strip_prefix("blobs/sha256/") else { continue };
        let want: Digest = format!("sha256:{hex}").parse()?;
        if want != s.digest {
            return Err(Error::Digest {
                what: format!("{what}: {name}"),
                expected: want.to_string(),
                found: s.digest.to_string(),
            });
        }
        blobs.insert(want, s.clone());
    }
    let index = read_index(&small(files, "index.json", manifest::MAX_MANIFEST, what)?)?;
    let mut incoming = Vec::new();
    for d in &index.manifests {
        let found = find_manifest(d, &blobs, what, MAX_NESTING)?;
        let m = read_manifest(&found.1)?;
        incoming.push(Incoming {
            config: read_blob(&blobs, &m.config.digest, manifest::MAX_CONFIG, what)?,
            manifest: found.1,
            media_type: found.0,
            names: names_of(d)?,
            origin: None,
        });
    }
    Ok((incoming, blobs))
}

/// Follows an index to the manifest for this machine.
fn find_manifest(
    d: &Descriptor,
    blobs: &BTreeMap<Digest, Staged>,
    what: &str,
    nesting: usize,
) -> Result<(String, Vec<u8>)> {
    let bytes = read_blob(blobs, &d.digest, manifest::MAX_MANIFEST, what)?;
    match d.media_type.as_str() {
        manifest::INDEX | manifest::DOCKER_INDEX if nesting == 0 => {
            Err(Error::invalid(what, "indexes nest too deep"))
        }
        manifest::INDEX | manifest::DOCKER_INDEX => {
            let index = read_index(&bytes)?;
            find_manifest(for_this_machine(&index.manifests, what)?, blobs, what, nesting - 1)
        }
        "" => Ok((manifest::MANIFEST.into(), bytes)),
        m => Ok((m.to_owned(), bytes)),
    }
}

/// The entry of an index that this machine can run, else the only one.
pub(crate) fn for_this_machine<'a>(list: &'a [Descriptor], what: &str) -> Result<&'a Descriptor> {
    let fits = |d: &&Descriptor| {
        d.platform.as_ref().is_some_and(|p| p.os == "linux" && p.architecture == manifest::go_architecture())
    };
    match (list.iter().find(fits), list) {
        (Some(d), _) | (None, [d]) => Ok(d),
        (None, _) => Err(Error::invalid(what, format!("no image for linux/{}", manifest::go_architecture()))),
    }
}

fn names_of(d: &Descriptor) -> Result<Vec<String>> {
    let get = |k: &str| d.annotations.get(k).and_then(Value::as_str);
    let name = get("io.containerd.image.name").or_else(|| get("org.opencontainers.image.ref.name"));
    name.map(crate::reference::with_tag).into_iter().collect()
}

fn docker(files: &Files, what: &str) -> Result<Loaded> {
    let list: Vec<DockerImage> =
        serde_json::from_slice(&small(files, "manifest.json", manifest::MAX_MANIFEST, what)?)
            .map_err(|e| Error::invalid(format!("{what}: manifest.json"), e.to_string()))?;
    let mut blobs = BTreeMap::new();
    let mut incoming = Vec::new();
    for i in list {
        let config = small(files, &i.config, manifest::MAX_CONFIG, what)?;
        Config::read(&config)?;
        let mut layers = Vec::new();
        for l in &i.layers {
            let s = files.get(l).ok_or_else(|| {
                Error::invalid(what, format!("layer \"{}\" is missing", l.escape_default()))
            })?;
            layers.push(manifest::descriptor(s.compression.media_type(), s.digest, s.size));
            blobs.insert(s.digest, s.clone());
        }
        let names = i.repo_tags.unwrap_or_default();
        incoming.push(Incoming {
            manifest: manifest::write_manifest(&config, layers)?,
            media_type: manifest::MANIFEST.into(),
            config,
            names: names.iter().map(|n| crate::reference::with_tag(n)).collect::<Result<_>>()?,
            origin: None,
        });
    }
    Ok((incoming, blobs))
}

fn small(files: &Files, name: &str, limit: u64, what: &str) -> Result<Vec<u8>> {
    let s = files
        .get(name)
        .ok_or_else(|| Error::invalid(what, format!("\"{}\" is missing", name.escape_default())))?;
    durable::read_small(&s.path, limit)
}

fn read_blob(blobs: &BTreeMap<Digest, Staged>, d: &Digest, limit: u64, what: &str) -> Result<Vec<u8>> {
    let s = blobs.get(d).ok_or_else(|| Error::invalid(what, format!("blob {d} is missing")))?;
    durable::read_small(&s.path, limit)
}
