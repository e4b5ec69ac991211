//! Sending an image to a registry: blobs that it lacks, several at a time, then the manifest.

use std::fs::File;
use std::io::Read;
use std::time::Duration;

use ureq::http::StatusCode;

use super::client::{Client, Send};
use super::{RegistryOptions, parallel, remote};
use crate::digest::Digest;
use crate::durable;
use crate::error::{Context, Error, Result};
use crate::manifest;
use crate::progress::Counted;
use crate::reference::Reference;
use crate::store::Store;

const TRIES: u32 = 3;

impl Store {
    /// Sends an image under the name `to`. The registry shows it when everything is there.
    pub fn push(&self, image: &str, to: &str, options: &RegistryOptions) -> Result<Digest> {
        let i = self.image(image)?;
        let reference = remote(&Reference::parse(to)?);
        let client = Client::connect(&reference, options, "pull,push")?;
        let mut blobs: Vec<(Digest, u64)> = i.layers.iter().map(|l| (l.blob, l.size)).collect();
        let config =
            std::fs::metadata(self.layout.blob(&i.config)).at("stat", self.layout.blob(&i.config))?;
        blobs.push((i.config, config.len()));
        blobs.sort();
        blobs.dedup();
        parallel(options.jobs, &blobs, |(d, n)| self.push_blob(&client, d, *n))?;
        let bytes = durable::read_small(&self.layout.blob(&i.manifest), manifest::MAX_MANIFEST)?;
        let path = format!("{}/manifests/{}", client.repository(), reference.selector());
        let mut r = client.send("PUT", &path, &[], &mut Send::Bytes(&bytes, &i.media_type))?;
        client.ok(&mut r, "manifest")?;
        Ok(i.manifest)
    }

    fn push_blob(&self, client: &Client, d: &Digest, size: u64) -> Result<()> {
        let head =
            client.send("HEAD", &format!("{}/blobs/{d}", client.repository()), &[], &mut Send::Nothing)?;
        if head.status() == StatusCode::OK {
            return Ok(());
        }
        let short: String = d.hex().chars().take(12).collect();
        let mut last = None;
        for n in 0..TRIES {
            if n > 0 {
                std::thread::sleep(Duration::from_millis(200 << n));
            }
            let task = self.options.progress.task(&format!("sending {short}"), Some(size));
            let path = self.layout.blob(d);
            let f = File::open(&path).at("open", &path)?;
            match upload(client, d, size, &mut Counted { inner: f, task: &*task }) {
                Err(e @ Error::Registry { .. }) => last = Some(e),
                r => return r,
            }
        }
        last.map_or(Ok(()), Err)
    }
}

/// Starts an upload, and sends all in one request.
fn upload(client: &Client, d: &Digest, size: u64, from: &mut dyn Read) -> Result<()> {
    let mut r =
        client.send("POST", &format!("{}/blobs/uploads/", client.repository()), &[], &mut Send::Nothing)?;
    client.ok(&mut r, "upload")?;
    let location = r.headers().get("location").and_then(|v| v.to_str().ok()).map(str::to_owned);
    let location = client.absolute(&location.ok_or_else(|| client.fail("gave no address to upload to"))?);
    let sep = if location.contains('?') { '&' } else { '?' };
    let mut r =
        client.send("PUT", &format!("{location}{sep}digest={d}"), &[], &mut Send::Stream(from, size))?;
    client.ok(&mut r, "blob")
}
