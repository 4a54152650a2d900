//! A small disk for a store, which a test lets fail.

use super::run_with;

/// The image of the file system, and where it is mounted.
pub const IMAGE: &str = "/run/store.img";
pub const DISK: &str = "/run/disk";

/// A script of sh after which no block and no inode is left.
pub const FULL: &str = "cd /run/disk; n=0; while mkdir f$n; do n=$((n+1)); done 2>/dev/null
    for size in 256M 64M 16M 4M 1M 256K 64K 16K 4K; do
        while fallocate -o $(stat -c %s a) -l $size a; do :; done 2>/dev/null
    done; ! mkdir more";

/// A script of sh that lets the kernel find an error in the file system, which becomes read-only:
/// `errors=remount-ro`.
pub const READ_ONLY: &str = "disk=$(basename $(findmnt -no SOURCE /run/disk))
    echo 1 >/sys/fs/ext4/$disk/trigger_fs_error; ! touch /run/disk/b 2>/dev/null\n";

/// Makes the file system, an ext4, and mounts it. An older one is taken out of the tree.
pub fn new_disk() {
    let make = format!(
        "mkdir -p {DISK}; ! mountpoint -q {DISK} || umount -l {DISK}
         rm -f {IMAGE}; truncate -s 1G {IMAGE}
         mkfs.ext4 -q -N 200 -m 0 -e remount-ro -E lazy_itable_init=1,nodiscard {IMAGE}
         mount -o loop {IMAGE} {DISK}; touch {DISK}/a"
    );
    run_with(&make, &["sh", "-e"]);
}
