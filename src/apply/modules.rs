//! Loads kernel modules now, and has them loaded at each boot. A rollback does not unload a module,
//! because another program may use it by then.

use std::time::Duration;

use crate::error::Result;
use crate::node::modules::is_loaded;
use crate::node::tools::{Tool, Tools};
use crate::state::live_facts::Modules;

/// The file that lists the modules to load at boot, for systemd-modules-load.
pub const BOOT_FILE: &str = "/etc/modules-load.d/proxyshift.conf";

/// The deadline for `modprobe` to load one module.
const LOADING: Duration = Duration::from_secs(30);

/// Loads the module `name` with `modprobe`, unless it [`is_loaded`]. `known` lists the modules of
/// this kernel.
///
/// # Errors
/// [`crate::error::Kind::MissingTool`] if modprobe is not installed,
/// [`crate::error::Kind::Command`] if modprobe does not find the module.
pub fn load(tools: &Tools, name: &str, known: &Modules) -> Result<()> {
    if is_loaded(name, known)? {
        return Ok(());
    }
    let modprobe = tools.command(Tool::Modprobe)?.args(["--", name]).deadline(LOADING).bound();
    modprobe.run().map(drop).map_err(|error| {
        error.hint(format!(
            "install the modules of this kernel, or boot one that has {name} (Debian: apt install \
             linux-image-amd64)"
        ))
    })
}

/// The text of [`BOOT_FILE`]: one module name per line.
pub fn boot_text<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names = names.into_iter().map(|name| format!("{name}\n"));
    format!("# Written by proxyshift for kube-proxy's mode.\n{}", names.collect::<String>())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::error::Kind;

    #[test]
    fn the_boot_file_has_a_module_a_line() {
        let text = boot_text(["ip_vs", "ip_vs_rr"]);
        assert_eq!(text.lines().skip(1).collect::<Vec<_>>(), ["ip_vs", "ip_vs_rr"]);
    }

    #[test]
    fn a_missing_module_is_an_error_and_a_built_in_one_is_not() {
        let built_in = BTreeSet::from(["proxyshift_built_in".to_owned()]);
        let known = Modules { built_in, ..Modules::default() };
        let tools = Tools::find();
        load(&tools, "proxyshift-built-in", &known).unwrap();
        assert!(!is_loaded("proxyshift_nowhere", &known).unwrap());
        let error = load(&tools, "proxyshift_nowhere", &known).unwrap_err();
        assert_eq!(error.kind, Kind::Command, "{error}");
        assert!(error.object.ends_with("modprobe -- proxyshift_nowhere"), "{error}");
        assert!(error.hint.is_some());
    }
}
