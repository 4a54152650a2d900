//! Removes and restores ipsets.

use std::time::{Duration, Instant};

use crate::apply::Kernel;
use crate::error::{Error, Kind, Result};
use crate::node::tools::Tool;
use crate::plan::change::{Direction, SetDump};

/// How long the kernel may report an ipset as in use after the last rule that matched it is gone
/// (weave #3847).
const IN_USE_FOR: Duration = Duration::from_secs(3);

pub(super) fn apply(kernel: &Kernel<'_>, direction: Direction, set: &SetDump) -> Result<()> {
    match direction {
        Direction::Remove => destroy(kernel, &set.name),
        Direction::Add => add(kernel, set),
    }
}

fn destroy(kernel: &Kernel<'_>, name: &str) -> Result<()> {
    let until = Instant::now() + IN_USE_FOR;
    loop {
        match kernel.writer(Tool::Ipset)?.args(["destroy", name]).run() {
            Ok(_) => return Ok(()),
            Err(e) if e.cause.contains("in use") && Instant::now() < until => {
                std::thread::sleep(Duration::from_millis(50));
            }
            Err(e) => return Err(Error { kind: Kind::Kernel, ..e }),
        }
    }
}

/// Fills the ipset under a temporary name and then renames it, so that a half-filled ipset is never
/// visible under the final name.
fn add(kernel: &Kernel<'_>, set: &SetDump) -> Result<()> {
    let temporary = format!("proxyshift-{}", std::process::id());
    let mut text = String::new();
    for line in &set.lines {
        let mut words = line.splitn(3, ' ');
        let (verb, _, rest) = (words.next(), words.next(), words.next());
        text += &format!("{} {temporary} {}\n", verb.unwrap_or_default(), rest.unwrap_or_default());
    }
    text += &format!("rename {temporary} {}\n", set.name);
    let ipset = kernel.writer(Tool::Ipset)?;
    ipset.clone().args(["restore"]).stdin(text).run().map_err(|e| {
        // Removes the temporary ipset. If the removal fails too, its error is ignored, because the
        // first error is the one to report.
        let _ = ipset.args(["destroy", &temporary]).run();
        Error { kind: Kind::Kernel, ..e }
    })?;
    Ok(())
}
