//! What iptables-save, ipset, ipvsadm, sysctl and the kernel print.
#![no_main]

use std::collections::{BTreeSet, HashSet};

use libfuzzer_sys::{Corpus, fuzz_target};
use proxyshift::node::lossy_save::lossy;
use proxyshift::state::conntrack::ConntrackStat;
use proxyshift::state::equivalence::{canonical, ruleset_differences, same_rule};
use proxyshift::state::ipset::IpSets;
use proxyshift::state::ipvs::{ConnectionLimits, Listing, VirtualServers};
use proxyshift::state::rule::Words;
use proxyshift::state::ruleset::Ruleset;
use proxyshift::state::sysctl::Sysctls;
use proxyshift::state::tools::ToolList;
use proxyshift::state::{Files, NodeState, RulesetId};
use proxyshift_fuzz::{bounded, parsed, shown, with_texts};

/// How many rules of a text are taken apart.
const RULES: usize = 200;

fuzz_target!(|input: &[u8]| -> Corpus {
    with_texts(input, |kind, parts| {
        let text = *parts.first()?;
        match (kind, parts) {
            (b'r', [_]) => ruleset(text),
            (b'w', [_]) => words(text),
            (b'=', [a, b]) => assert_eq!(same_rule(a, b), same_rule(b, a)),
            (b'x', [_, stderr]) => drop(lossy("f", text, stderr).inspect(|e| shown(&e.cause))),
            (b's', [_]) => ipsets(text),
            (b'v', [_]) => servers(text),
            (b'l', [_]) => listing(text),
            (b'm', [_, save]) => limits(text, save),
            (b'y', [_]) => sysctls(text),
            (b'c', [_]) => conntrack(text),
            (b't', [_]) => tools(text),
            _ => return None,
        }
        Some(())
    })
});

fn ruleset(text: &str) {
    let Some(ruleset) = parsed(Ruleset::parse("f", text.into()), text) else { return };
    assert_eq!(ruleset.render(), text);
    assert!(ruleset.lines().eq(text.lines()));
    assert_eq!(ruleset.text_without("nat", &HashSet::new()), text);
    let rules = ruleset.tables.iter().flat_map(|table| table.rules());
    for (chain, at, rule) in rules.take(RULES) {
        let text = ruleset.rule_text(rule);
        assert_eq!(*ruleset.shared_text(rule), *text);
        assert_eq!(ruleset.rule_text(&chain.rules[at]), text);
        let target = ruleset.words(rule).target();
        assert_eq!(target.as_ref().map(|(name, goto)| (&**name, *goto)), {
            rule.target.as_deref().map(|name| (name, rule.goto))
        });
        assert_eq!(ruleset.words(rule).check(), Ok(()));
        let _ = ruleset.counters(rule);
        words(text);
    }
    without(&ruleset);
    let id = RulesetId::ALL[1];
    assert_eq!(ruleset_differences(id, Some(&ruleset), Some(&ruleset)), []);
    // Remarks mean nothing.
    let rules: String =
        text.lines().filter(|line| !line.starts_with('#')).flat_map(|line| [line, "\n"]).collect();
    let state = |text: &str| NodeState::parse(Files::from([(id.file(), text.into())]));
    let [with, without] = [text, &rules].map(|text| state(text).expect("it parsed before"));
    assert_eq!(with.fingerprint(), without.fingerprint());
    assert_eq!(with.differences(&without), []);
    assert_eq!(with.unfaithful_file(), None);
}

/// What remains of a ruleset without a chain or a rule parses.
fn without(ruleset: &Ruleset) {
    for table in &ruleset.tables {
        let Some(chain) = table.chains.last() else { continue };
        let text = ruleset.text_without(&table.name, &HashSet::from([&*chain.name]));
        let less = Ruleset::parse("f", text.into()).expect("a ruleset without a chain");
        let gone = less.table(&table.name).is_none_or(|table| table.chain(&chain.name).is_none());
        assert!(gone, "{} is left", chain.name);
        if let Some(rule) = chain.rules.first() {
            let text = ruleset.text_without_rules(&HashSet::from([rule.line]));
            let less = Ruleset::parse("f", text.into()).expect("a ruleset without a rule");
            assert_eq!(less.rule_count() + 1, ruleset.rule_count());
        }
    }
}

/// A rule means the same in other quotes, and as often as it is asked.
fn words(rule: &str) {
    let words = Words::of_rule(rule);
    let key = canonical(rule);
    bounded(key.len(), rule.len());
    let (comments, sets) = (words.comments(), words.sets());
    let first = words.terms().into_iter().find(|term| term.option == "--comment");
    assert_eq!(comments.is_empty(), first.is_none_or(|term| term.values.is_empty()));
    let _ = (sets, words.value("-s"));
    if words.check().is_err() || words.text().contains('!') {
        return;
    }
    let chain = rule.split_ascii_whitespace().nth(1).unwrap_or_default();
    let mut text = format!("-A {chain}");
    for term in words.terms() {
        text += &[" ", term.option].concat();
        for value in &term.values {
            text += &format!(" \"{}\"", value.replace('\\', "\\\\").replace('"', "\\\""));
        }
    }
    assert!(same_rule(rule, &text), "{text}\n{}\n{key}", canonical(&text));
}

fn ipsets(text: &str) {
    let Some(sets) = parsed(IpSets::parse("f", text), text) else { return };
    // Entries behind another set move up to their own.
    let rendered = sets.render();
    let lines = |text: &str| text.lines().map(str::to_owned).collect::<BTreeSet<_>>();
    assert_eq!(lines(&rendered), lines(text));
    assert_eq!(IpSets::parse("f", &rendered).expect("rendered").render(), rendered);
    assert_eq!(sets.differences(&sets), [""; 0]);
}

fn servers(text: &str) {
    let Some(servers) = parsed(VirtualServers::parse("f", text), text) else { return };
    renders_back(&servers);
    bounded(servers.render().len(), text.len());
}

fn renders_back(servers: &VirtualServers) {
    let text = servers.render();
    let again = VirtualServers::parse("f", &text).expect("what was rendered");
    assert_eq!(again, *servers, "{text}");
    assert_eq!(servers.differences(&again), [""; 0]);
}

fn listing(text: &str) {
    let Some(listing) = parsed(Listing::parse("f", text), text) else { return };
    assert!(listing.draining().count() <= text.lines().count());
}

fn limits(text: &str, save: &str) {
    let Some(limits) = parsed(ConnectionLimits::parse("f", text), text) else { return };
    let Ok(mut servers) = VirtualServers::parse("f", save) else { return };
    limits.put(&mut servers);
    renders_back(&servers);
}

fn sysctls(text: &str) {
    let Some(sysctls) = parsed(Sysctls::parse("f", text), text) else { return };
    assert_eq!(sysctls.render(), text);
    assert_eq!(sysctls.differences(&sysctls), [""; 0]);
}

fn conntrack(text: &str) {
    let Some(stat) = parsed(ConntrackStat::parse("f", text), text) else { return };
    assert!(stat.get("entries").is_some());
}

fn tools(text: &str) {
    let Some(tools) = parsed(ToolList::parse("f", text), text) else { return };
    assert_eq!(tools.render(), text);
    let _ = (tools.kernel_version(), tools.tools.iter().filter_map(|t| t.version()).count());
}
