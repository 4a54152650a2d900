//! `iptables-save` output, parsed into tables, chains and rules.
//!
//! The text is kept once. A rule is a span of that text, and [`Ruleset::words`] splits it on demand
//! (see [`crate::state::rule`]). Syntax: iptables-save(8), and libxtables' `xtables_save_string`
//! for quoting.

use std::collections::{HashMap, HashSet};

use crate::error::{Error, Kind, Result};
use crate::state::rule::Words;
use crate::state::shared_str::SharedStr;
use crate::state::shared_str::StrSlice;

/// The name of a table, chain or target, as a slice of the parsed text.
pub type Name = StrSlice;

/// How many packets and bytes a rule or policy has counted.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    /// The number of packets.
    pub packets: u64,
    /// The number of bytes.
    pub bytes: u64,
}

/// A range of bytes in the parsed text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Span {
    start: u32,
    end: u32,
}

/// One rule, which is a span of the ruleset's text.
#[derive(Debug, Clone)]
pub struct Rule {
    /// The chain or target after `-j` or `-g`; none for a rule without a target.
    pub target: Option<Name>,
    /// Whether the target follows `-g` (goto), not `-j`.
    pub goto: bool,
    /// The rule's line number in the file, from 1.
    pub line: u32,
    span: Span,
}

/// One chain with its rules.
#[derive(Debug, Clone)]
pub struct Chain {
    /// The chain's name: `KUBE-SERVICES`.
    pub name: Name,
    /// The policy of a built-in chain; none for a user-defined one.
    pub policy: Option<Name>,
    /// The policy's counters, if the file has them.
    pub counters: Option<Counters>,
    /// The chain's rules, first to last.
    pub rules: Vec<Rule>,
    line: u32,
    span: Span,
}

/// One table with its chains, in the order in which the file declares them.
#[derive(Debug, Clone)]
pub struct Table {
    /// The table's name: `nat`, `filter`, …
    pub name: Name,
    /// The table's chains, in the order of the file.
    pub chains: Vec<Chain>,
    /// The indexes of the chains, sorted by chain name.
    by_name: Vec<u32>,
}

/// All tables of one `iptables-save` output.
#[derive(Debug, Clone)]
pub struct Ruleset {
    text: SharedStr,
    /// The tables, in the order of the file.
    pub tables: Vec<Table>,
    /// The lines that are no chain and no rule (comments, blank lines, `*table` and `COMMIT`), each
    /// with its line number.
    other_lines: Vec<(u32, Span)>,
}

/// The built-in chains. A file may have rules of these chains without declaring them.
const BUILT_IN: [&str; 5] = ["PREROUTING", "INPUT", "FORWARD", "OUTPUT", "POSTROUTING"];

impl Table {
    /// The chain called `name`.
    pub fn chain(&self, name: &str) -> Option<&Chain> {
        let at = |i: &u32| &self.chains[*i as usize];
        let found = self.by_name.binary_search_by(|i| (*at(i).name).cmp(name)).ok()?;
        Some(at(&self.by_name[found]))
    }

    /// The table's chains, sorted by name.
    pub fn by_name(&self) -> impl Iterator<Item = &Chain> {
        self.by_name.iter().map(|i| &self.chains[*i as usize])
    }

    /// Each rule of the table, with its chain and its index in that chain, from 0.
    pub fn rules(&self) -> impl Iterator<Item = (&Chain, usize, &Rule)> {
        self.chains.iter().flat_map(|c| c.rules.iter().enumerate().map(move |(i, r)| (c, i, r)))
    }

    /// Whether the table was never used: it has only built-in chains, each with the policy ACCEPT
    /// and no rules.
    pub fn is_pristine(&self) -> bool {
        self.chains.iter().all(|c| c.rules.is_empty() && c.policy.as_deref() == Some("ACCEPT"))
    }
}

impl Chain {
    /// Whether the chain is built in: only built-in chains have a policy.
    pub fn is_built_in(&self) -> bool {
        self.policy.is_some()
    }
}

