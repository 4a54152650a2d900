//! Finds which kernel modules are available, without loading one.

use std::collections::BTreeSet;
use std::fs;
use std::io::Read;
use std::path::Path;

use crate::state::live_facts::Modules;

/// The kernel configuration options of modules that kube-proxy needs, each with its module. The
/// ipvs schedulers are not listed, because [`of_options`] derives their names from their options.
const OPTIONS: [(&str, &str); 19] = [
    ("CONFIG_DUMMY", "dummy"),
    ("CONFIG_IP_SET", "ip_set"),
    ("CONFIG_IP_VS", "ip_vs"),
    ("CONFIG_NETFILTER_XT_MATCH_IPVS", "xt_ipvs"),
    ("CONFIG_NETFILTER_XT_SET", "xt_set"),
    ("CONFIG_NF_CONNTRACK", "nf_conntrack"),
    ("CONFIG_NF_CT_NETLINK", "nf_conntrack_netlink"),
    ("CONFIG_NF_TABLES", "nf_tables"),
    ("CONFIG_NFT_CT", "nft_ct"),
    ("CONFIG_NFT_FIB", "nft_fib"),
    ("CONFIG_NFT_FIB_IPV4", "nft_fib_ipv4"),
    ("CONFIG_NFT_FIB_IPV6", "nft_fib_ipv6"),
    ("CONFIG_NFT_MASQ", "nft_masq"),
    ("CONFIG_NFT_NAT", "nft_nat"),
    ("CONFIG_NFT_NAT", "nft_chain_nat"),
    ("CONFIG_NFT_NUMGEN", "nft_numgen"),
    ("CONFIG_NFT_REJECT", "nft_reject"),
    ("CONFIG_NFT_REJECT_IPV4", "nft_reject_ipv4"),
    ("CONFIG_NFT_REJECT_IPV6", "nft_reject_ipv6"),
];

/// Reads which modules are loaded, built in, loadable, and loaded at boot.
pub fn read() -> Modules {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let mut modules = read_below(Path::new("/"), &release);
    // /proc/net/ip_vs exists whether ip_vs was loaded or is built in. If ip_vs is not among the
    // loaded modules, it is built in.
    if Path::new("/proc/net/ip_vs").exists() && !modules.loaded.contains("ip_vs") {
        modules.built_in.insert("ip_vs".into());
    }
    modules
}

fn read_below(root: &Path, release: &str) -> Modules {
    let text = |path: &str| fs::read_to_string(root.join(path)).ok();
    let loaded = text("proc/modules");
    let dep = text(&format!("lib/modules/{release}/modules.dep"));
    let built_in = text(&format!("lib/modules/{release}/modules.builtin"));
    let config = text(&format!("boot/config-{release}"))
        .or_else(|| unpacked(&root.join("proc/config.gz")))
        .or_else(|| text(&format!("lib/modules/{release}/config")));
    let lines = |text: &Option<String>, name: fn(&str) -> Option<String>| -> BTreeSet<String> {
        text.iter().flat_map(|t| t.lines()).filter_map(name).collect()
    };
    Modules {
        // A kernel without /proc/modules cannot load modules, so its lists are complete even
        // without modules.dep.
        complete: dep.is_some() || (config.is_some() && loaded.is_none()),
        loaded: lines(&loaded, |l| l.split(' ').next().map(str::to_owned)),
        built_in: &lines(&built_in, module) | &config.iter().flat_map(|t| of_options(t)).collect(),
        loadable: lines(&dep, |l| module(l.split(':').next()?)),
        at_boot: at_boot(root),
    }
}

/// Extracts the module name `ip_vs_rr` from `kernel/net/netfilter/ipvs/ip_vs_rr.ko.xz`.
fn module(path: &str) -> Option<String> {
    let file = path.trim().rsplit('/').next()?;
    Some(file.split_once(".ko")?.0.replace('-', "_"))
}

/// The modules that a kernel configuration builds in: `ip_vs_rr` for `CONFIG_IP_VS_RR=y`.
fn of_options(config: &str) -> impl Iterator<Item = String> {
    config.lines().filter_map(|line| line.strip_suffix("=y")).flat_map(|option| {
        let known = OPTIONS.iter().filter(move |(o, _)| *o == option);
        let scheduler = option.strip_prefix("CONFIG_IP_VS_");
        let scheduler = scheduler.map(|name| format!("ip_vs_{}", name.to_lowercase()));
        known.map(|(_, module)| (*module).to_owned()).chain(scheduler)
    })
}

