//! The name patterns and comment patterns of one kind of object, for all components.

use crate::error::{Error, Kind, Result};
use crate::owners::component::Component;
use crate::owners::expression::{Expression, Expressions};

/// An entry of the catalogue: the index of its component, and its index among that component's
/// entries of one kind (chains, ipsets and so on).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) struct EntryId {
    pub(crate) component: u16,
    pub(crate) item: u16,
}

impl EntryId {
    /// The casts to `u16` cannot truncate, because a catalogue has a few dozen files.
    #[expect(clippy::cast_possible_truncation)]
    pub(crate) fn new(component: usize, item: usize) -> EntryId {
        EntryId { component: component as u16, item: item as u16 }
    }
}

/// The name or comment patterns of all components for one kind of object, such as chains or ipsets,
/// in order of precedence.
#[derive(Debug)]
pub(crate) struct Names {
    set: Expressions,
    entries: Vec<EntryId>,
}

impl Names {
    /// Compiles the name patterns that `list` returns for each component into one set. `field` is
    /// the patterns' key in the catalogue files and is used in errors.
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
                entries.push(EntryId::new(c, i));
            }
        }
        let set = Expressions::new(&patterns).map_err(|e| {
            // The error of a regex set does not name the component, so each expression is checked
            // alone.
            let mut each =
                components.iter().flat_map(|c| list(c).into_iter().map(|p| (&c.name, p)));
            let bad =
                each.find_map(|(component, pattern)| anchored(component, field, pattern).err());
            bad.unwrap_or_else(|| Error::new(Kind::Usage, field, e))
        })?;
        Ok(Names { set, entries })
    }

    /// Every entry whose pattern matches `name`, in order of precedence.
    pub(crate) fn all(&self, name: &str) -> impl Iterator<Item = EntryId> {
        self.set.matches(name).map(|i| self.entries[i])
    }

    /// The entry of highest precedence whose pattern matches `name`.
    pub(crate) fn first(&self, name: &str) -> Option<EntryId> {
        self.all(name).next()
    }
}

/// An error about one field of a component's catalogue file.
pub(crate) fn refused(component: &str, field: &str, cause: impl std::fmt::Display) -> Error {
    Error::new(Kind::Usage, format!("owners/{component}.yaml"), format!("{field}: {cause}"))
}

/// Refuses an expression that has an alternative without `^` at its start.
pub(crate) fn is_anchored(component: &str, field: &str, pattern: &str) -> Result<()> {
    if pattern.starts_with('^') && !has_loose_alternative(pattern) {
        return Ok(());
    }
    let cause = "is not anchored at the start (`^`, alternatives in brackets)";
    Err(refused(component, field, format!("`{pattern}` {cause}")))
}

/// Reads an expression, and refuses it if it fails [`is_anchored`].
pub(crate) fn anchored(component: &str, field: &str, pattern: &str) -> Result<Expression> {
    is_anchored(component, field, pattern)?;
    Expression::new(pattern).map_err(|e| refused(component, field, format!("`{pattern}` {e}")))
}

/// True if the pattern has a `|` outside of brackets, so that `^` anchors only one alternative.
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
