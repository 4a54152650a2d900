//! The words of one iptables rule: its options with their values, as iptables prints them.

use std::borrow::Cow;

/// One option of a rule with its values: `! -s 10.0.0.0/8`, `--match-set NAME dst,dst`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Term<'a> {
    /// Whether a `!` precedes the option.
    pub negated: bool,
    /// The option: `-s`, `--dport`, `-m`, `-j`. Empty for values that follow no option.
    pub option: &'a str,
    /// The option's values, without quotes.
    pub values: Vec<Cow<'a, str>>,
}

impl Term<'_> {
    /// The option's first value; an empty string if it has none.
    pub fn value(&self) -> &str {
        self.values.first().map_or("", |v| v)
    }
}

/// The words of a rule after `-A CHAIN`. They are split each time they are read, and not stored.
#[derive(Debug, Clone, Copy)]
pub struct Words<'a> {
    text: &'a str,
}

/// Options whose values may look like options, and how many values each takes. iptables prints a
/// comment, or the name of an accounting object, of one safe word without quotes (`--comment -x`),
/// and the name of an ipset, a timeout policy or an estimator always without quotes
/// (`--match-set !a#b src`).
const VERBATIM: [(&str, usize); 14] = [
    ("--comment", 1),
    ("--log-prefix", 1),
    ("--nflog-prefix", 1),
    ("--match-set", 2),
    ("--add-set", 1),
    ("--del-set", 1),
    ("--map-set", 1),
    ("--nfacct-name", 1),
    ("--timeout", 1),
    ("--rateest", 1),
    ("--rateest1", 1),
    ("--rateest2", 1),
    ("--rateest-name", 1),
    ("--string", 1),
];

fn verbatim_values(option: &str) -> usize {
    VERBATIM.iter().find(|(o, _)| *o == option).map_or(0, |(_, n)| *n)
}

impl<'a> Words<'a> {
    /// The words of the rule text `-A CHAIN …`.
    pub fn of_rule(rule: &'a str) -> Words<'a> {
        let body = rule.strip_prefix("-A ").map_or("", str::trim_start);
        let body = body.split_once(' ').map_or("", |(_, body)| body);
        Words { text: body }
    }

    /// The rule's text after the chain's name.
    pub fn text(self) -> &'a str {
        self.text
    }

    /// Every word that iptables may take for an option: quotes do not keep it from that, only being
    /// the value of an option that takes any text.
    pub fn possible_options(self) -> Vec<&'a str> {
        let mut verbatim = 0;
        let mut found = Vec::new();
        for token in Tokens(self.text) {
            if verbatim > 0 {
                verbatim -= 1;
            } else if token.raw.starts_with('-') {
                verbatim = verbatim_values(token.raw);
                found.push(token.raw);
            }
        }
        found
    }

    /// The rule's options with their values, in order.
    pub fn terms(self) -> Vec<Term<'a>> {
        let mut terms: Vec<Term<'a>> = Vec::new();
        let mut negated = false;
        let mut verbatim = 0;
        for token in Tokens(self.text) {
            if verbatim > 0 {
                verbatim -= 1;
                push_value(&mut terms, token);
            } else if token.raw == "!" {
                negated = true;
            } else if token.is_option() {
                verbatim = verbatim_values(token.raw);
                terms.push(Term { negated, option: token.raw, values: Vec::new() });
                negated = false;
            } else {
                if std::mem::take(&mut negated) {
                    // In the form `-d ! x` of very old versions, the `!` is kept as a value.
                    push_value(&mut terms, Token { raw: "!", quoted: false, closed: true });
                }
                push_value(&mut terms, token);
            }
        }
        terms
    }

    /// Whether the rule's first option called `option` is negated, and that option's first value.
    pub fn value(self, option: &str) -> Option<(bool, Cow<'a, str>)> {
        self.terms().into_iter().find(|t| t.option == option).map(|mut t| {
            (t.negated, if t.values.is_empty() { "".into() } else { t.values.remove(0) })
        })
    }

    /// The chain or target after `-j` or `-g`, and whether it was `-g` (goto).
    pub fn target(self) -> Option<(Cow<'a, str>, bool)> {
        // All words are read from the start, although the target is near the end, because an
        // earlier word such as a quoted comment may also be "-j".
        let mut take = None;
        let mut verbatim = 0;
        for token in Tokens(self.text) {
            match take {
                Some(goto) => return Some((token.value(), goto)),
                None if verbatim > 0 => verbatim -= 1,
                None if token.quoted => {}
                None if token.raw == "-j" || token.raw == "--jump" => take = Some(false),
                None if token.raw == "-g" || token.raw == "--goto" => take = Some(true),
                None => verbatim = verbatim_values(token.raw),
            }
        }
        None
    }

    /// The comments in the rule (`--comment`), without quotes.
    pub fn comments(self) -> Vec<Cow<'a, str>> {
        if !self.text.contains("--comment") {
            return Vec::new();
        }
        let comment = |t: Term<'a>| (t.option == "--comment").then(|| t.values.into_iter().next());
        self.terms().into_iter().filter_map(comment).flatten().collect()
    }

    /// Refuses what iptables-restore refuses: a quote that is not closed, and a remark (`#`) after
    /// a rule.
    ///
    /// # Errors
    /// The cause, for people.
    pub fn check(self) -> Result<(), &'static str> {
        if !self.text.contains(['"', '#']) {
            return Ok(());
        }
        let mut verbatim = 0;
        for token in Tokens(self.text) {
            if !token.closed {
                return Err("a quote is not closed");
            }
            if verbatim > 0 {
                verbatim -= 1;
            } else if !token.quoted && token.raw.starts_with('#') {
                return Err("a remark behind a rule, which iptables-restore refuses");
            } else if !token.quoted {
                verbatim = verbatim_values(token.raw);
            }
        }
        Ok(())
    }
}

