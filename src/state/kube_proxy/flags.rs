//! The names of kube-proxy's flags, and which of them still count when there is a configuration
//! file.

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
    "logging-format",
    "skip-headers",
    "skip-log-headers",
    "add-dir-header",
    "one-output",
];

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
