//! The catalogue's regular expressions. Rules are ASCII where a component writes them, so bytes are
//! matched: tables of Unicode's classes would be most of what the catalogue takes in memory.

use regex::bytes::{Captures, Regex, RegexBuilder, RegexSet, RegexSetBuilder};

/// One expression.
#[derive(Debug)]
pub(crate) struct Expression(Regex);

impl Expression {
    /// Compiles it.
    ///
    /// # Errors
    /// What is wrong with it, and where.
    pub(crate) fn new(pattern: &str) -> Result<Expression, regex::Error> {
        RegexBuilder::new(pattern).unicode(false).build().map(Expression)
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text.as_bytes())
    }

    /// What its groups hold, if it fits.
    pub(crate) fn groups<'a>(&self, text: &'a str) -> Option<Groups<'a>> {
        Some(Groups { text, found: self.0.captures(text.as_bytes())? })
    }

    /// The names of its groups, in their order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.capture_names().flatten()
    }
}

/// The groups of an [`Expression`] that fits a text.
pub(crate) struct Groups<'a> {
    text: &'a str,
    found: Captures<'a>,
}

impl<'a> Groups<'a> {
    /// What the group of that name holds.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.text.get(self.found.name(name)?.range())
    }
}

/// Several, of which some fit.
#[derive(Debug)]
pub(crate) struct Expressions(RegexSet);

impl Expressions {
    /// Compiles them.
    ///
    /// # Errors
    /// What is wrong with one of them.
    pub(crate) fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Expressions, regex::Error> {
        RegexSetBuilder::new(patterns).unicode(false).build().map(Expressions)
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text.as_bytes())
    }

    /// The numbers of those that fit, in their order.
    pub(crate) fn matches(&self, text: &str) -> impl Iterator<Item = usize> + use<> {
        self.0.matches(text.as_bytes()).into_iter()
    }
}