impl Ruleset {
    /// Parses the output of `iptables-save`; errors call it `file`.
    ///
    /// # Errors
    /// [`Kind::Parse`] with the line and the cause. A text without any `*table … COMMIT` is an
    /// error, never an empty ruleset.
    pub fn parse(file: &str, text: SharedStr) -> Result<Ruleset> {
        let mut parser = Parser::new(file, &text);
        parser.run()?;
        let Parser { mut tables, other_lines, .. } = parser;
        for table in &mut tables {
            table.chains.shrink_to_fit();
            let mut by_name: Vec<u32> = (0..).take(table.chains.len()).collect();
            by_name.sort_unstable_by(|a, b| {
                table.chains[*a as usize].name.cmp(&table.chains[*b as usize].name)
            });
            table.by_name = by_name;
        }
        Ok(Ruleset { tables, other_lines, text })
    }

    /// The text that this ruleset was parsed from.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// The table called `name`.
    pub fn table(&self, name: &str) -> Option<&Table> {
        self.tables.iter().find(|t| &*t.name == name)
    }

    /// The rule's text from `-A` on, without counters.
    pub fn rule_text(&self, rule: &Rule) -> &str {
        self.slice(rule.span)
    }

    /// The text of [`Self::rule_text`], as a slice that shares the parsed text.
    pub fn shared_text(&self, rule: &Rule) -> StrSlice {
        StrSlice::part(&self.text, rule.span.start, rule.span.end)
    }

    /// The rule's counters, if the file has them (`iptables-save -c`).
    pub fn counters(&self, rule: &Rule) -> Option<Counters> {
        counters(self.line_of(rule))
    }

    /// The rule's whole line, with the counters in front.
    pub fn line_of(&self, rule: &Rule) -> &str {
        let text = self.text();
        let start = text[..rule.span.start as usize].rfind('\n').map_or(0, |end| end + 1);
        &text[start..rule.span.end as usize]
    }

    /// The words of the rule after `-A CHAIN`.
    pub fn words<'a>(&'a self, rule: &Rule) -> Words<'a> {
        Words::of_rule(self.rule_text(rule))
    }

    /// The number of rules in all tables.
    pub fn rule_count(&self) -> usize {
        self.tables.iter().flat_map(|t| &t.chains).map(|c| c.rules.len()).sum()
    }

    /// Renders the parsed file again, to the byte.
    pub fn render(&self) -> String {
        let mut text = String::with_capacity(self.text().len());
        for line in self.lines() {
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// The lines of [`Self::render`], in order.
    pub fn lines(&self) -> impl Iterator<Item = &str> {
        let mut lines: Vec<(u32, &str)> =
            self.other_lines.iter().map(|(line, span)| (*line, self.slice(*span))).collect();
        for chain in self.tables.iter().flat_map(|t| &t.chains) {
            if chain.line > 0 {
                lines.push((chain.line, self.slice(chain.span)));
            }
            lines.extend(chain.rules.iter().map(|rule| (rule.line, self.line_of(rule))));
        }
        lines.sort_unstable_by_key(|(line, _)| *line);
        lines.into_iter().map(|(_, text)| text)
    }

    /// The file's text without `chains`, which are names of chains of `table`, and without the
    /// rules in these chains.
    pub fn text_without(&self, table: &str, chains: &HashSet<&str>) -> String {
        let mut text = String::new();
        let mut inside = false;
        for line in self.text().lines() {
            if let Some(name) = line.strip_prefix('*') {
                inside = name.trim_end() == table;
            }
            let body = line.find("-A ").filter(|_| line.starts_with(['-', '[']));
            let rest = body.map(|at| &line[at + 3..]).or_else(|| line.strip_prefix(':'));
            let chain = rest.and_then(|rest| rest.split_ascii_whitespace().next());
            if inside && chain.is_some_and(|chain| chains.contains(chain)) {
                continue;
            }
            text.push_str(line);
            text.push('\n');
        }
        text
    }

    /// The file's text without the rules whose line numbers are in `lines`.
    pub fn text_without_rules(&self, lines: &HashSet<u32>) -> String {
        let kept = (1..).zip(self.text().lines()).filter(|(number, _)| !lines.contains(number));
        kept.flat_map(|(_, line)| [line, "\n"]).collect()
    }

    fn slice(&self, span: Span) -> &str {
        &self.text()[span.start as usize..span.end as usize]
    }
}

/// Parses `[packets:bytes]` at the start of a text; more text may follow.
fn counters(text: &str) -> Option<Counters> {
    let (packets, bytes) = text.strip_prefix('[')?.split_once(']')?.0.split_once(':')?;
    Some(Counters { packets: packets.parse().ok()?, bytes: bytes.parse().ok()? })
}

struct Parser<'a> {
    file: &'a str,
    text: &'a SharedStr,
    line: u32,
    tables: Vec<Table>,
    /// The index of each chain of the last table, keyed by the chain's name.
    chains: HashMap<&'a str, usize>,
    /// The index of the chain that is being read, and its rules so far. The rules are moved into
    /// the chain all at once, so that each chain allocates exactly the space that it needs: chains
    /// are many, and most are short.
    rules: (usize, Vec<Rule>),
    other_lines: Vec<(u32, Span)>,
    /// Whether the parser is between `*table` and `COMMIT`.
    open: bool,
}

