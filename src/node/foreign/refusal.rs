//! Why a file that somebody else chose is not read.

use std::fmt;
use std::io;

/// Why a file is not read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refusal {
    /// The path is not absolute, or goes up.
    NotAbsolute,
    /// It is a directory, a pipe, a socket or a device.
    NotRegular,
    /// It is a link out of the directory that it must stay in.
    LeadsOut,
    /// It lies on a file system that somebody may serve.
    Served(String),
    /// Too many links, or too many names.
    TooLong,
    /// It is larger than this, in bytes.
    TooLarge(u64),
    /// It is a directory with more entries than this.
    TooMany(usize),
    /// The limits of the whole reading are used up.
    UsedUp,
    /// Others than root could have put it there, or could write to it.
    NotRootsAlone,
    /// It is not text in UTF-8.
    NotText,
    /// The system's error.
    System(String),
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Refusal::NotAbsolute => f.write_str("its path is not absolute"),
            Refusal::NotRegular => f.write_str("it is not a regular file"),
            Refusal::LeadsOut => f.write_str("it is a link that leads out of its directory"),
            Refusal::Served(kind) => {
                write!(f, "it lies on a file system of type {kind}, which is not entered")
            }
            Refusal::TooLong => f.write_str("its path has too many symbolic links or names"),
            Refusal::TooLarge(most) => write!(f, "it is larger than {most} bytes"),
            Refusal::TooMany(most) => write!(f, "it has more than {most} entries"),
            Refusal::UsedUp => f.write_str("enough has been read from others' files"),
            Refusal::NotRootsAlone => f.write_str("not only root can write to it"),
            Refusal::NotText => f.write_str("it is not text"),
            Refusal::System(error) => f.write_str(error),
        }
    }
}

impl From<io::Error> for Refusal {
    fn from(error: io::Error) -> Refusal {
        Refusal::System(error.to_string())
    }
}

impl From<rustix::io::Errno> for Refusal {
    fn from(error: rustix::io::Errno) -> Refusal {
        io::Error::from(error).into()
    }
}
