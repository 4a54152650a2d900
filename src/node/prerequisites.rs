//! Captures what rules name and is neither an ipset nor made by a rule: accounting objects and timeout
//! policies. The kernel is asked only where a rule names one, because to ask loads a module.

use std::collections::BTreeSet;

use crate::error::{Error, Kind, Result};
use crate::node::nfnetlink::accounting::accounting_objects;
use crate::node::nfnetlink::timeout_policies::timeout_policies;
use crate::state::prerequisite::{Prerequisite, PrerequisiteKind, render_named};
use crate::state::rule::Words;
use crate::state::timeout_policy::TimeoutPolicy;
use crate::state::{Files, RulesetId};

/// How many characters of a policy's name the kernel shows: since Linux 4.11 it hides the rest from
/// iptables-save (`usersize` in net/netfilter/xt_CT.c; seen with 6.18).
const SHOWN: usize = 4;

/// What the saves in `files` name, as the files of a node state: `nfacct.save` and `cttimeout.save`.
///
/// # Errors
/// [`Kind::LossyCapture`] when iptables-save does not show which policy a rule names;
/// [`Kind::Kernel`] when the kernel cannot list the objects.
pub(super) fn capture_named(files: &Files) -> Result<[(&'static str, String); 2]> {
    let all = named(files);
    let of = |kind: PrerequisiteKind| {
        let all = all.iter().filter(|one| one.kind == kind);
        all.map(|one| one.name.as_str()).collect::<BTreeSet<&str>>()
    };
    let names = of(PrerequisiteKind::Accounting);
    let mut objects = if names.is_empty() { Vec::new() } else { accounting_objects()? };
    objects.retain(|object| names.contains(object.name.as_str()));
    let names = of(PrerequisiteKind::TimeoutPolicy);
    let mut policies = if names.is_empty() { Vec::new() } else { timeout_policies()? };
    names.iter().try_for_each(|name| is_shown_whole(name, &policies))?;
    policies.retain(|policy| names.contains(policy.name.as_str()));
    Ok(render_named(&objects, &policies))
}

fn named(files: &Files) -> BTreeSet<Prerequisite> {
    let marked = |text: &str| ["--nfacct-name ", "--timeout "].iter().any(|m| text.contains(m));
    let saves = RulesetId::ALL.iter().filter_map(|id| files.get(&id.file()));
    let lines = saves.filter(|save| marked(save)).flat_map(|save| save.lines());
    let rules =
        lines.filter(|line| marked(line)).filter_map(|line| Some(&line[line.find("-A ")?..]));
    rules.flat_map(|rule| Words::of_rule(rule).prerequisites()).collect()
}

/// Fails unless the policy that a rule names can only be that of this `name`.
fn is_shown_whole(name: &str, policies: &[TimeoutPolicy]) -> Result<()> {
    let may_be = |policy: &&TimeoutPolicy| {
        policy.name == name || name.len() == SHOWN && policy.name.starts_with(name)
    };
    let mut candidates = policies.iter().filter(may_be);
    match (candidates.next(), candidates.next()) {
        (Some(only), None) if only.name == name => Ok(()),
        _ => {
            let cause = format!(
                "iptables-save may not show the whole name of the policy that a rule of the target \
                 CT names: the kernel hides what follows the first {SHOWN} characters"
            );
            let hint = format!(
                "name a policy of at most {SHOWN} characters in that rule, which no other policy's \
                 name begins with: `nfct list timeout` shows all"
            );
            Err(Error::new(Kind::LossyCapture, format!("timeout policy {name}"), cause).hint(hint))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_that_may_be_longer_is_refused() {
        let policies = |names: &[&str]| {
            let lines: String = names.iter().map(|n| format!("{n} inet tcp close 5\n")).collect();
            TimeoutPolicy::parse("f", &lines).unwrap()
        };
        for (name, known, whole) in [
            ("pol", &["pol", "policy"][..], true),
            ("poli", &["poli", "pol"], true),
            ("poli", &["policy"], false),
            ("poli", &["poli", "policy"], false),
            ("policy", &["policy", "policy2"], true),
            ("pol", &["policy"], false),
            ("pol", &[], false),
        ] {
            assert_eq!(is_shown_whole(name, &policies(known)).is_ok(), whole, "{name} {known:?}");
        }
    }

    #[test]
    fn only_rules_that_name_something_are_read() {
        let save = "*raw\n:PREROUTING ACCEPT [0:0]\n[1:2] -A PREROUTING -p tcp -j CT --timeout pol\n\
                    -A PREROUTING -m nfacct --nfacct-name a -m set --match-set b src\n\
                    -A PREROUTING -j IDLETIMER --timeout 5 --label x\nCOMMIT\n";
        let files = Files::from([("iptables-legacy.save".to_owned(), save.into())]);
        let names: Vec<String> = named(&files).iter().map(ToString::to_string).collect();
        assert_eq!(names, ["set b", "accounting object a", "timeout policy pol"]);
    }
}
