//! Families of netfilter state in the kernel, found without loading any.
//!
//! A probe may load modules: `ipvsadm` loads ip_vs, `ipset` ip_set, `iptables-nft-save` nf_tables,
//! `nft --version` nfnetlink, and `iptables-legacy-save -t T` creates the table T. /proc and /sys
//! show beforehand what is loaded.

use std::fs;
use std::io::{self, BufRead, BufReader};
use std::path::Path;
use std::sync::LazyLock;

use crate::error::{Error, Kind, Result};
use crate::state::Family;

/// The tables that iptables knows, in both backends.
pub const XTABLES: [&str; 5] = ["filter", "nat", "mangle", "raw", "security"];

/// The legacy tables of this namespace, in the kernel's order; none without `ip_tables`.
///
/// `None` when unknown: the list is readable only for root of the first user namespace. In another
/// user namespace (a rehearsal by another user), [`legacy_tables_loaded`] helps. In the first one,
/// missing rights are an error.
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

/// The legacy tables whose code is in the kernel. Reading one creates it, empty, in this namespace,
/// but loads nothing.
pub fn legacy_tables_loaded(family: Family) -> Vec<String> {
    let module = match family {
        Family::Ipv4 => "iptable",
        Family::Ipv6 => "ip6table",
    };
    // A kernel without modules cannot load any; a built-in table is listed nowhere.
    let cannot_load = !Path::new("/proc/modules").exists();
    let loaded = |table: &str| Path::new(&format!("/sys/module/{module}_{table}")).exists();
    let tables = XTABLES.iter().filter(|table| cannot_load || loaded(table));
    tables.map(|&table| table.to_owned()).collect()
}

/// True in any user namespace but the first.
fn in_user_namespace() -> bool {
    let map = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    map.split_whitespace().ne(["0", "0", "4294967295"])
}

/// True with ip_set. A built-in one is listed here as well, since it has a parameter.
pub fn ip_set() -> bool {
    Path::new("/sys/module/ip_set").exists()
}

/// True with ip_vs.
pub fn ip_vs() -> bool {
    Path::new("/proc/net/ip_vs").exists()
}

/// True with nfnetlink. Opening a socket to it, as `nft --version` does, would load it. The
/// kernel's own socket of it is in the list of sockets.
pub fn nfnetlink() -> bool {
    const NETLINK_NETFILTER: &str = "12";
    let sockets = fs::read_to_string("/proc/net/netlink").unwrap_or_default();
    sockets.lines().any(|l| l.split_whitespace().nth(1) == Some(NETLINK_NETFILTER))
}

/// True with nf_tables. A built-in one is listed only among the kernel's symbols. A kernel that
/// hides its symbols may have it, so the answer is then true.
pub fn nf_tables() -> bool {
    // The built-in code does not change: a hundred thousand symbols are read once.
    static BUILT_IN: LazyLock<bool> = LazyLock::new(|| {
        // Exported to the modules of expressions since the first nf_tables.
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

/// The text of a file of /proc; none if it is missing.
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