impl<'a> Parser<'a> {
    fn new(file: &'a str, text: &'a SharedStr) -> Self {
        let (tables, chains, rules, other_lines) = Default::default();
        Parser { file, text, line: 0, tables, chains, rules, other_lines, open: false }
    }

    fn run(&mut self) -> Result<()> {
        if u32::try_from(self.text.len()).is_err() {
            return Err(self.error("larger than 4 GiB"));
        }
        let mut start = 0;
        while start < self.text.len() {
            self.line += 1;
            let Some(length) = self.text[start..].find('\n') else {
                return Err(self.error("the last line is cut off: it has no line end"));
            };
            self.parse_line(start, start + length)?;
            start += length + 1;
        }
        if self.open {
            return Err(self.error("the file ends inside a table: no COMMIT"));
        }
        if self.tables.is_empty() {
            return Err(self
                .error("no `*table … COMMIT` in the file; this is not an empty ruleset")
                .hint("save it again with iptables-save -c"));
        }
        Ok(())
    }

    fn parse_line(&mut self, start: usize, end: usize) -> Result<()> {
        let line = &self.text[start..end];
        if line.contains('\r') {
            return Err(self.error(
                "a carriage return: the file was edited on, or copied from, another system",
            ));
        }
        match line.as_bytes().first() {
            None | Some(b'#') => self.keep(start, end),
            Some(b'*') => self.open_table(start, end)?,
            Some(b':') => self.declare_chain(start, end)?,
            Some(b'-' | b'[') => self.add_rule(start, end)?,
            _ if line.trim_end() == "COMMIT" => {
                if !std::mem::take(&mut self.open) {
                    return Err(self.error("COMMIT outside a table"));
                }
                self.settle_rules();
                self.keep(start, end);
            }
            _ if line.trim().is_empty() => self.keep(start, end),
            _ => return Err(self.error(format!("not a line of iptables-save: `{line}`"))),
        }
        Ok(())
    }

    fn open_table(&mut self, start: usize, end: usize) -> Result<()> {
        let name = self.text[start + 1..end].trim_end();
        if self.open {
            return Err(self.error(format!("table `{name}` begins before COMMIT of the last one")));
        }
        if name.is_empty() || name.contains(char::is_whitespace) {
            return Err(self.error(format!("table name `{name}` is not one word")));
        }
        if self.tables.iter().any(|t| &*t.name == name) {
            return Err(self.error(format!("table `{name}` a second time")));
        }
        let name = self.text.slice_of(name);
        self.tables.push(Table { name, chains: Vec::new(), by_name: Vec::new() });
        self.chains.clear();
        self.open = true;
        self.keep(start, end);
        Ok(())
    }

