//! What the fuzz targets do with bytes: one function a target, each of which panics where a promise is broken.
//!
//! `fuzz/` gives them to libFuzzer, which finds new inputs (a nightly compiler; `cargo xtask fuzz`). The tests here give
//! them the seeds in `seeds/` and changed ones ([`mutate()`]), for some seconds, on any compiler. Seeds named `found-…` are inputs
//! that once broke something.

mod format;
mod mutate;
mod store;

pub use mutate::mutate;

/// A function that takes any bytes and panics if a promise is broken.
pub struct Target {
    /// The name of the binary in `fuzz/`, and of the directory of seeds.
    pub name: &'static str,
    /// Does it.
    pub run: fn(&[u8]),
}

/// All of them.
pub const TARGETS: &[Target] = &[
    Target { name: "acl", run: format::acl },
    Target { name: "metacopy", run: format::metacopy },
    Target { name: "name", run: format::name },
    Target { name: "origin", run: format::origin },
    Target { name: "redirect", run: format::redirect },
    Target { name: "small", run: format::small },
    Target { name: "spec", run: format::spec },
    Target { name: "store_apply", run: store::apply },
    Target { name: "store_json", run: plyfs_store::fuzzing::json },
    Target { name: "store_reference", run: plyfs_store::fuzzing::reference },
    Target { name: "store_tar", run: store::tar },
    Target { name: "whiteout", run: format::whiteout },
    Target { name: "xattr", run: format::xattr },
];

/// Runs the target of this name.
///
/// # Panics
///
/// If a promise is broken, or no target has that name.
pub fn run(name: &str, data: &[u8]) {
    let target = TARGETS.iter().find(|target| target.name == name);
    assert!(target.is_some(), "no target is called {name}");
    target.into_iter().for_each(|target| (target.run)(data));
}
