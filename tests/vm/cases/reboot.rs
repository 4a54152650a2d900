//! The machine loses its power during a migration. The disk, with the store and the settings for
//! the next boot, is kept; the rules are lost.

use std::path::Path;
use std::time::Duration;
use std::{env, fs};

use super::migrate::Case;
use crate::common::{run, run_with};

/// Environment variables with names of stages: RESOLVES has the stage that the last boot
/// interrupted and this boot resolves, and INTERRUPTS the stage to interrupt in this boot.
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
    match env::var(RESOLVES) {
        Ok(stage) => resolves(&mut case, &stage),
        Err(_) => {
            case.cluster.kube_proxy("iptables");
            case.serves_from_now_on();
        }
    }
    if let Ok(stage) = env::var(INTERRUPTS) {
        interrupts(&case, &stage);
    }
}

/// Lets the boot unit resolve the run that the last boot interrupted. Then kube-proxy must serve as
/// before the run.
fn resolves(case: &mut Case, stage: &str) {
    println!("-- after a reboot at {stage}");
    let configuration = fs::read_to_string(CONFIGURATION).expect("kube-proxy's configuration");
    // Before the switch, or after it was undone, the configuration is the old one.
    let mode = if ["prepare", "rollback"].contains(&stage) { "iptables" } else { "ipvs" };
    assert!(configuration.contains(&format!("mode: {mode}")), "{configuration}");
    case.proxyshift.expect(6, "status");
    // If the power was cut in the stage `clean`, kube-proxy starts before the unit, with its
    // present configuration; otherwise kube-proxy starts after the unit.
    let first = stage == "clean";
    if first {
        case.cluster.kube_proxy_as_configured("ipvs");
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
    case.serves_from_now_on();
    if first {
        // Removes what kube-proxy made in ipvs mode during this boot.
        case.proxyshift.expect(0, "cleanup --owner kube-proxy --yes");
    }
    case.is_in("iptables");
}

/// Runs a migration until it reaches `stage`, and has the power cut.
fn interrupts(case: &Case, stage: &str) {
    println!("-- a reboot at {stage}");
    case.playbook("iptables", "ipvs", |text| text);
    run("sync");
    match stage {
        "confirm" => assert_eq!(case.migrate("ipvs", "").code, Some(0)),
        "rollback" => {
            assert_eq!(case.migrate("ipvs", "").code, Some(0));
            println!("{}", case.proxyshift.killed("rollback", "before:rollback:intent").err);
        }
        _ => {
            let point = format!("before:{stage}:done");
            println!("{}", case.proxyshift.killed(&Case::words("ipvs"), &point).err);
        }
    }
    let cut = Path::new(&env::var("PROXYSHIFT_SHARED").expect("the shared folder")).join(CUT);
    fs::write(cut, stage).expect("the request");
    std::thread::sleep(Duration::from_secs(60));
    panic!("the power is still on");
}
