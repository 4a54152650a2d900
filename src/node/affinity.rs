//! Reads which clients stay with which endpoint by session affinity, where no save has that.

use std::fs;
use std::io::ErrorKind;

use super::subsystems::read_if_exists;
use super::tools::{Tool, Tools};
use crate::error::{Error, Kind, Result};
use crate::state::NodeState;
use crate::state::affinity::{AffinityLists, Jiffies, recent_clients};
use crate::state::ipvs::persistence_templates;

/// The folder of the lists of `xt_recent` in this network namespace.
const RECENT: &str = "/proc/self/net/xt_recent";

/// The file that has the kernel's clock. Root alone can read it.
const TIMERS: &str = "/proc/timer_list";

/// The lists of this network namespace. Those of ipvs are read only where a virtual server of `state`
/// has persistence, as its tool would load ipvs.
///
/// # Errors
/// [`Kind::Kernel`] when a file of the kernel cannot be read, [`Kind::Parse`] for one that has not its
/// form, and the errors of ipvsadm.
pub fn read(tools: &Tools, state: &NodeState) -> Result<AffinityLists> {
    let mut lists = AffinityLists::default();
    let kernel = |e| Error::new(Kind::Kernel, RECENT, e);
    let names: Vec<String> = match fs::read_dir(RECENT) {
        Ok(entries) => {
            let names = entries.map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()));
            names.collect::<std::io::Result<_>>().map_err(kernel)?
        }
        // No rule of this kernel has asked for one yet.
        Err(e) if e.kind() == ErrorKind::NotFound => Vec::new(),
        Err(e) => return Err(kernel(e)),
    };
    if !names.is_empty() {
        let timers = read_if_exists(TIMERS)?;
        let clock = Jiffies::parse(TIMERS, timers.as_deref().unwrap_or_default())?;
        for name in names {
            // A list goes with the last rule that names it.
            let text = read_if_exists(&format!("{RECENT}/{name}"))?.unwrap_or_default();
            lists.recent.insert(name.clone(), recent_clients(&name, &text, clock)?);
        }
    }
    if state.ipvs.servers.iter().any(|server| server.persistent.is_some()) {
        let words = ["-L", "-n", "-c"];
        let listed = tools.command(Tool::Ipvsadm)?.args(words).run()?.stdout;
        lists.templates = persistence_templates("ipvsadm -L -n -c", &listed)?;
    }
    Ok(lists)
}
