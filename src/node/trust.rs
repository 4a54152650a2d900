//! Whose word counts. A name proves nothing: any user may call a process kube-proxy.
//!
//! A process is a component of this node only if the kernel says that it is root's, in our user
//! namespace, with CAP_NET_ADMIN, and that nobody else may have started it. Only of such a process
//! are arguments, files and answers read, and only such a process is waited for or stopped.

use std::fs::File;
use std::io::Read;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::{Duration, Instant};
use std::{io, thread};

use procfs::net::TcpState;
use procfs::process::{FDTarget, Process};
use rustix::fs::{AtFlags, OFlags, StatxFlags};

use crate::state::cgroup;
use crate::state::lookalikes::Doubt;

/// The bit of CAP_NET_ADMIN in a set of capabilities (capabilities(7)).
pub(super) const NET_ADMIN: u64 = 1 << 12;

/// The bit of a program's mode that makes it run as its owner (inode(7)).
const SET_USER_ID: u32 = 0o4000;

/// How much of a process's arguments is read, in bytes. The kernel allows a process to claim
/// gigabytes of them.
const ARGUMENTS: u64 = 128 << 10;

/// How much of a process's status and of its list of mounts is read, in bytes. The kernel allows
/// 100,000 mounts.
const STATUS: u64 = 64 << 10;
const MOUNTS: u64 = 32 << 20;

/// How long the kernel may take between giving a process its program and its arguments.
const ARGUMENTS_APPEAR: Duration = Duration::from_millis(100);

/// A process, pinned by its directory in /proc. What is read of it is never of another process that
/// was given the same PID later.
pub struct PinnedProcess(Process);

/// What identifies a namespace: device and inode (namespaces(7)).
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Namespace(u64, u64);

/// The users of a process, and its effective capabilities.
struct Credentials {
    users: [u32; 3],
    capabilities: u64,
}

impl PinnedProcess {
    /// Pins process `pid`; none if there is no such process.
    pub fn open(pid: u32) -> Option<PinnedProcess> {
        Process::new(i32::try_from(pid).ok()?).ok().map(PinnedProcess)
    }

    /// The PID.
    pub fn pid(&self) -> u32 {
        self.0.pid.unsigned_abs()
    }

    /// The network namespace of the process; none if we may not know.
    pub fn network(&self) -> Option<Namespace> {
        self.namespace("ns/net")
    }

    /// Why the process does not count; none if it counts.
    pub fn doubt(&self) -> Option<Doubt> {
        let Some(who) = self.credentials() else { return Some(Doubt::Unreadable) };
        if who.users != [0; 3] {
            Some(Doubt::User)
        } else if !self.shares_our_users() {
            Some(Doubt::UserNamespace)
        } else if who.capabilities & NET_ADMIN == 0 {
            Some(Doubt::NetAdmin)
        } else {
            match self.program_mode() {
                Some(mode) if mode & SET_USER_ID == 0 => None,
                Some(_) => Some(Doubt::SetUserId),
                None => Some(Doubt::Unreadable),
            }
        }
    }

    /// The real user; the one of nobody if the process has ended.
    pub fn uid(&self) -> u32 {
        self.credentials().map_or(u32::MAX, |who| who.users[0])
    }

    /// The effective capabilities; none if the process has ended.
    pub(super) fn capabilities(&self) -> Option<u64> {
        self.credentials().map(|who| who.capabilities)
    }

    /// The path of the program; none for a thread of the kernel, and once the process has ended.
    pub fn exe(&self) -> Option<PathBuf> {
        self.0.exe().ok()
    }

    /// The command name, which the kernel cuts at 15 bytes.
    pub fn comm(&self) -> String {
        let mut bytes = Vec::new();
        let comm = self.file("comm").and_then(|file| file.take(64).read_to_end(&mut bytes));
        let name = comm.map(|_| String::from_utf8_lossy(&bytes).into_owned());
        name.unwrap_or_default().trim_end_matches('\n').to_owned()
    }

