//! containerd's filter language, as far as snapshots have fields.
//!
//! Owns parsing and matching. A filter is selectors joined by commas, all of which must hold:
//! `kind==active,labels."containerd.io/gc.root"`. A selector is a field path, alone (the field exists) or with `==`,
//! `!=` or `~=` (a regular expression, unanchored) and a value, quoted or a run without space and comma. Of several
//! filters any may match. The grammar is that of containerd's `filters` package.

use regex_lite::Regex;

use crate::error::{Error, Result};
use crate::info::Info;

/// Any of several filters; none at all matches everything.
#[derive(Debug, Default)]
pub struct Filters(Vec<Vec<Selector>>);

#[derive(Debug)]
struct Selector {
    path: Vec<String>,
    test: Test,
}

#[derive(Debug)]
enum Test {
    Present,
    Equal(String),
    NotEqual(String),
    Matches(Regex),
}

impl Filters {
    /// Parses filters; `InvalidArgument` says which one is wrong and where.
    pub fn parse(texts: &[String]) -> Result<Self> {
        texts.iter().map(|text| parse_one(text)).collect::<Result<_>>().map(Self)
    }

    /// Whether any filter matches, or there is none.
    pub fn matches(&self, info: &Info) -> bool {
        self.0.is_empty() || self.0.iter().any(|all| all.iter().all(|selector| selector.holds(info)))
    }
}

impl Selector {
    fn holds(&self, info: &Info) -> bool {
        let value = field(info, &self.path);
        match &self.test {
            Test::Present => value.is_some(),
            Test::Equal(wanted) => value.is_some_and(|value| value == wanted),
            Test::NotEqual(unwanted) => value.unwrap_or_default() != unwanted,
            Test::Matches(regex) => value.is_some_and(|value| regex.is_match(value)),
        }
    }
}

fn field<'a>(info: &'a Info, path: &[String]) -> Option<&'a str> {
    let (first, rest) = path.split_first()?;
    match first.as_str() {
        "kind" => Some(info.record.kind.word()),
        "name" => Some(&info.name),
        "parent" => Some(info.record.parent.as_deref().unwrap_or_default()),
        "labels" => info.record.labels.get(&rest.join(".")).map(String::as_str),
        _ => None,
    }
}

fn parse_one(text: &str) -> Result<Vec<Selector>> {
    let mut parser = Parser { text, at: 0 };
    let mut selectors = Vec::new();
    parser.skip_space();
    if parser.rest().is_empty() {
        return Ok(selectors);
    }
    loop {
        selectors.push(parser.selector()?);
        parser.skip_space();
        if parser.rest().is_empty() {
            return Ok(selectors);
        }
        if !parser.eat(",") {
            return Err(parser.error("expected a comma or the end"));
        }
    }
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl<'a> Parser<'a> {
    fn selector(&mut self) -> Result<Selector> {
        let path = self.path()?;
        self.skip_space();
        let test = if self.eat("==") {
            Test::Equal(self.value(false)?)
        } else if self.eat("!=") {
            Test::NotEqual(self.value(false)?)
        } else if self.eat("~=") {
            let pattern = self.value(true)?;
            Test::Matches(
                Regex::new(&pattern).map_err(|e| self.error(&format!("bad regular expression: {e}")))?,
            )
        } else {
            Test::Present
        };
        Ok(Selector { path, test })
    }

    fn path(&mut self) -> Result<Vec<String>> {
        let mut path = vec![self.component()?];
        while self.eat(".") {
            path.push(self.component()?);
        }
        Ok(path)
    }

    fn component(&mut self) -> Result<String> {
        self.skip_space();
        if self.rest().starts_with('"') {
            return self.quoted('"', false);
        }
        let word = self.take_while(|c| c.is_alphanumeric() || c == '_');
        if word.is_empty() {
            return Err(self.error("expected a field"));
        }
        Ok(word.to_owned())
    }

    /// A value; a pattern may be quoted by `/` or `|` too, with its backslashes kept.
    fn value(&mut self, pattern: bool) -> Result<String> {
        self.skip_space();
        match self.rest().chars().next() {
            Some('"') => self.quoted('"', false),
            Some(quote @ ('/' | '|')) if pattern => self.quoted(quote, true),
            _ => {
                let word = self.take_while(|c| !c.is_whitespace() && c != ',');
                if word.is_empty() {
                    return Err(self.error("expected a value"));
                }
                Ok(word.to_owned())
            }
        }
    }

    fn quoted(&mut self, quote: char, keep_escapes: bool) -> Result<String> {
        self.at += quote.len_utf8();
        let mut out = String::new();
        while let Some(c) = self.next() {
            match c {
                _ if c == quote => return Ok(out),
                '\\' if keep_escapes => match self.next() {
                    Some(next) if next == quote => out.push(next),
                    Some(next) => out.extend(['\\', next]),
                    None => break,
                },
                '\\' => out.push(self.escape()?),
                _ => out.push(c),
            }
        }
        Err(self.error("a quotation is not closed"))
    }

    fn escape(&mut self) -> Result<char> {
        let digits = match self.next() {
            Some(c @ ('"' | '\'' | '\\')) => return Ok(c),
            Some('n') => return Ok('\n'),
            Some('t') => return Ok('\t'),
            Some('r') => return Ok('\r'),
            Some('x') => 2,
            Some('u') => 4,
            Some('U') => 8,
            _ => return Err(self.error("unknown escape")),
        };
        let number = self.rest().get(..digits).and_then(|hex| u32::from_str_radix(hex, 16).ok());
        let c = number.and_then(char::from_u32).ok_or_else(|| self.error("bad escape"))?;
        self.at += digits;
        Ok(c)
    }

    fn next(&mut self) -> Option<char> {
        let c = self.rest().chars().next()?;
        self.at += c.len_utf8();
        Some(c)
    }

    fn take_while(&mut self, wanted: impl Fn(char) -> bool) -> &'a str {
        let rest = self.rest();
        let end = rest.find(|c| !wanted(c)).unwrap_or(rest.len());
        self.at += end;
        rest.get(..end).unwrap_or_default()
    }

    fn eat(&mut self, token: &str) -> bool {
        let found = self.rest().starts_with(token);
        if found {
            self.at += token.len();
        }
        found
    }

    fn skip_space(&mut self) {
        self.take_while(char::is_whitespace);
    }

    fn rest(&self) -> &'a str {
        self.text.get(self.at..).unwrap_or_default()
    }

    fn error(&self, what: &str) -> Error {
        Error::InvalidArgument(format!("filter {:?}: {what} at byte {}", self.text, self.at))
    }
}

