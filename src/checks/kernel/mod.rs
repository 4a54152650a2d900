//! What the kernel must have, found without loading anything.

pub(super) mod dummy;
pub(super) mod ip_vs;
pub(super) mod modules_at_boot;
pub(super) mod nftables;
pub(super) mod schedulers;
pub(super) mod xt_ipvs;
pub(super) mod xt_set;

use super::{Facts, Found, Verdict};
use crate::state::live_facts::Availability;

/// Where a module is.
enum Place {
    /// It can be had; how.
    There(String),
    /// It cannot; where it was looked for.
    Missing(String),
    /// What was missing to know.
    Unknown(String),
}

/// Where the module `name` is: loaded when the state was captured, or where a live node has it.
fn place(facts: &Facts<'_>, name: &str) -> Place {
    let loaded = facts.now.files.get("modules.txt");
    let line = |text: &str| text.lines().any(|l| l.split(' ').next() == Some(name));
    if loaded.is_some_and(|text| line(text)) {
        return Place::There(format!("{name} is loaded (/proc/modules)"));
    }
    let Some(modules) = facts.live.and_then(|a| a.modules.as_ref()) else {
        let why = "was not loaded at the capture; a live node alone can say if it could be";
        return Place::Unknown(format!("{name} {why}"));
    };
    match modules.availability(name) {
        Availability::Loaded => Place::There(format!("{name} is loaded (/proc/modules)")),
        Availability::BuiltIn => Place::There(format!("{name} is part of the kernel")),
        Availability::Loadable => Place::There(format!("{name} can be loaded (modules.dep)")),
        Availability::Missing => Place::Missing(format!(
            "{name}: not in /proc/modules, modules.builtin, the kernel's configuration, or \
             modules.dep"
        )),
        Availability::Unknown => Place::Unknown(format!(
            "{name} is not loaded, and /lib/modules of this kernel cannot be read"
        )),
    }
}

/// The judgement of one module; `there` is another proof that the kernel has it.
fn judge_module(facts: &Facts<'_>, name: &str, there: Option<String>, effect: &str) -> Verdict {
    if let Some(shown) = there {
        return Verdict::Ok(shown);
    }
    match place(facts, name) {
        Place::There(shown) => Verdict::Ok(shown),
        Place::Unknown(why) => Verdict::Unknown(why),
        Place::Missing(evidence) => Verdict::Found(Found {
            evidence: std::iter::once(evidence).chain(complaints(facts, name)).collect(),
            effect: effect.into(),
            remedy: vec![install(facts, name)],
            fix: Vec::new(),
        }),
    }
}

/// Lines of kube-proxy's log that miss the module.
fn complaints(facts: &Facts<'_>, name: &str) -> Vec<String> {
    let lines = facts.live.iter().flat_map(|a| &a.kube_proxy_complaints);
    let named = |l: &&String| l.contains("kernel modules") && l.contains(name);
    lines.filter(named).take(1).cloned().collect()
}

/// How to get the modules `names` for this kernel.
fn install(facts: &Facts<'_>, names: &str) -> String {
    let loads = facts.live.and_then(|a| a.modules.as_ref()).is_some_and(|m| !m.loadable.is_empty());
    match &facts.now.tools {
        Some(tools) if loads => format!(
            "apt-get install linux-modules-extra-{}   # Ubuntu; else a kernel that has {names}",
            tools.kernel
        ),
        Some(tools) => {
            format!("boot a kernel that has {names}: there are no modules for {}", tools.kernel)
        }
        None => format!("boot a kernel that has {names}"),
    }
}

#[cfg(test)]
pub(super) mod testing {
    use super::super::{Check, Verdict};
    use crate::state::NodeState;
    use crate::state::kube_proxy::Mode;
    use crate::state::live_facts::LiveFacts;
    use crate::state::live_facts::Modules;

    /// What `check` says of a live node that is to go to `to` and has these modules to load.
    pub fn judged_with(
        check: &Check,
        state: &NodeState,
        to: Mode,
        loadable: &[&str],
        at_boot: &[&str],
    ) -> Verdict {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let modules = Modules {
            loadable: names(loadable),
            at_boot: names(at_boot),
            complete: true,
            ..Modules::default()
        };
        let asked = LiveFacts { modules: Some(modules), ..LiveFacts::default() };
        super::super::testing::judged_with(check, state, Some(to), None, Some(&asked))
    }
}
