//! Captures what can be captured of a node of which not all can, for a bundle: each part by itself, and
//! what is missing with its reason.

use super::nft_tables;
use super::{
    RefusedSave, cluster, counters_and_versions, ipsets, ipvs, legacy_of, links, owners, put,
    xtables,
};
use crate::error::{Error, Result};
use crate::event::Sink;
use crate::node::nfnetlink::{Netfilter, TableFamily};
use crate::node::tools::Tools;
use crate::node::{prerequisites, subsystems, sysctls};
use crate::state::nft_messages::TableCopy;
use crate::state::tools::NOT_KNOWN;
use crate::state::{Backend, Family, Files, NodeState, RulesetId};

/// The parts of a node that could be captured.
#[derive(Debug, Default)]
pub struct Parts {
    /// The files of a capture. Together they can be parsed.
    pub files: Files,
    /// What was read and is no part of a capture: a save that does not hold what the kernel does, a file
    /// that does not parse, and the kernel's own messages about the tables that cannot be saved.
    pub refused: Files,
    /// Why parts are missing.
    pub errors: Vec<Error>,
}

/// Captures each part of the node in the current namespaces that can be captured. As every capture, it
/// changes nothing.
pub fn capture_parts(tools: &Tools, sink: &dyn Sink) -> Parts {
    let mut parts = Parts::default();
    for family in Family::ALL {
        parts.add(|files| legacy_of(tools, family, files));
    }
    if subsystems::nf_tables() {
        parts.nf_tables(tools, sink);
    }
    parts.add(|files| {
        put(files, "ipset.save", ipsets(tools)?);
        Ok(())
    });
    parts.add(|files| {
        let named = prerequisites::capture_named(files)?;
        named.into_iter().for_each(|(name, text)| put(files, name, text));
        Ok(())
    });
    parts.add(|files| ipvs(tools, files));
    parts.add(|files| links(tools, files));
    parts.add(|files| {
        put(files, "sysctl.txt", sysctls::read()?);
        Ok(())
    });
    parts.add(|files| {
        put(files, "modules.txt", subsystems::read_if_exists("/proc/modules")?.unwrap_or_default());
        Ok(())
    });
    parts.add(|files| {
        let components = owners(files, sink)?;
        cluster(files, &components, sink)
    });
    parts.add(|files| counters_and_versions(tools, files));
    if !parts.files.contains_key("processes.json") {
        // Without this, a capture shows that no component runs.
        put(&mut parts.files, "processes.json", NOT_KNOWN.into());
    }
    parts.set_aside();
    parts
}

impl Parts {
    fn add(&mut self, capture: impl FnOnce(&mut Files) -> Result<()>) {
        self.errors.extend(capture(&mut self.files).err());
    }

    fn nf_tables(&mut self, tools: &Tools, sink: &dyn Sink) {
        let tables = match nft_tables::listed() {
            Ok(tables) => tables,
            Err(error) => return self.errors.push(error),
        };
        for family in Family::ALL {
            if let Err(RefusedSave { error, text }) =
                xtables(tools, &tables, family, &mut self.files)
            {
                let file = RulesetId { family, backend: Backend::Nft }.file();
                put(&mut self.refused, &file, text.unwrap_or_default());
                self.errors.push(error);
                self.keep_messages(family);
            }
        }
        self.add(|files| nft_tables::capture_native(tools, &tables, files, sink));
    }

    /// Keeps the kernel's messages about the tables of iptables-nft of one family.
    pub fn keep_messages(&mut self, family: Family) {
        let mut text = String::new();
        for table in subsystems::XTABLES {
            let family = family.nft();
            let messages = Netfilter::open().and_then(|mut netfilter| {
                netfilter.messages_of(TableFamily::named(family)?, table)
            });
            let messages = messages.unwrap_or_default();
            text.push_str(&TableCopy::Messages(messages).render(family, table));
        }
        put(&mut self.refused, &format!("{}.messages", family.nft()), text);
    }

    /// Sets the files aside that cannot be parsed.
    fn set_aside(&mut self) {
        while let Err(error) = NodeState::parse(self.files.clone()) {
            // The object of the error is the file, or a line in it.
            let name = self.files.keys().filter(|name| error.object.starts_with(*name)).max();
            let Some(name) = name.cloned() else { return self.errors.push(error) };
            self.refused.extend(self.files.remove_entry(&name));
            self.errors.push(error);
        }
    }
}