    /// The paths of the control groups, each once; none if the process has ended.
    pub(super) fn cgroups(&self) -> Vec<String> {
        let mut bytes = Vec::new();
        if self.file("cgroup").and_then(|file| file.take(STATUS).read_to_end(&mut bytes)).is_err() {
            return Vec::new();
        }
        let text = String::from_utf8_lossy(&bytes);
        let mut paths: Vec<String> = cgroup::paths(&text).into_iter().map(str::to_owned).collect();
        paths.sort_unstable();
        paths.dedup();
        paths
    }

    /// The arguments, beginning with the program, as far as they are read; none once the process
    /// has ended. A process that starts a program has it before its arguments, so these are waited
    /// for. May never return: see [`super::reading`].
    pub(super) fn arguments(&self) -> Option<Vec<String>> {
        let end = Instant::now() + ARGUMENTS_APPEAR;
        loop {
            let bytes = self.bytes("cmdline", ARGUMENTS).ok()?;
            if !bytes.is_empty() || Instant::now() > end {
                return Some(split(&bytes, ARGUMENTS));
            }
            self.exe()?;
            thread::sleep(Duration::from_millis(1));
        }
    }

    /// The first argument. May never return: see [`super::reading`].
    pub(super) fn first_argument(&self) -> Option<String> {
        const LONGEST_PATH: u64 = 4096;
        split(&self.bytes("cmdline", LONGEST_PATH).ok()?, u64::MAX).into_iter().next()
    }

    /// The value of `PATH` in the process's environment, if it is set. Only a process that counts is
    /// asked. May never return: see [`super::reading`].
    pub(super) fn search_path(&self) -> Option<String> {
        let variables = split(&self.bytes("environ", ARGUMENTS).ok()?, ARGUMENTS);
        variables.iter().find_map(|variable| variable.strip_prefix("PATH=")).map(str::to_owned)
    }

    /// The directory that the process has as its root.
    pub(super) fn root(&self) -> io::Result<File> {
        self.open_at("root", OFlags::PATH | OFlags::DIRECTORY)
    }

    /// The program, not opened for reading.
    pub(super) fn program(&self) -> io::Result<File> {
        self.open_at("exe", OFlags::PATH)
    }

