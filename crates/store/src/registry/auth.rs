//! Credentials: the auth files of podman and docker, and the challenges of registries.
//!
//! Owns finding and reading them, and the order in which a file's entries are asked: the helper named for the registry
//! (`credHelpers`), the helper for all (`credsStore`), the file's own entry. Never prints a secret.

use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use serde_json::Value;

use super::helper;
use crate::durable;
use crate::error::{Context, Error, Result};

/// An auth file is small.
const MAX: u64 = 1 << 20;
/// Docker Hub's registry, and what helpers know it by.
const HUB: &str = "registry-1.docker.io";
const HUB_SERVER: &str = "https://index.docker.io/v1/";

/// Base64 of `USER:PASSWORD` for `HOST/REPOSITORY`, if a file has it.
pub fn find(registry: &str, repository: &str, file: Option<&Path>) -> Result<Option<String>> {
    let files = match file {
        Some(f) => vec![f.to_owned()],
        None => usual_files().into_iter().filter(|p| p.exists()).collect(),
    };
    for f in files {
        let v: Value = serde_json::from_slice(&durable::read_small(&f, MAX)?).at("read", &f)?;
        if let Some(pair) = from_helpers(&v, registry)? {
            return Ok(Some(STANDARD.encode(pair)));
        }
        if let Some(a) = in_file(&v, registry, repository) {
            if STANDARD.decode(&a).is_err() {
                return Err(Error::invalid(
                    f.display().to_string(),
                    format!("the entry for {registry} is not base64"),
                ));
            }
            return Ok(Some(a));
        }
    }
    Ok(None)
}

fn usual_files() -> Vec<PathBuf> {
    let dir = |name: &str| std::env::var_os(name).map(PathBuf::from);
    if let Some(f) = dir("REGISTRY_AUTH_FILE") {
        return vec![f];
    }
    let mut v = Vec::new();
    v.extend(dir("XDG_RUNTIME_DIR").map(|d| d.join("containers/auth.json")));
    v.extend(
        dir("XDG_CONFIG_HOME")
            .or_else(|| dir("HOME").map(|h| h.join(".config")))
            .map(|d| d.join("containers/auth.json")),
    );
    v.extend(
        dir("DOCKER_CONFIG")
            .or_else(|| dir("HOME").map(|h| h.join(".docker")))
            .map(|d| d.join("config.json")),
    );
    v
}

/// From the helpers that a file names. One for all registries that fails is passed over: the registry may be open to all.
fn from_helpers(v: &Value, registry: &str) -> Result<Option<String>> {
    let server = if registry == HUB { HUB_SERVER } else { registry };
    let own = v.get("credHelpers").and_then(Value::as_object);
    let named = |m: &serde_json::Map<String, Value>| {
        let hub = ["docker.io", HUB_SERVER].into_iter().filter(|_| registry == HUB);
        [registry].into_iter().chain(hub).find_map(|k| m.get(k)?.as_str().map(str::to_owned))
    };
    if let Some(name) = own.and_then(named) {
        return helper::get(&name, server);
    }
    let Some(name) = v.get("credsStore").and_then(Value::as_str).filter(|n| !n.is_empty()) else {
        return Ok(None);
    };
    helper::get(name, server).or_else(|e| {
        tracing::warn!("{e}");
        Ok(None)
    })
}

/// The entry of the longest prefix of `HOST/REPOSITORY` (containers-auth.json(5)).
fn in_file(v: &Value, registry: &str, repository: &str) -> Option<String> {
    let auths = v.get("auths")?.as_object()?;
    let full = format!("{registry}/{repository}");
    let hub = registry == HUB;
    let key_of = |k: &str| {
        k.trim_start_matches("https://").trim_start_matches("http://").trim_end_matches('/').to_owned()
    };
    let fits = |k: &str| {
        let k = key_of(k);
        full == k
            || full.strip_prefix(&k).is_some_and(|r| r.starts_with('/'))
            || hub && matches!(k.as_str(), "docker.io" | "index.docker.io/v1" | "index.docker.io")
    };
    let best = auths.iter().filter(|(k, _)| fits(k)).max_by_key(|(k, _)| key_of(k).len())?;
    best.1.get("auth").and_then(Value::as_str).map(str::to_owned)
}

/// What a registry asks for in `WWW-Authenticate`.
#[derive(Debug, PartialEq, Eq)]
pub enum Challenge {
    /// User and password with each request.
    Basic,
    /// A token from this address.
    Bearer {
        /// Where tokens are.
        realm: String,
        /// For whom.
        service: String,
        /// For what.
        scope: Option<String>,
    },
}

/// Reads the header.
pub fn challenge(header: &str) -> Option<Challenge> {
    let (scheme, rest) = header.split_once(' ').unwrap_or((header, ""));
    if scheme.eq_ignore_ascii_case("basic") {
        return Some(Challenge::Basic);
    }
    if !scheme.eq_ignore_ascii_case("bearer") {
        return None;
    }
    let get = |key: &str| {
        let at = rest.find(&format!("{key}=\""))? + key.len() + 2;
        let value = rest.get(at..)?;
        value.get(..value.find('"')?).map(str::to_owned)
    };
    Some(Challenge::Bearer {
        realm: get("realm")?,
        service: get("service").unwrap_or_default(),
        scope: get("scope"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_longest_prefix_in_the_auth_file_wins() {
        let v = json!({"auths": {"h:5000": {"auth": "YTph"}, "h:5000/team": {"auth": "Yjpi"}, "https://index.docker.io/v1/": {"auth": "Yzpj"}}});
        assert_eq!(in_file(&v, "h:5000", "x").as_deref(), Some("YTph"));
        assert_eq!(in_file(&v, "h:5000", "team/x").as_deref(), Some("Yjpi"));
        assert_eq!(in_file(&v, "h:5000", "teamster/x").as_deref(), Some("YTph"));
        assert_eq!(in_file(&v, "registry-1.docker.io", "library/x").as_deref(), Some("Yzpj"));
        assert_eq!(in_file(&v, "h", "x"), None);
    }

    #[test]
    fn challenges_are_read() {
        let h = r#"Bearer realm="https://a/token",service="s",scope="repository:x:pull""#;
        assert_eq!(
            challenge(h),
            Some(Challenge::Bearer {
                realm: "https://a/token".into(),
                service: "s".into(),
                scope: Some("repository:x:pull".into())
            })
        );
        assert_eq!(challenge("Basic realm=\"x\""), Some(Challenge::Basic));
        assert_eq!(challenge("Negotiate"), None);
        assert_eq!(challenge("Bearer realm=\"cut"), None);
    }
}
