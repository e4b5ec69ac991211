//! HTTP to one repository of one registry. Owns the connection, authentication, and the bounds on what an
//! answer may hold; every byte that is returned was checked against its digest where one is known.

use std::io::Read;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use ureq::http::{Response, StatusCode};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::{Agent, Body, SendBody};

use super::RegistryOptions;
use super::auth::{self, Challenge};
use crate::digest::Digest;
use crate::error::{Error, Result};
use crate::manifest::{self, Descriptor};
use crate::reference::Reference;

const ACCEPT: &str = "application/vnd.oci.image.manifest.v1+json, application/vnd.oci.image.index.v1+json, \
    application/vnd.docker.distribution.manifest.v2+json, application/vnd.docker.distribution.manifest.list.v2+json";

/// A repository.
pub struct Client {
    agent: Agent,
    base: String,
    registry: String,
    repository: String,
    actions: String,
    basic: Option<String>,
    authorization: Mutex<Option<String>>,
}

/// What is sent with a request.
pub enum Send<'a> {
    /// Nothing.
    Nothing,
    /// These bytes, of this media type.
    Bytes(&'a [u8], &'a str),
    /// A stream of so many bytes.
    Stream(&'a mut dyn Read, u64),
}

impl Client {
    /// Finds out how the registry is reached: TLS, TLS without a known certificate, or plain.
    pub fn connect(r: &Reference, o: &RegistryOptions, actions: &str) -> Result<Client> {
        let registry = r.registry.clone().unwrap_or_default();
        let schemes: &[&str] = match (o.tls_verify, is_loopback(&registry)) {
            (true, false) => &["https"],
            _ => &["https", "http"],
        };
        let agent = agent(o, &registry);
        let mut why = String::new();
        for s in schemes {
            let base = format!("{s}://{registry}/v2/");
            match agent.get(&base).call() {
                Ok(_) => {
                    return Ok(Client {
                        agent,
                        base,
                        repository: r.repository.clone(),
                        actions: actions.to_owned(),
                        basic: auth::find(&registry, &r.repository, o.auth_file.as_deref())?,
                        registry,
                        authorization: Mutex::new(None),
                    });
                }
                Err(e) => why = if why.is_empty() { e.to_string() } else { format!("{why}; {s}: {e}") },
            }
        }
        Err(Error::Registry { registry, why })
    }

    /// A manifest or index by tag or digest, with its media type.
    pub fn manifest(&self, selector: &str) -> Result<(String, Vec<u8>)> {
        let path = format!("{}/manifests/{selector}", self.repository);
        let mut r = self.send("GET", &path, &[("accept", ACCEPT)], &mut Send::Nothing)?;
        if r.status() == StatusCode::NOT_FOUND {
            return Err(Error::NotFound {
                what: "image in the registry",
                name: format!("{}/{}:{selector}", self.registry, self.repository),
            });
        }
        self.ok(&mut r, "manifest")?;
        let header = |n: &str| r.headers().get(n).and_then(|v| v.to_str().ok()).map(str::to_owned);
        let (media_type, promised) = (header("content-type"), header("docker-content-digest"));
        let bytes = self.body(&mut r, manifest::MAX_MANIFEST)?;
        let found = Digest::of(&bytes);
        let by_digest = selector.starts_with("sha256:").then(|| selector.to_owned());
        for want in [by_digest, promised].into_iter().flatten() {
            if want != found.to_string() {
                return Err(Error::Digest {
                    what: "manifest".into(),
                    expected: want,
                    found: found.to_string(),
                });
            }
        }
        let media_type =
            media_type.unwrap_or_default().split(';').next().unwrap_or_default().trim().to_owned();
        Ok((inner_media_type(&bytes).unwrap_or(media_type), bytes))
    }

    /// A small blob.
    pub fn blob_bytes(&self, d: &Descriptor) -> Result<Vec<u8>> {
        let mut r = self.blob(&d.digest, 0)?.1;
        let bytes = self.body(&mut r, d.size)?;
        let found = Digest::of(&bytes);
        if found != d.digest {
            return Err(Error::Digest {
                what: "blob".into(),
                expected: d.digest.to_string(),
                found: found.to_string(),
            });
        }
        Ok(bytes)
    }