fn push_value<'a>(terms: &mut Vec<Term<'a>>, token: Token<'a>) {
    match terms.last_mut() {
        Some(term) => term.values.push(token.value()),
        None => terms.push(Term { negated: false, option: "", values: vec![token.value()] }),
    }
}

#[derive(Clone, Copy)]
struct Token<'a> {
    /// The text of the word, without the quotes around it.
    raw: &'a str,
    quoted: bool,
    closed: bool,
}

impl<'a> Token<'a> {
    fn is_option(&self) -> bool {
        !self.quoted
            && self.raw.len() > 1
            && self.raw.starts_with('-')
            && !is_number(&self.raw[1..])
    }

    fn value(&self) -> Cow<'a, str> {
        if !self.quoted || !self.raw.contains('\\') {
            return Cow::Borrowed(self.raw);
        }
        let mut value = String::with_capacity(self.raw.len());
        let mut chars = self.raw.chars();
        while let Some(c) = chars.next() {
            value.push(if c == '\\' { chars.next().unwrap_or(c) } else { c });
        }
        Cow::Owned(value)
    }
}

fn is_number(text: &str) -> bool {
    text.bytes().all(|b| b.is_ascii_digit())
}

/// An iterator over words that blanks separate. A backslash is special only inside double quotes.
struct Tokens<'a>(&'a str);

impl<'a> Iterator for Tokens<'a> {
    type Item = Token<'a>;

    fn next(&mut self) -> Option<Token<'a>> {
        let text = self.0.trim_start_matches([' ', '\t']);
        if text.is_empty() {
            self.0 = text;
            return None;
        }
        if let Some(body) = text.strip_prefix('"') {
            let end = quote_end(body);
            self.0 = end.map_or("", |e| &body[e + 1..]);
            let raw = end.map_or(body, |e| &body[..e]);
            return Some(Token { raw, quoted: true, closed: end.is_some() });
        }
        let end = text.find([' ', '\t']).unwrap_or(text.len());
        self.0 = &text[end..];
        Some(Token { raw: &text[..end], quoted: false, closed: true })
    }
}

/// The index of the closing quote; none if the quote is not closed.
fn quote_end(body: &str) -> Option<usize> {
    let mut escaped = false;
    for (i, b) in body.bytes().enumerate() {
        match b {
            _ if escaped => escaped = false,
            b'\\' => escaped = true,
            b'"' => return Some(i),
            _ => {}
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Words<'_> {
        Words::of_rule(text)
    }

    #[test]
    fn options_negations_and_quotes() {
        let w = words(
            r#"-A X ! -s 10.0.0.0/8 -m comment --comment "a \"b\" pod\'s -j Y" -p tcp ! --dport 80:90 -j KUBE-MARK-MASQ"#,
        );
        let terms = w.terms();
        assert_eq!(
            terms[0],
            Term { negated: true, option: "-s", values: vec!["10.0.0.0/8".into()] }
        );
        assert_eq!(w.comments(), [r#"a "b" pod's -j Y"#]);
        assert_eq!(w.target(), Some(("KUBE-MARK-MASQ".into(), false)));
        let dport = terms.iter().find(|t| t.option == "--dport").expect("a port");
        assert!(dport.negated);
    }

    #[test]
    fn two_comments_and_no_words() {
        let w = words(r#"-A X -m comment --comment cali -m comment --comment "two words" -g Y"#);
        assert_eq!(w.comments(), ["cali", "two words"]);
        assert_eq!(w.target(), Some(("Y".into(), true)));
        assert!(words("-A X").terms().is_empty());
        assert_eq!(words("-A X").target(), None);
    }

    #[test]
    fn a_set_name_may_hold_anything() {
        let w = words(r"-A W -m set ! --match-set weave-;rGqyMIl1HN^cfDki~Z$3]6!N dst -j DROP");
        assert_eq!(w.sets(), ["weave-;rGqyMIl1HN^cfDki~Z$3]6!N"]);
        assert!(w.check().is_ok());
        let w = words("-A X -m comment --comment -j -j ACCEPT");
        assert_eq!(w.target(), Some(("ACCEPT".into(), false)));
        let w = words(r"-A W -m set --match-set #! src -m comment --comment -x -j DROP");
        assert_eq!(w.sets(), ["#!"]);
        assert_eq!(w.comments(), ["-x"]);
        assert!(w.check().is_ok());
    }

    #[test]
    fn what_restore_refuses_is_refused() {
        assert!(words("-A X -j Y # no").check().is_err());
        assert!(words("-A X -m comment --comment \"open").check().is_err());
    }
}
