//! Playbooks of operators, valid and invalid.

use std::time::Duration;

use serde_json::json;

use super::*;
use crate::state::argv::Rerun;
use crate::state::kube_proxy::Controller;
use crate::state::kube_proxy::controller::{StaticPod, SystemdUnit};

const SMALL: &str = "\
playbook: small
from: iptables
to: ipvs
stages:
  - snapshot: {}
  - switch: {}
  - converge: {timeout: 90s}
  - verify: {}
  - confirm: {within: 1h 30m}
";

fn parse(text: &str) -> Result<Playbook> {
    Playbook::parse("own.yaml", text, Mode::Iptables)
}

fn replaced(from: &str, to: &str) -> String {
    assert!(SMALL.contains(from), "{from}");
    SMALL.replacen(from, to, 1)
}

#[test]
fn omitted_options_have_defaults() {
    let playbook = parse(SMALL).unwrap();
    assert_eq!((playbook.from, playbook.to), (Mode::Iptables, Mode::Ipvs));
    assert_eq!(playbook.on_failure, OnFailure::Rollback);
    assert_eq!(playbook.stage(StageName::Switch), Some(&StageOptions::Switch(Switch::default())));
    assert_eq!(playbook.stage(StageName::Clean), None);
    let Some(StageOptions::Confirm(confirm)) = playbook.stage(StageName::Confirm) else { panic!() };
    assert_eq!(confirm.within, Duration::from_secs(5400));
    assert!(playbook.hooks.at(StageSide::Before, StageName::Switch).is_empty());
}

#[test]
fn every_option_is_read_and_written() {
    let text = "\
playbook: all
from: iptables
to: ipvs
stages:
  - preflight: {block: [tools.ipset], warn: [kube-proxy.mode]}
  - snapshot: {}
  - rehearse: {}
  - prepare: {modules: [ip_vs], sysctls: {net.ipv4.vs.conntrack: 1, net.core.rmem: '4096 8192'}}
  - switch:
      controller: {commands: {stop: [a, stop], start: [a, start], again: safe}}
      timeout: 10s
  - converge: {parity: services, timeout: 2m}
  - clean: {leftovers_of: kube-proxy, drain: 30s}
  - verify: {invariants: all, probes: baseline}
  - settle: {conntrack: stale-service-entries}
  - confirm: {within: 5m}
on_failure: rollback
hooks:
  before_switch:
    - {run: [kubectl, drain, node1], timeout: 5m, again: safe}
    - {run: [/usr/bin/true]}
  after_confirm: [{run: [kubectl, uncordon, node1]}]
";
    let playbook = parse(text).unwrap();
    let written = serde_json::to_value(&playbook).unwrap();
    assert_eq!(
        written,
        json!({
            "playbook": "all", "from": "iptables", "to": "ipvs",
            "stages": [
                {"preflight": {"block": ["tools.ipset"], "warn": ["kube-proxy.mode"]}},
                {"snapshot": {}},
                {"rehearse": {}},
                {"prepare": {
                    "modules": ["ip_vs"],
                    "sysctls": {"net.core.rmem": "4096 8192", "net.ipv4.vs.conntrack": "1"},
                }},
                {"switch": {
                    "controller": {
                        "commands": {"stop": ["a", "stop"], "start": ["a", "start"], "again": "safe"}
                    },
                    "timeout": "10s",
                }},
                {"converge": {"parity": "services", "timeout": "2m"}},
                {"clean": {"leftovers_of": "kube-proxy", "drain": "30s"}},
                {"verify": {"invariants": "all", "probes": "baseline"}},
                {"settle": {"conntrack": "stale-service-entries"}},
                {"confirm": {"within": "5m"}},
            ],
            "on_failure": "rollback",
            "hooks": {
                "before_switch": [
                    {"run": ["kubectl", "drain", "node1"], "timeout": "5m", "again": "safe"},
                    {"run": ["/usr/bin/true"], "timeout": "5m", "again": "ask"},
                ],
                "after_confirm": [
                    {"run": ["kubectl", "uncordon", "node1"], "timeout": "5m", "again": "ask"},
                ],
            },
        })
    );
    // The JSON form of a playbook parses again, because JSON is YAML.
    assert_eq!(parse(&written.to_string()).unwrap(), playbook);
    let hooks = playbook.hooks.at(StageSide::Before, StageName::Switch);
    assert_eq!(hooks[0].run.to_string(), "kubectl drain node1");
}

