//! Sets sysctls now, and has them set at each boot.

use std::collections::BTreeMap;
use std::fs::OpenOptions;
use std::io::{ErrorKind, Write};

use crate::error::{Error, Kind, Result};
use crate::node::sysctls;

/// The file with the sysctls that are set at boot. systemd sets them after it has loaded the
/// modules.
pub const BOOT_FILE: &str = "/etc/sysctl.d/90-proxyshift.conf";

/// Sets a sysctl, and reads its value back.
///
/// # Errors
/// [`Kind::Kernel`] for a missing sysctl or a refused value; [`Kind::Usage`] if `name` is not the
/// name of a sysctl.
pub fn set(name: &str, value: &str) -> Result<()> {
    let refused = |cause: String| {
        Error::new(Kind::Kernel, format!("sysctl {name} = {value}"), cause)
            .hint("see whether its module is loaded, and which values it takes")
    };
    let file = sysctls::path(name)?;
    OpenOptions::new()
        .write(true)
        .open(&file)
        .and_then(|mut file| file.write_all(value.as_bytes()))
        .map_err(|e| match e.kind() {
            ErrorKind::NotFound | ErrorKind::InvalidInput => refused(e.to_string()),
            _ => Error::io(&file, &e),
        })?;
    let now = sysctls::value_of(name)?.unwrap_or_default();
    // Some values are lists, which the kernel may print with other whitespace than was written.
    if now.split_whitespace().ne(value.split_whitespace()) {
        return Err(refused(format!("the kernel made it {now}")));
    }
    Ok(())
}

/// The text of [`BOOT_FILE`]: one line `name = value` per sysctl.
pub fn boot_text(values: &BTreeMap<String, String>) -> String {
    let values = values.iter().map(|(name, value)| format!("{name} = {value}\n"));
    format!("# Written by proxyshift for kube-proxy's mode.\n{}", values.collect::<String>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_boot_file_has_a_value_a_line() {
        let values = BTreeMap::from([("net.ipv4.vs.conntrack".to_owned(), "1".to_owned())]);
        assert!(boot_text(&values).ends_with("mode.\nnet.ipv4.vs.conntrack = 1\n"));
    }
}