    /// A blob from `offset` on; says at which offset the answer really begins.
    pub fn blob(&self, digest: &Digest, offset: u64) -> Result<(u64, Response<Body>)> {
        let range = format!("bytes={offset}-");
        let headers: &[(&str, &str)] = if offset > 0 { &[("range", &range)] } else { &[] };
        let mut r =
            self.send("GET", &format!("{}/blobs/{digest}", self.repository), headers, &mut Send::Nothing)?;
        match r.status() {
            StatusCode::PARTIAL_CONTENT => {
                let given =
                    r.headers().get("content-range").and_then(|v| v.to_str().ok()).unwrap_or_default();
                if !given.starts_with(&format!("bytes {offset}-")) {
                    return Err(self.fail(format!("asked for bytes from {offset}, got \"{given}\"")));
                }
                Ok((offset, r))
            }
            StatusCode::RANGE_NOT_SATISFIABLE => Ok((0, self.blob(digest, 0)?.1)),
            _ => {
                self.ok(&mut r, "blob")?;
                Ok((0, r))
            }
        }
    }

    /// Sends a request; a challenge is answered once.
    pub fn send(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &mut Send<'_>,
    ) -> Result<Response<Body>> {
        let r = self.once(method, path, headers, body)?;
        if r.status() != StatusCode::UNAUTHORIZED || matches!(body, Send::Stream(..)) {
            return Ok(r);
        }
        let header =
            r.headers().get("www-authenticate").and_then(|v| v.to_str().ok()).unwrap_or_default().to_owned();
        self.answer(&header)?;
        self.once(method, path, headers, body)
    }

    fn once(
        &self,
        method: &str,
        path: &str,
        headers: &[(&str, &str)],
        body: &mut Send<'_>,
    ) -> Result<Response<Body>> {
        let url = if path.contains("://") { path.to_owned() } else { format!("{}{path}", self.base) };
        let mut b = ureq::http::Request::builder().method(method).uri(&url);
        for (k, v) in headers {
            b = b.header(*k, *v);
        }
        // Only the registry itself learns the token, not an upload address elsewhere.
        if let Some(a) = &*self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
            && url.starts_with(self.base.trim_end_matches("v2/"))
        {
            b = b.header("authorization", a);
        }
        let invalid = |e: ureq::http::Error| self.fail(e.to_string());
        let sent = match body {
            Send::Nothing if method == "POST" || method == "PUT" => {
                self.agent.run(b.header("content-length", "0").body(SendBody::none()).map_err(invalid)?)
            }
            Send::Nothing => self.agent.run(b.body(SendBody::none()).map_err(invalid)?),
            Send::Bytes(bytes, t) => {
                self.agent.run(b.header("content-type", *t).body(*bytes).map_err(invalid)?)
            }
            Send::Stream(r, n) => {
                let b = b
                    .header("content-type", "application/octet-stream")
                    .header("content-length", n.to_string());
                self.agent.run(b.body(SendBody::from_reader(*r)).map_err(invalid)?)
            }
        };
        sent.map_err(|e| self.fail(e.to_string()))
    }

