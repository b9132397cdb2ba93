//! The owner record.

use serde::{Deserialize, Serialize};

/// Whether the owner may still be replaced by the one before it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Standing {
    /// The owner serves on trial: at boot, the previous program starts.
    Trial,
    /// The data is the owner's: at boot, its program starts.
    Final,
}
