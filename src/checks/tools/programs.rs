//! The programs that kube-proxy runs besides iptables: one check for each program.

use super::{at_least, program};
use crate::checks::{Check, Severity, Verdict, always};
use crate::state::kube_proxy::Mode;
use crate::state::tools::Version;

/// The first kube-proxy that clears stale UDP entries over netlink, without the conntrack program
/// (kubernetes PR 126847).
const CLEARS_OVER_NETLINK: Version = Version { major: 1, minor: 32, patch: 0 };

/// The oldest ipset program that kube-proxy accepts in ipvs mode.
const IPSET_NEEDED: Version = Version { major: 6, minor: 0, patch: 0 };

/// The oldest nft program that kube-proxy accepts in nftables mode (kubernetes PR 124152).
const NFT_NEEDED: Version = Version { major: 1, minor: 0, patch: 1 };

pub(super) const CONNTRACK: Check = Check {
    id: "tools.conntrack",
    title: "the conntrack binary that kube-proxy runs",
    severity: Severity::Block,
    when: "kube-proxy up to 1.31, or of an unknown version",
    applies: always,
    evaluate: |facts| {
        if facts.running.version.is_some_and(|v| v >= CLEARS_OVER_NETLINK) {
            return Verdict::Ok("kube-proxy 1.32 and later needs no conntrack binary".into());
        }
        let effect = "stale UDP entries of service addresses are never cleared: DNS keeps going \
                      to pods that are gone";
        match program(facts, "conntrack") {
            Err(why) => Verdict::Unknown(why),
            Ok(program) => match program.missing("conntrack", effect) {
                Some(found) => Verdict::Found(found),
                None => Verdict::Ok(program.shown()),
            },
        }
    },
    reference: "https://github.com/kubernetes/kubernetes/pull/126847",
};

pub(super) const IPSET: Check = Check {
    id: "tools.ipset",
    title: "the ipset binary that kube-proxy runs",
    severity: Severity::Block,
    when: "ipvs mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Ipvs),
    evaluate: |facts| {
        let effect = "kube-proxy refuses ipvs mode: up to 1.25 it falls back to iptables without \
                      a word, later it ends, and services stop following their pods";
        at_least(facts, "ipset", "ipset", IPSET_NEEDED, effect)
    },
    reference: "https://github.com/rancher/rke2/issues/645",
};

pub(super) const NFT: Check = Check {
    id: "tools.nft",
    title: "the nft binary that kube-proxy runs",
    severity: Severity::Block,
    when: "nftables mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Nftables),
    evaluate: |facts| {
        let effect = "kube-proxy does not start in nftables mode: no service is translated";
        at_least(facts, "nft", "nftables", NFT_NEEDED, effect)
    },
    reference: "https://github.com/kubernetes/kubernetes/pull/124152",
};

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{given, node, verdict_of};
    use crate::state::tools::InstalledTool;

    #[test]
    fn conntrack_is_found_where_it_is_missing() {
        let Verdict::Found(found) =
            verdict_of(&CONNTRACK, &node("docker-legacy-iptables-1.20-no-conntrack"))
        else {
            panic!("not found");
        };
        assert!(found.evidence[1].contains("executable file not found"), "{:?}", found.evidence);
    }

    #[test]
    fn conntrack_is_ok_where_it_is_there_or_not_needed_and_unknown_without_a_list() {
        let mut state = node("docker-iptables-1.30");
        let Verdict::Ok(shown) = verdict_of(&CONNTRACK, &state) else { panic!("not ok") };
        assert!(shown.starts_with("/usr/sbin/conntrack conntrack v1.4.7"), "{shown}");
        state.tools = None;
        assert!(matches!(verdict_of(&CONNTRACK, &state), Verdict::Unknown(_)));
        let mut processes = state.processes.take().unwrap();
        for process in &mut processes {
            process.version = Some("v1.32.0".into());
        }
        state.processes = Some(processes);
        assert!(matches!(verdict_of(&CONNTRACK, &state), Verdict::Ok(_)));
    }

    #[test]
    fn ipset_is_found_where_it_is_missing_or_old() {
        let mut state = node("docker-iptables-1.30");
        for (tool, evidence) in [
            (InstalledTool::missing("ipset"), "ipset: not installed"),
            (InstalledTool::found("ipset", "/sbin/ipset", "ipset v4.5"), "older than 6.0.0"),
        ] {
            state.tools.as_mut().unwrap().tools = vec![tool];
            let Verdict::Found(found) = given(&state).to(Mode::Ipvs).verdict(&IPSET) else {
                panic!("not found");
            };
            assert!(found.evidence[0].contains(evidence), "{:?}", found.evidence);
        }
    }

    #[test]
    fn ipset_is_ok_where_it_is_there_and_unknown_without_a_version() {
        let mut state = node("half-migrated-ipvs-1.20");
        assert!(matches!(verdict_of(&IPSET, &state), Verdict::Ok(_)));
        let tools = &mut state.tools.as_mut().unwrap().tools;
        *tools = vec![InstalledTool::found("ipset", "/sbin/ipset", "")];
        assert!(matches!(verdict_of(&IPSET, &state), Verdict::Unknown(_)));
    }

    #[test]
    fn nft_is_found_where_it_is_missing_or_old() {
        let mut state = node("docker-iptables-1.30");
        for tool in [
            InstalledTool::missing("nft"),
            InstalledTool::found("nft", "/sbin/nft", "nftables v0.9.8 (E)"),
        ] {
            state.tools.as_mut().unwrap().tools = vec![tool];
            let verdict = given(&state).to(Mode::Nftables).verdict(&NFT);
            assert!(matches!(verdict, Verdict::Found(_)), "{verdict:?}");
        }
    }

    #[test]
    fn nft_is_ok_where_it_is_there_and_unknown_without_a_list() {
        let mut state = node("nftables-leftovers-1.30");
        assert!(matches!(verdict_of(&NFT, &state), Verdict::Ok(_)));
        state.tools = None;
        assert!(matches!(verdict_of(&NFT, &state), Verdict::Unknown(_)));
    }
}
