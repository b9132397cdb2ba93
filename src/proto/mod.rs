//! The protocol, decided and not done: pure state machines without IO, clock, environment, threads or logs.
//!
//! # Theory of operation
//!
//! Three processes take part in a handoff. The [incumbent] serves and holds the data directory's lock. The
//! [driver] connects to the incumbent's control socket: that connection is the **lease**, and its last copy
//! closing undoes the handoff. The [successor] is warm and waits; once the incumbent has drained, sealed and
//! unlocked, the driver passes it the lease and keeps no copy, so that from then on two parties are left: the incumbent,
//! which decides once, and the successor, which writes nothing before it is granted.
//!
//! Who owns the data is never deduced from messages. It is the `flock` on the lock file, and the [owner
//! record](record) inside it, written only under the lock. Whoever takes the lock reads the record before anything
//! else: an incumbent that takes it back finds its own generation (the successor came to nothing), a trial (the
//! successor wrote in the old format and can be replaced) or a final record (the data is the successor's), and a
//! successor that finds another generation than the one the handoff began with knows that it came too late.
//!
//! Each machine is a function from a state and an input to a state and actions. An input is something that happened, an
//! action is something to do, and the shell that runs a machine executes the actions in their order and feeds back what
//! came of them. Machines name timers; only shells know how long they are. Where an action's result decides something
//! (the lock, the record, a hook), the machine waits in a phase of its own until the result is fed in, so that a crash
//! between any two system calls is a crash between two steps of the model, and **what is model-checked is what ships**.
//!
//! The tables that the machines amount to are printed in ARCHITECTURE.md.

use std::fmt;

use serde::{Deserialize, Serialize};

pub mod driver;
pub mod incumbent;
pub mod party;
pub mod record;
pub mod recovery;
pub mod successor;
pub mod supervisor;
pub mod wire;

/// The range of protocol versions that a side speaks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Versions {
    /// The lowest.
    pub min: u32,
    /// The highest.
    pub max: u32,
}

/// What this build speaks.
pub const VERSIONS: Versions = Versions { min: 1, max: 1 };

impl Versions {
    /// Returns the highest version that both sides speak.
    pub fn common(self, other: Self) -> Option<u32> {
        let highest = self.max.min(other.max);
        (highest >= self.min.max(other.min)).then_some(highest)
    }
}

/// Why a handoff was undone.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "kind", rename_all = "kebab-case")]
pub enum Reason {
    /// The incumbent's deadline passed before the successor was ready.
    Deadline,
    /// The successor took longer to warm up than the driver waits for that.
    NotWarm,
    /// The last copy of the lease was closed.
    LeaseLost,
    /// The driver asked for it.
    Driver {
        /// What it said.
        detail: String,
    },
    /// Somebody said `handoff abort`, or a health check failed while the successor was on trial.
    Operator {
        /// What was said.
        detail: String,
    },
    /// The successor could not be started.
    SpawnFailed {
        /// What the kernel said.
        detail: String,
    },
    /// The successor's process ended.
    SuccessorLost,
    /// The successor was granted, and then neither served nor died.
    SuccessorHung,
    /// The successor stopped serving on trial when it was asked to.
    SteppedDown,
    /// The successor reported that its own checks failed.
    Unhealthy,
    /// The successor opened other data than was sealed.
    StaleRevision {
        /// What was sealed, a revision for each shard.
        sealed: Vec<u64>,
        /// What was opened.
        opened: Vec<u64>,
    },
    /// The successor opened a data directory with another fingerprint than was sealed.
    Fingerprint,
    /// The drain hook failed.
    DrainFailed {
        /// What it returned.
        detail: String,
    },
    /// The seal hook failed.
    SealFailed {
        /// What it returned.
        detail: String,
    },
    /// A peer sent what it should not have.
    Protocol {
        /// What was expected and what came.
        detail: String,
    },
    /// The incumbent's process ended.
    IncumbentLost,
    /// The incumbent has sealed, or should have, and says nothing.
    IncumbentSilent,
    /// The data went on to another generation than the one that the handoff began with.
    TooLate {
        /// The generation in `prepare`.
        expected: u64,
        /// The generation in the record.
        found: u64,
    },
    /// The lock was held when it should have been free.
    LockHeld,
    /// The successor could not open the data, or write the owner record.
    Failed {
        /// What failed.
        detail: String,
    },
    /// A reason of a later version, or one whose fields are others there: a peer that is newer is still understood.
    #[serde(untagged)]
    Other {
        /// Its word.
        kind: String,
        /// What it says for people, where it says anything.
        #[serde(default)]
        detail: String,
    },
}

