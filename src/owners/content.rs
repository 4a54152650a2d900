//! The forms that a component's rules have in its own chains. Rules of any other form in these
//! chains are foreign.

use std::borrow::Cow;

use crate::error::Result;
use crate::owners::component::{Component, RawContent};
use crate::owners::expression::Expressions;
use crate::owners::names::{is_anchored, refused};
use crate::owners::template::plain_pattern;
use crate::state::rule::Words;

/// The forms of the rules in one kind of chain.
#[derive(Debug)]
pub(crate) struct Content {
    /// True if rules of any other form are the operator's.
    pub(crate) operator: bool,
    comments: Expressions,
    /// Patterns for a rule's text with its comments removed. `None` if only the comments must
    /// match.
    forms: Option<Expressions>,
}

impl Content {
    pub(crate) fn compile(component: &Component, name: &str, raw: &RawContent) -> Result<Content> {
        let field = format!("contents.{name}");
        let refused = |cause: String| refused(&component.name, &field, cause);
        if raw.by.as_deref().is_some_and(|by| by != "operator") {
            return Err(refused("by: may only be `operator`".into()));
        }
        let comments: Vec<&String> =
            raw.comments.iter().chain(&component.content_comments).collect();
        for pattern in &comments {
            is_anchored(&component.name, &field, pattern)?;
        }
        let forms = match &raw.forms {
            None => None,
            Some(forms) => {
                let patterns = forms
                    .iter()
                    .map(|form| plain_pattern(form, &component.fields))
                    .collect::<Result<Vec<_>, _>>()
                    .map_err(refused)?;
                Some(Expressions::new(&patterns).map_err(refused)?)
            }
        };
        Ok(Content {
            operator: raw.by.is_some(),
            comments: Expressions::new(&comments).map_err(refused)?,
            forms,
        })
    }

    /// True if the rule has one of these forms.
    pub(crate) fn fits(&self, rule: &Reading<'_>) -> bool {
        let mut comments = rule.comments.iter();
        match &self.forms {
            Some(forms) => {
                comments.all(|c| self.comments.is_match(c)) && forms.is_match(&rule.body)
            }
            // One comment signs the rule. Whoever writes it may say more in another, as felix does.
            None => comments.any(|c| self.comments.is_match(c)),
        }
    }
}

/// A rule, split for matching into its comments and all other words.
#[derive(Debug, Default)]
pub struct Reading<'a> {
    /// The rule's text with its comments removed and a blank before each word: ` -s 10.0.0.0/8 -j
    /// RETURN`.
    pub body: String,
    /// The rule's comments, with their quotes removed.
    pub comments: Vec<Cow<'a, str>>,
}

const COMMENT: &str = "-m comment --comment ";

impl<'a> Reading<'a> {
    /// Splits a rule.
    pub fn of(words: Words<'a>) -> Reading<'a> {
        let mut reading = Reading::default();
        reading.read(words);
        reading
    }

    /// Splits a rule into the existing buffers, to save allocations.
    pub(crate) fn read(&mut self, words: Words<'a>) {
        self.body.clear();
        self.comments.clear();
        if !self.read_plain(words.text()) {
            self.read_terms(words);
        }
    }

    /// Splits a rule of one of the two usual forms: no comment, or a single quoted comment that has
    /// no escapes. Returns false if the rule has another form.
    fn read_plain(&mut self, text: &'a str) -> bool {
        if text.contains('\\') || text.contains('\t') || text.contains("  ") {
            return false;
        }
        let (before, comment, after) = match text.split_once('"') {
            None if !text.contains("--comment") => (text, None, ""),
            None => return false,
            Some((before, rest)) => {
                let Some((comment, after)) = rest.split_once('"') else { return false };
                let Some(before) = before.strip_suffix(COMMENT) else { return false };
                if after.contains('"') || [before, after].iter().any(|t| t.contains("--comment")) {
                    return false;
                }
                (before, Some(comment), after)
            }
        };
        for part in [before.trim_end(), after.trim()] {
            if !part.is_empty() {
                self.body.push(' ');
                self.body.push_str(part);
            }
        }
        self.comments.extend(comment.map(Cow::Borrowed));
        true
    }

    fn read_terms(&mut self, words: Words<'a>) {
        let mut terms = words.terms().into_iter().peekable();
        while let Some(term) = terms.next() {
            let comment = |t: &crate::state::rule::Term<'_>| t.option == "--comment";
            if term.option == "-m" && term.value() == "comment" && terms.peek().is_some_and(comment)
            {
                continue;
            }
            if comment(&term) {
                self.comments.extend(term.values.into_iter().next());
                continue;
            }
            let negation = term.negated.then_some("!");
            let option = (!term.option.is_empty()).then_some(term.option);
            let values = term.values.iter().map(|v| &**v);
            for word in negation.into_iter().chain(option).chain(values) {
                self.body.push(' ');
                self.body.push_str(word);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_ways_of_reading_agree() {
        for (rule, body, comments) in [
            ("-A X -j Y", " -j Y", vec![]),
            ("-A X", "", vec![]),
            (
                r#"-A X -s 1.2.3.4/32 -m comment --comment "a b" -j Y"#,
                " -s 1.2.3.4/32 -j Y",
                vec!["a b"],
            ),
            (r#"-A X -m comment --comment "a b""#, "", vec!["a b"]),
        ] {
            let quick = Reading::of(Words::of_rule(rule));
            let mut slow = Reading::default();
            slow.read_terms(Words::of_rule(rule));
            assert_eq!(
                (quick.body.as_str(), &quick.comments),
                (slow.body.as_str(), &slow.comments)
            );
            assert_eq!(
                (quick.body.as_str(), &quick.comments[..]),
                (body, &comments.iter().map(|c| Cow::Borrowed(*c)).collect::<Vec<_>>()[..])
            );
        }
    }

    #[test]
    fn odd_rules_are_read_word_by_word() {
        for (rule, body, comments) in [
            ("-A X -m comment --comment flannel -j Y", " -j Y", vec!["flannel"]),
            (
                r#"-A X -m comment --comment "pod\'s" ! -d 1.1.1.1/32 -j Y"#,
                " ! -d 1.1.1.1/32 -j Y",
                vec!["pod's"],
            ),
            (
                r#"-A X -m comment --comment "a" -m comment --comment "b" -j Y"#,
                " -j Y",
                vec!["a", "b"],
            ),
            (
                r#"-A X -j LOG --log-prefix "--comment x ""#,
                " -j LOG --log-prefix --comment x ",
                vec![],
            ),
        ] {
            let found = Reading::of(Words::of_rule(rule));
            assert_eq!(found.body, body);
            assert_eq!(found.comments, comments);
        }
    }
}
