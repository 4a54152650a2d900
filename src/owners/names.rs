//! The names and comments of one kind of object, of all components.

use crate::error::{Error, Kind, Result};
use crate::owners::component::Component;
use crate::owners::expression::{Expression, Expressions};

/// An entry of the catalogue: a component, and which of its entries of one kind.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct Entry {
    pub(crate) component: u16,
    pub(crate) item: u16,
}

impl Entry {
    /// Catalogues are small, a few dozen files, so the numbers fit.
    #[expect(clippy::cast_possible_truncation)]
    pub(crate) fn new(component: usize, item: usize) -> Entry {
        Entry { component: component as u16, item: item as u16 }
    }
}

/// Names of one kind, of all components, in order of precedence.
#[derive(Debug)]
pub(crate) struct Names {
    set: Expressions,
    entries: Vec<Entry>,
}

impl Names {
    /// Compiles what `list` finds in each component; `field` is its name in the files.
    pub(crate) fn new(
        components: &[Component],
        field: &str,
        list: fn(&Component) -> Vec<&str>,
    ) -> Result<Names> {
        let (mut patterns, mut entries) = (Vec::new(), Vec::new());
        for (c, component) in components.iter().enumerate() {
            for (i, pattern) in list(component).into_iter().enumerate() {
                is_anchored(&component.name, field, pattern)?;
                patterns.push(pattern);
                entries.push(Entry::new(c, i));
            }
        }
        let set = Expressions::new(&patterns).map_err(|e| {
            // A set's error does not name the component, so each is tried alone.
            let mut each =
                components.iter().flat_map(|c| list(c).into_iter().map(|p| (&c.name, p)));
            let bad =
                each.find_map(|(component, pattern)| anchored(component, field, pattern).err());
            bad.unwrap_or_else(|| Error::new(Kind::Usage, field, e))
        })?;
        Ok(Names { set, entries })
    }

    /// Every entry that matches, best first.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = Entry> {
        self.set.matches(name).map(|i| self.entries[i])
    }

    /// The entry that matches best.
    pub(crate) fn first(&self, name: &str) -> Option<Entry> {
        self.all(name).next()
    }
}

/// An error about one field of a component's file.
pub(crate) fn refused(component: &str, field: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::Usage, format!("owners/{component}.yaml"), format!("{field}: {cause}"))
}

/// Refuses an expression that does not begin at the start, in each of its alternatives.
pub(crate) fn is_anchored(component: &str, field: &str, pattern: &str) -> Result<()> {
    if pattern.starts_with('^') && !has_loose_alternative(pattern) {
        return Ok(());
    }
    let cause = "is not anchored at the start (`^`, alternatives in brackets)";
    Err(refused(component, field, format!("`{pattern}` {cause}")))
}

/// Compiles an expression that [`is_anchored`].
pub(crate) fn anchored(component: &str, field: &str, pattern: &str) -> Result<Expression> {
    is_anchored(component, field, pattern)?;
    Expression::new(pattern).map_err(|e| refused(component, field, format!("`{pattern}` {e}")))
}

/// True with a `|` outside of every bracket.
fn has_loose_alternative(pattern: &str) -> bool {
    let (mut depth, mut class, mut escaped) = (0, false, false);
    for c in pattern.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '[' => class = true,
            ']' => class = false,
            '(' if !class => depth += 1,
            ')' if !class => depth -= 1,
            '|' if !class && depth == 0 => return true,
            _ => {}
        }
    }
    false
}
