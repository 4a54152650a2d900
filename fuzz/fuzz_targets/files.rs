//! Configuration files of other programs, what a snapshot keeps of them, and playbooks.
#![no_main]

use libfuzzer_sys::{Corpus, fuzz_target};
use proxyshift::node::config_files::FileForm;
use proxyshift::node::live_facts::kube_proxy::{apk_version, complaints_of, package_version};
use proxyshift::plan::playbook::Playbook;
use proxyshift::state::cni::{CniConfig, SubnetEnv};
use proxyshift::state::kube_proxy::{KubeProxyConfig, Mode};
use proxyshift::state::ruleset::Ruleset;
use proxyshift::yaml;
use proxyshift_fuzz::{bounded, parsed, with_texts};

/// The files that captures keep, by a letter.
const FORMS: [(u8, FileForm); 10] = [
    (b'k', FileForm::KubeProxy),
    (b'o', FileForm::Corefile),
    (b'c', FileForm::Cni),
    (b'e', FileForm::SubnetEnv),
    (b'd', FileForm::Docker),
    (b'r', FileForm::Rules),
    (b'n', FileForm::Nftables),
    (b's', FileForm::Settings("ENABLED")),
    (b'v', FileForm::Resolver),
    (b'x', FileForm::Flags),
];

fuzz_target!(|input: &[u8]| -> Corpus {
    with_texts(input, |kind, parts| {
        let [text] = parts else { return None };
        if let Some((_, form)) = FORMS.iter().find(|(letter, _)| *letter == kind) {
            kept(*form, text);
            return Some(());
        }
        match kind {
            b'p' => playbook(text),
            b'y' => document(text),
            b'l' => lists(text),
            _ => return None,
        }
        Some(())
    })
});

/// What is kept of a file is such a file, of which everything is kept, and means the same.
fn kept(form: FileForm, text: &str) {
    let Ok(kept) = form.kept("f", text) else { return };
    bounded(kept.len(), text.len());
    assert_eq!(form.kept("f", &kept).as_ref(), Ok(&kept), "the second look");
    match form {
        FileForm::KubeProxy => {
            let [before, after] =
                [text, &kept].map(|t| KubeProxyConfig::parse("f", t).expect("it was kept"));
            assert_eq!(before, after, "{kept}");
        }
        FileForm::Cni => {
            let [before, after] =
                [text, &kept].map(|t| CniConfig::parse("f", t).expect("it was kept"));
            assert_eq!(before.name, after.name);
            assert_eq!(before.portmap(), after.portmap());
            assert_eq!(before.bridges(), after.bridges());
            assert_eq!(before.subnets(), after.subnets());
        }
        FileForm::SubnetEnv => {
            let [before, after] =
                [text, &kept].map(|t| SubnetEnv::parse("f", t).expect("it was kept"));
            assert_eq!(before, after);
        }
        FileForm::Rules => {
            let [before, after] =
                [text, &kept].map(|t| Ruleset::parse("f", t.into()).expect("it was kept"));
            assert_eq!(before.rule_count(), after.rule_count());
        }
        _ => {}
    }
    use FileForm::{Cni, Docker, Flags, KubeProxy};
    if !matches!(form, KubeProxy | Cni | Docker | Flags) {
        assert_eq!(text.lines().count(), kept.lines().count(), "checks name lines");
    }
}

fn playbook(text: &str) {
    for mode in Mode::ALL {
        let Some(playbook) = parsed(Playbook::parse("f", text, mode), text) else { continue };
        let _ = playbook.refers_to_known(|_| true, |_| false);
        bounded(playbook.blocking().concat().len(), text.len());
    }
}

/// A document renders to one that is the same.
fn document(text: &str) {
    let _ = yaml::parse_with_unused::<KubeProxyConfig>("f", text);
    let Some(value) = parsed(yaml::parse::<yaml::Value>("f", text), text) else { return };
    let Some(rendered) = parsed(yaml::render("f", &value), text) else { return };
    if let Ok(again) = yaml::parse::<yaml::Value>("f", &rendered) {
        assert_eq!(yaml::render("f", &again).expect("again"), rendered);
    }
}

/// Lists of packages in an image, and a log.
fn lists(text: &str) {
    for version in [apk_version(text, "iptables"), package_version(text, "iptables")] {
        assert!(version.is_none_or(|version| version.len() <= 100 && version.is_ascii()));
    }
    assert!(complaints_of("f", text).iter().all(|line| line.chars().count() <= 303));
}
