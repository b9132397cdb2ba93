//! Replaces the binary of a running **stateful** daemon: no dropped connections, no lost writes, no split brain,
//! automatic rollback.

mod channel;
pub mod data_dir;
pub mod drainable;
pub mod error;
pub mod proto;
#[doc(hidden)]
pub mod sys;

pub use data_dir::DataDirLock;
pub use drainable::{DrainReport, Drainable, SealReport, StateSnapshot};
pub use error::{Error, Result};
