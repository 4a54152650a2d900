//! The version of a Go program, from the build information in its file. The program is not run.
//!
//! The format is that of Go's package `debug/buildinfo`, from Go 1.18 on: a header of 32 bytes, then
//! two texts, each with its length in front. The second text names the flags of the linker, with
//! which Kubernetes sets its version.

use std::io::{self, Read, Seek, SeekFrom};

use object::read::ReadCache;
use object::{Object, ObjectSection};

/// The name of the section that holds the build information.
const SECTION: &str = ".go.buildinfo";
/// The first bytes of the section.
const MAGIC: &[u8] = b"\xff Go buildinf:";
/// The length of the section's header, in bytes.
const HEADER: usize = 32;
/// Where the header says how the texts are stored, and the bit for "behind the header".
const FLAGS: usize = 15;
const INLINE: u8 = 2;
/// The largest section that is read, in bytes. One of Kubernetes has some 10 KiB.
const LARGEST: u64 = 1 << 20;
/// How much of the file is read in all, in bytes: the headers, and the section. A file can claim
/// headers of any size.
const MOST: u64 = 8 << 20;
/// The variable that holds the version, as the linker's flags set it.
const VERSION: &str = "version.gitVersion=";

/// The version that Kubernetes' build gave the program in `file`; none if it does not tell.
pub fn kubernetes_version(file: impl Read + Seek) -> Option<String> {
    let cache = ReadCache::new(Limited { file, left: MOST });
    let object = object::File::parse(&cache).ok()?;
    let section = object.section_by_name(SECTION)?;
    if section.size() > LARGEST {
        return None;
    }
    version(&settings(section.data().ok()?)?)
}

/// A file of which only so many bytes are read.
struct Limited<R> {
    file: R,
    left: u64,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if room == 0 && !buffer.is_empty() {
            return Err(io::Error::other("enough of it has been read"));
        }
        let count = self.file.read(&mut buffer[..room])?;
        self.left -= count as u64;
        Ok(count)
    }
}

impl<R: Seek> Seek for Limited<R> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        self.file.seek(to)
    }
}

/// The text with the settings of the build.
fn settings(section: &[u8]) -> Option<String> {
    if !section.starts_with(MAGIC) || section.get(FLAGS)? & INLINE == 0 {
        return None;
    }
    let (_, rest) = text(section.get(HEADER..)?)?;
    text(rest).map(|(settings, _)| String::from_utf8_lossy(settings).into_owned())
}

/// A text with its length in front (a varint), and what follows it.
fn text(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (mut length, mut at) = (0_usize, 0);
    loop {
        let byte = *bytes.get(at)?;
        length |= usize::from(byte & 0x7f).checked_shl(7 * u32::try_from(at).ok()?)?;
        at += 1;
        if byte & 0x80 == 0 {
            break;
        }
        if at > 4 {
            return None;
        }
    }
    bytes.get(at..)?.split_at_checked(length)
}

fn version(settings: &str) -> Option<String> {
    let (_, rest) = settings.split_once(VERSION)?;
    let end = rest.find(|c: char| !(c.is_ascii_alphanumeric() || ".+-".contains(c)));
    let version = &rest[..end.unwrap_or(rest.len())];
    let is_release = |v: &str| v.starts_with(|c| matches!(c, '1'..='9'));
    version.strip_prefix('v').is_some_and(is_release).then(|| version.to_owned())
}

#[cfg(test)]
mod tests {
    use std::fs::File;

    use super::*;

    fn section(settings: &str) -> Vec<u8> {
        let mut bytes = [MAGIC, &[8, INLINE], &[0; 16]].concat();
        bytes.extend(b"\x08go1.26.8");
        bytes.extend([(settings.len() & 0x7f) as u8 | 0x80, (settings.len() >> 7) as u8]);
        bytes.extend(settings.bytes());
        bytes
    }

    #[test]
    fn the_version_is_a_flag_of_the_linker() {
        let set = "build\t-ldflags=\"-s -w -X k8s.io/component-base/version.gitVersion=v1.20.2 -X \
            'k8s.io/component-base/version.gitTreeState=clean'\"\n";
        let padded = format!("{set}{}", " ".repeat(200));
        let found = settings(&section(&padded));
        assert_eq!(found.as_deref(), Some(padded.as_str()));
        assert_eq!(version(set).as_deref(), Some("v1.20.2"));
        for (text, expected) in [
            ("x.gitVersion=v1.30.5+k3s1'", None),
            ("x/version.gitVersion=v1.30.5+k3s1'", Some("v1.30.5+k3s1")),
            ("x/version.gitVersion=v0.0.0-master", None),
            ("x/version.gitVersion=", None),
            ("", None),
        ] {
            assert_eq!(version(text).as_deref(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_build_information_tells_nothing() {
        let whole = section(&"s".repeat(300));
        for bytes in [&whole[..20], &whole[..60], b"", b"\xff Go buildinf:\x08\x00", &[0xff; 99]] {
            assert_eq!(settings(bytes), None);
        }
        assert_eq!(text(&[0xff; 9]), None);
        let me = File::open("/proc/self/exe").unwrap();
        assert_eq!(kubernetes_version(me), None, "not a Go program");
        assert_eq!(kubernetes_version(File::open("Cargo.toml").unwrap()), None);
    }
}
