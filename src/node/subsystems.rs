//! Finds which parts of netfilter are in the kernel, without loading any.
//!
//! Running a program to find out may load modules: `ipvsadm` loads ip_vs, `ipset` loads ip_set,
//! `iptables-nft-save` loads nf_tables, `nft --version` loads nfnetlink, and
//! `iptables-legacy-save -t T` creates the table T. /proc and /sys show what is loaded without
//! that.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::LazyLock;

use crate::error::{Error, Kind, Result};
use crate::state::Family;

/// The names of the tables that iptables has in both backends.
pub const XTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// The legacy tables of this network namespace, in the kernel's order; empty if `ip_tables` is not
/// loaded.
///
/// `None` if they are unknown, because the list can only be read by root of the initial user
/// namespace. In another user namespace (as in a rehearsal by an ordinary user),
/// [`legacy_tables_loaded`] replaces the list. In the initial one, missing rights are an error.
pub fn legacy_tables(family: Family) -> Result<Option<Vec<String>>> {
    let path = match family {
        Family::Ipv4 => "/proc/net/ip_tables_names",
        Family::Ipv6 => "/proc/net/ip6_tables_names",
    };
    match read_if_exists(path) {
        Ok(names) => {
            let names = names.unwrap_or_default();
            Ok(Some(names.lines().filter(|l| !l.is_empty()).map(str::to_owned).collect()))
        }
        Err(e) if e.kind == Kind::Permission && in_user_namespace() => Ok(None),
        Err(e) => Err(e),
    }
}

/// The legacy tables whose code is loaded. Reading such a table creates it, empty, in this network
/// namespace, but loads nothing.
pub fn legacy_tables_loaded(family: Family) -> Vec<String> {
    let module = match family {
        Family::Ipv4 => "iptable",
        Family::Ipv6 => "ip6table",
    };
    // Without /proc/modules the kernel cannot load modules, and no file lists the built-in tables,
    // so all tables are returned.
    let cannot_load = !Path::new("/proc/modules").exists();
    let loaded = |table: &str| Path::new(&format!("/sys/module/{module}_{table}")).exists();
    let tables = XTABLES.iter().filter(|table| cannot_load || loaded(table));
    tables.map(|&table| table.to_owned()).collect()
}

/// True in any user namespace except the initial one.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// True if ip_set is loaded or built in. A built-in ip_set is in /sys/module too, because it has a
/// parameter.
pub fn ip_set() -> bool {
    Path::new("/sys/module/ip_set").exists()
}

/// True if ip_vs is loaded or built in.
pub fn ip_vs() -> bool {
    Path::new("/proc/net/ip_vs").exists()
}

/// True if nfnetlink is loaded or built in. The evidence is the kernel's own socket in the list of
/// netlink sockets. No socket is opened to find out, as `nft --version` would, because that would
/// load nfnetlink.
pub fn nfnetlink() -> bool {
    const NETLINK_NETFILTER: &str = "12";
    let sockets = fs::read_to_string("/proc/net/netlink").unwrap_or_default();
    sockets.lines().any(|l| l.split_whitespace().nth(1) == Some(NETLINK_NETFILTER))
}

/// True if nf_tables is loaded or built in. A built-in nf_tables shows only in the list of the
/// kernel's symbols. Also true if the kernel hides that list, because it may have nf_tables then.
pub fn nf_tables() -> bool {
    // Read only once, because there are a hundred thousand symbols, and built-in code does not
    // change.
    static BUILT_IN: LazyLock<bool> = LazyLock::new(|| {
        // nf_tables has exported this symbol to the modules of its expressions since its first
        // version.
        let exports = |symbols| names_symbol(BufReader::new(symbols), " nft_register_expr");
        fs::File::open("/proc/kallsyms").map_or(true, exports)
    });
    Path::new("/sys/module/nf_tables").exists() || *BUILT_IN
}

fn names_symbol(symbols: impl BufRead, symbol: &str) -> bool {
    let mut any = false;
    for line in symbols.lines().map_while(io::Result::ok) {
        if line.split('\t').next().is_some_and(|l| l.ends_with(symbol)) {
            return true;
        }
        any = true;
    }
    !any
}

/// The text of a file in /proc; none if the file does not exist.
pub fn read_if_exists(path: &str) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, &e)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symbol_is_found_built_in_and_in_a_module() {
        let symbol = " nft_register_expr";
        let is = |text: &str| names_symbol(text.as_bytes(), symbol);
        assert!(is("0 T other\n0 T nft_register_expr\n"));
        assert!(is("0 T nft_register_expr\t[nf_tables]\n"));
        assert!(!is("0 T __pfx_nft_register_expr\n0 T nft_register_expr_x\n"));
        assert!(is(""), "hidden symbols say nothing");
    }

    #[test]
    fn a_missing_file_is_no_error() {
        assert_eq!(read_if_exists("/proc/no-such-file").unwrap(), None);
    }
}