fn unpacked(path: &Path) -> Option<String> {
    let mut text = String::new();
    flate2::read::GzDecoder::new(fs::File::open(path).ok()?).read_to_string(&mut text).ok()?;
    Some(text)
}

/// The modules that systemd-modules-load loads at boot. A file in /etc or /run overrides the file
/// of the same name in /usr/lib.
fn at_boot(root: &Path) -> BTreeSet<String> {
    let mut files = vec![root.join("etc/modules")];
    let mut names = BTreeSet::new();
    for directory in ["etc/modules-load.d", "run/modules-load.d", "usr/lib/modules-load.d"] {
        for entry in fs::read_dir(root.join(directory)).into_iter().flatten().flatten() {
            let name = entry.file_name();
            if Path::new(&name).extension().is_some_and(|e| e == "conf") && names.insert(name) {
                files.push(entry.path());
            }
        }
    }
    let texts = files.iter().filter_map(|path| fs::read_to_string(path).ok());
    let names = |text: String| -> Vec<String> {
        let words = text.lines().filter_map(|l| l.split_whitespace().next());
        words.filter(|w| !w.starts_with(['#', ';'])).map(|w| w.replace('-', "_")).collect()
    };
    texts.flat_map(names).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::state::live_facts::Availability;

    #[test]
    fn each_list_is_read() {
        let root = tempfile::tempdir().unwrap();
        let write = |path: &str, text: &str| {
            let path = root.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        assert_eq!(read_below(root.path(), "6.1").availability("ip_vs"), Availability::Unknown);
        write("proc/modules", "ip_vs 180224 2 ip_vs_rr, Live 0x0\n");
        write("lib/modules/6.1/modules.dep", "kernel/ipvs/ip_vs_rr.ko.xz: kernel/ipvs/ip_vs.ko\n");
        write("lib/modules/6.1/modules.builtin", "kernel/drivers/net/dummy.ko\n");
        write(
            "boot/config-6.1",
            "CONFIG_IP_VS_SH=y\n# CONFIG_IP_VS_WRR is not set\nCONFIG_IP_SET=m\n",
        );
        write("etc/modules", "# none\nxt-set\n");
        write("etc/modules-load.d/ipvs.conf", "ip_vs\n;no\n");
        write("usr/lib/modules-load.d/ipvs.conf", "hidden\n");
        write("etc/modules-load.d/readme", "no\n");
        let modules = read_below(root.path(), "6.1");
        for (name, expected) in [
            ("ip_vs", Availability::Loaded),
            ("ip_vs_rr", Availability::Loadable),
            ("ip_vs_sh", Availability::BuiltIn),
            ("dummy", Availability::BuiltIn),
            ("ip_vs_wrr", Availability::Missing),
            ("ip_set", Availability::Missing),
        ] {
            assert_eq!(modules.availability(name), expected, "{name}");
        }
        let at_boot: Vec<&str> = modules.at_boot.iter().map(String::as_str).collect();
        assert_eq!(at_boot, ["ip_vs", "xt_set"]);
    }

    #[test]
    fn a_kernel_without_modules_is_read_from_its_configuration() {
        let root = tempfile::tempdir().unwrap();
        fs::create_dir_all(root.path().join("boot")).unwrap();
        let config = "CONFIG_NETFILTER_XT_SET=y\nCONFIG_NFT_NAT=y\nCONFIG_NFT_FIB_IPV4=y\n";
        fs::write(root.path().join("boot/config-6.1"), config).unwrap();
        let modules = read_below(root.path(), "6.1");
        assert_eq!(modules.availability("xt_set"), Availability::BuiltIn);
        assert_eq!(modules.availability("ip_vs"), Availability::Missing);
        for name in ["nft_nat", "nft_chain_nat", "nft_fib_ipv4"] {
            assert_eq!(modules.availability(name), Availability::BuiltIn, "{name}");
        }
        assert_eq!(modules.availability("nft_fib_ipv6"), Availability::Missing);
    }
}
