//! Mounts a stack of directories and serves it in the foreground:
//! `cargo run -p plyfs-fuse --example serve -- lowerdir=A:B,upperdir=U,workdir=W TARGET`. The options `writeback=0` and
//! `threaded=0` are understood as well.

use std::error::Error;
use std::path::Path;

use plyfs_core::{Overlay, Settings};
use plyfs_format::StackSpec;
use plyfs_fuse::{MountOptions, Session};

fn main() -> Result<(), Box<dyn Error>> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [layers, target] = arguments.as_slice() else {
        return Err("usage: serve OPTIONS TARGET".into());
    };
    let parsed = StackSpec::parse(&[layers])?;
    let overlay = Overlay::assemble(&parsed.spec, &Settings::default())?;
    let options = MountOptions {
        allow_other: true,
        writeback: parsed.spec.options.writeback.unwrap_or(true),
        threads: (parsed.spec.options.threaded == Some(false)).then_some(1),
        ..MountOptions::default()
    };
    Session::mount(overlay, Path::new(target), &options)?.run()?;
    Ok(())
}
