//! The regular expressions of the catalogue. They match bytes, not Unicode characters, because the
//! rules that components write are ASCII, and because Unicode tables would take most of the
//! catalogue's memory.
//!
//! The syntax of an expression is checked when the catalogue is read; the expression is compiled
//! when it is first used. To compile every expression would be most of the work of a short command,
//! and a node has only a few of the components.

use std::sync::LazyLock;

use regex::bytes::{Captures, Regex, RegexBuilder, RegexSet, RegexSetBuilder};
use regex_syntax::ast::parse::Parser;

/// A value that is compiled when it is first used.
type Lazy<T> = LazyLock<T, Box<dyn FnOnce() -> T + Send>>;

/// One regular expression.
#[derive(Debug)]
pub(crate) struct Expression(Lazy<Regex>);

impl Expression {
    /// Checks the syntax of an expression, without compiling it.
    ///
    /// # Errors
    /// What is wrong with the expression, and where.
    pub(crate) fn new(pattern: &str) -> Result<Expression, String> {
        check(pattern)?;
        let pattern = pattern.to_owned();
        Ok(Expression(LazyLock::new(Box::new(move || {
            RegexBuilder::new(&pattern)
                .unicode(false)
                .build()
                .expect("an expression that is checked")
        }))))
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text.as_bytes())
    }

    /// The values of the capture groups; `None` if the text does not match.
    pub(crate) fn groups<'a>(&self, text: &'a str) -> Option<Groups<'a>> {
        Some(Groups { text, found: self.0.captures(text.as_bytes())? })
    }

    /// The names of the capture groups, in order.
    pub(crate) fn names(&self) -> impl Iterator<Item = &str> {
        self.0.capture_names().flatten()
    }
}

/// Checks the syntax of an expression. This does not find faults that only appear in compilation: a
/// test finds those, because it compiles the whole catalogue.
fn check(pattern: &str) -> Result<(), String> {
    Parser::new().parse(pattern).map(drop).map_err(|e| e.to_string())
}

/// The capture groups of one match of an [`Expression`].
pub(crate) struct Groups<'a> {
    text: &'a str,
    found: Captures<'a>,
}

impl<'a> Groups<'a> {
    /// The text that the group captured.
    pub(crate) fn get(&self, name: &str) -> Option<&'a str> {
        self.text.get(self.found.name(name)?.range())
    }
}

/// Several regular expressions that are matched at once.
#[derive(Debug)]
pub(crate) struct Expressions(Lazy<RegexSet>);

impl Expressions {
    /// Checks the syntax of each expression, without compiling any.
    ///
    /// # Errors
    /// What is wrong with the first invalid expression.
    pub(crate) fn new<S: AsRef<str>>(patterns: &[S]) -> Result<Expressions, String> {
        patterns.iter().try_for_each(|pattern| check(pattern.as_ref()))?;
        let patterns: Vec<String> = patterns.iter().map(|p| p.as_ref().to_owned()).collect();
        Ok(Expressions(LazyLock::new(Box::new(move || {
            let set = RegexSetBuilder::new(&patterns).unicode(false).build();
            set.expect("expressions that are checked")
        }))))
    }

    pub(crate) fn is_match(&self, text: &str) -> bool {
        self.0.is_match(text.as_bytes())
    }

    /// The indices of the expressions that match `text`, ascending.
    pub(crate) fn matches(&self, text: &str) -> impl Iterator<Item = usize> + use<> {
        self.0.matches(text.as_bytes()).into_iter()
    }
}
