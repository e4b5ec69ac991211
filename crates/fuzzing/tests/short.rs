//! Every target on its seeds and on mutations of them, for a part of a second each.

#![allow(clippy::unwrap_used, clippy::panic, reason = "tests")]

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::time::{Duration, Instant};

use plyfs_fuzzing::{TARGETS, mutate};

/// For each target; `PLYFS_FUZZ_SECONDS` for more.
fn how_long() -> Duration {
    let seconds = std::env::var("PLYFS_FUZZ_SECONDS").ok().and_then(|text| text.parse().ok());
    Duration::from_secs_f64(seconds.unwrap_or(0.4))
}

fn seeds(name: &str) -> Vec<Vec<u8>> {
    let directory = Path::new(env!("CARGO_MANIFEST_DIR")).join("seeds").join(name);
    let mut paths: Vec<_> = fs::read_dir(&directory).unwrap().map(|entry| entry.unwrap().path()).collect();
    paths.sort();
    paths.iter().map(|path| fs::read(path).unwrap()).collect()
}

fn on(name: &str, run: fn(&[u8]), data: &[u8]) {
    if catch_unwind(|| run(data)).is_err() {
        panic!("{name} breaks on b\"{}\"", data.escape_ascii());
    }
}

#[test]
fn no_target_breaks_on_its_seeds_or_mutations_of_them() {
    for target in TARGETS {
        let seeds = seeds(target.name);
        assert!(!seeds.is_empty(), "{} has no seeds", target.name);
        seeds.iter().for_each(|seed| on(target.name, target.run, seed));
        // The same inputs at every run, as far as the time suffices.
        let mut rng = fastrand::Rng::with_seed(seeds.len() as u64);
        let start = Instant::now();
        let mut tried = 0_u32;
        while start.elapsed() < how_long() {
            let mut data = rng.choice(&seeds).unwrap().clone();
            mutate(&mut data, rng.choice(&seeds).unwrap(), &mut rng);
            on(target.name, target.run, &data);
            tried += 1;
        }
        eprintln!("{}: {} seeds, {tried} mutations", target.name, seeds.len());
    }
}

#[test]
fn a_target_that_breaks_is_noticed() {
    let breaks = |data: &[u8]| assert!(data != b"bad", "broken");
    on("made up", breaks, b"good");
    assert!(catch_unwind(|| on("made up", breaks, b"bad")).is_err());
}
