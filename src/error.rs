//! What can go wrong, one variant for each thing that a caller can do something about.
//!
//! A rollback is not an error: it is an [`Outcome`](crate::supervisor::Outcome).

use std::fmt;
use std::io;
use std::path::PathBuf;

use crate::sys::lock::Holder;

/// The result of everything in this crate that can fail.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why an operation of this crate failed.
#[derive(Debug)]
#[non_exhaustive]
pub enum Error {
    /// A system call failed.
    Io {
        /// What was attempted, a verb phrase that reads after "unable to".
        attempt: String,
        /// The kernel's answer.
        source: io::Error,
    },
    /// Another process holds the data directory's lock.
    Locked {
        /// The lock file.
        path: PathBuf,
        /// Every process that was found to hold it; empty when none could be seen.
        holders: Vec<Holder>,
    },
    /// The lock file that was locked is no longer the one at the path: it was renamed or removed.
    LockReplaced {
        /// The lock file.
        path: PathBuf,
    },
    /// The data directory is on a network file system, whose locks do not exclude other machines.
    NetworkFileSystem {
        /// The lock file.
        path: PathBuf,
        /// The kind of file system, such as `nfs`.
        kind: &'static str,
    },
    /// A file of ours is damaged and was left as it is.
    Damaged {
        /// The file.
        path: PathBuf,
        /// The offset of the first bad byte.
        offset: u64,
        /// What was expected there and what was found.
        detail: String,
    },
    /// A file was written by a later release, in a format that this one does not read.
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// The highest format that this release reads.
        ours: u32,
        /// The file's format.
        found: u32,
    },
    /// A file at a path of ours is not ours; it was not touched.
    Foreign {
        /// The file.
        path: PathBuf,
        /// What was expected there and what was found.
        detail: String,
    },
    /// A peer sent what the protocol does not allow.
    Protocol {
        /// What was expected.
        expected: String,
        /// What came.
        got: String,
    },
    /// The peers have no protocol version in common.
    Version {
        /// The range that this side speaks, lowest and highest.
        ours: (u32, u32),
        /// The range that the peer speaks, lowest and highest.
        theirs: (u32, u32),
    },
    /// The peer closed its end.
    PeerLost {
        /// What was being waited for.
        waiting_for: String,
    },
    /// A wait came to its deadline.
    TimedOut {
        /// What was being waited for.
        waiting_for: String,
    },
    /// The handoff was undone, or the data went on without this successor; it must exit.
    Aborted {
        /// Why.
        reason: String,
    },
    /// Another handoff is in progress.
    Busy {
        /// Its id.
        handoff: String,
        /// Its phase.
        phase: String,
        /// How long it has been going on, in milliseconds.
        age_ms: u64,
    },
    /// The peer refused, and nothing changed.
    Refused {
        /// Why.
        reason: String,
    },
    /// An inherited descriptor is closed, or is not the one that was passed.
    Descriptor {
        /// Its name in the fd table.
        name: String,
        /// Its number.
        fd: i32,
        /// What was expected there and what was found.
        detail: String,
    },
    /// A value that the caller gave cannot be used.
    Invalid {
        /// What is wrong with it and what would be right.
        detail: String,
    },
    /// A hook of the daemon failed.
    Hook {
        /// The hook's name.
        hook: &'static str,
        /// What it returned.
        detail: String,
    },
}

impl Error {
    /// Returns an [`Error::Io`] for an attempt that reads after "unable to".
    pub fn io(attempt: impl Into<String>, source: impl Into<io::Error>) -> Self {
        Self::Io { attempt: attempt.into(), source: source.into() }
    }

    /// Returns an error for a hook to return, with a message of the daemon's own.
    pub fn hook(detail: impl fmt::Display) -> Self {
        Self::Hook { hook: "daemon", detail: detail.to_string() }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io { attempt, source } => write!(f, "unable to {attempt}: {source}"),
            Self::Locked { path, holders } => {
                write!(f, "unable to lock {}: held by ", path.display())?;
                write_holders(f, holders)
            }
            Self::LockReplaced { path } => {
                write!(
                    f,
                    "{} was renamed or replaced while it was being locked; it must stay in place",
                    path.display()
                )
            }
            Self::NetworkFileSystem { path, kind } => write!(
                f,
                "{} is on {kind}, where a lock does not exclude other machines; use a local disk, or override if only one machine mounts it",
                path.display()
            ),
            Self::Damaged { path, offset, detail } => {
                write!(f, "{} is damaged at byte {offset}: {detail}", path.display())
            }
            Self::NewerFormat { path, ours, found } => write!(
                f,
                "{} has format {found} and this release reads up to {ours}: use the release that wrote it, or a later one",
                path.display()
            ),
            Self::Foreign { path, detail } => write!(f, "{} is not ours: {detail}", path.display()),
            Self::Protocol { expected, got } => write!(f, "protocol error: expected {expected}, got {got}"),
            Self::Version { ours, theirs } => write!(
                f,
                "no common protocol version: this side speaks {} to {}, the peer {} to {}",
                ours.0, ours.1, theirs.0, theirs.1
            ),
            Self::PeerLost { waiting_for } => {
                write!(f, "the peer closed its end while waiting for {waiting_for}")
            }
            Self::TimedOut { waiting_for } => write!(f, "timed out waiting for {waiting_for}"),
            Self::Aborted { reason } => write!(f, "the handoff was aborted: {reason}"),
            Self::Busy { handoff, phase, age_ms } => {
                write!(f, "busy: handoff {handoff} has been going on for {age_ms} ms and is in phase {phase}")
            }
            Self::Refused { reason } => write!(f, "refused: {reason}"),
            Self::Descriptor { name, fd, detail } => {
                write!(f, "unable to use descriptor {fd} ({name}): {detail}")
            }
            Self::Invalid { detail } => f.write_str(detail),
            Self::Hook { hook, detail } => write!(f, "hook {hook} failed: {detail}"),
        }
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        match self {
            Self::Io { source, .. } => Some(source),
            _ => None,
        }
    }
}

impl From<io::Error> for Error {
    fn from(source: io::Error) -> Self {
        Self::io("complete a system call", source)
    }
}

fn write_holders(f: &mut fmt::Formatter<'_>, holders: &[Holder]) -> fmt::Result {
    if holders.is_empty() {
        return f
            .write_str("a process that /proc does not show (another container, or a descriptor in flight)");
    }
    for (i, holder) in holders.iter().enumerate() {
        if i > 0 {
            f.write_str(", ")?;
        }
        write!(f, "{holder}")?;
    }
    Ok(())
}