impl Reason {
    /// Returns the word for scripts: the `kind` of the JSON form.
    pub fn kind(&self) -> &str {
        match self {
            Self::Deadline => "deadline",
            Self::NotWarm => "not-warm",
            Self::LeaseLost => "lease-lost",
            Self::Driver { .. } => "driver",
            Self::Operator { .. } => "operator",
            Self::SpawnFailed { .. } => "spawn-failed",
            Self::SuccessorLost => "successor-lost",
            Self::SuccessorHung => "successor-hung",
            Self::SteppedDown => "stepped-down",
            Self::Unhealthy => "unhealthy",
            Self::StaleRevision { .. } => "stale-revision",
            Self::Fingerprint => "fingerprint",
            Self::DrainFailed { .. } => "drain-failed",
            Self::SealFailed { .. } => "seal-failed",
            Self::Protocol { .. } => "protocol",
            Self::IncumbentLost => "incumbent-lost",
            Self::IncumbentSilent => "incumbent-silent",
            Self::TooLate { .. } => "too-late",
            Self::LockHeld => "lock-held",
            Self::Failed { .. } => "failed",
            Self::Other { kind, .. } => kind,
        }
    }
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Deadline => f.write_str("the deadline passed before the successor was ready"),
            Self::NotWarm => f.write_str("the successor was not warm in time"),
            Self::LeaseLost => f.write_str(
                "the lease was closed: the driver or the successor ended, and its own messages say why",
            ),
            Self::Driver { detail } | Self::Operator { detail } => f.write_str(detail),
            Self::SpawnFailed { detail } => write!(f, "the successor could not be started: {detail}"),
            Self::SuccessorLost => f.write_str("the successor died"),
            Self::SuccessorHung => f.write_str("the successor was granted and then neither served nor died"),
            Self::SteppedDown => f.write_str("the successor stepped down from its trial"),
            Self::Unhealthy => f.write_str("the successor reported that it is not healthy"),
            Self::StaleRevision { sealed, opened } => {
                write!(
                    f,
                    "the successor opened other data than was sealed: sealed revisions {sealed:?}, opened {opened:?}"
                )
            }
            Self::Fingerprint => {
                f.write_str("the successor opened a data directory with another fingerprint than was sealed")
            }
            Self::DrainFailed { detail } => write!(f, "the drain failed: {detail}"),
            Self::SealFailed { detail } => write!(f, "the seal failed: {detail}"),
            Self::Protocol { detail } => write!(f, "protocol error: {detail}"),
            Self::IncumbentLost => f.write_str("the incumbent died"),
            Self::IncumbentSilent => f.write_str("the incumbent is silent"),
            Self::TooLate { expected, found } => {
                write!(
                    f,
                    "the successor came too late: the data went on to generation {found}, expected {expected}"
                )
            }
            Self::LockHeld => f.write_str("the lock was held by another process"),
            Self::Failed { detail } => f.write_str(detail),
            Self::Other { kind, detail } if detail.is_empty() => f.write_str(kind),
            Self::Other { kind, detail } => write!(f, "{kind}: {detail}"),
        }
    }
}

/// What a driver asks for.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Terms {
    /// The handoff's id.
    pub handoff: String,
    /// From now to the latest moment of a grant, in milliseconds.
    pub deadline_ms: u64,
    /// How long the successor serves on trial, in milliseconds; none for no trial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bake_ms: Option<u64>,
    /// From the grant to the successor's word that it serves, in milliseconds.
    pub stand_by_ms: u64,
}

/// How a handoff ended, as those who watch it are told.
#[derive(Clone, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(tag = "outcome", rename_all = "kebab-case")]
pub enum Verdict {
    /// The successor serves for good.
    Committed,
    /// The incumbent serves.
    RolledBack {
        /// Why.
        reason: Reason,
    },
    /// The successor died, but the data is already its own: whoever starts next must be the successor's program.
    Superseded,
    /// The incumbent has sealed and ends without a successor, as it was asked to.
    Retired,
    /// The incumbent could not go back to serving.
    NothingServing {
        /// Why the handoff was undone, and why that failed.
        detail: String,
    },
    /// It has ended, in a way that only a later version has a word for: who serves must be asked.
    #[serde(other)]
    Unknown,
}

#[cfg(test)]
mod tests {
    #![allow(clippy::unwrap_used)]

    use super::{Reason, Verdict, Versions};

    #[test]
    fn the_highest_common_version_is_used() {
        let range = |min, max| Versions { min, max };
        assert_eq!(range(1, 3).common(range(2, 5)), Some(3));
        assert_eq!(range(2, 2).common(range(1, 2)), Some(2));
        assert_eq!(range(1, 1).common(range(2, 9)), None);
        assert_eq!(range(4, 9).common(range(1, 3)), None);
    }

    #[test]
    fn a_reason_of_a_later_version_keeps_its_word_and_is_passed_on_unchanged() {
        let text = r#"{"kind":"disk-full","detail":"2 MiB left"}"#;
        let reason: Reason = serde_json::from_str(text).unwrap();
        assert_eq!((reason.kind(), reason.to_string().as_str()), ("disk-full", "disk-full: 2 MiB left"));
        assert_eq!(serde_json::to_string(&reason).unwrap(), text);

        let bare: Reason = serde_json::from_str(r#"{"kind":"eclipse","moon":1}"#).unwrap();
        assert_eq!((bare.kind(), bare.to_string().as_str()), ("eclipse", "eclipse"));
    }

    #[test]
    fn a_reason_that_is_known_is_not_taken_for_another() {
        for reason in [
            Reason::Deadline,
            Reason::Failed { detail: "x".to_owned() },
            Reason::TooLate { expected: 1, found: 2 },
        ] {
            let text = serde_json::to_string(&reason).unwrap();
            assert_eq!(serde_json::from_str::<Reason>(&text).unwrap(), reason, "{text}");
        }
        assert!(serde_json::from_str::<Reason>(r#"{"detail":"without a kind"}"#).is_err());
    }

    #[test]
    fn an_outcome_of_a_later_version_is_an_unknown_verdict() {
        let verdict: Verdict = serde_json::from_str(r#"{"outcome":"split","shards":[1]}"#).unwrap();
        assert_eq!(verdict, Verdict::Unknown);
    }
}