    /// The mounts that the process sees, as lines of proc_pid_mountinfo(5).
    pub(super) fn mounts(&self) -> io::Result<String> {
        let mut bytes = Vec::new();
        self.file("mountinfo")?.take(MOUNTS).read_to_end(&mut bytes)?;
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// The inodes of the sockets that the process has open.
    fn sockets(&self) -> Vec<u64> {
        let open = self.0.fd().into_iter().flatten().flatten();
        open.filter_map(|fd| match fd.target {
            FDTarget::Socket(inode) => Some(inode),
            _ => None,
        })
        .collect()
    }

    /// Whether the process is who answers at `address`: the socket that gets new connections there
    /// is its own.
    pub fn listens(&self, address: SocketAddr) -> bool {
        let (v4, v6) = (self.0.tcp().unwrap_or_default(), self.0.tcp6().unwrap_or_default());
        let mut listening: Vec<_> = v4.into_iter().chain(v6).collect();
        listening.retain(|socket| {
            socket.state == TcpState::Listen && socket.local_address.port() == address.port()
        });
        // The kernel prefers the socket of that address, then one of any address of its family.
        let any_of_family: IpAddr = match address.ip() {
            IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
            IpAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
        };
        let preferred = [address.ip(), any_of_family, Ipv6Addr::UNSPECIFIED.into()];
        let at = |ip: &IpAddr| listening.iter().find(|s| s.local_address.ip() == *ip);
        let socket = preferred.iter().find_map(at);
        socket.is_some_and(|socket| self.sockets().contains(&socket.inode))
    }

    fn credentials(&self) -> Option<Credentials> {
        let mut bytes = Vec::new();
        self.file("status").and_then(|file| file.take(STATUS).read_to_end(&mut bytes)).ok()?;
        Credentials::parse(&String::from_utf8_lossy(&bytes))
    }

    /// The mode of the program's file, without asking the file system, whose server may be a
    /// stranger.
    fn program_mode(&self) -> Option<u32> {
        let program = self.program().ok()?;
        let flags = AtFlags::EMPTY_PATH | AtFlags::STATX_DONT_SYNC;
        let stat = rustix::fs::statx(&program, c"", flags, StatxFlags::MODE).ok()?;
        Some(stat.stx_mode.into())
    }

    fn shares_our_users(&self) -> bool {
        // This process never changes its user namespace.
        static OURS: OnceLock<Option<Namespace>> = OnceLock::new();
        let users = |process: &PinnedProcess| process.namespace("ns/user");
        let ours = OURS.get_or_init(|| users(&PinnedProcess::open(std::process::id())?));
        ours.is_some() && users(self) == *ours
    }

    fn namespace(&self, name: &str) -> Option<Namespace> {
        let stat = rustix::fs::fstat(self.open_at(name, OFlags::PATH).ok()?).ok()?;
        Some(Namespace(stat.st_dev, stat.st_ino))
    }

    fn bytes(&self, name: &str, most: u64) -> io::Result<Vec<u8>> {
        let mut bytes = Vec::new();
        self.file(name)?.take(most).read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn file(&self, name: &str) -> io::Result<File> {
        self.open_at(name, OFlags::RDONLY)
    }

    fn open_at(&self, name: &str, flags: OFlags) -> io::Result<File> {
        self.0.open_relative_flags(name, flags | OFlags::CLOEXEC).map_err(io::Error::other)
    }
}

impl Credentials {
    /// Parses the text of /proc/PID/status (proc_pid_status(5)). The kernel escapes newlines in the
    /// command name, so nobody can add a line.
    fn parse(status: &str) -> Option<Credentials> {
        let field = |name: &str| status.lines().find_map(|line| line.strip_prefix(name));
        let mut users = field("Uid:")?.split_whitespace().map(str::parse);
        let mut user = || users.next()?.ok();
        let users = [user()?, user()?, user()?];
        let capabilities = u64::from_str_radix(field("CapEff:")?.trim(), 16).ok()?;
        Some(Credentials { users, capabilities })
    }
}

/// Splits bytes at their NULs. If they fill the `most` that were read, the last argument is not
/// whole, and is left out.
fn split(bytes: &[u8], most: u64) -> Vec<String> {
    let text = String::from_utf8_lossy(bytes);
    let mut parts: Vec<String> =
        text.strip_suffix('\0').unwrap_or(&text).split('\0').map(str::to_owned).collect();
    if bytes.len() as u64 >= most {
        parts.pop();
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn arguments_are_split_at_their_ends() {
        assert_eq!(split(b"a\0b c\0\0", 99), ["a", "b c", ""]);
        assert_eq!(split(b"rewritten title", 99), ["rewritten title"]);
        assert_eq!(split(b"a\0b\0cut", 7), ["a", "b"]);
    }

    #[test]
    fn users_and_capabilities_are_read() {
        let status = "Name:\tkube-proxy\\nUid:\t0\t0\t0\nUid:\t0\t1000\t7\t0\n\
            CapPrm:\t0\nCapEff:\t000001ffffffffff\n";
        let found = Credentials::parse(status).unwrap();
        assert_eq!((found.users, found.capabilities), ([0, 1000, 7], 0x1ff_ffff_ffff));
        for broken in ["", "Uid:\t0\t0\nCapEff:\t0\n", "Uid:\t0\t0\t0\t0\nCapEff:\tx\n"] {
            assert!(Credentials::parse(broken).is_none(), "{broken}");
        }
    }

    #[test]
    fn this_process_is_pinned() {
        let me = PinnedProcess::open(std::process::id()).unwrap();
        assert!(me.network().is_some() && me.shares_our_users());
        assert!(me.exe().is_some() && !me.comm().is_empty());
        assert_eq!(me.arguments().unwrap()[0], std::env::args().next().unwrap());
        assert_eq!(me.uid(), rustix::process::getuid().as_raw());
        assert!(PinnedProcess::open(u32::MAX).is_none());
    }
}
