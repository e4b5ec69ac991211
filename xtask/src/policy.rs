//! Licences, bans and sources of all dependencies, checked against `deny.toml`.
//!
//! `deny.toml` is cargo-deny's own file and passes `cargo deny check licenses bans sources`. Compiling
//! cargo-deny takes longer than everything else continuous integration does, so these three checks are
//! made here from `cargo metadata`; of the file, only `licenses.allow` and `bans.deny` are read.

use std::fs;

use anyhow::{Context, Result, anyhow, bail};
use cargo_metadata::Package;
use serde::Deserialize;
use spdx::{Expression, LicenseReq};

use crate::workspace;

#[derive(Deserialize)]
struct Policy {
    licenses: Licences,
    bans: Bans,
}

#[derive(Deserialize)]
struct Licences {
    /// SPDX names of the licences that a dependency may be used under.
    allow: Vec<String>,
}

#[derive(Deserialize)]
struct Bans {
    /// Crates that must not be in the graph.
    deny: Vec<Ban>,
}

#[derive(Deserialize)]
struct Ban {
    #[serde(rename = "crate")]
    name: String,
    reason: String,
}

/// Checks every package of the resolved graph; an error tells how many rules are broken.
pub fn run() -> Result<()> {
    let path = workspace::root()?.join("deny.toml");
    let text = fs::read_to_string(&path).context("deny.toml")?;
    let policy: Policy = toml::from_str(&text).context("deny.toml")?;
    let metadata = workspace::metadata()?;
    let mut broken = Vec::new();
    for package in &metadata.packages {
        broken.extend(wrong_licence(package, &policy.licenses)?);
        broken.extend(banned(package, &policy.bans));
        broken.extend(wrong_source(package));
    }
    for rule in &broken {
        println!("deny: {rule}");
    }
    if !broken.is_empty() {
        bail!("deny: {} broken", broken.len());
    }
    println!("deny: {} packages, licences, bans and sources ok", metadata.packages.len());
    Ok(())
}

fn wrong_licence(package: &Package, licences: &Licences) -> Result<Option<String>> {
    if package.source.is_none() && package.license.is_none() && package.publish == Some(Vec::new()) {
        return Ok(None); // an unpublished member of the workspace
    }
    let Some(licence) = &package.license else {
        return Ok(Some(format!("{} {} names no licence", package.name, package.version)));
    };
    // Old manifests separate alternatives by a slash.
    let expression = Expression::parse(&licence.replace('/', " OR "))
        .map_err(|error| anyhow!("{}: licence {licence:?}: {}", package.name, error.reason))?;
    if expression.evaluate(|required| is_allowed(required, licences)) {
        return Ok(None);
    }
    Ok(Some(format!("{} {}: licence {licence:?} is not allowed", package.name, package.version)))
}

fn is_allowed(required: &LicenseReq, licences: &Licences) -> bool {
    let name = required.to_string();
    licences.allow.contains(&name)
}

fn banned(package: &Package, bans: &Bans) -> Option<String> {
    let ban = bans.deny.iter().find(|ban| ban.name == package.name.as_str())?;
    Some(format!("{} {} is banned: {}", package.name, package.version, ban.reason))
}

/// Members of the workspace have no source; everything else comes from crates.io.
fn wrong_source(package: &Package) -> Option<String> {
    let source = package.source.as_ref()?;
    (!source.is_crates_io()).then(|| format!("{} {} comes from {source}", package.name, package.version))
}
