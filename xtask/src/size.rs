//! The size budget: functions of at most 80 lines, nine of ten at most 30; files of at most about 500
//! lines before their tests, never above 600. Counts what is not compiled for tests only.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result, bail};
use proc_macro2::Span;
use syn::spanned::Spanned;
use syn::visit::{self, Visit};
use syn::{Attribute, Block, ImplItemFn, ItemFn, ItemMod, Meta, TraitItemFn};

use crate::workspace;

const FUNCTION_MAX: usize = 80;
const FUNCTION_90TH: usize = 30;
const FILE_AIM: usize = 500;
const FILE_MAX: usize = 600;

/// Checks all of `crates/*/src` and `xtask/src`; an error names how many limits are broken.
pub fn run() -> Result<()> {
    let mut directories = workspace::crates()?;
    directories.push(workspace::root()?.join("xtask"));
    let mut report = Report::default();
    for directory in directories {
        for file in workspace::rust_files(&directory.join("src"))? {
            measure_file(&file, &mut report)?;
        }
    }
    report.conclude()
}

/// What has been measured so far.
#[derive(Default)]
struct Report {
    functions: Vec<usize>,
    files: usize,
    broken: usize,
}

impl Report {
    fn conclude(mut self) -> Result<()> {
        self.functions.sort_unstable();
        let percentile = |percent: usize| {
            let index = self.functions.len().saturating_sub(1) * percent / 100;
            self.functions.get(index).copied().unwrap_or(0)
        };
        println!(
            "size: {} files, {} functions; lines of a function: median {}, 90th percentile {}, 99th {}, longest {}",
            self.files,
            self.functions.len(),
            percentile(50),
            percentile(90),
            percentile(99),
            percentile(100)
        );
        if percentile(90) > FUNCTION_90TH {
            println!("size: warning: the 90th percentile should be at most {FUNCTION_90TH} lines");
        }
        if self.broken > 0 {
            bail!("size: {} above the limit", self.broken);
        }
        Ok(())
    }
}

fn measure_file(path: &Path, report: &mut Report) -> Result<()> {
    let name = workspace::relative(path);
    let text = fs::read_to_string(path).with_context(|| name.clone())?;
    let syntax = syn::parse_file(&text).with_context(|| format!("cannot parse {name}"))?;
    report.files += 1;

    let lines = lines_before_tests(&syntax, text.lines().count());
    if lines > FILE_MAX {
        println!("size: {name}: {lines} lines before tests, limit {FILE_MAX}");
        report.broken += 1;
    } else if lines > FILE_AIM {
        println!("size: warning: {name}: {lines} lines before tests, aim for {FILE_AIM}");
    }

    let mut functions = Functions { found: Vec::new() };
    functions.visit_file(&syntax);
    for (function, line, length) in functions.found {
        if length > FUNCTION_MAX {
            println!("size: {name}:{line}: {function} has {length} lines, limit {FUNCTION_MAX}");
            report.broken += 1;
        }
        report.functions.push(length);
    }
    Ok(())
}

/// The line before the first test-only module, or all lines.
fn lines_before_tests(syntax: &syn::File, all: usize) -> usize {
    syntax
        .items
        .iter()
        .filter_map(|item| match item {
            syn::Item::Mod(module) if is_test_only(&module.attrs) => Some(module.span().start().line),
            _ => None,
        })
        .min()
        .map_or(all, |line| line.saturating_sub(1))
}

/// Whether an item carries exactly `#[cfg(test)]`.
fn is_test_only(attributes: &[Attribute]) -> bool {
    attributes.iter().any(|attribute| {
        attribute.path().is_ident("cfg")
            && matches!(&attribute.meta, Meta::List(list) if list.tokens.to_string() == "test")
    })
}

/// Collects name, first line and length of every function, those in functions included.
struct Functions {
    found: Vec<(String, usize, usize)>,
}

impl Functions {
    fn add(&mut self, name: &syn::Ident, signature: Span, body: &Block) {
        let first = signature.start().line;
        let last = body.brace_token.span.close().end().line;
        self.found.push((name.to_string(), first, last.saturating_sub(first) + 1));
    }
}

impl<'ast> Visit<'ast> for Functions {
    fn visit_item_mod(&mut self, module: &'ast ItemMod) {
        if !is_test_only(&module.attrs) {
            visit::visit_item_mod(self, module);
        }
    }

    fn visit_item_fn(&mut self, function: &'ast ItemFn) {
        if !is_test_only(&function.attrs) {
            self.add(&function.sig.ident, function.sig.span(), &function.block);
            visit::visit_item_fn(self, function);
        }
    }

    fn visit_impl_item_fn(&mut self, function: &'ast ImplItemFn) {
        if !is_test_only(&function.attrs) {
            self.add(&function.sig.ident, function.sig.span(), &function.block);
            visit::visit_impl_item_fn(self, function);
        }
    }

    fn visit_trait_item_fn(&mut self, function: &'ast TraitItemFn) {
        if let Some(body) = &function.default {
            self.add(&function.sig.ident, function.sig.span(), body);
        }
        visit::visit_trait_item_fn(self, function);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths(source: &str) -> Vec<(String, usize, usize)> {
        let mut functions = Functions { found: Vec::new() };
        functions.visit_file(&syn::parse_file(source).unwrap());
        functions.found
    }

    #[test]
    fn a_function_is_counted_from_its_signature_to_its_closing_brace() {
        let source = "/// Words.\n#[inline]\nfn one(\n    a: u8,\n) {\n    drop(a);\n}\n";
        assert_eq!(lengths(source), [("one".to_owned(), 3, 5)]);
    }

    #[test]
    fn functions_compiled_for_tests_only_are_not_counted() {
        let source =
            "#[cfg(test)]\nmod tests {\n    fn hidden() {}\n}\nstruct S;\nimpl S {\n    fn seen() {}\n}\n";
        assert_eq!(lengths(source), [("seen".to_owned(), 7, 1)]);
    }

    #[test]
    fn a_file_ends_where_its_tests_begin() {
        let source = "fn one() {}\n\n#[cfg(test)]\nmod tests {}\n";
        assert_eq!(lines_before_tests(&syn::parse_file(source).unwrap(), 4), 2);
    }
}
