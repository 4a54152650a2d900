//! Compares `check --write-config` with kube-proxy itself: the file that proxyshift writes for some
//! flags must give kube-proxy the same configuration as the flags do.

mod common;

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::process::Command;

use common::vm::cached;
use proxyshift::state::kube_proxy::flags_to_config;
use serde_json::Value;

/// Each flag of kube-proxy 1.20.2 that has a field in its configuration file, with a value other
/// than its default.
const FLAGS: &[&str] = &[
    "--proxy-mode=ipvs",
    "--proxy-mode=iptables",
    "--cluster-cidr=10.244.0.0/16",
    "--bind-address=10.0.0.1",
    "--bind-address-hard-fail",
    "--healthz-bind-address=127.0.0.1:10300",
    "--metrics-bind-address=10.0.0.1:10301",
    "--hostname-override=node-1",
    "--nodeport-addresses=10.0.0.0/8,192.168.0.0/16",
    "--detect-local-mode=NodeCIDR",
    "--feature-gates=EndpointSliceProxying=false,IPv6DualStack=false",
    "--config-sync-period=7m",
    "--oom-score-adj=-500",
    "--profiling",
    "--show-hidden-metrics-for-version=1.19",
    "--kubeconfig=/etc/kube-proxy.kubeconfig",
    "--kube-api-content-type=application/json",
    "--kube-api-qps=7.5",
    "--kube-api-burst=33",
    "--masquerade-all",
    "--iptables-masquerade-bit=15",
    "--iptables-sync-period=45s",
    "--iptables-min-sync-period=3s",
    "--ipvs-scheduler=wlc",
    "--ipvs-exclude-cidrs=10.9.0.0/24,10.8.0.1/32",
    "--ipvs-strict-arp",
    "--ipvs-sync-period=40s",
    "--ipvs-min-sync-period=2s",
    "--ipvs-tcp-timeout=15m",
    "--ipvs-tcpfin-timeout=30s",
    "--ipvs-udp-timeout=5s",
    "--conntrack-max-per-core=1000",
    "--conntrack-min=2000",
    "--conntrack-tcp-timeout-established=2h",
    "--conntrack-tcp-timeout-close-wait=30m",
];

/// Flags with values that need care, because a file may have to write the value differently.
const SPECIAL: &[&str] = &[
    // An empty value stands for kube-proxy's default.
    "",
    "--proxy-mode=",
    // Addresses of the other family. An address without a port cannot be compared, because 1.20.2
    // adds the port only when it does not write a file.
    "--bind-address=:: --healthz-bind-address=[::]:1 --metrics-bind-address=[::1]:1",
    "--bind-address=::",
    // 0 turns a feature off, which is not the same as no value.
    "--conntrack-max-per-core=0 --conntrack-min=0",
    "--conntrack-tcp-timeout-established=0s --conntrack-tcp-timeout-close-wait=0",
    "--kube-api-qps=0 --kube-api-burst=0",
    "--oom-score-adj=0",
    "--iptables-masquerade-bit=0",
    "--iptables-min-sync-period=0s",
    "--ipvs-sync-period=0s",
    // Values that YAML would take for another type than text.
    "--hostname-override=007",
    "--hostname-override=true",
    "--hostname-override=1e3",
    // Both spellings of a flag, and a flag that is given twice: the last value counts.
    "--proxy-mode iptables --proxy-mode=ipvs --masquerade-all=false --cluster-cidr 10.0.0.0/8",
    "--feature-gates=",
    "--nodeport-addresses=",
    "--ipvs-exclude-cidrs=",
    "--v=3 --logtostderr=true --profiling=T",
];