#[test]
fn controllers_are_a_word_or_one_key() {
    let unit = SystemdUnit { unit: "kube-proxy.service".into() };
    let pod = StaticPod { manifest: "/etc/x.yaml".into() };
    for (text, expected) in [
        ("auto", ControllerChoice::Auto),
        ("{systemd: kube-proxy.service}", ControllerChoice::Named(Controller::Systemd(unit))),
        ("{static-pod: /etc/x.yaml}", ControllerChoice::Named(Controller::StaticPod(pod))),
    ] {
        let playbook = parse(&replaced("switch: {}", &format!("switch: {{controller: {text}}}")));
        let playbook = playbook.unwrap();
        let Some(StageOptions::Switch(switch)) = playbook.stage(StageName::Switch) else {
            panic!()
        };
        assert_eq!(switch.controller, expected);
        let again = serde_json::to_value(&playbook).unwrap().to_string();
        assert_eq!(parse(&again).unwrap(), playbook);
    }
}

#[test]
fn an_upgrade_names_no_mode_and_has_one_means() {
    let text = |options: &str| {
        let text = replaced("from: iptables\nto: ipvs\n", "");
        text.replace("switch: {}", &format!("upgrade: {options}"))
    };
    let playbook = parse(&text("{run: [apt-get, install, kube-proxy], again: safe}")).unwrap();
    assert_eq!((playbook.from, playbook.to), (Mode::Iptables, Mode::Iptables));
    let Some(StageOptions::Upgrade(upgrade)) = playbook.stage(StageName::Upgrade) else { panic!() };
    assert!(matches!(&upgrade.by, UpgradeMethod::Command { again: Rerun::Safe, .. }));
    assert_eq!(upgrade.timeout, Duration::from_secs(1800));
    let manual = parse(&text("{ask: now, timeout: 1h}")).unwrap();
    assert_eq!(
        serde_json::to_value(manual.stage(StageName::Upgrade)).unwrap(),
        json!({"upgrade": {"ask": "now", "timeout": "1h"}})
    );
    let by_node = parse(&text("{controller: auto}")).unwrap();
    assert_eq!(
        serde_json::to_value(by_node.stage(StageName::Upgrade)).unwrap(),
        json!({"upgrade": {"controller": "auto", "timeout": "30m"}})
    );
    for wrong in [
        "{}",
        "{ask: now, run: [x]}",
        "{ask: now, again: safe}",
        "{ask: now, controller: auto}",
        "{run: [x], controller: auto}",
    ] {
        let error = parse(&text(wrong)).unwrap_err().to_string();
        assert!(error.contains("one of `run`") && error.contains("line 4"), "{error}");
    }
    assert!(parse(&text("{controller: {systemd: kube-proxy.service}}")).is_err());
    // A change of mode cannot use `upgrade`, and an upgrade cannot use `switch`.
    let error = parse(&replaced("from: iptables\nto: ipvs\n", "")).unwrap_err().to_string();
    assert_eq!(error, "own.yaml: stages: from iptables to iptables takes `upgrade`, not `switch`");
}

#[test]
fn a_switch_may_be_requested() {
    let switch = |options: &str| {
        let playbook = parse(&replaced("switch: {}", &format!("switch: {options}")))?;
        let Some(StageOptions::Switch(switch)) = playbook.stage(StageName::Switch) else {
            panic!("{options}")
        };
        let written = serde_json::to_value(&playbook).unwrap().to_string();
        assert_eq!(parse(&written).unwrap(), playbook);
        Ok::<_, Error>(switch.clone())
    };
    let requested = switch("{ask: 'move it'}").unwrap();
    assert_eq!(
        (requested.ask.as_deref(), requested.timeout),
        (Some("move it"), Duration::from_secs(1800))
    );
    assert_eq!(switch("{ask: now, timeout: 5m}").unwrap().timeout, Duration::from_secs(300));
    assert_eq!(switch("{}").unwrap(), Switch::default());
    let error = switch("{ask: now, controller: {systemd: a.service}}").unwrap_err().to_string();
    assert!(error.contains("either a `controller`, or `ask`"), "{error}");
}

