//! The part of the caller's environment that children get. It may say which libraries, plugins, lock
//! files and folders a program uses, and so what root runs: our tools get nothing of it.

use std::ffi::{OsStr, OsString};

/// A variable of the environment: its name and its value.
pub type Variable = (OsString, OsString);

/// The environment of the operator's commands, and of this program when it starts itself to run
/// them later: the caller's, because `kubectl` needs its configuration and proxies, but without
/// the variables that decide which code a program loads.
pub fn of_operator() -> Vec<Variable> {
    std::env::vars_os().filter(|(name, value)| is_kept(name, value)).collect()
}

/// The variables that are not passed on: those that glibc ignores in a program with more rights
/// than its caller, those that sudo removes, and those of iptables, nft, kmod and systemd. A name
/// that ends with `*` is the beginning of names.
const DROPPED: [&str; 59] = [
    // The dynamic linker and libc: ld.so(8).
    "LD_*",
    "_RLD*",
    "GCONV_PATH",
    "GETCONF_DIR",
    "GLIBC_TUNABLES",
    "HOSTALIASES",
    "LOCALDOMAIN",
    "LOCPATH",
    "MALLOC_*",
    "NIS_PATH",
    "NLSPATH",
    "PATH_LOCALE",
    "RESOLV_HOST_CONF",
    "RES_OPTIONS",
    "TMPDIR",
    "TMPPREFIX",
    "TZDIR",
    "OPENSSL_*",
    "TERMCAP",
    "TERMINFO*",
    "TERMPATH",
    // Shells.
    "BASH*",
    "CDPATH",
    "ENV",
    "FPATH",
    "GLOBIGNORE",
    "IFS",
    "NULLCMD",
    "PROMPT_COMMAND",
    "PS4",
    "READNULLCMD",
    "SHELLOPTS",
    "ZDOTDIR",
    // Interpreters.
    "JAVA_TOOL_OPTIONS",
    "JDK_JAVA_OPTIONS",
    "_JAVA_OPTIONS",
    "LUA_*",
    "NODE_OPTIONS",
    "NODE_PATH",
    "PERL*",
    "PHPRC",
    "PYTHON*",
    "RUBYLIB",
    "RUBYOPT",
    "TCLLIBPATH",
    // Our tools.
    "ARPTABLES_*",
    "EBTABLES_*",
    "IP6TABLES_*",
    "IPSET_*",
    "IPTABLES_*",
    "IPVSADM_*",
    "KMOD_*",
    "MODPROBE_OPTIONS",
    "NFT_*",
    "SYSTEMCTL_*",
    "SYSTEMD_*",
    "TC_LIB_DIR",
    "XTABLES_*",
    // Our tests: where the run that they start is to be killed.
    "PROXYSHIFT_CRASH",
];

fn is_kept(name: &OsStr, value: &OsStr) -> bool {
    let name = name.to_string_lossy();
    let dropped = DROPPED.iter().any(|dropped| match dropped.strip_suffix('*') {
        Some(start) => name.starts_with(start),
        None => name == *dropped,
    });
    // A value of this form is a function of a shell.
    !dropped && !value.as_encoded_bytes().starts_with(b"()")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_loads_code_is_dropped() {
        let kept = |name: &str| is_kept(OsStr::new(name), OsStr::new("x"));
        for name in ["LD_PRELOAD", "LD_AUDIT", "XTABLES_LIBDIR", "BASH_FUNC_ip%%", "PYTHONPATH"] {
            assert!(!kept(name), "{name}");
        }
        for name in ["HOME", "KUBECONFIG", "HTTPS_PROXY", "no_proxy", "AWS_PROFILE", "ENVIRONMENT"]
        {
            assert!(kept(name), "{name}");
        }
        assert!(!is_kept(OsStr::new("x"), OsStr::new("() { :; }; id")));
    }
}
