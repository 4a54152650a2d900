//! Templates of rules. A template has fields in braces, as in `! -s {network} -d {subnet} -j
//! RETURN`.
//!
//! A name in braces is a field, whose regular expression is in the component's `fields`. A field
//! that occurs twice must have the same value both times. Words in square brackets are optional.

use std::collections::BTreeMap;

use crate::owners::expression::Expression;

/// The regular expressions of template fields, keyed by field name.
pub type Fields = BTreeMap<String, String>;

/// A template, compiled to one regular expression.
#[derive(Debug)]
pub struct Template {
    expression: Expression,
    /// Pairs of capture groups that must have the same value, because they are the same field.
    equal: Vec<(String, String)>,
}

/// The values of a template's fields in one rule, keyed by field name.
pub type Captured<'a> = BTreeMap<String, &'a str>;

impl Template {
    /// Compiles the template `text`, whose fields have the regular expressions in `fields`.
    ///
    /// # Errors
    /// What is wrong with the template, as a phrase for people.
    pub fn compile(text: &str, fields: &Fields) -> Result<Template, String> {
        let (pattern, equal) = pattern(text, fields)?;
        let expression = Expression::new(&pattern)?;
        Ok(Template { expression, equal })
    }

    /// The values of the fields; `None` if `body` (see [`crate::owners::content::Reading`]) does
    /// not match.
    pub fn captures<'a>(&self, body: &'a str) -> Option<Captured<'a>> {
        let found = self.expression.groups(body)?;
        if self.equal.iter().any(|(a, b)| found.get(a) != found.get(b)) {
            return None;
        }
        let names = self.expression.names().filter(|n| !n.contains("__"));
        Some(names.filter_map(|n| Some((n.to_owned(), found.get(n)?))).collect())
    }
}

/// The regular expression of a template in which no field occurs twice.
///
/// # Errors
/// What is wrong with the template, as a phrase for people.
pub fn plain_pattern(text: &str, fields: &Fields) -> Result<String, String> {
    let (pattern, equal) = pattern(text, fields)?;
    match equal.first() {
        Some((field, _)) => Err(format!("the field `{field}` stands twice")),
        None => Ok(pattern),
    }
}

/// Returns the regular expression of a template, which expects a blank before each word, and the
/// pairs of capture groups that must have equal values.
fn pattern(text: &str, fields: &Fields) -> Result<(String, Vec<(String, String)>), String> {
    let mut pattern = String::from("^");
    let mut equal = Vec::new();
    let mut counts: BTreeMap<&str, usize> = BTreeMap::new();
    let mut depth = 0;
    for mut word in text.split_whitespace() {
        while let Some(rest) = word.strip_prefix('[') {
            pattern.push_str("(?:");
            depth += 1;
            word = rest;
        }
        let bare = word.trim_end_matches(']');
        pattern.push(' ');
        let mut rest = bare;
        while let Some((before, after)) = rest.split_once('{') {
            let (name, after) =
                after.split_once('}').ok_or_else(|| format!("`{bare}` has an open brace"))?;
            let field = fields.get(name).ok_or_else(|| format!("no field is called `{name}`"))?;
            let count = counts.entry(name).or_default();
            *count += 1;
            let group = match *count {
                1 => name.to_owned(),
                n => format!("{name}__{n}"),
            };
            pattern.push_str(&regex::escape(before));
            pattern.push_str(&format!("(?P<{group}>{field})"));
            if *count > 1 {
                equal.push((name.to_owned(), group));
            }
            rest = after;
        }
        pattern.push_str(&regex::escape(rest));
        for _ in bare.len()..word.len() {
            pattern.push_str(")?");
            depth -= 1;
        }
    }
    if depth != 0 {
        return Err(format!("`{text}` has brackets without their partners"));
    }
    pattern.push('$');
    Ok((pattern, equal))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn compile(text: &str) -> Result<Template, String> {
        let fields = [("a", r"[0-9./]+"), ("b", r"[0-9./]+")];
        Template::compile(text, &fields.map(|(k, v)| (k.to_owned(), v.to_owned())).into())
    }

    #[test]
    fn fields_options_and_equality() {
        let t = compile("! -s {a} -d {a} -j MASQUERADE [--random-fully]").unwrap();
        let body = " ! -s 10.0.0.0/8 -d 10.0.0.0/8 -j MASQUERADE";
        assert_eq!(t.captures(body).unwrap()["a"], "10.0.0.0/8");
        assert!(t.captures(&format!("{body} --random-fully")).is_some());
        assert!(t.captures(&format!("{body} --random")).is_none());
        assert!(t.captures(" ! -s 10.0.0.0/8 -d 10.1.0.0/8 -j MASQUERADE").is_none());
        assert!(t.captures(" -s 10.0.0.0/8 -d 10.0.0.0/8 -j MASQUERADE").is_none());
    }

    #[test]
    fn groups_nest_and_the_empty_template_is_the_empty_rule() {
        let t = compile("[-s {a} [-d {b}]] -j X").unwrap();
        for (body, fits) in [
            (" -j X", true),
            (" -s 1 -j X", true),
            (" -s 1 -d 2 -j X", true),
            (" -d 2 -j X", false),
        ] {
            assert_eq!(t.captures(body).is_some(), fits, "{body}");
        }
        assert!(compile("").unwrap().captures("").is_some());
        assert!(compile("").unwrap().captures(" -j X").is_none());
    }

    #[test]
    fn what_cannot_be_is_refused() {
        for text in ["-s {c}", "-s {a", "[-s", "-s]"] {
            assert!(compile(text).is_err(), "{text}");
        }
    }
}