#[test]
fn errors_name_file_line_and_cause() {
    for (from, to, line, cause) in [
        ("playbook: small", "playbok: small", "line 1 column 1", "unknown field `playbok`"),
        ("to: ipvs", "to: ipvz", "line 3 column 5", "unknown variant `ipvz`"),
        ("- switch: {}", "- swich: {}", "line 6 column 5", "unknown variant `swich`"),
        ("- switch: {}", "- switch: {a: b}", "line 6 column 14", "unknown field `a`"),
        ("- switch: {}", "- switch", "line 6 column 5", "expected one stage with its options"),
        ("- switch: {}", "- switch: {}\n    clean: {}", "line 6 column 5", "`clean` stands beside"),
        ("- switch: {}", "- switch: {controller: sytemd}", "line 6 column 26", "`auto`, or one of"),
        ("- switch: {}", "- switch: {controller: {unit: x}}", "line 6 column", "variant `unit`"),
        ("- switch: {}", "- switch: {controller: {}}", "line 6 column 26", "expected enum"),
        (
            "- switch: {}",
            "- switch: {controller: {systemd: x, commands: {}}}",
            "line 6 column 26",
            "one controller",
        ),
        (
            "- switch: {}",
            "- switch: {controller: {static-pod: x}}",
            "line 6 column",
            "`x` is no absolute path",
        ),
        ("timeout: 90s", "timeout: 90", "line 7 column 25", "`90` is no time"),
        ("timeout: 90s", "timeout: soon", "line 7 column 25", "`soon` is no time"),
        ("timeout: 90s", "parity: none", "line 7 column 24", "unknown variant `none`"),
        ("- switch: {}", "- prepare: {modules: ip_vs}", "line 6 column 24", "a sequence"),
        ("- switch: {}", "- prepare: {modules: [../x]}", "line 6 column", "`../x` is no name of a"),
        (
            "- switch: {}",
            "- prepare: {sysctls: {net..x: 1}}",
            "line 6 column",
            "`net..x` is no nam",
        ),
        (
            "- switch: {}",
            "- prepare: {sysctls: {net.x: [1]}}",
            "line 6 column",
            "a number or one l",
        ),
        ("- snapshot: {}", "- rehearse: {}", "line 6 column 5", "`switch` changes the node, so"),
        ("- verify", "- snapshot: {}\n  - verify", "line 8 column 5", "`snapshot` is named twice"),
        ("- converge", "- clean: {}\n  - converge", "line 7 column 5", "must stand behind `conv"),
        ("- verify", "- prepare: {}\n  - verify", "line 8 column 5", "stand before `converge`"),
        ("  - verify: {}\n", "", "line 5 column 3", "after `switch` there must be `verify`"),
        ("  - confirm: {within: 1h 30m}\n", "", "line 5 column 3", "there is no `confirm`"),
        ("stages:", "hooks: {befor_switch: []}\nstages:", "line 4 column 9", "hook `befor_switch`"),
        (
            "stages:",
            "hooks: {before_switch: [{run: []}]}\nstages:",
            "line 4 column 25",
            "a command is a list",
        ),
        ("stages:", "on_failure: stop\nstages:", "line 4 column 13", "unknown variant `stop`"),
    ] {
        let error = parse(&replaced(from, to)).unwrap_err();
        assert_eq!(error.kind, Kind::Parse, "{error}");
        let text = error.to_string();
        assert!(text.starts_with("own.yaml: "), "{text}");
        assert!(text.contains(cause) && text.contains(line), "{text}\nwanted {line}: {cause}");
    }
}

