//! What images are made of as JSON: descriptors, manifests, indexes, configurations.
//!
//! Owns reading them from strangers (bounded, digests checked against what was asked for) and writing them
//! always alike. Configurations are kept as JSON values, so that fields unknown here survive a commit.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::layout::MAX_DEPTH;

/// The longest manifest read (the distribution-spec's limit).
pub const MAX_MANIFEST: u64 = 4 << 20;
/// The longest configuration read.
pub const MAX_CONFIG: u64 = 8 << 20;

/// An OCI manifest.
pub const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// An OCI index.
pub const INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// An OCI configuration.
pub const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Docker's index.
pub const DOCKER_INDEX: &str = "application/vnd.docker.distribution.manifest.list.v2+json";

/// Points to a blob.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// What the blob is.
    #[serde(default)]
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// Free text by key.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Map<String, Value>,
    /// For which machine, in an index.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<Platform>,
}

/// A machine.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Platform {
    /// As Go names it.
    #[serde(default)]
    pub architecture: String,
    /// As Go names it.
    #[serde(default)]
    pub os: String,
}

/// An image's manifest.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// What this is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The configuration.
    pub config: Descriptor,
    /// The layers, lowest first.
    pub layers: Vec<Descriptor>,
    /// Free text by key.
    #[serde(default, skip_serializing_if = "Map::is_empty")]
    pub annotations: Map<String, Value>,
}

/// A list of manifests.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// What this is.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub media_type: String,
    /// The manifests.
    pub manifests: Vec<Descriptor>,
}

/// A descriptor without extras.
pub fn descriptor(media_type: &str, digest: Digest, size: u64) -> Descriptor {
    Descriptor { media_type: media_type.into(), digest, size, annotations: Map::new(), platform: None }
}

/// The manifest for a configuration and layers, as bytes.
pub fn write_manifest(config: &[u8], layers: Vec<Descriptor>) -> Result<Vec<u8>> {
    let m = Manifest {
        schema_version: 2,
        media_type: MANIFEST.into(),
        config: descriptor(CONFIG, Digest::of(config), config.len() as u64),
        layers,
        annotations: Map::new(),
    };
    serde_json::to_vec(&m).map_err(|e| Error::invalid("manifest", e.to_string()))
}

/// Reads a manifest, whose bytes are known to have the digest asked for.
pub fn read_manifest(bytes: &[u8]) -> Result<Manifest> {
    let m: Manifest = bounded(bytes, MAX_MANIFEST, "manifest")?;
    if m.schema_version != 2 {
        return Err(Error::invalid(
            "manifest",
            format!("schema version {} is not supported", m.schema_version),
        ));
    }
    if m.layers.len() > MAX_DEPTH {
        return Err(Error::invalid("manifest", format!("{} layers, more than {MAX_DEPTH}", m.layers.len())));
    }
    Ok(m)
}

/// Reads an index.
pub fn read_index(bytes: &[u8]) -> Result<Index> {
    bounded(bytes, MAX_MANIFEST, "index")
}

fn bounded<T: for<'de> Deserialize<'de>>(bytes: &[u8], limit: u64, what: &str) -> Result<T> {
    if bytes.len() as u64 > limit {
        return Err(Error::invalid(what, format!("larger than {limit} bytes")));
    }
    serde_json::from_slice(bytes).map_err(|e| Error::invalid(what, e.to_string()))
}

/// An image's configuration: JSON, with accessors for what plyfs uses.
#[derive(Debug, Clone)]
pub struct Config(Map<String, Value>);

impl Config {
    /// Reads a configuration.
    pub fn read(bytes: &[u8]) -> Result<Config> {
        Ok(Config(bounded(bytes, MAX_CONFIG, "image configuration")?))
    }

    /// A configuration for a new image without layers.
    pub fn empty() -> Config {
        let v = json!({
            "architecture": go_architecture(), "os": "linux", "config": {},
            "rootfs": {"type": "layers", "diff_ids": []}, "history": [],
        });
        match v {
            Value::Object(m) => Config(m),
            _ => Config(Map::new()),
        }
    }

    /// The bytes to store.
    pub fn write(&self) -> Result<Vec<u8>> {
        serde_json::to_vec(&self.0).map_err(|e| Error::invalid("image configuration", e.to_string()))
    }

    /// The configuration as JSON.
    pub fn json(&self) -> Value {
        Value::Object(self.0.clone())
    }

    /// The layers' DiffIDs, lowest first.
    pub fn diff_ids(&self) -> Result<Vec<Digest>> {
        let list = self.0.get("rootfs").and_then(|r| r.get("diff_ids"));
        let list = list
            .and_then(Value::as_array)
            .ok_or_else(|| Error::invalid("image configuration", "no rootfs.diff_ids"))?;
        if list.len() > MAX_DEPTH {
            return Err(Error::invalid("image configuration", format!("more than {MAX_DEPTH} layers")));
        }
        list.iter().map(|v| v.as_str().unwrap_or_default().parse()).collect()
    }

    /// When the image was made.
    pub fn created(&self) -> Option<&str> {
        self.0.get("created").and_then(Value::as_str)
    }

    /// `config.KEY`: how to run it.
    pub fn run(&self, key: &str) -> Option<&Value> {
        self.0.get("config").and_then(|c| c.get(key)).filter(|v| !v.is_null())
    }

    /// `config.KEY` as a list of strings.
    pub fn run_list(&self, key: &str) -> Vec<String> {
        let list = self.run(key).and_then(Value::as_array);
        list.into_iter().flatten().filter_map(Value::as_str).map(str::to_owned).collect()
    }

    /// Sets `config.KEY`.
    pub fn set_run(&mut self, key: &str, value: Value) {
        let c = self.0.entry("config").or_insert_with(|| json!({}));
        if !c.is_object() {
            *c = json!({});
        }
        if let Some(m) = c.as_object_mut() {
            m.insert(key.into(), value);
        }
    }

    /// What each step of the build did.
    pub fn history(&self) -> Vec<Value> {
        self.0.get("history").and_then(Value::as_array).cloned().unwrap_or_default()
    }

    /// Adds a layer on top, with its line of history.
    pub fn push_layer(
        &mut self,
        diff_id: &Digest,
        created: &str,
        created_by: &str,
        comment: &str,
    ) -> Result<()> {
        let mut ids: Vec<Value> = self.diff_ids()?.iter().map(|d| d.to_string().into()).collect();
        ids.push(diff_id.to_string().into());
        self.0.insert("rootfs".into(), json!({"type": "layers", "diff_ids": ids}));
        let mut history = self.history();
        history.push(json!({"created": created, "created_by": created_by, "comment": comment}));
        self.0.insert("history".into(), history.into());
        self.0.insert("created".into(), created.into());
        Ok(())
    }
}

/// This machine's architecture as Go and so OCI name it.
pub fn go_architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        "x86" => "386",
        "powerpc64" => "ppc64le",
        "loongarch64" => "loong64",
        other => other,
    }
}
