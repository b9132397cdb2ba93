//! What a daemon implements to take part in a handoff.

use std::sync::Arc;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use crate::error::Result;

/// The hooks of a stateful daemon.
///
/// They are called one at a time and in this order: [`drain`](Self::drain), [`seal`](Self::seal), and then either
/// nothing more (the successor serves, and [`Incumbent::serve`](crate::Incumbent::serve) returns) or
/// [`resume_after_abort`](Self::resume_after_abort). A handoff can be undone after any of them, also after one that
/// returned an error. [`snapshot_state`](Self::snapshot_state) and [`interrupt`](Self::interrupt) may be called at any time,
/// from another thread.
pub trait Drainable: Send + Sync {
    /// Stops accepting connections and writes, and finishes what is in flight.
    ///
    /// Everything that was acknowledged must be on disk when it returns. It should return by `deadline`, with what
    /// is left over counted in the report.
    ///
    /// # Errors
    ///
    /// An error rolls the handoff back: `resume_after_abort` is called at once.
    fn drain(&self, deadline: Instant) -> Result<DrainReport>;

    /// Makes the data final: no byte of it changes after this returns.
    ///
    /// The library releases the data directory's lock right after it.
    ///
    /// # Errors
    ///
    /// An error rolls the handoff back: `resume_after_abort` is called at once.
    fn seal(&self) -> Result<SealReport>;

    /// Goes back to serving: reads the data again from disk, as a successor may have changed it, and accepts again.
    ///
    /// The lock is held again when it is called. It must also work after a `drain` or a `seal` that failed half-way.
    ///
    /// # Errors
    ///
    /// After an error there is nobody left who could serve: `serve` returns it, and the process should exit.
    fn resume_after_abort(&self) -> Result<()>;

    /// Returns how the daemon is doing, for `handoff status`. Must not block.
    fn snapshot_state(&self) -> StateSnapshot;

    /// Tells a running `drain` or `seal` that the handoff has been undone, so that it may return early.
    fn interrupt(&self) {}
}

/// What [`Drainable::drain`] did.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct DrainReport {
    /// Connections that were still open at the deadline.
    pub open_conns_remaining: u32,
    /// Whether no connection is accepted any more.
    pub accept_closed: bool,
}

/// What [`Drainable::seal`] made final. What is not known is not compared with what the successor opens: whoever seals on behalf of a
/// program that has no revisions says so by an empty list, and by a fingerprint of zeros.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct SealReport {
    /// The last revision of each shard, in the order of the shards; empty when it is not known.
    pub last_revision_per_shard: Vec<u64>,
    /// A digest that names the data directory's contents, or its identity; all zero when the daemon has none.
    #[serde(with = "hex32")]
    pub data_dir_fingerprint: [u8; 32],
}

impl SealReport {
    /// Returns whether it says which revisions are final.
    pub fn knows_revisions(&self) -> bool {
        !self.last_revision_per_shard.is_empty()
    }

    /// Returns whether it says which data is final.
    pub fn knows_fingerprint(&self) -> bool {
        self.data_dir_fingerprint != [0; 32]
    }
}

/// How a daemon is doing.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct StateSnapshot {
    /// The number of shards.
    pub shard_count: u32,
    /// Connections that are open now.
    pub open_conns: u32,
    /// The last revision of each shard, in the order of the shards.
    pub last_revision_per_shard: Vec<u64>,
}

/// What a successor says of itself when it is ready.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct ReadinessSnapshot {
    /// The addresses that it will accept on, for people to read.
    pub listening_on: Vec<String>,
    /// Whether its own checks passed. The incumbent refuses a successor that is not healthy.
    pub healthz_ok: bool,
    /// The last revision of each shard that it opened. The incumbent refuses one that differs from what was sealed.
    pub advertised_revision_per_shard: Vec<u64>,
}

macro_rules! forward {
    ($($pointer:ty),*) => {$(
        impl<T: Drainable + ?Sized> Drainable for $pointer {
            fn drain(&self, deadline: Instant) -> Result<DrainReport> { (**self).drain(deadline) }
            fn seal(&self) -> Result<SealReport> { (**self).seal() }
            fn resume_after_abort(&self) -> Result<()> { (**self).resume_after_abort() }
            fn snapshot_state(&self) -> StateSnapshot { (**self).snapshot_state() }
            fn interrupt(&self) { (**self).interrupt() }
        }
    )*};
}

forward!(Arc<T>, Box<T>, &T);

/// A digest as 64 hexadecimal digits, so that the wire stays readable.
pub(crate) mod hex32 {
    use serde::{Deserialize, Deserializer, Serializer, de::Error};

    pub fn serialize<S: Serializer>(bytes: &[u8; 32], s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(&bytes.iter().map(|b| format!("{b:02x}")).collect::<String>())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<[u8; 32], D::Error> {
        let text = String::deserialize(d)?;
        decode(&text).ok_or_else(|| D::Error::custom("expected 64 hexadecimal digits"))
    }

    fn decode(text: &str) -> Option<[u8; 32]> {
        let mut bytes = [0; 32];
        if text.len() != 64 || !text.is_ascii() {
            return None;
        }
        for (i, byte) in bytes.iter_mut().enumerate() {
            *byte = u8::from_str_radix(&text[2 * i..2 * i + 2], 16).ok()?;
        }
        Some(bytes)
    }
}