    /// Gets what the registry asks for.
    fn answer(&self, header: &str) -> Result<()> {
        let value = match auth::challenge(header) {
            Some(Challenge::Basic) => match &self.basic {
                Some(b) => format!("Basic {b}"),
                None => {
                    return Err(self.fail(format!(
                        "no credentials for {} in the auth file: log in first",
                        self.registry
                    )));
                }
            },
            Some(Challenge::Bearer { realm, service, scope }) => {
                format!("Bearer {}", self.token(&realm, &service, scope)?)
            }
            None => return Err(self.fail("asks for a kind of authentication that is not known here")),
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(value);
        Ok(())
    }

    fn token(&self, realm: &str, service: &str, scope: Option<String>) -> Result<String> {
        // A registry reached with TLS must not send the password over a plain connection.
        if self.base.starts_with("https:") && !realm.starts_with("https:") {
            return Err(self.fail("wants the password sent without TLS"));
        }
        let scope = scope.unwrap_or_else(|| format!("repository:{}:{}", self.repository, self.actions));
        let mut q = self.agent.get(realm).query("service", service).query("scope", scope);
        if let Some(b) = &self.basic {
            q = q.header("authorization", format!("Basic {b}"));
        }
        let mut r = q.call().map_err(|e| self.fail(e.to_string()))?;
        self.ok(&mut r, "token")?;
        let v: serde_json::Value =
            serde_json::from_slice(&self.body(&mut r, 1 << 20)?).map_err(|e| self.fail(e.to_string()))?;
        let get = |k| v.get(k).and_then(serde_json::Value::as_str).map(str::to_owned);
        get("token").or_else(|| get("access_token")).ok_or_else(|| self.fail("gave no token"))
    }

    /// The whole body, at most `limit` bytes.
    pub fn body(&self, r: &mut Response<Body>, limit: u64) -> Result<Vec<u8>> {
        let mut v = Vec::new();
        r.body_mut().as_reader().take(limit + 1).read_to_end(&mut v).map_err(|e| self.fail(e.to_string()))?;
        if v.len() as u64 > limit {
            return Err(self.fail(format!("sent more than {limit} bytes")));
        }
        Ok(v)
    }

    /// Fails unless the answer is a good one; the registry's own message is in the error.
    pub fn ok(&self, r: &mut Response<Body>, what: &str) -> Result<()> {
        let status = r.status();
        if status.is_success() {
            return Ok(());
        }
        let text = self.body(r, 1 << 16).unwrap_or_default();
        let v: serde_json::Value = serde_json::from_slice(&text).unwrap_or_default();
        let said = v.pointer("/errors/0/message").and_then(serde_json::Value::as_str).unwrap_or_default();
        let hint = if status == StatusCode::UNAUTHORIZED || status == StatusCode::FORBIDDEN {
            " (are the credentials right?)"
        } else {
            ""
        };
        Err(self.fail(format!("{what} of {}: {status} {said}{hint}", self.repository)))
    }

    /// An error of this registry.
    pub fn fail(&self, why: impl Into<String>) -> Error {
        Error::Registry { registry: self.registry.clone(), why: why.into() }
    }

    /// The repository's path.
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// A `Location` as a full address.
    pub fn absolute(&self, location: &str) -> String {
        if location.contains("://") {
            return location.to_owned();
        }
        format!("{}{location}", self.base.trim_end_matches("/v2/"))
    }
}

fn agent(o: &RegistryOptions, registry: &str) -> Agent {
    let stall = Some(Duration::from_secs(o.stall));
    let insecure = !o.tls_verify;
    let tls = TlsConfig::builder().disable_verification(insecure).root_certs(system_roots(registry)).build();
    Agent::config_builder()
        .http_status_as_error(false)
        .timeout_connect(Some(Duration::from_secs(15)))
        .timeout_recv_response(stall)
        .timeout_per_read(stall)
        .timeout_per_write(stall)
        .user_agent(concat!("plyfs/", env!("CARGO_PKG_VERSION")))
        .tls_config(tls)
        .build()
        .into()
}

/// The system's certificates and those of docker's certs.d for this registry; a built-in set if there are none.
fn system_roots(registry: &str) -> RootCerts {
    let named = std::env::var_os("SSL_CERT_FILE").map(std::path::PathBuf::from);
    let bundles =
        ["/etc/ssl/certs/ca-certificates.crt", "/etc/pki/tls/certs/ca-bundle.crt", "/etc/ssl/cert.pem"];
    let mut files: Vec<_> = named
        .into_iter()
        .chain(bundles.iter().map(std::path::PathBuf::from))
        .filter(|p| p.exists())
        .take(1)
        .collect();
    for d in ["/etc/containers/certs.d", "/etc/docker/certs.d"] {
        files.push(std::path::Path::new(d).join(registry).join("ca.crt"));
    }
    let pems = files.iter().filter_map(|f| std::fs::read(f).ok());
    let certs: Vec<_> = pems
        .flat_map(|p| {
            parse_pem(&p)
                .filter_map(|i| match i {
                    Ok(PemItem::Certificate(c)) => Some(c),
                    _ => None,
                })
                .collect::<Vec<_>>()
        })
        .collect();
    if certs.is_empty() { RootCerts::WebPki } else { RootCerts::new_with_certs(&certs) }
}

/// This machine: plain HTTP is no danger.
fn is_loopback(registry: &str) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(h, _)| h);
    host == "localhost" || host == "[::1]" || host.starts_with("127.")
}

/// The media type that the manifest states itself: the header is the registry's word, this one is digested.
fn inner_media_type(bytes: &[u8]) -> Option<String> {
    let v: serde_json::Value = serde_json::from_slice(bytes).ok()?;
    v.get("mediaType").and_then(serde_json::Value::as_str).filter(|s| !s.is_empty()).map(str::to_owned)
}
