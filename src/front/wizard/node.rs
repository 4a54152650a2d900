//! An overview of the node on one screen.

use crate::checks::{Facts, Verdict, run};
use crate::error::Result;
pub(in crate::front) use crate::front::cli::command::Invocation;
use crate::kube_proxy::running::RunningMode;
use crate::owners::catalogue::Catalogue;
use crate::owners::liveness::{self, Liveness};
use crate::owners::matcher::Ownership;
use crate::state::NodeState;

/// The host name of the node.
pub(super) fn name() -> String {
    rustix::system::uname().nodename().to_string_lossy().into_owned()
}

/// The mode that kube-proxy runs in, and how that is known.
pub(super) fn running(now: &NodeState) -> Result<RunningMode> {
    let catalogue = Catalogue::builtin()?;
    Ok(RunningMode::of(now, &Ownership::of(&catalogue, now)))
}

/// Shows the node: kube-proxy, rules, networks, docker, and the programs that write rules.
pub(super) fn show(command: &Invocation<'_>, now: &NodeState) -> Result<()> {
    let catalogue = Catalogue::builtin()?;
    let ownership = Ownership::of(&catalogue, now);
    let facts = Facts::of(now, &catalogue, &ownership, None);
    let alive = catalogue.components().iter();
    let alive: Vec<_> =
        alive.filter(|c| matches!(liveness::liveness(c, now), Liveness::Alive(_))).collect();
    let networks = alive.iter().filter(|c| c.cni).map(|c| c.name.as_str()).collect();
    let docker = alive.iter().filter(|c| c.name == "docker").map(|_| "runs").collect();
    let found = run(&facts, &|id| id.starts_with("writers."));
    let writers = found
        .iter()
        .filter(|f| matches!(f.verdict, Verdict::Found(_)))
        .map(|f| f.id.trim_start_matches("writers."))
        .collect();
    command.ui.heading(&format!("Node {}", name()));
    for (label, text) in [
        ("kube-proxy", kube_proxy(&facts.running)),
        ("rules", rules(now)),
        ("network", listed(networks)),
        ("docker", listed(docker)),
        ("writers", listed(writers)),
    ] {
        command.ui.paragraph(&text, &format!("  {label:<11} "), "              ");
    }
    Ok(())
}

fn listed(names: Vec<&str>) -> String {
    if names.is_empty() { "none seen".to_owned() } else { names.join(", ") }
}

fn kube_proxy(running: &RunningMode) -> String {
    let version = match &running.version {
        Some(version) => format!("version {version}"),
        None => "version not known".into(),
    };
    match (running.mode, &running.absence) {
        (Some(mode), Some(absence)) => format!("{mode} mode, but {absence}"),
        (Some(mode), None) => format!("{mode} mode, {version}"),
        (None, _) => format!("mode not clear ({}), {version}", running.evidence),
    }
}

fn rules(now: &NodeState) -> String {
    let each = now.rulesets.iter().map(|(id, r)| format!("{} {id}", r.rule_count()));
    let rules: Vec<String> = each.collect();
    if rules.is_empty() { "none".into() } else { rules.join(", ") }
}
