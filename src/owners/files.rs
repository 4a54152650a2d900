//! The catalogue files of `playbooks/owners`, which are built into the program, and the components
//! that they describe.

use std::collections::BTreeSet;
use std::sync::{Arc, LazyLock};

use crate::error::{Error, Kind, Result};
use crate::owners::component::{Component, KUBE_PROXY};
use crate::owners::expression::Expression;
use crate::owners::names::{anchored, refused};
use crate::owners::precedence::ordered;
use crate::owners::signs::{Alive, ProcessSign};
use crate::state::multicall;
use crate::yaml;

/// The name and text of every catalogue file, sorted by name. `build.rs` lists them.
pub(crate) static FILES: &[(&str, &str)] = &include!(concat!(env!("OUT_DIR"), "/owners.rs"));

/// The components of the built-in files, in order of precedence. They are read once.
///
/// # Errors
/// As [`components`]. A test shows that the built-in files give no error.
pub(super) fn builtin() -> Result<Arc<[Component]>> {
    static BUILTIN: LazyLock<Result<Arc<[Component]>>> = LazyLock::new(|| components(FILES));
    BUILTIN.clone()
}

/// Reads the components of catalogue files, given as pairs of file name and text. Returns them in
/// order of precedence.
///
/// # Errors
/// [`Kind::Parse`] for a text that is not YAML or has unknown keys. [`Kind::Usage`], with file and
/// field, for a component name that differs from the file's name, a link pattern that is malformed
/// or not anchored, an invalid reference to a component, and a key without effect in that file.
pub(super) fn components(files: &[(&str, &str)]) -> Result<Arc<[Component]>> {
    let mut components: Vec<Component> = Vec::new();
    for (name, text) in files {
        let file = format!("owners/{name}.yaml");
        let component: Component = yaml::parse(&file, text)?;
        if component.name != *name {
            let cause = format!("component: is `{}`, not the file's name", component.name);
            return Err(Error::new(Kind::Usage, file, cause));
        }
        let Alive { links, pods, outlived_by, .. } = &component.alive;
        for pattern in links.iter().chain(pods).chain(&outlived_by.links) {
            anchored(name, "alive", pattern)?;
        }
        refuse_idle_keys(&component)?;
        components.push(component);
    }
    Ok(ordered(components)?.into())
}

/// Refuses modes, versions and successors in the file of any component but kube-proxy. A clean-up
/// knows the mode and version of kube-proxy alone, so these keys have no effect in other files.
fn refuse_idle_keys(component: &Component) -> Result<()> {
    if component.name == KUBE_PROXY {
        return Ok(());
    }
    let chains = component.chains.iter().filter(|c| c.is_versioned()).map(|c| ("chains", &c.name));
    let hooks = component.hooks.iter().filter(|h| h.is_versioned()).map(|h| ("hooks", &h.to));
    match chains.chain(hooks).next() {
        None => Ok(()),
        Some((field, name)) => {
            let cause = "has `modes`, `since`, `until` or `replaced_by`, which only count for";
            Err(refused(&component.name, field, format!("`{name}` {cause} {KUBE_PROXY}")))
        }
    }
}

/// What a capture takes of a node, so that liveness can judge every sign of the catalogue.
#[derive(Debug)]
pub struct KnownSigns {
    /// The names of processes, and the programs that may be such a process as one of their parts.
    pub processes: BTreeSet<String>,
    /// The paths of files, sockets and folders: those of living components and what outlives them.
    pub files: BTreeSet<String>,
    /// The patterns of pods' names.
    pub(crate) pods: Vec<Expression>,
    /// The programs that hold more than one component.
    pub programs: Vec<ProcessSign>,
}

/// The signs of life of every component.
///
/// # Errors
/// [`Kind::Parse`] or [`Kind::Usage`] for a catalogue file of another form. A test shows that the
/// built-in files give no error.
pub fn known_signs() -> Result<&'static KnownSigns> {
    static SIGNS: LazyLock<Result<KnownSigns>> = LazyLock::new(|| {
        let components = builtin()?;
        let all = || components.iter().map(|c| &c.alive);
        let names = all().flat_map(|a| a.processes.iter().flat_map(|sign| &sign.names));
        let files = all().flat_map(|a| a.files.iter().chain(&a.outlived_by.files));
        let pods = components.iter().flat_map(|c| c.alive.pods.iter().map(|p| (&c.name, p)));
        let is_program = |sign: &&ProcessSign| !sign.words.is_empty() || !sign.off.is_empty();
        let programs = all().flat_map(|a| a.processes.iter().filter(is_program));
        let mut processes: BTreeSet<String> = names.cloned().collect();
        let programs_of_parts: Vec<&str> = multicall::programs(|p| processes.contains(p)).collect();
        processes.extend(programs_of_parts.into_iter().map(str::to_owned));
        Ok(KnownSigns {
            processes,
            files: files.cloned().collect(),
            pods: pods.map(|(name, p)| anchored(name, "alive.pods", p)).collect::<Result<_>>()?,
            programs: programs.cloned().collect(),
        })
    });
    SIGNS.as_ref().map_err(Error::clone)
}

/// The process names that show that some component is alive, and the programs that may be such a
/// process as one of their parts.
///
/// # Errors
/// As [`known_signs`].
pub fn known_processes() -> Result<&'static BTreeSet<String>> {
    known_signs().map(|signs| &signs.processes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_is_the_folder() {
        let folder = concat!(env!("CARGO_MANIFEST_DIR"), "/playbooks/owners");
        let name = |e: std::fs::DirEntry| e.file_name().to_string_lossy().into_owned();
        let mut there: Vec<String> =
            std::fs::read_dir(folder).unwrap().map(|e| name(e.unwrap())).collect();
        let listed: Vec<String> = FILES.iter().map(|(n, _)| format!("{n}.yaml")).collect();
        there.sort();
        assert_eq!(there, listed);
    }

    #[test]
    fn processes_come_from_every_file() {
        let names = known_processes().unwrap();
        for name in ["kube-proxy", "hyperkube", "k3s", "speaker", "calico-node", "ztunnel"] {
            assert!(names.contains(name), "{name}");
        }
        // The kernel cuts a command name to 15 bytes, so the first 15 bytes of each name must be
        // unique.
        let short: BTreeSet<&str> = names.iter().map(|n| n.get(..15).unwrap_or(n)).collect();
        assert_eq!(short.len(), names.len());
    }
}
