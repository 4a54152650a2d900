//! Tests of configuration files made of flags.

use super::super::CommandLine;
use super::*;

fn words(line: &str) -> Vec<String> {
    line.split(' ').map(str::to_owned).collect()
}

#[test]
fn the_file_means_what_the_flags_mean() {
    let args = words(
        "/usr/bin/kube-proxy --kubeconfig /k --proxy-mode userspace --proxy_mode=ipvs \
         --cluster-cidr 10.244.0.0/16,fd00::/48 --masquerade-all --iptables-masquerade-bit=15 \
         --feature-gates=A=true,B=false --ipvs-strict-arp=false --conntrack-min 0 \
         --ipvs-exclude-cidrs=10.9.0.0/24,10.8.0.1/32 --bind-address :: --v=2 \
         --logtostderr --healthz-bind-address 127.0.0.1 --metrics-bind-address=[::1]:1 \
         --nodeport-addresses=primary --hostname-override 007 --ipvs-udp-timeout=5s \
         --conntrack-tcp-be-liberal --kube-api-qps 7.5 -v 3",
    );
    let config = flags_to_config(&args).unwrap();
    assert_eq!(config.remaining_flags, ["--v=2", "--logtostderr=true", "--v=3"]);
    let file = KubeProxyConfig::parse("f", &config.text).unwrap();
    let mut flags = CommandLine::parse(&args).unwrap().flags;
    flags.healthz_bind_address = Some("127.0.0.1:10256".into());
    assert_eq!(file, flags, "{}", config.text);
    for line in ["kubeconfig: /k", "qps: 7.5", "hostnameOverride: '007'", "kind: KubeProxyCo"] {
        assert!(config.text.contains(line), "{line} in {}", config.text);
    }
}

#[test]
fn without_flags_the_file_is_empty() {
    let config = flags_to_config(&words("kube-proxy")).unwrap();
    assert_eq!(KubeProxyConfig::parse("f", &config.text).unwrap(), KubeProxyConfig::default());
    assert_eq!(config.text.lines().count(), 2);
}

#[test]
fn what_says_the_default_is_left_out() {
    let line = "kube-proxy --pod-interface-name-prefix= --cleanup=false --config= \
                --cluster-cidr=10.0.0.0/8 --cluster-cidr= --feature-gates= --proxy-mode= \
                --ipvs-exclude-cidrs= --hostname-override= --version=false --init-only=false \
                --ipvs-scheduler=lc --ipvs-scheduler= --cleanup-ipvs=false";
    let config = flags_to_config(&words(line)).unwrap();
    assert_eq!(KubeProxyConfig::parse("f", &config.text).unwrap(), KubeProxyConfig::default());
    for field in ["podInterface", "clusterCIDR", "featureGates", "hostname", "scheduler"] {
        assert!(!config.text.contains(field), "{}", config.text);
    }
    assert_eq!(config.remaining_flags, ["--cleanup-ipvs=false"]);
}

#[test]
fn flags_that_went_are_named_together() {
    let line = "kube-proxy --resource-container= --conntrack-max=5 --proxy-port-range 1-2";
    let error = flags_to_config(&words(line)).unwrap_err();
    assert!(error.to_string().contains("from 1.16 and 1.32 on has no such flags"), "{error}");
    let hint = error.hint.expect("a hint");
    for flag in ["--resource-container out", "--conntrack-max out, or", "--proxy-port-range"] {
        assert!(hint.contains(flag), "{hint}");
    }
}

#[test]
fn what_is_not_understood_is_refused() {
    for (line, expected) in [
        ("kube-proxy --config=/c", "kube-proxy's --config=/c: it has a configuration file"),
        ("kube-proxy --cleanup", "kube-proxy's --cleanup: it cleans up"),
        ("kube-proxy --new-flag=1", "kube-proxy's --new-flag=1: not a flag that is known"),
        ("kube-proxy extra", "kube-proxy's extra: not a flag"),
        ("kube-proxy --conntrack-min", "kube-proxy's --conntrack-min: it has no value"),
        ("kube-proxy --v --config=/a", "kube-proxy's --v: it has no value but `--config=/a`"),
        ("kube-proxy --conntrack-min=x", "kube-proxy's --conntrack-min=x: not a number"),
        ("kube-proxy --proxy-mode=ipvz", "kube-proxy's --proxy-mode=ipvz: kube-proxy has no"),
        ("kube-proxy --proxy-mode=userspace", "kube-proxy's --proxy-mode=userspace: kube-pro"),
        ("kube-proxy --healthz-port=0", "kube-proxy's --healthz-port=0: deprecated"),
        (
            "kube-proxy --conntrack-max=<masked>",
            "kube-proxy's --conntrack-max=<masked>: kube-proxy from 1.16 on has no such flag",
        ),
        ("kube-proxy --healthz-bind-address=", "kube-proxy's --healthz-bind-address=: an em"),
        ("kube-proxy --feature-gates=A", "kube-proxy's --feature-gates=A: `A` has no `=`"),
        (
            "kube-proxy --feature-gates=A=true --feature-gates=B=true",
            "kube-proxy's --feature-gates: given twice",
        ),
        ("kube-proxy --kubeconfig=<masked>", "kube-proxy's --kubeconfig=<masked>: its value"),
        (
            "kube-proxy --proxy-mode=nftables --masquerade-all",
            "kube-proxy's --proxy-mode=nftables: flags of iptables mode",
        ),
        ("kube-proxy --cluster-cidr=10.0.0.0/99", "the configuration: "),
    ] {
        let error = flags_to_config(&words(line)).unwrap_err().to_string();
        assert!(error.starts_with(expected), "{line}: {error}");
    }
}
