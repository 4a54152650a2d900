//! Two nft programs meet in one kernel: the host's, and the one in kube-proxy's image. Each lists the
//! tables of the other, and an old one does not survive what a much newer one stored there.

use super::{Found, program};
use crate::checks::{Check, Facts, Severity, Verdict};
use crate::owners::component::KUBE_PROXY;
use crate::state::kube_proxy::Mode;
use crate::state::nft::NftTable;
use crate::state::tools::Version;

/// The first nft whose sets crash nft 1.0.6, the one in kube-proxy's images, as it lists them
/// (kubernetes issue 136786).
const NEWER: Version = Version { major: 1, minor: 1, patch: 3 };

/// The first kube-proxy of each minor version that lists sets without what crashes its nft
/// (kubernetes PR 137501; 1.36.0 has it).
const FIXED: [Version; 3] = [
    Version { major: 1, minor: 33, patch: 11 },
    Version { major: 1, minor: 34, patch: 7 },
    Version { major: 1, minor: 35, patch: 4 },
];

/// The oldest nft that lists what kube-proxy writes (kubernetes issue 122743).
const LISTS: Version = Version { major: 1, minor: 0, patch: 1 };

pub(super) const NEWER_HOST: Check = Check {
    id: "tools.nft-newer",
    title: "sets of a newer nft, which crash the one in kube-proxy's image",
    severity: Severity::Warn,
    when: "nftables mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Nftables),
    evaluate: evaluate_newer,
    reference: "https://github.com/kubernetes/kubernetes/issues/136786",
};

pub(super) const OLD_HOST: Check = Check {
    id: "tools.nft-old",
    title: "a host's nft that does not survive what kube-proxy writes",
    severity: Severity::Warn,
    when: "nftables mode runs, is configured, or is the target",
    applies: |facts| facts.concerns(Mode::Nftables),
    evaluate: evaluate_old,
    reference: "https://github.com/kubernetes/kubernetes/issues/122743",
};

/// The host's nft: its version, and how it is shown; none if it is not installed. The error names the
/// missing data.
fn of_the_host(facts: &Facts<'_>) -> Result<Option<(Version, String)>, String> {
    let tools = facts.now.tools.as_ref().ok_or("the tools are not in this state")?;
    let nft = tools.get("nft").ok_or("the list of tools does not name nft")?;
    let Some(path) = &nft.path else { return Ok(None) };
    let version = nft.version().ok_or(format!("{path} is there, but its version is not known"))?;
    Ok(Some((version, format!("{path} {}", nft.text))))
}

fn evaluate_newer(facts: &Facts<'_>) -> Verdict {
    let tables = facts.now.native_tables();
    let is_foreign = |table: &&&NftTable| {
        let owner = facts.ownership.table(&table.family, &table.name);
        owner.is_none_or(|owner| owner.name != KUBE_PROXY)
    };
    let sets: Vec<String> =
        tables.iter().filter(is_foreign).filter_map(|table| sets_of(table)).collect();
    if sets.is_empty() {
        return Verdict::Ok("no native table of others has a set or a map".into());
    }
    let (host, shown) = match of_the_host(facts) {
        Ok(Some(host)) => host,
        Ok(None) => return Verdict::Ok("the host has no nft".into()),
        Err(why) => return Verdict::Unknown(why),
    };
    if host < NEWER {
        return Verdict::Ok(format!("{shown}: older than {NEWER}"));
    }
    if let Some(shown) = own_is_no_worse(facts, host) {
        return Verdict::Ok(shown);
    }
    let proxy = match facts.running.version {
        None => {
            return Verdict::Unknown(format!(
                "{shown} may have written {}; whether kube-proxy is of a version that survives \
                 them is not known",
                sets.join(", ")
            ));
        }
        Some(version) if is_fixed(version) => {
            return Verdict::Ok(format!(
                "kube-proxy {version} lists no elements of others (kubernetes PR 137501)"
            ));
        }
        Some(version) => version,
    };
    Verdict::Found(Found {
        evidence: vec![
            format!("{shown}: {NEWER} or later"),
            format!("sets that it may have written: {}", sets.join(", ")),
            format!("kube-proxy {proxy}: older than the version that survives them"),
        ],
        effect: "the nft 1.0.6 in kube-proxy's image crashes when it lists such a set: no sync \
                 succeeds, and kube-proxy has removed the rules of the mode before by then"
            .into(),
        remedy: vec![
            "upgrade kube-proxy to 1.33.11, 1.34.7, 1.35.4, 1.36 or later, in the mode that it is \
             in; best to an image with nft 1.0.6.1, as of July 2026 or later (kubernetes PR 140405)"
                .into(),
            "or have the owner of those tables write them with an nft older than 1.1.3".into(),
        ],
        fix: Vec::new(),
    })
}

/// How kube-proxy's own nft is shown, if it is known and survives sets of the host's version: it is
/// as new, or it is the image's fixed 1.0.6.1.
fn own_is_no_worse(facts: &Facts<'_>, host: Version) -> Option<String> {
    let own = program(facts, "nft").ok().filter(|own| own.root.is_some())?;
    let survives = own.tool.version()? >= host.min(NEWER) || own.tool.text.contains("1.0.6.1");
    survives.then(|| format!("kube-proxy's own nft reads them: {}", own.shown()))
}

fn is_fixed(version: Version) -> bool {
    let of_minor = FIXED.iter().find(|fixed| fixed.minor == version.minor);
    match of_minor {
        Some(fixed) => version >= *fixed,
        None => (version.major, version.minor) >= (1, 36),
    }
}

