//! More than one CNI configuration. The container runtime uses the configuration whose file name
//! sorts first.

use crate::checks::{Check, Facts, Found, Severity, Verdict, always};
use crate::state::cni::CniConfig;

pub(super) const CHECK: Check = Check {
    id: "cni.configurations",
    title: "the configurations in /etc/cni/net.d",
    severity: Severity::Warn,
    when: "always",
    applies: always,
    evaluate,
    reference: "https://github.com/containerd/containerd/blob/main/docs/cri/config.md",
};

const DIR: &str = "files/etc/cni/net.d/";

/// Names of networks that belong to container tools and that no kubelet uses.
const OTHERS: [&str; 3] = ["podman", "nerdctl", "cri-o-loopback"];

fn evaluate(facts: &Facts<'_>) -> Verdict {
    let files = &facts.now.files;
    if !files.keys().any(|name| name.starts_with("files/")) {
        return Verdict::Unknown("the configuration files are not in this state".into());
    }
    let configs: Vec<(&str, Result<CniConfig, String>)> = files
        .range(DIR.to_owned()..)
        .take_while(|(name, _)| name.starts_with(DIR))
        .map(|(name, text)| (&name[DIR.len()..], text))
        .filter(|(name, _)| [".conf", ".conflist", ".json"].iter().any(|e| name.ends_with(e)))
        .map(|(name, text)| (name, CniConfig::parse(name, text).map_err(|e| e.cause)))
        .filter(|(_, config)| !config.as_ref().is_ok_and(is_none_of_pods))
        .collect();
    let broken: Vec<String> = configs
        .iter()
        .filter_map(|(name, c)| Some(format!("/etc/cni/net.d/{name}: {}", c.as_ref().err()?)))
        .collect();
    match configs.first() {
        None => return Verdict::Ok("none".into()),
        Some((name, _)) if configs.len() == 1 && broken.is_empty() => {
            return Verdict::Ok((*name).to_owned());
        }
        // The multus plugin itself calls the other networks, so their files are in use.
        Some((name, Ok(first))) if has_plugin(first, "multus") && broken.is_empty() => {
            return Verdict::Ok(format!("{name}, which leads to the others"));
        }
        _ => {}
    }
    let shown = |(at, (name, config)): (usize, &(&str, Result<CniConfig, String>))| {
        let used = if at == 0 { "used" } else { "not used" };
        let kinds = config.as_ref().map_or_else(|_| "cannot be read".to_owned(), kinds);
        format!("/etc/cni/net.d/{name} ({kinds}): {used}")
    };
    let mut evidence: Vec<String> = configs.iter().enumerate().map(shown).collect();
    evidence.extend(broken);
    let later = configs.iter().skip(1).map(|(name, _)| {
        format!("mv /etc/cni/net.d/{name} /root/   # if its network is not in use any more")
    });
    let mut remedy: Vec<String> = later.collect();
    if remedy.is_empty() {
        remedy.push(format!("mend /etc/cni/net.d/{}, or let its component write it", configs[0].0));
    }
    Verdict::Found(Found {
        evidence,
        effect: "new pods get their network from the first file that can be read: when it goes or \
                 is renamed, from another one, with other addresses and other rules"
            .into(),
        remedy,
        fix: Vec::new(),
    })
}

fn kinds(config: &CniConfig) -> String {
    config.plugins.iter().map(|p| p.kind.as_str()).collect::<Vec<_>>().join(", ")
}

fn has_plugin(config: &CniConfig, kind: &str) -> bool {
    config.plugins.iter().any(|p| p.kind == kind)
}

/// True for a network that is not the pods': loopback, or a network of a container tool.
fn is_none_of_pods(config: &CniConfig) -> bool {
    config.plugins.iter().all(|p| p.kind == "loopback") || OTHERS.contains(&config.name.as_str())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::checks::testing::{Node, node, verdict_of};

    const CANAL: &str = "canal-stale-flannel-1.20";

    fn with(name: &str, text: &str) -> Verdict {
        verdict_of(&CHECK, &Node::captured(CANAL).put(&format!("{DIR}{name}"), text).state())
    }

    #[test]
    fn a_second_one_is_found_and_the_first_is_used() {
        let flannel = r#"{"name": "cbr0", "plugins": [{"type": "flannel"}]}"#;
        let Verdict::Found(found) = with("10-flannel.conflist", flannel) else { panic!("two") };
        assert_eq!(found.evidence[0], "/etc/cni/net.d/10-canal.conflist (calico, portmap): used");
        assert_eq!(found.evidence[1], "/etc/cni/net.d/10-flannel.conflist (flannel): not used");
        assert!(found.remedy[0].starts_with("mv /etc/cni/net.d/10-flannel.conflist "));
        let Verdict::Found(found) = with("00-new.conf", "{") else { panic!("broken") };
        assert!(found.evidence[0].contains("cannot be read"), "{:?}", found.evidence);
    }

    #[test]
    fn ok_with_one_and_with_those_of_other_tools() {
        assert_eq!(verdict_of(&CHECK, &node(CANAL)), Verdict::Ok("10-canal.conflist".into()));
        for (name, text) in [
            ("99-loopback.conf", r#"{"type": "loopback"}"#),
            ("87-podman.conflist", r#"{"name": "podman", "plugins": [{"type": "bridge"}]}"#),
            ("00-multus.conf", r#"{"name": "m", "type": "multus"}"#),
            ("10-old.conflist.bak", "{"),
        ] {
            let verdict = with(name, text);
            assert!(matches!(verdict, Verdict::Ok(_)), "{name}: {verdict:?}");
        }
        assert_eq!(verdict_of(&CHECK, &node("docker-iptables-1.30")), Verdict::Ok("none".into()));
    }

    #[test]
    fn unknown_without_files() {
        let state = Node::captured(CANAL).remove("files").state();
        assert!(matches!(verdict_of(&CHECK, &state), Verdict::Unknown(_)));
    }
}
