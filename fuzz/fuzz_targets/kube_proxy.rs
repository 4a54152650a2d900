//! kube-proxy's configuration and command line, and how they are edited.
#![no_main]

use std::path::PathBuf;

use libfuzzer_sys::{Corpus, fuzz_target};
use proxyshift::node::secrets::kept_arguments;
use proxyshift::state::kube_proxy::edit::{host_path, runs_kube_proxy};
use proxyshift::state::kube_proxy::{
    CommandLine, ConfigEdit, ConfigSource, KubeProxyConfig, Mode, flag_names, flags_to_config,
};
use proxyshift_fuzz::{bounded, parsed, with_texts};

fuzz_target!(|input: &[u8]| -> Corpus {
    with_texts(input, |kind, parts| {
        match (kind, parts) {
            (b'c', [text]) => config(text),
            (b'e', [mode, networks, text]) => edit_config(&edit(mode, networks)?, text),
            (b'm', [mode, networks, text]) => edit_manifest(&edit(mode, networks)?, text),
            (b'h', [inside, text]) => drop(parsed(host_path("f", text, inside), text)),
            (b'a', args) => arguments(args),
            _ => return None,
        }
        Some(())
    })
});

/// An edit to a mode, which excludes networks between commas.
fn edit(mode: &str, networks: &str) -> Option<ConfigEdit> {
    let networks = networks.split(',').filter(|network| !network.is_empty());
    let exclude = networks.map(|network| network.parse().ok()).collect::<Option<_>>()?;
    Some(ConfigEdit { mode: mode.parse().ok()?, exclude })
}

fn config(text: &str) {
    let Some(config) = parsed(KubeProxyConfig::parse("f", text), text) else { return };
    let _ = (config.mode(), config.healthz_address(), config.metrics_address());
    let _ = config.iptables.mark();
}

/// A configuration after its edit says what the edit asks, and nothing else is changed.
fn edit_config(edit: &ConfigEdit, text: &str) {
    let source = ConfigSource::File(PathBuf::from("/f"));
    let Some(edited) = parsed(source.edit(text, edit), text) else { return };
    bounded(edited.len(), text.len() + 64 * edit.exclude.len());
    let before = KubeProxyConfig::parse("f", text).expect("it was edited");
    let after = KubeProxyConfig::parse("f", &edited).expect("what was edited");
    assert_edited(edit, before, after);
    assert_eq!(source.edit(&edited, edit).expect("again"), edited);
}

fn assert_edited(edit: &ConfigEdit, before: KubeProxyConfig, after: KubeProxyConfig) {
    assert_eq!(after.mode, Some(edit.mode));
    let excluded = &after.ipvs.exclude_cidrs;
    assert!(edit.exclude.iter().all(|net| excluded.iter().any(|known| known.contains(net))));
    assert!(before.ipvs.exclude_cidrs.iter().all(|network| excluded.contains(network)));
    let mut expected = KubeProxyConfig { mode: after.mode, ..before };
    expected.ipvs.exclude_cidrs.clone_from(excluded);
    assert_eq!(after, expected);
}

fn edit_manifest(edit: &ConfigEdit, text: &str) {
    let source = ConfigSource::Manifest(PathBuf::from("/f"));
    let Some(edited) = parsed(source.edit(text, edit), text) else { return };
    bounded(edited.len(), text.len() + 64 * edit.exclude.len());
    assert!(runs_kube_proxy(text) && runs_kube_proxy(&edited));
    assert_eq!(source.edit(&edited, edit).expect("again"), edited);
    // All lines but those of two flags are the same.
    let (old, new): (Vec<&str>, Vec<&str>) = (text.lines().collect(), edited.lines().collect());
    let other = old.iter().filter(|line| !new.contains(line)).count();
    assert!(other <= 2 && new.len() - old.len() <= 2, "{edited}");
}

/// A command line means the same as the configuration that is made of it.
fn arguments(args: &[&str]) {
    let whole = args.concat();
    let args: Vec<String> = args.iter().map(|arg| (*arg).to_owned()).collect();
    let line = parsed(CommandLine::parse(&args), &whole);
    bounded(flag_names(&args).map(|name| name.len()).sum(), whole.len());
    let kept = kept_arguments("kube-proxy", &args);
    assert_eq!(kept_arguments("kube-proxy", &kept), kept);
    if let Some(line) = &line {
        assert!(line.settings(None).is_none() == line.config.is_some());
        let file = KubeProxyConfig { mode: Some(Mode::ALL[0]), ..KubeProxyConfig::default() };
        assert!(line.settings(Some(&file)).is_some());
    }
    let Some(made) = parsed(flags_to_config(&args), &whole) else { return };
    let file = KubeProxyConfig::parse("f", &made.text).expect("what was made");
    // Of a flag that is given twice, the parser refuses a wrong first value too.
    let Some(line) = line else { return };
    // An address without a port gets its default.
    assert_eq!(file.healthz_address(), line.flags.healthz_address(), "{}", made.text);
    assert_eq!(file.metrics_address(), line.flags.metrics_address(), "{}", made.text);
    let mut flags = line.flags;
    flags.healthz_bind_address.clone_from(&file.healthz_bind_address);
    flags.metrics_bind_address.clone_from(&file.metrics_bind_address);
    assert_eq!(file, flags, "{}", made.text);
}