    fn declare_chain(&mut self, start: usize, end: usize) -> Result<()> {
        let line = &self.text[start + 1..end];
        let mut words = line.split_ascii_whitespace();
        let (Some(name), Some(policy)) = (words.next(), words.next()) else {
            return Err(self.error(format!("a chain needs a name and a policy: `:{line}`")));
        };
        let counted = words.next();
        let counters = counted.and_then(counters);
        if counted.is_some() && counters.is_none() || words.next().is_some() {
            return Err(self.error(format!("not a chain declaration: `:{line}`")));
        }
        let chain = Chain {
            name: self.text.slice_of(name),
            policy: (policy != "-").then(|| self.text.slice_of(policy)),
            counters,
            rules: Vec::new(),
            line: self.line,
            span: span(start, end),
        };
        self.insert_chain(name, chain)
    }

    fn insert_chain(&mut self, name: &'a str, chain: Chain) -> Result<()> {
        let Some(table) = self.tables.last_mut().filter(|_| self.open) else {
            return Err(self.error(format!("chain `{}` outside a table", chain.name)));
        };
        if self.chains.insert(name, table.chains.len()).is_some() {
            return Err(self.error(format!("chain `{}` a second time", chain.name)));
        }
        table.chains.push(chain);
        Ok(())
    }

    fn add_rule(&mut self, start: usize, end: usize) -> Result<()> {
        let line = &self.text[start..end];
        let body = match line.strip_prefix('[') {
            None => line,
            Some(_) if counters(line).is_none() => {
                return Err(self.error(format!("counters are not [packets:bytes]: `{line}`")));
            }
            Some(rest) => rest.split_once(']').map_or(rest, |(_, body)| body.trim_start()),
        };
        let at = end - body.len();
        let Some(chain) = body.strip_prefix("-A ").and_then(|b| b.split_ascii_whitespace().next())
        else {
            return Err(self.error(format!("not an appended rule (-A CHAIN …): `{line}`")));
        };
        let words = Words::of_rule(body);
        words.check().map_err(|cause| self.error(format!("{cause}: `{line}`")))?;
        let target = words.target();
        let rule = Rule {
            target: target.as_ref().map(|(name, _)| self.text.slice_of(name)),
            goto: target.is_some_and(|(_, goto)| goto),
            line: self.line,
            span: span(at, end),
        };
        if !self.open {
            return Err(self.error("a rule outside a table"));
        }
        self.push_rule(chain, rule)
    }

    fn push_rule(&mut self, chain: &'a str, rule: Rule) -> Result<()> {
        if !self.chains.contains_key(chain) {
            if !BUILT_IN.contains(&chain) {
                return Err(self.error(format!("a rule in chain `{chain}`, which is not declared")));
            }
            // iptables-restore also accepts rules of a built-in chain that is not declared.
            let name = self.text.slice_of(chain);
            let policy = Some("ACCEPT".into());
            let span = span(0, 0);
            let rules = Vec::new();
            let added = Chain { name, policy, counters: None, rules, line: 0, span };
            self.insert_chain(chain, added)?;
        }
        if let Some(&chain) = self.chains.get(chain) {
            if chain != self.rules.0 {
                self.settle_rules();
                self.rules.0 = chain;
            }
            self.rules.1.push(rule);
        }
        Ok(())
    }

    /// Moves the rules read so far into their chain.
    fn settle_rules(&mut self) {
        let (chain, rules) = &mut self.rules;
        if let Some(chain) = self.tables.last_mut().and_then(|table| table.chains.get_mut(*chain)) {
            chain.rules.reserve_exact(rules.len());
            chain.rules.append(rules);
        }
    }

    fn keep(&mut self, start: usize, end: usize) {
        self.other_lines.push((self.line, span(start, end)));
    }

    fn error(&self, cause: impl std::fmt::Display) -> Error {
        Error::new(Kind::Parse, format!("{} line {}", self.file, self.line), cause)
    }
}

/// Makes a span of two offsets. They fit into 32 bits, because the text's length was checked.
#[expect(clippy::cast_possible_truncation)]
fn span(start: usize, end: usize) -> Span {
    Span { start: start as u32, end: end as u32 }
}
