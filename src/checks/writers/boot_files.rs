//! Saved files that hold rules of Kubernetes, docker or a CNI plugin, and that are loaded again at
//! the next boot.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};

pub(super) const CHECK: Check = Check {
    id: "writers.boot-files",
    title: "boot files that bring rules of others back",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/k3s-io/k3s/issues/7261",
};

/// Parts of chain names and of comments. A rule that contains one of them belongs in no saved file.
const MARKS: [&str; 7] = ["KUBE-", "CNI-", "FLANNEL", "flanneld masq", "DOCKER", "cali-", "felix-"];
/// Chains for operators' rules, which operators may keep in a saved file.
const OF_OPERATORS: [&str; 2] = ["DOCKER-USER", "CNI-ADMIN"];
const NFT: &str = "/etc/nftables.conf";
/// How many lines of one file the evidence shows at most.
const SHOWN: usize = 5;

fn evaluate(facts: &Facts<'_>) -> Verdict {
    if facts.live.is_none() && !facts.now.files.keys().any(|k| k.starts_with("files/")) {
        return Verdict::Unknown("no configuration file is in this state".into());
    }
    let mut evidence = Vec::new();
    let mut remedy = Vec::new();
    let mut files = 0;
    for (path, text) in boot_files(facts) {
        files += 1;
        let lines: Vec<(usize, &str)> =
            (1..).zip(text.lines()).filter(|(_, l)| marked(l)).collect();
        if lines.is_empty() {
            continue;
        }
        evidence.extend(lines.iter().take(SHOWN).map(|(n, l)| format!("{path}:{n}: {l}")));
        if lines.len() > SHOWN {
            evidence.push(format!("{path}: and {} more", lines.len() - SHOWN));
        }
        let numbers: Vec<usize> = lines.iter().map(|(n, _)| *n).collect();
        remedy.push(match path {
            NFT => format!("edit {path}: lines {}; then nft -c -f {path}", ranges(&numbers, ", ")),
            _ => format!("sed -i.bak '{}d' {path}", ranges(&numbers, "d;")),
        });
    }
    if evidence.is_empty() {
        return Verdict::Ok(match files {
            0 => "there is no boot file".into(),
            _ => format!("boot files without such lines: {files}"),
        });
    }
    Verdict::Found(Found {
        evidence,
        effect: "after a reboot, or when the file is loaded, rules of pods, leases and services \
                 that are long gone translate and drop traffic again"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

/// The captured files that are loaded at boot, each with its path and text.
fn boot_files<'a>(facts: &Facts<'a>) -> impl Iterator<Item = (&'a str, &'a str)> {
    let files = facts.now.files.iter().filter_map(|(k, t)| Some((k.strip_prefix("files")?, &**t)));
    let loaded = |p: &str| {
        p.starts_with("/etc/iptables/rules")
            || p == NFT
            || ["/etc/sysconfig/iptables", "/etc/sysconfig/ip6tables"].contains(&p)
    };
    files.filter(move |(path, _)| loaded(path))
}

fn marked(line: &str) -> bool {
    let line = OF_OPERATORS.iter().fold(line.to_owned(), |line, chain| line.replace(chain, ""));
    !line.trim_start().starts_with('#') && MARKS.iter().any(|mark| line.contains(mark))
}

/// Joins line numbers with `between`, and writes adjacent lines as a range: `3,9d;12` for lines 3
/// to 9 and line 12 joined with `d;`.
fn ranges(lines: &[usize], between: &str) -> String {
    let runs = lines.chunk_by(|a, b| a + 1 == *b);
    let words = runs.map(|run| match run {
        [one] => one.to_string(),
        run => format!("{},{}", run[0], run[run.len() - 1]),
    });
    words.collect::<Vec<_>>().join(between)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};
    use crate::state::NodeState;

    fn with(path: &str, text: &str) -> NodeState {
        Node::captured("docker-iptables-1.30").put_file(path, text).state()
    }

    #[test]
    fn found_with_file_and_line() {
        let text = "*nat\n:KUBE-SERVICES - [0:0]\n:DOCKER - [0:0]\n:MINE - [0:0]\n\
            # KUBE-X\n-A OUTPUT -j KUBE-SERVICES\n-A MINE -j ACCEPT\nCOMMIT\n";
        let Verdict::Found(found) = verdict_of(&CHECK, &with("/etc/iptables/rules.v4", text))
        else {
            panic!("not found");
        };
        assert_eq!(found.evidence[2], "/etc/iptables/rules.v4:6: -A OUTPUT -j KUBE-SERVICES");
        assert_eq!(found.remedy, ["sed -i.bak '2,3d;6d' /etc/iptables/rules.v4"]);
        let text = "table ip nat {\n chain cali-x {\n }\n}\n";
        let Verdict::Found(found) = verdict_of(&CHECK, &with(NFT, text)) else {
            panic!("not found")
        };
        assert!(found.remedy[0].contains("lines 2; then nft -c"), "{found:?}");
    }

    #[test]
    fn ok_without_such_lines_and_unknown_without_files() {
        let own = "*filter\n:DOCKER-USER - [0:0]\n-A DOCKER-USER -s 10.0.0.1 -j DROP\nCOMMIT\n";
        let verdict = verdict_of(&CHECK, &with("/etc/sysconfig/iptables", own));
        assert_eq!(verdict, Verdict::Ok("boot files without such lines: 1".into()));
        assert!(matches!(verdict_of(&CHECK, &node("docker-iptables-1.30")), Verdict::Ok(_)));
        assert!(matches!(verdict_of(&CHECK, &NodeState::default()), Verdict::Unknown(_)));
    }
}
