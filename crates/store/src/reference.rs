//! Names of images: `[HOST[:PORT]/]PATH[:TAG][@DIGEST]`, with the grammar of the distribution project's
//! reference package. Owns parsing; a local name is kept as typed, with `:latest` added.

use crate::digest::Digest;
use crate::error::{Error, Result};

/// A parsed name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reference {
    /// Registry host, with its port; none for a name without one.
    pub registry: Option<String>,
    /// The repository.
    pub repository: String,
    /// The tag.
    pub tag: Option<String>,
    /// The digest.
    pub digest: Option<Digest>,
}

impl Reference {
    /// Parses a name.
    pub fn parse(name: &str) -> Result<Reference> {
        let bad = |why: &str| Error::invalid(format!("image name \"{}\"", name.escape_default()), why);
        let (rest, digest) = match name.split_once('@') {
            Some((r, d)) => (r, Some(d.parse()?)),
            None => (name, None),
        };
        let (rest, tag) = match rest.rsplit_once(':') {
            Some((r, t)) if !t.contains('/') => (r, Some(t.to_owned())),
            _ => (rest, None),
        };
        let (registry, repository) = match rest.split_once('/') {
            Some((host, path)) if host.contains(['.', ':']) || host == "localhost" => {
                (Some(host.to_owned()), path)
            }
            _ => (None, rest),
        };
        if !repository.split('/').all(is_component) || rest.len() > 255 {
            return Err(bad(
                "expected lower-case letters, digits and single separators [._-] between slashes",
            ));
        }
        if tag.as_deref().is_some_and(|t| !is_tag(t)) {
            return Err(bad("a tag has letters, digits, [._-], at most 128, and does not begin with [.-]"));
        }
        if registry.as_deref().is_some_and(|h| !is_host(h)) {
            return Err(bad("the registry is no host name"));
        }
        Ok(Reference { registry, repository: repository.to_owned(), tag, digest })
    }

    /// The part of a URL that selects the manifest: digest or tag.
    pub fn selector(&self) -> String {
        match (&self.digest, &self.tag) {
            (Some(d), _) => d.to_string(),
            (None, Some(t)) => t.clone(),
            (None, None) => "latest".into(),
        }
    }
}

/// The name as the store keeps it: with its tag.
pub fn with_tag(name: &str) -> Result<String> {
    let r = Reference::parse(name)?;
    Ok(if r.tag.is_none() && r.digest.is_none() { format!("{name}:latest") } else { name.to_owned() })
}

fn is_component(c: &str) -> bool {
    let ok = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit();
    let ends = c.bytes().next().is_some_and(ok) && c.bytes().next_back().is_some_and(ok);
    ends && c.bytes().all(|b| ok(b) || matches!(b, b'.' | b'_' | b'-'))
}

fn is_tag(t: &str) -> bool {
    let word = |b: u8| b.is_ascii_alphanumeric() || b == b'_';
    (1..=128).contains(&t.len())
        && t.bytes().next().is_some_and(word)
        && t.bytes().all(|b| word(b) || matches!(b, b'.' | b'-'))
}

fn is_host(h: &str) -> bool {
    let (name, port) = match h.rsplit_once(':') {
        Some((n, p)) if !n.ends_with(':') && (!n.contains(':') || n.ends_with(']')) => (n, Some(p)),
        _ => (h, None),
    };
    let begins = |b: u8| b.is_ascii_alphanumeric() || b == b'[';
    let name_ok = name.bytes().next().is_some_and(begins)
        && name.bytes().all(|b| b.is_ascii_alphanumeric() || b".-_:[]".contains(&b));
    name_ok && port.is_none_or(|p| p.parse::<u16>().is_ok())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_split_into_registry_repository_tag_and_digest() {
        let p = |s: &str| Reference::parse(s).unwrap();
        assert_eq!(
            p("base:1"),
            Reference { registry: None, repository: "base".into(), tag: Some("1".into()), digest: None }
        );
        let r = p("localhost:5000/a/b:1.2");
        assert_eq!(
            (r.registry.as_deref(), r.repository.as_str(), r.tag.as_deref()),
            (Some("localhost:5000"), "a/b", Some("1.2"))
        );
        let r = p("localhost:5000/x");
        assert_eq!((r.repository.as_str(), r.tag, r.digest), ("x", None, None));
        let d = Digest::of(b"");
        assert_eq!(p(&format!("h.example/x@{d}")).digest, Some(d));
        assert_eq!(p("[::1]:5000/x").registry.as_deref(), Some("[::1]:5000"));
        assert_eq!(with_tag("base").unwrap(), "base:latest");
    }

    #[test]
    fn names_that_would_leave_a_path_or_a_url_are_refused() {
        for n in [
            "",
            ":1",
            "Base",
            "a//b",
            "../x",
            "a/../b",
            "a b",
            "x:a b",
            "x:-1",
            "h.example:99999/x",
            "x@sha256:0",
            "a?b",
            "ü",
        ] {
            assert!(Reference::parse(n).is_err(), "{n}");
        }
    }
}
