//! The expressions of nftables mode's rules, each tried on the kernel of a live node with `nft -c`.

use std::collections::BTreeMap;

use crate::checks::{Check, Facts, Found, Severity, Verdict, not_live};
use crate::state::kube_proxy::Mode;
use crate::state::live_facts::ExpressionAnswer;

pub(super) const CHECK: Check = Check {
    id: "nftables.expressions",
    title: "each expression that nftables mode writes, tried on this kernel",
    severity: Severity::Block,
    when: "nftables mode runs, is configured, or is the target; a live node alone can be asked",
    applies: |facts| facts.concerns(Mode::Nftables),
    evaluate,
    reference: "https://github.com/siderolabs/pkgs/issues/951",
};

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let Some(live) = facts.live else { return not_live() };
    let Some(probes) = &live.nft_expressions else {
        return Verdict::Unknown(
            "nothing was tried: the host has no nft, or no private network namespace can be made"
                .into(),
        );
    };
    let refused: Vec<String> = probes
        .iter()
        .filter_map(|probe| match &probe.answer {
            ExpressionAnswer::Refused(cause) => {
                Some(format!("nft -c, {} `{}`: {cause}", probe.family.nft(), probe.expression))
            }
            _ => None,
        })
        .collect();
    if !refused.is_empty() {
        return Verdict::Found(Found {
            evidence: refused,
            effect: "a sync of kube-proxy that writes this fails as a whole, after it has removed \
                     the rules of the mode before: no service is translated"
                .into(),
            remedy: vec![
                "boot a kernel that has them, or install its further modules: see \
                 kernel.nftables-parts"
                    .into(),
                "or stay in the mode that runs".into(),
            ],
            fix: Vec::new(),
        });
    }
    let mut left_out: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for probe in probes.iter().filter(|probe| probe.answer == ExpressionAnswer::Untried) {
        left_out.entry(probe.expression).or_default().push(probe.family.nft());
    }
    if left_out.values().map(Vec::len).sum::<usize>() == probes.len() {
        return Verdict::Unknown(
            "nothing was tried: nf_tables is not loaded, and nft would load it".into(),
        );
    }
    if !left_out.is_empty() {
        let named = left_out.iter().map(|(name, families)| match families[..] {
            [family] => format!("{family} `{name}`"),
            _ => format!("`{name}`"),
        });
        return Verdict::Unknown(format!(
            "not tried, because that would load kernel modules: {}; the others work",
            named.collect::<Vec<_>>().join(", ")
        ));
    }
    let by = match &live.kube_proxy_root {
        Some(_) => "by the host's nft; kube-proxy has its own, which is not run",
        None => "by the host's nft",
    };
    Verdict::Ok(format!("the kernel takes all {} of them, {by}", probes.len()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node};
    use crate::state::Family;
    use crate::state::live_facts::{ExpressionProbe, LiveFacts};

    fn verdict(answers: Option<&[ExpressionAnswer]>) -> Verdict {
        let probe = |answer: &ExpressionAnswer| ExpressionProbe {
            expression: "fib daddr type local",
            family: Family::Ipv6,
            answer: answer.clone(),
        };
        let nft_expressions = answers.map(|answers| answers.iter().map(probe).collect());
        let live = LiveFacts { nft_expressions, ..LiveFacts::default() };
        given(&node("iptables-1.37")).to(Mode::Nftables).live(&live).verdict(&CHECK)
    }

    #[test]
    fn one_that_is_refused_is_found_and_one_that_was_left_out_is_unknown() {
        use ExpressionAnswer::{Accepted, Refused, Untried};
        assert!(matches!(verdict(Some(&[Accepted, Accepted])), Verdict::Ok(_)));
        let refusal = Refused("No such file or directory".into());
        let Verdict::Found(found) = verdict(Some(&[Accepted, Untried, refusal])) else {
            panic!("not found")
        };
        let expected = "nft -c, ip6 `fib daddr type local`: No such file or directory";
        assert_eq!(found.evidence, [expected]);
        assert!(matches!(verdict(Some(&[Accepted, Untried])), Verdict::Unknown(_)));
        let Verdict::Unknown(why) = verdict(Some(&[Untried])) else { panic!("known") };
        assert!(why.starts_with("nothing was tried: nf_tables"), "{why}");
        assert!(matches!(verdict(None), Verdict::Unknown(_)));
        let state = node("iptables-1.37");
        assert!(matches!(given(&state).to(Mode::Nftables).verdict(&CHECK), Verdict::Unknown(_)));
    }
}