/// The sets and maps of a native table: `table inet x (set a, map b)`; none if it has none.
fn sets_of(table: &NftTable) -> Option<String> {
    let names = ["set", "map"].into_iter().flat_map(|kind| {
        let named = table.of_kind(kind).filter_map(|o| o.get("name")?.as_str());
        named.map(move |name| format!("{kind} {name}"))
    });
    let mut names: Vec<String> = names.collect();
    let more = names.len().saturating_sub(3);
    names.truncate(3);
    if more > 0 {
        names.push(format!("and {more} more"));
    }
    (!names.is_empty())
        .then(|| format!("table {} {} ({})", table.family, table.name, names.join(", ")))
}

fn evaluate_old(facts: &Facts<'_>) -> Verdict {
    match of_the_host(facts) {
        Err(why) => Verdict::Unknown(why),
        Ok(None) => Verdict::Ok("the host has no nft".into()),
        Ok(Some((version, shown))) if version >= LISTS => Verdict::Ok(shown),
        Ok(Some((_, shown))) => Verdict::Found(Found {
            evidence: vec![format!("{shown}: older than {LISTS}")],
            effect: "this nft crashes or fails at the sets of kube-proxy's tables, and with it \
                     every program of the host that runs it: a firewall's reload, nftables.service, \
                     and proxyshift itself"
                .into(),
            remedy: vec![format!("apt-get install nftables   # {LISTS} or later; or dnf, zypper")],
            fix: Vec::new(),
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, given, node};
    use crate::state::live_facts::LiveFacts;
    use crate::state::tools::ToolList;

    const SET: &str = r#"{"nftables": [{"table": {"family": "inet", "name": "mine"}},
        {"set": {"family": "inet", "table": "mine", "name": "s", "type": "ifname"}}]}"#;

    fn with(nft: &str, version: &str, tables: &str) -> Node {
        Node::captured("iptables-1.37")
            .put("tools.txt", &format!("kernel 6.17.0\nnft /usr/sbin/nft nftables v{nft} (x)\n"))
            .kube_proxy_version(version)
            .put("nft.json", tables)
    }

    fn newer(node: &Node) -> Verdict {
        given(&node.state()).to(Mode::Nftables).verdict(&NEWER_HOST)
    }

    #[test]
    fn sets_of_a_newer_nft_are_found_for_the_versions_that_crash() {
        for (version, crashes) in [
            ("v1.31.4", true),
            ("v1.33.10", true),
            ("v1.33.11+rke2r1", false),
            ("v1.34.6", true),
            ("v1.34.7", false),
            ("v1.35.3-eks-1", true),
            ("v1.35.4", false),
            ("v1.36.0", false),
            ("v1.37.2", false),
        ] {
            for nft in ["1.1.3", "1.1.6", "1.2.0"] {
                let verdict = newer(&with(nft, version, SET));
                let found = matches!(verdict, Verdict::Found(_));
                assert_eq!(found, crashes, "{version} with nft {nft}: {verdict:?}");
            }
            assert!(matches!(newer(&with("1.1.2", version, SET)), Verdict::Ok(_)), "{version}");
        }
        let map = SET.replace("\"set\"", "\"map\"");
        assert!(matches!(newer(&with("1.1.3", "v1.34.1", &map)), Verdict::Found(_)));
        for tables in [
            SET.replace("\"set\"", "\"chain\""),
            // kube-proxy's own table, by what is in it.
            SET.replace("inet", "ip")
                .replace("mine", "kube-proxy")
                .replace("\"s\"", "\"cluster-ips\"")
                .replace("ifname", "ipv4_addr"),
        ] {
            assert!(
                matches!(newer(&with("1.1.3", "v1.34.1", &tables)), Verdict::Ok(_)),
                "{tables}"
            );
        }
    }

    #[test]
    fn unknown_without_a_version_of_either() {
        let unknown = |node: Node| matches!(newer(&node), Verdict::Unknown(_));
        assert!(unknown(with("1.1.3", "v0.0.0-alpha", SET)));
        assert!(unknown(with("1.1.3", "v1.34.1", SET).remove("tools.txt")));
        assert!(unknown(with("x", "v1.34.1", SET)));
    }

    #[test]
    fn the_nft_of_the_image_counts_where_it_is_known() {
        let state = with("1.1.3", "v1.34.1", SET).state();
        let own = |version: &str| {
            let tools = format!("kernel 6.1\nnft /usr/sbin/nft package nftables {version}\n");
            let live = LiveFacts {
                kube_proxy_tools: Some(ToolList::parse("t", &tools).unwrap()),
                kube_proxy_root: Some("/proc/7/root".into()),
                ..LiveFacts::default()
            };
            given(&state).to(Mode::Nftables).live(&live).verdict(&NEWER_HOST)
        };
        assert!(matches!(own("1.0.6-2+deb12u2"), Verdict::Found(_)));
        for fixed in ["1.0.6.1-1", "1.1.3-1"] {
            assert!(matches!(own(fixed), Verdict::Ok(_)), "{fixed}");
        }
    }

    #[test]
    fn an_old_nft_of_the_host_is_found_ok_and_unknown() {
        let old = |nft: &str| {
            let node = with(nft, "v1.37.2", SET);
            given(&node.state()).to(Mode::Nftables).verdict(&OLD_HOST)
        };
        assert!(matches!(old("0.9.8"), Verdict::Found(_)));
        assert!(matches!(old("1.0.1"), Verdict::Ok(_)));
        assert!(matches!(old("x"), Verdict::Unknown(_)));
        let healthy = given(&node("nftables-1.37")).verdict(&OLD_HOST);
        assert!(matches!(healthy, Verdict::Ok(_)), "{healthy:?}");
    }
}
