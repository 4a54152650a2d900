//! What kube-proxy needs of the kernel, checked without loading a module.

mod conntrack;
mod modules;
mod modules_at_boot;
mod nftables;
mod nftables_parts;
mod schedulers;

use super::{Check, Facts};
use crate::state::live_facts::Availability;

pub(super) const CHECKS: &[&Check] = &[
    &modules::DUMMY,
    &modules::IP_VS,
    &modules_at_boot::CHECK,
    &conntrack::CHECK,
    &nftables::CHECK,
    &nftables_parts::CHECK,
    &schedulers::CHECK,
    &modules::XT_IPVS,
    &modules::XT_SET,
];

/// Whether the kernel has a module or can load it. The string is the evidence, or says what is not
/// known.
enum Presence {
    Present(String),
    /// It is on the disk, and not loaded.
    Loadable(String),
    Missing(String),
    Unknown(String),
}

/// Looks a module up: whether it was loaded at the capture, or whether a live node can load it.
fn presence(facts: &Facts<'_>, name: &str) -> Presence {
    let loaded = facts.now.files.get("modules.txt");
    let line = |text: &str| text.lines().any(|l| l.split(' ').next() == Some(name));
    if loaded.is_some_and(|text| line(text)) {
        return Presence::Present(format!("{name} is loaded (/proc/modules)"));
    }
    let Some(modules) = facts.live.and_then(|a| a.modules.as_ref()) else {
        let why = "was not loaded at the capture; a live node alone can say if it could be";
        return Presence::Unknown(format!("{name} {why}"));
    };
    match modules.availability(name) {
        Availability::Loaded => Presence::Present(format!("{name} is loaded (/proc/modules)")),
        Availability::BuiltIn => Presence::Present(format!("{name} is part of the kernel")),
        Availability::Loadable => Presence::Loadable(format!("{name} can be loaded (modules.dep)")),
        Availability::Missing => Presence::Missing(format!(
            "{name}: not in /proc/modules, modules.builtin, the kernel's configuration, or \
             modules.dep"
        )),
        Availability::Unknown => Presence::Unknown(format!(
            "{name} is not loaded, and /lib/modules of this kernel cannot be read"
        )),
    }
}

/// The commands that install the kernel modules `names` for the running kernel.
fn install(facts: &Facts<'_>, names: &str) -> String {
    let loads = facts.live.and_then(|a| a.modules.as_ref()).is_some_and(|m| !m.loadable.is_empty());
    match &facts.now.tools {
        Some(tools) if loads && is_of_rpm(&tools.kernel) => format!(
            "dnf install kernel-modules-extra-{}   # else a kernel that has {names}",
            tools.kernel
        ),
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

/// Whether a kernel's release is of Red Hat's kind: `6.12.0-124.8.1.el10_1.x86_64`, `6.17.0-1.fc43.x86_64`.
fn is_of_rpm(release: &str) -> bool {
    let digit = |rest: &str| rest.starts_with(|c: char| c.is_ascii_digit());
    [".el", ".fc"].iter().any(|mark| release.split_once(mark).is_some_and(|(_, rest)| digit(rest)))
}

#[cfg(test)]
mod testing {
    use crate::state::live_facts::LiveFacts;
    use crate::state::live_facts::Modules;

    /// The live facts of a node that can load the modules `loadable`, and that loads the modules
    /// `at_boot` at boot.
    pub(super) fn modules(loadable: &[&str], at_boot: &[&str]) -> LiveFacts {
        let names = |names: &[&str]| names.iter().map(|n| (*n).to_owned()).collect();
        let modules = Modules {
            loadable: names(loadable),
            at_boot: names(at_boot),
            complete: true,
            ..Modules::default()
        };
        LiveFacts { modules: Some(modules), ..LiveFacts::default() }
    }
}
