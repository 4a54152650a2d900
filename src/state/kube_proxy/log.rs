//! What kube-proxy's log says of its end.

/// What kube-proxy writes when it ends with an error, whatever its version. From 1.22 on the command
/// that ran it writes that line; a flag that it does not have, the parser of flags reports.
const ENDS: [&str; 8] = [
    "\"command failed\"",
    "Error running ProxyServer",
    "Failed running ProxyServer",
    "unable to create proxier",
    "can't use the IPVS proxier",
    "Error: unknown flag",
    "failed complete:",
    "panic: ",
];

/// The last line of a log that says why kube-proxy ended; none if no line does. A line of a pod's
/// log has a time and a stream in front of kube-proxy's own.
pub fn fatal_line(log: &str) -> Option<&str> {
    log.lines().rfind(|line| {
        let own = line.split_once(" F ").filter(|(of_pod, _)| of_pod.contains(" std"));
        let own = own.map_or(*line, |(_, own)| own);
        is_fatal_header(own) || ENDS.iter().any(|end| own.contains(end))
    })
}

/// Whether a line begins as klog's fatal ones do: `F0825 10:00:00.1`.
fn is_fatal_header(line: &str) -> bool {
    let date = line.strip_prefix('F').and_then(|rest| rest.get(..5));
    date.is_some_and(|date| date.ends_with(' ') && date[..4].bytes().all(|b| b.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_fatal_line_is_found() {
        let fine = "I0825 10:00:00.1 1 server.go:1] \"Version info\"\n";
        for line in [
            "E0825 10:00:00.1       1 run.go:72] \"command failed\" err=\"no support for IPv6\"",
            "E0825 10:00:00.1       1 server.go:556] \"Error running ProxyServer\" err=\"x\"",
            "F0825 10:00:00.1       1 server.go:495] unable to create proxier: x",
            "F0825 10:00:00.1       1 server.go:490] whatever",
            "Error: unknown flag: --resource-container",
            "2026-11-30T09:00:00.1Z stderr F E0825 1 run.go:74] \"command failed\" err=\"x\"",
            "2026-11-30T09:00:00.1Z stderr F F0825 10:00:00.1 1 server.go:490] whatever",
        ] {
            let log = format!("{line} first\n{fine}{line}\n{fine}");
            assert_eq!(fatal_line(&log), Some(line));
        }
        assert_eq!(fatal_line(fine), None);
        assert_eq!(fatal_line("Failed to list: Foo\nFine F\n"), None);
    }
}