/// Flags of kube-proxy 1.20.2 that have no field in its configuration file, or that proxyshift
/// refuses.
const OTHERS: &[&str] = &[
    // Flags about how the process runs.
    "--cleanup",
    "--config",
    "--master",
    "--version",
    "--write-config-to",
    // Flags about the log.
    "--add-dir-header",
    "--alsologtostderr",
    "--log-backtrace-at",
    "--log-dir",
    "--log-file",
    "--log-file-max-size",
    "--log-flush-frequency",
    "--logtostderr",
    "--one-output",
    "--skip-headers",
    "--skip-log-headers",
    "--stderrthreshold",
    "--v",
    "--vmodule",
    // Flags for userspace mode.
    "--proxy-port-range",
    "--udp-timeout",
];

#[test]
fn the_file_makes_kube_proxy_what_the_flags_make_it() {
    let dir = tempfile::tempdir().unwrap();
    let lines = FLAGS.iter().chain(SPECIAL);
    let wrong: Vec<_> = lines.filter_map(|line| compare(dir.path(), line).err()).collect();
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

fn compare(dir: &Path, line: &str) -> Result<(), String> {
    let flags: Vec<&str> = line.split_whitespace().collect();
    let ours = written_by_us(dir, &flags).map_err(|e| format!("{line}: {e}"))?;
    // The configuration that kube-proxy wrote for the flags is also read back by kube-proxy from a
    // file, because kube-proxy fills in some defaults only when it reads a file.
    let (_, theirs) = kube_proxy(dir, &flags)?;
    let (theirs, _) = kube_proxy(dir, &[&format!("--config={theirs}")])?;
    let (found, _) = kube_proxy(dir, &[&format!("--config={ours}")])?;
    if found == theirs {
        return Ok(());
    }
    let text = |value: &Value| serde_json::to_string_pretty(value).unwrap();
    let diff = similar::TextDiff::from_lines(text(&theirs), text(&found))
        .unified_diff()
        .context_radius(0)
        .to_string();
    Err(format!("{line}:\n{diff}\n{}", fs::read_to_string(&ours).unwrap()))
}

#[test]
fn every_flag_is_compared() {
    let help = Command::new(cached("kube-proxy")).arg("--help").output().unwrap();
    let help = String::from_utf8([help.stdout, help.stderr].concat()).unwrap();
    let theirs: BTreeSet<&str> = help
        .lines()
        .filter_map(|l| l.trim_start().trim_start_matches("-v, ").split(' ').next())
        .filter(|word| word.starts_with("--"))
        .collect();
    let name = |flag: &&'static str| flag.split('=').next().unwrap();
    let ours: BTreeSet<&str> = FLAGS.iter().map(name).chain(OTHERS.iter().copied()).collect();
    assert_eq!(theirs, ours);
}

/// The path of a file with what `check --write-config` writes for a kube-proxy with these flags.
fn written_by_us(dir: &Path, flags: &[&str]) -> proxyshift::error::Result<String> {
    let program = std::iter::once(&"/usr/bin/kube-proxy");
    let args: Vec<String> = program.chain(flags).map(|a| (*a).to_owned()).collect();
    let file = dir.join("ours.yaml");
    fs::write(&file, flags_to_config(&args)?.text).unwrap();
    Ok(file.display().to_string())
}

/// The configuration that kube-proxy makes of its flags, and the path of the file that holds it; or
/// the first line of kube-proxy's error.
fn kube_proxy(dir: &Path, flags: &[&str]) -> Result<(Value, String), String> {
    let is_file = flags.iter().any(|f| f.starts_with("--config="));
    let file = dir.join(if is_file { "theirs-again.yaml" } else { "theirs.yaml" });
    let _ = fs::remove_file(&file);
    let mut command = Command::new(cached("kube-proxy"));
    command.args(flags).arg(format!("--write-config-to={}", file.display()));
    let said = command.output().unwrap().stderr;
    let said = String::from_utf8_lossy(&said);
    let refused =
        || format!("kube-proxy refuses {flags:?}: {}", said.lines().next().unwrap_or_default());
    let text = fs::read_to_string(&file).map_err(|_| refused())?;
    Ok((serde_yaml::from_str(&text).unwrap(), file.display().to_string()))
}
