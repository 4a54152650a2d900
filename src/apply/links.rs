//! Removes and restores the network links of a component, with their addresses.

use std::fmt::Write;

use crate::apply::Kernel;
use crate::error::{Error, Kind, Result};
use crate::node::tools::Tool;
use crate::plan::change::{Direction, LinkSpec};
use crate::state::links::is_plain;

pub(super) fn apply(kernel: &Kernel<'_>, direction: Direction, link: &LinkSpec) -> Result<()> {
    if !is_plain(&link.name) || !is_plain(&link.kind) {
        let cause = "its name cannot be given to ip";
        return Err(Error::new(Kind::Kernel, format!("link {:?}", link.name), cause));
    }
    let mut batch = String::new();
    match direction {
        Direction::Remove => {
            let _ = writeln!(batch, "link del dev {}", link.name);
        }
        Direction::Add => {
            let _ = writeln!(batch, "link add name {} type {}", link.name, link.kind);
            for address in &link.addresses {
                let _ = writeln!(batch, "addr add {address} dev {}", link.name);
            }
            if link.up {
                let _ = writeln!(batch, "link set dev {} up", link.name);
            }
        }
    }
    kernel
        .writer(Tool::Ip)?
        .args(["-batch", "-"])
        .stdin(batch)
        .run()
        .map(|_| ())
        .map_err(|e| Error { kind: Kind::Kernel, ..e })
}
