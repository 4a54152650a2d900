//! The machine loses its power during a migration. The disk, with the store and the settings for
//! the next boot, is kept; the rules are lost.

use std::path::Path;
use std::time::Duration;
use std::{env, fs};

use super::migrate::Case;
use super::migrate::bridge::{is_bridged, load_modules};
use crate::common::{run, run_with};

/// Environment variables with a cut, as `MODE:STAGE`, in a migration from iptables mode to that mode:
/// RESOLVES has the one that ended the last boot and that this boot resolves, and INTERRUPTS the one that
/// ends this boot.
pub const RESOLVES: &str = "PROXYSHIFT_RESOLVES";
pub const INTERRUPTS: &str = "PROXYSHIFT_INTERRUPTS";

/// The file that a case creates to have the power cut.
pub const CUT: &str = "cut";

/// The folder where the disk is mounted.
const DISK: &str = "/run/disk";

/// The folders that a node has on disk, besides the store.
const KEPT: [&str; 4] =
    ["/etc/modules-load.d", "/etc/sysctl.d", "/etc/systemd/system", "/run/kube-proxy"];

const CONFIGURATION: &str = "/run/kube-proxy/config.conf";
const UNIT: &str = "/etc/systemd/system/multi-user.target.wants/proxyshift-rollback.service";

/// One boot of the machine. The case runs in the machine's first namespaces, because no others
/// survive a boot.
#[test]
#[ignore = "in the machine, of its own"]
fn one_boot() {
    run("modprobe -a virtio_blk ext4");
    fs::create_dir_all(DISK).expect(DISK);
    run(&format!("mount /dev/vda {DISK}"));
    for dir in KEPT {
        let kept = format!("{DISK}{dir}");
        fs::create_dir_all(&kept).expect(&kept);
        fs::create_dir_all(dir).expect(dir);
        run(&format!("mount --bind {kept} {dir}"));
    }
    // proxyshift takes a node with this folder for one with systemd. No systemd runs here, so the
    // case itself starts the boot unit.
    fs::create_dir_all("/run/systemd/system").expect("a folder");
    let mut case = Case::idle("nft", "disk/store");
    load_modules();
    match env::var(RESOLVES) {
        Ok(cut) => resolves(&mut case, &cut),
        Err(_) => {
            case.cluster.kube_proxy("iptables");
            case.serves_as_now();
        }
    }
    if let Ok(cut) = env::var(INTERRUPTS) {
        interrupts(&mut case, &cut);
    }
}

/// The mode to which a cut's migration goes, and the stage.
fn parts(cut: &str) -> (&str, &str) {
    cut.split_once(':').expect("a mode and a stage")
}

/// Lets the boot unit resolve the run that the last boot interrupted. Then kube-proxy must serve as
/// before the run.
fn resolves(case: &mut Case, cut: &str) {
    println!("-- after a reboot at {cut}");
    let (to, stage) = parts(cut);
    let configuration = fs::read_to_string(CONFIGURATION).expect("kube-proxy's configuration");
    // Before the switch, or after it was undone, the configuration is the old one.
    let mode = if ["prepare", "rollback"].contains(&stage) { "iptables" } else { to };
    assert!(configuration.contains(&format!("mode: {mode}")), "{configuration}");
    case.proxyshift.expect(6, "status");
    // If the power was cut in the stage `clean`, or while a bridge served, kube-proxy starts before the
    // unit, with its present configuration; otherwise kube-proxy starts after the unit.
    let first = stage == "clean" || to == "nftables";
    if first {
        case.cluster.kube_proxy_as_configured(to);
        case.cluster.release();
    }
    let unit = fs::read_to_string(UNIT).expect("the unit");
    let command = unit.lines().find_map(|l| l.strip_prefix("ExecStart=")).expect("a command");
    run_with("", &["sh", "-c", &format!("{command} 2>&1")]);
    let configuration = fs::read_to_string(CONFIGURATION).expect("kube-proxy's configuration");
    assert!(configuration.contains("mode: iptables"), "{configuration}");
    for gone in [UNIT, "/etc/modules-load.d/proxyshift.conf", "/etc/sysctl.d/90-proxyshift.conf"] {
        assert!(!Path::new(gone).exists(), "{gone} is still there");
    }
    assert_eq!(case.last_run()["state"], "rolled-back");
    case.proxyshift.expect(0, "status");
    match first {
        // The unit has restarted kube-proxy, which needs time to serve.
        true => case.cluster.wait("iptables"),
        false => case.cluster.kube_proxy_as_configured("iptables"),
    }
    case.serves_as_now();
    assert!(!is_bridged(), "a bridge is left");
    if first {
        // Removes what kube-proxy made in its other mode during this boot.
        case.proxyshift.expect(0, "cleanup --owner kube-proxy --yes");
    }
    case.is_in("iptables");
}

/// Runs a migration until it reaches the stage, and has the power cut.
fn interrupts(case: &mut Case, cut: &str) {
    println!("-- a reboot at {cut}");
    let (to, stage) = parts(cut);
    // The way to nftables mode removes every virtual server there is.
    if to == "ipvs" {
        case.serves_from_now_on();
    }
    case.playbook("iptables", to, |text| text);
    run("sync");
    match stage {
        "confirm" => assert_eq!(case.migrate(to, "").code, Some(0)),
        "rollback" => {
            assert_eq!(case.migrate(to, "").code, Some(0));
            println!("{}", case.proxyshift.killed("rollback", "before:rollback:intent").err);
        }
        _ => {
            let point = format!("before:{stage}:done");
            println!("{}", case.proxyshift.killed(&Case::words(to), &point).err);
        }
    }
    let file = Path::new(&env::var("PROXYSHIFT_SHARED").expect("the shared folder")).join(CUT);
    fs::write(file, cut).expect("the request");
    std::thread::sleep(Duration::from_secs(60));
    panic!("the power is still on");
}