#[cfg(test)]
mod tests {
    use std::time::SystemTime;

    use super::*;
    use crate::info::{Kind, Labels, Record, Usage};

    fn info(labels: &[(&str, &str)]) -> Info {
        let labels: Labels = labels.iter().map(|(k, v)| ((*k).into(), (*v).into())).collect();
        let now = SystemTime::UNIX_EPOCH;
        let record = Record {
            id: 1,
            kind: Kind::Active,
            parent: Some("p".into()),
            created: now,
            updated: now,
            labels,
            usage: Usage::default(),
        };
        Info { name: "k/1, x".into(), record }
    }

    fn matches(filter: &str, labels: &[(&str, &str)]) -> bool {
        Filters::parse(&[filter.to_owned()]).unwrap().matches(&info(labels))
    }

    #[test]
    fn every_operator_means_what_containerd_says() {
        let labels = [("containerd.io/gc.root", "now"), ("l", "2")];
        for (filter, expected) in [
            ("", true),
            ("kind==active", true),
            ("kind == active , parent==p", true),
            ("kind==view", false),
            ("kind!=view", true),
            ("parent!=\"\"", true),
            ("name==\"k/1, x\"", true),
            ("name==\"k\\x2f1, x\"", true),
            ("name~=^k/[0-9]", true),
            ("name~=/^k\\/\\d/", true),
            ("name~=|x$|", true),
            ("name~=^x", false),
            ("labels.l", true),
            ("labels.m", false),
            ("labels.l==2,kind==active", true),
            ("labels.l==2,kind==view", false),
            ("labels.m!=2", true),
            ("labels.\"containerd.io/gc.root\"==now", true),
            ("size==3", false),
        ] {
            assert_eq!(matches(filter, &labels), expected, "{filter}");
        }
        assert!(!matches("labels.l", &[]));
    }

    #[test]
    fn any_of_several_filters_is_enough_and_none_is_everything() {
        let either = ["kind==view".to_owned(), "parent==p".to_owned()];
        assert!(Filters::parse(&either).unwrap().matches(&info(&[])));
        assert!(Filters::parse(&[]).unwrap().matches(&info(&[])));
    }

    #[test]
    fn what_is_no_filter_is_an_invalid_argument() {
        for bad in [
            "==x",
            "kind==",
            "kind==a b",
            "kind==\"a",
            "name~=(",
            ",",
            "kind,",
            "labels.",
            "a\\b",
            "k==\"\\q\"",
        ] {
            assert!(
                matches!(Filters::parse(&[bad.to_owned()]), Err(Error::InvalidArgument(_))),
                "{bad} was taken"
            );
        }
    }
}
