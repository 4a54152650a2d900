//! What kube-proxy's mode needs of the kernel: modules and sysctls, now and after a reboot.
//!
//! Each change has two halves, so that the old state is in the journal before it is lost: read
//! ([`is_loaded`], [`sysctl`], [`super::controller::read`]), then change ([`load`], [`set_sysctl`],
//! [`persist`]). A loaded module stays loaded when a run is undone: someone else may use it by
//! then.

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::path::{Component, Path, PathBuf};
use std::time::Duration;

use super::controller::swap;
use super::subsystems::read_if_there;
use super::sysctls;
use super::tools::{Tool, Tools};
use crate::error::{Error, Kind, Result};
use crate::state::live_facts::Availability;
use crate::state::live_facts::Modules;

/// Where the modules are named that are loaded at boot.
pub const MODULES: &str = "/etc/modules-load.d/proxyshift.conf";

/// Where the sysctls are that are set at boot, after the modules are loaded.
pub const SYSCTLS: &str = "/etc/sysctl.d/90-proxyshift.conf";

/// How long a module may take to load.
const LOADING: Duration = Duration::from_secs(30);

/// True if the module `name` is in the kernel now, loaded or built in; `known` says what is built
/// in without a trace in /proc or /sys.
///
/// # Errors
/// When /proc cannot be read.
pub fn is_loaded(name: &str, known: &Modules) -> Result<bool> {
    let name = name.replace('-', "_");
    let list = read_if_there("/proc/modules")?.unwrap_or_default();
    Ok(list.lines().any(|line| line.split(' ').next() == Some(&name))
        || Path::new("/sys/module").join(&name).exists()
        || known.availability(&name) == Availability::BuiltIn)
}

/// Loads the module `name` with `modprobe`; nothing to do where it [`is_loaded`].
///
/// # Errors
/// [`Kind::MissingTool`] without modprobe, [`Kind::Command`] if there is no such module.
pub fn load(tools: &Tools, name: &str, known: &Modules) -> Result<()> {
    if is_loaded(name, known)? {
        return Ok(());
    }
    let modprobe = tools.command(Tool::Modprobe)?.args(["--", name]).deadline(LOADING);
    modprobe.run().map(drop).map_err(|error| {
        error.hint(format!(
            "install the modules of this kernel, or boot one that has {name} (Debian: apt install \
             linux-image-amd64)"
        ))
    })
}

/// The value of a sysctl, by its name (`net.ipv4.vs.conntrack`; a dot in a link's name is `/`);
/// none if this kernel, with the modules that are loaded, has none.
///
/// # Errors
/// [`Kind::Usage`] for what is no name, else what the system says.
pub fn sysctl(name: &str) -> Result<Option<String>> {
    let path = path(name)?;
    match fs::read_to_string(&path) {
        Ok(text) => Ok(Some(text.trim_end_matches('\n').to_owned())),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(&path, &e)),
    }
}

/// Sets a sysctl, and reads it again.
///
/// # Errors
/// [`Kind::Kernel`] if there is no such sysctl, or it does not take the value; [`Kind::Usage`] for
/// what is no name.
pub fn set_sysctl(name: &str, value: &str) -> Result<()> {
    let refused = |cause: String| {
        Error::new(Kind::Kernel, format!("sysctl {name} = {value}"), cause)
            .hint("see whether its module is loaded, and which values it takes")
    };
    let file = path(name)?;
    fs::OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut file| std::io::Write::write_all(&mut file, value.as_bytes()))
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::InvalidInput => refused(e.to_string()),
            _ => Error::io(&file, &e),
        })?;
    let now = sysctl(name)?.unwrap_or_default();
    // Some are lists, whose words the kernel sets apart in its own way.
    match now.split_whitespace().eq(value.split_whitespace()) {
        true => Ok(()),
        false => Err(refused(format!("the kernel made it {now}"))),
    }
}

fn path(name: &str) -> Result<PathBuf> {
    let below = PathBuf::from(sysctls::name(name));
    let plain = below.components().all(|part| matches!(part, Component::Normal(_)));
    match plain && !name.is_empty() {
        true => Ok(Path::new("/proc/sys").join(below)),
        false => Err(Error::new(Kind::Usage, name, "not the name of a sysctl")),
    }
}

/// The text of [`MODULES`]: a module a line.
pub fn modules_text<'a>(names: impl IntoIterator<Item = &'a str>) -> String {
    let names = names.into_iter().map(|name| format!("{name}\n"));
    format!("# Written by proxyshift for kube-proxy's mode.\n{}", names.collect::<String>())
}

/// The text of [`SYSCTLS`]: `name = value` a line.
pub fn sysctls_text(values: &BTreeMap<String, String>) -> String {
    let values = values.iter().map(|(name, value)| format!("{name} = {value}\n"));
    format!("# Written by proxyshift for kube-proxy's mode.\n{}", values.collect::<String>())
}

/// Exchanges [`MODULES`] or [`SYSCTLS`] as [`swap`] does, and makes their folder where there is
/// none; its undoing is the same call with `from` and `to` exchanged.
///
/// # Errors
/// As [`swap`]: [`Kind::LostRace`] if someone else wrote the file meanwhile.
pub fn persist(file: &Path, from: Option<&str>, to: Option<&str>) -> Result<()> {
    if let (Some(_), Some(folder)) = (to, file.parent()) {
        fs::create_dir_all(folder).map_err(|e| Error::io(folder, &e))?;
    }
    swap(file, from, to)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn only_names_below_proc_sys_are_names() {
        let at = |name| path(name).map(|p| p.display().to_string());
        assert_eq!(at("net.ipv4.vs.conntrack").unwrap(), "/proc/sys/net/ipv4/vs/conntrack");
        assert_eq!(
            at("net.ipv4.conf.eth0/7.rp_filter").unwrap(),
            "/proc/sys/net/ipv4/conf/eth0.7/rp_filter"
        );
        for name in ["", ".etc.passwd", "net.//.//.x", "//.x"] {
            assert_eq!(at(name).unwrap_err().kind, Kind::Usage, "{name}");
        }
    }

    #[test]
    fn texts_are_those_that_systemd_reads() {
        assert_eq!(
            modules_text(["ip_vs", "ip_vs_rr"]).lines().skip(1).collect::<Vec<_>>(),
            ["ip_vs", "ip_vs_rr"]
        );
        let values = BTreeMap::from([("net.ipv4.vs.conntrack".to_owned(), "1".to_owned())]);
        assert!(sysctls_text(&values).ends_with("mode.\nnet.ipv4.vs.conntrack = 1\n"));
    }

    #[test]
    fn a_module_that_is_nowhere_is_an_error_and_a_built_in_one_is_not() {
        let built_in = BTreeSet::from(["proxyshift_built_in".to_owned()]);
        let known = Modules { built_in, ..Modules::default() };
        let tools = Tools::find();
        load(&tools, "proxyshift-built-in", &known).unwrap();
        assert!(!is_loaded("proxyshift_nowhere", &known).unwrap());
        let error = load(&tools, "proxyshift_nowhere", &known).unwrap_err();
        assert_eq!(error.kind, Kind::Command, "{error}");
        assert!(error.object.ends_with("modprobe -- proxyshift_nowhere"), "{error}");
        assert!(error.hint.is_some());
        // This kernel's own have traces in /sys.
        let any = fs::read_dir("/sys/module").unwrap().next().unwrap().unwrap().file_name();
        assert!(is_loaded(any.to_str().unwrap(), &Modules::default()).unwrap());
    }
}