#[test]
fn a_playbook_must_fit_the_node_and_itself() {
    for (from, to, cause) in [
        ("playbook: small", "playbook: ''", "playbook: has no name"),
        ("to: ipvs", "to: iptables", "both are iptables"),
        ("to: ipvs\n", "", "names one and not the other"),
        ("- switch: {}", "- upgrade: {ask: now}", "takes `switch`, not `upgrade`"),
        ("  - switch: {}\n", "", "from iptables to ipvs takes `switch`"),
        ("stages:", "hooks: {after_clean: []}\nstages:", "after_clean: there is no stage `clean`"),
        ("to: ipvs", "to: userspace", "no userspace mode since 1.26"),
    ] {
        let error = parse(&replaced(from, to)).unwrap_err();
        assert_eq!(error.kind, Kind::Usage, "{error}");
        assert!(error.to_string().contains(cause), "{error}");
    }
    let elsewhere = Playbook::parse("own.yaml", SMALL, Mode::Nftables).unwrap_err();
    assert!(elsewhere.to_string().contains("kube-proxy runs in nftables"), "{elsewhere}");
    // A node that is already in the new mode still has leftovers of the old mode.
    let there = Playbook::parse("own.yaml", SMALL, Mode::Ipvs).unwrap();
    assert_eq!((there.from, there.to), (Mode::Iptables, Mode::Ipvs));
    // An upgrade needs no way to the mode, but a mode that kube-proxy still has.
    let upgrade = replaced("from: iptables\nto: ipvs\n", "");
    let upgrade = upgrade.replace("- switch: {}", "- upgrade: {ask: now}");
    let within = |mode| Playbook::parse("own.yaml", &upgrade, mode).map(|p| (p.from, p.to));
    assert_eq!(within(Mode::Nftables).unwrap(), (Mode::Nftables, Mode::Nftables));
    assert_eq!(within(Mode::Userspace).unwrap_err().kind, Kind::Usage);
}

#[test]
fn words_that_nobody_knows_are_refused() {
    let with = |stage: &str| {
        let text = replaced("- snapshot: {}", "- preflight: {block: [a.b]}\n  - snapshot: {}");
        parse(&text.replace("- verify: {}", stage)).unwrap()
    };
    let playbook = with("- clean: {leftovers_of: docker}\n  - verify: {}");
    assert!(playbook.refers_to_known(|c| c == "a.b", |o| o == "docker").is_ok());
    let check = playbook.refers_to_known(|_| false, |_| true).unwrap_err();
    assert_eq!(check.to_string(), "playbook small: preflight: there is no check `a.b`");
    let owner = playbook.refers_to_known(|_| true, |_| false).unwrap_err();
    assert_eq!(owner.to_string(), "playbook small: clean: there is no owner `docker`");
}

#[test]
fn the_built_in_ones_fit_their_modes() {
    let modes = [Mode::Iptables, Mode::Ipvs, Mode::Nftables];
    for (from, to) in modes.into_iter().flat_map(|from| modes.map(|to| (from, to))) {
        let playbook = builtin(from, to).unwrap();
        assert_eq!((playbook.from, playbook.to), (from, to));
        let (file, _) = builtin_text(from, to).unwrap();
        assert_eq!(file, format!("{}.yaml", playbook.name));
        // The bridge is needed where kube-proxy removes the old mode's objects as it starts.
        let crosses = from != to && [from, to].contains(&Mode::Nftables);
        assert_eq!(playbook.stage(StageName::Bridge).is_some(), crosses, "{from} to {to}");
    }
    let error = builtin(Mode::Userspace, Mode::Ipvs).unwrap_err();
    assert_eq!(error.to_string(), "--to ipvs: there is no way from userspace to it");
    assert_eq!(builtin(Mode::Iptables, Mode::Userspace).unwrap_err().kind, Kind::Usage);
    assert_eq!(origin(Mode::Ipvs), Some(Mode::Iptables));
    assert_eq!(origin(Mode::Iptables), Some(Mode::Ipvs));
    assert_eq!(origin(Mode::Nftables), Some(Mode::Iptables));
}
