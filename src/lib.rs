//! Replaces the binary of a running **stateful** daemon: no dropped connections, no lost writes, no split brain,
//! automatic rollback.

pub mod drainable;
pub mod error;
pub mod journal;
#[doc(hidden)]
pub mod sys;

pub use drainable::{DrainReport, Drainable, SealReport, StateSnapshot};
pub use error::{Error, Result};
