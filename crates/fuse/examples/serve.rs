//! Mounts a stack of directories and serves it in the foreground:
//! `cargo run -p plyfs-fuse --example serve -- lowerdir=A:B,upperdir=U,workdir=W TARGET [threads]`.

use std::error::Error;
use std::path::Path;

use plyfs_core::{Overlay, Settings};
use plyfs_format::StackSpec;
use plyfs_fuse::{MountOptions, Session};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [layers, target, rest @ ..] = arguments.as_slice() else {
        return Err("usage: serve LAYER_OPTIONS TARGET [THREADS]".into());
    };
    let parsed = StackSpec::parse(&[layers])?;
    let overlay = Overlay::assemble(&parsed.spec, &Settings::default())?;
    let threads = rest.first().map(|number| number.parse()).transpose()?;
    let options = MountOptions { allow_other: true, threads, ..MountOptions::default() };
    Session::mount(overlay, Path::new(target), &options)?.run()?;
    Ok(())
}
