//! Finds whether a kernel module is loaded.

use std::path::Path;

use super::subsystems::read_if_exists;
use crate::error::Result;
use crate::state::live_facts::Availability;
use crate::state::live_facts::Modules;

/// True if the module `name` is loaded or built in. `known` is needed for built-in modules that
/// leave no trace in /proc or /sys.
///
/// # Errors
/// When /proc cannot be read.
pub fn is_loaded(name: &str, known: &Modules) -> Result<bool> {
    let name = name.replace('-', "_");
    let list = read_if_exists("/proc/modules")?.unwrap_or_default();
    Ok(list.lines().any(|line| line.split(' ').next() == Some(&name))
        || Path::new("/sys/module").join(&name).exists()
        || known.availability(&name) == Availability::BuiltIn)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn this_kernels_own_modules_have_traces_in_sys() {
        let any = std::fs::read_dir("/sys/module").unwrap().next().unwrap().unwrap().file_name();
        assert!(is_loaded(any.to_str().unwrap(), &Modules::default()).unwrap());
        assert!(!is_loaded("proxyshift_nowhere", &Modules::default()).unwrap());
    }
}
