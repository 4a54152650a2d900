//! Parser of `sysctl -a`, which prints lines of `name = value`.

use std::fmt::Write;

use super::lines;
use crate::error::Result;

/// Name patterns of sysctls that change without a writer, so that two captures of an unchanged node
/// differ in them. A `*` at the end matches any end of the name, a `*` at the beginning any
/// beginning.
pub const MOVING: &[&str] = &[
    // Current numbers of files, inodes, directory entries, ptys, asynchronous requests and tracked
    // connections.
    "fs.file-nr",
    "fs.inode-nr",
    "fs.inode-state",
    "fs.dentry-state",
    "fs.aio-nr",
    "kernel.pty.nr",
    "net.netfilter.nf_conntrack_count",
    // Statistics of the disk quotas.
    "fs.quota.*",
    // A new uuid at each read, and the remaining entropy.
    "kernel.random.*",
    // The PID of the last process that was started.
    "kernel.ns_last_pid",
    // The kernel lowers this sample rate when profiling costs too much time.
    "kernel.perf_event_max_sample_rate",
    // Measurements of the scheduler.
    "*.max_newidle_lb_cost",
];

/// Sysctls with their values, in the order of `sysctl -a`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Sysctls {
    entries: Vec<(String, String)>,
}

impl Sysctls {
    /// Parses lines of `name = value`. A value may be empty, and may hold blanks and ` = `. For a
    /// value of several lines, sysctl prints the name on each line; the lines of the value are
    /// joined with newlines. Errors name `file` and the line.
    pub fn parse(file: &str, text: &str) -> Result<Sysctls> {
        let mut entries: Vec<(String, String)> = Vec::new();
        for (number, line) in lines::numbered(file, text)? {
            let Some((name, value)) = line.split_once(" = ") else {
                return Err(lines::error(file, number, format!("`{line}` has no ` = `")));
            };
            if name.is_empty() || name.contains(char::is_whitespace) {
                return Err(lines::error(file, number, format!("`{name}` is no sysctl's name")));
            }
            match entries.last_mut() {
                Some((last, lines)) if last == name => {
                    lines.push('\n');
                    lines.push_str(value);
                }
                _ => entries.push((name.to_owned(), value.to_owned())),
            }
        }
        Ok(Sysctls { entries })
    }

    /// Renders the text that was parsed, to the byte.
    pub fn render(&self) -> String {
        let mut text = String::new();
        for (name, value) in &self.entries {
            for line in value.split('\n') {
                // Writing to a String cannot fail.
                let _ = writeln!(text, "{name} = {line}");
            }
        }
        text
    }

    /// The value of the sysctl `name`.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }

    /// Each name with its value, in the order of `sysctl -a`.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        self.entries.iter().map(|(name, value)| (name.as_str(), value.as_str()))
    }

    /// Sysctls whose values are only in `after` (`+`) or only in `self` (`-`). Names that match
    /// [`MOVING`] do not count.
    pub fn differences(&self, after: &Sysctls) -> Vec<String> {
        lines::differences(self.facts(), after.facts())
    }

    fn facts(&self) -> Vec<String> {
        let settings = self.iter().filter(|(name, _)| !moves(name));
        settings.map(|(name, value)| format!("sysctl {name} = {value}")).collect()
    }
}

/// Whether the sysctl `name` changes without a writer, because a pattern in [`MOVING`] matches it.
pub fn moves(name: &str) -> bool {
    MOVING.iter().any(|pattern| match (pattern.strip_prefix('*'), pattern.strip_suffix('*')) {
        (Some(end), _) => name.ends_with(end),
        (_, Some(start)) => name.starts_with(start),
        _ => name == *pattern,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Sysctls {
        let sysctls = Sysctls::parse("sysctl.txt", text).unwrap();
        assert_eq!(sysctls.render(), text);
        sysctls
    }

    #[test]
    fn values_survive() {
        let sysctls = parse(
            "kernel.core_pattern = |/bin/x a = b\nkernel.modprobe = \ndev.cdrom.info = a\n\
             dev.cdrom.info = \ndev.cdrom.info = b\nnet.ipv4.vs.sync_threshold = 3\t50\n\
             net.ipv4.conf.eth0/7.rp_filter = 1\n",
        );
        assert_eq!(sysctls.get("kernel.core_pattern"), Some("|/bin/x a = b"));
        assert_eq!(sysctls.get("kernel.modprobe"), Some(""));
        assert_eq!(sysctls.get("dev.cdrom.info"), Some("a\n\nb"));
        assert_eq!(sysctls.get("net.ipv4.vs.sync_threshold"), Some("3\t50"));
        assert_eq!(sysctls.get("net.ipv4"), None);
    }

    #[test]
    fn only_what_is_set_is_compared() {
        let before = parse("fs.nr_open = 9\nnet.netfilter.nf_conntrack_count = 7\na.b = 1\n");
        let after = parse("a.b = 2\nnet.netfilter.nf_conntrack_count = 8\nfs.nr_open = 9\n");
        assert_eq!(before.differences(&after), ["- sysctl a.b = 1", "+ sysctl a.b = 2"]);
        for name in ["kernel.random.uuid", "kernel.sched_domain.cpu0.max_newidle_lb_cost"] {
            assert!(moves(name), "{name}");
        }
        for name in ["net.netfilter.nf_conntrack_max", "fs.nr_open", "kernel.randomize_va_space"] {
            assert!(!moves(name), "{name}");
        }
    }

    #[test]
    fn errors_name_file_line_and_cause() {
        for (text, expected) in [
            ("a.b = 1\na.c\n", "sysctl.txt:2: `a.c` has no ` = `"),
            ("sysctl: cannot stat = x\n", "sysctl.txt:1: `sysctl: cannot stat` is no"),
            ("a.b = 1\na.c = 4", "sysctl.txt:2: the last line is cut off"),
        ] {
            let error = Sysctls::parse("sysctl.txt", text).unwrap_err().to_string();
            assert!(error.starts_with(expected), "{error}");
        }
    }
}
