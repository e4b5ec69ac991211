//! The rules of which options exclude each other, against a table of what Linux 6.18 does with every combination.
//! `data/kernel-options.py` says how the table was made.

#![allow(
    clippy::unwrap_used,
    clippy::panic,
    reason = "a test fails by panicking; clippy's exemption does not reach helpers"
)]

use plyfs_format::spec::{Defaults, Effective, RedirectMode, Situation};
use plyfs_format::{Conflict, StackSpec};

const TABLE: &str = include_str!("data/kernel-6.18-options.tsv");

struct Row {
    has_upper: bool,
    given: &'static str,
    privileged: &'static str,
    unprivileged: &'static str,
}

impl Row {
    fn all() -> impl Iterator<Item = Self> {
        TABLE.lines().map(|line| match line.split('\t').collect::<Vec<_>>()[..] {
            [upper, given, privileged, unprivileged] => {
                Self { has_upper: upper == "1", given, privileged, unprivileged }
            }
            _ => panic!("malformed line: {line}"),
        })
    }

    fn resolve(&self, privileged: bool) -> Result<Effective, Conflict> {
        let upper = if self.has_upper { ",upperdir=/u,workdir=/w" } else { "" };
        let given = self.given.trim_matches('-');
        let parsed = StackSpec::parse(&[format!("lowerdir=/a:/b{upper},{given}")]).unwrap();
        let situation = Situation { has_upper: self.has_upper, has_data_lowers: false, privileged };
        parsed.spec.options.resolve(situation, Defaults::KERNEL)
    }

    /// plyfs allows these where the kernel does not.
    fn is_extension(&self) -> bool {
        let has = |option: &str| self.given.split(',').any(|given| given == option);
        has("userxattr") && (has("redirect_dir=on") || has("redirect_dir=off") || has("metacopy=on"))
    }
}

/// As the kernel prints it: only what differs from the module's default.
fn shown(result: &Result<Effective, Conflict>) -> String {
    let effective = match result {
        Ok(effective) => effective,
        Err(conflict) => return errno(conflict).to_owned(),
    };
    let redirect = match effective.redirect_dir {
        RedirectMode::On => Some("redirect_dir=on"),
        RedirectMode::NoFollow => Some("redirect_dir=nofollow"),
        RedirectMode::Follow => None,
    };
    let on = |is_on: bool, text| is_on.then_some(text);
    let parts = [
        redirect,
        on(effective.index, "index=on"),
        on(effective.nfs_export, "nfs_export=on"),
        on(effective.metacopy, "metacopy=on"),
    ];
    let text = parts.into_iter().flatten().collect::<Vec<_>>().join(",");
    if text.is_empty() { "-".to_owned() } else { text }
}

fn errno(conflict: &Conflict) -> &'static str {
    if conflict.is_permission() { "EPERM" } else { "EINVAL" }
}

#[test]
fn every_combination_resolves_as_in_the_kernel() {
    let mut compared = 0;
    for row in Row::all().filter(|row| !row.is_extension()) {
        assert_eq!(shown(&row.resolve(true)), row.privileged, "upper {}, {}", row.has_upper, row.given);
        compared += 1;
    }
    assert_eq!(compared, 378);
}

#[test]
fn every_combination_is_refused_to_an_unprivileged_user_as_in_the_kernel() {
    for row in Row::all().filter(|row| !row.is_extension()) {
        let verdict = row.resolve(false).map_or_else(|conflict| errno(&conflict), |_| "ok");
        assert_eq!(verdict, row.unprivileged, "upper {}, {}", row.has_upper, row.given);
    }
}

#[test]
fn beside_userxattr_plyfs_accepts_more_but_only_what_the_kernel_accepts_without_it() {
    let mut accepted = 0;
    for row in Row::all().filter(Row::is_extension) {
        let Ok(effective) = row.resolve(true) else { continue };
        let without = row.given.replace(",userxattr", "");
        let plain =
            Row::all().find(|other| other.has_upper == row.has_upper && other.given == without).unwrap();
        assert!(!plain.privileged.starts_with('E'), "upper {}, {}", row.has_upper, row.given);
        assert_eq!(effective.trust, plyfs_format::spec::LayerTrust::UpperOnly);
        accepted += 1;
    }
    assert!(accepted > 50, "only {accepted} combinations are accepted");
}

#[test]
fn an_unprivileged_user_without_userxattr_gets_no_data_layers_and_no_verity() {
    for (text, what) in [("lowerdir=/a::/d", "a data-only layer"), ("lowerdir=/a,verity=on", "verity=on")] {
        let spec = StackSpec::parse(&[text]).unwrap().spec;
        assert_eq!(spec.effective(false), Err(Conflict::NotPermitted { what: what.to_owned() }));
        assert!(spec.effective(true).is_ok());
        let with_userxattr = StackSpec::parse(&[text, "userxattr"]).unwrap().spec;
        assert!(with_userxattr.effective(false).is_ok());
    }
}

#[test]
fn what_has_no_use_without_an_upper_is_dropped_with_a_note() {
    let spec = StackSpec::parse(&["lowerdir=/a,index=on,volatile,uuid=on"]).unwrap().spec;
    let effective = spec.effective(true).unwrap();
    assert!(!effective.index && !effective.volatile);
    assert_eq!(effective.uuid, plyfs_format::spec::UuidMode::Null);
    assert_eq!(effective.notes.len(), 3, "{:?}", effective.notes);
}

#[test]
fn plyfs_makes_redirects_by_default_where_trusted_attributes_can_be_used() {
    let spec = StackSpec::parse(&["lowerdir=/a,upperdir=/u,workdir=/w"]).unwrap().spec;
    assert_eq!(spec.effective(true).unwrap().redirect_dir, RedirectMode::On);
    assert_eq!(spec.effective(false).unwrap().redirect_dir, RedirectMode::NoFollow);
    let userxattr = StackSpec::parse(&["lowerdir=/a,upperdir=/u,workdir=/w,userxattr"]).unwrap().spec;
    assert_eq!(userxattr.effective(true).unwrap().redirect_dir, RedirectMode::NoFollow);
}
