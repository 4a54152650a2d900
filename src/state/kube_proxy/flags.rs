//! The names of kube-proxy's flags: which of them still count when there is a configuration file,
//! and which no longer exist.

/// Flags that kube-proxy obeys beside `--config`, because they concern the process itself. The
/// flags in `LOG` are obeyed as well.
const HEEDED: &[&str] = &[
    "config",
    "hostname-override",
    "master",
    "cleanup",
    "cleanup-ipvs",
    "init-only",
    "write-config-to",
    "windows-service",
    "version",
    "help",
];

/// Flags that configure the log. kube-proxy obeys these flags beside `--config`, because in some
/// versions the configuration file does not replace them.
const LOG: &[&str] = &[
    "v",
    "vmodule",
    "logtostderr",
    "alsologtostderr",
    "stderrthreshold",
    "log-backtrace-at",
    "log-dir",
    "log-file",
    "log-file-max-size",
    "log-flush-frequency",
    "log-json-info-buffer-size",
    "log-json-split-stream",
    "log-text-info-buffer-size",
    "log-text-split-stream",
    "logging-format",
    "skip-headers",
    "skip-log-headers",
    "add-dir-header",
    "one-output",
];

/// A flag that kube-proxy once had, or that is deprecated.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct RetiredFlag {
    /// The flag, without dashes.
    pub name: &'static str,
    /// The minor version of Kubernetes 1 from which on no kube-proxy has the flag, which may have
    /// gone earlier; none if the newest known one still has it.
    pub gone: Option<u32>,
    /// The flags that take its place; empty if none do.
    pub instead: &'static str,
}

/// The flags that went, and those that are deprecated. Sources: cmd/kube-proxy of 1.20.2, 1.34.4 and
/// 1.37.2, kubernetes PRs 78294, 78399, 97336, 112120 and 126293, and KEP 2845 for those of the log.
const RETIRED: &[RetiredFlag] = &[
    gone("resource-container", 16, ""),
    gone("conntrack-max", 16, "--conntrack-max-per-core and --conntrack-min"),
    gone("cleanup-iptables", 20, "--cleanup"),
    gone("cleanup-ipvs", 21, "--cleanup"),
    gone("udp-timeout", 26, ""),
    gone("logtostderr", 26, ""),
    gone("alsologtostderr", 26, ""),
    gone("stderrthreshold", 26, ""),
    gone("log-backtrace-at", 26, ""),
    gone("log-dir", 26, ""),
    gone("log-file", 26, ""),
    gone("log-file-max-size", 26, ""),
    gone("skip-headers", 26, ""),
    gone("skip-log-headers", 26, ""),
    gone("add-dir-header", 26, ""),
    gone("one-output", 26, ""),
    gone("proxy-port-range", 32, ""),
    gone("boot-id-file", 37, ""),
    gone("machine-id-file", 37, ""),
    RetiredFlag {
        name: "healthz-port",
        gone: None,
        instead: "--healthz-bind-address=ADDRESS:PORT",
    },
    RetiredFlag {
        name: "metrics-port",
        gone: None,
        instead: "--metrics-bind-address=ADDRESS:PORT",
    },
];

const fn gone(name: &'static str, minor: u32, instead: &'static str) -> RetiredFlag {
    RetiredFlag { name, gone: Some(minor), instead }
}

/// What became of the flag `name`; none if it is not known to be gone or deprecated.
pub fn retired_flag(name: &str) -> Option<&'static RetiredFlag> {
    RETIRED.iter().find(|flag| flag.name == name)
}

/// The names of the flags in a command line whose first element is the program: without the leading
/// dashes, and with `-` in place of `_`.
pub fn flag_names(args: &[String]) -> impl Iterator<Item = String> {
    let flags = args.iter().skip(1).take_while(|a| *a != "--");
    flags.filter_map(|arg| {
        let flag = arg.strip_prefix("--")?;
        Some(flag.split_once('=').map_or(flag, |(name, _)| name).replace('_', "-"))
    })
}

/// Whether kube-proxy obeys the flag `name` although it has a configuration file.
pub fn heeded_beside_config(name: &str) -> bool {
    HEEDED.contains(&name) || is_of_the_log(name)
}

/// Whether the flag `name` only configures the log.
pub(super) fn is_of_the_log(name: &str) -> bool {
    LOG.contains(&name)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinguished_from_values() {
        let args = ["kube-proxy", "--a_b", "value", "--c=--d", "-v", "2", "--", "--late"];
        let args: Vec<String> = args.iter().map(|a| (*a).to_owned()).collect();
        assert_eq!(flag_names(&args).collect::<Vec<_>>(), ["a-b", "c"]);
        assert!(heeded_beside_config("v") && !heeded_beside_config("proxy-mode"));
    }
}
