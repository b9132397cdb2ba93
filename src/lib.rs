//! Replaces the binary of a running **stateful** daemon: no dropped connections, no lost writes, no split brain,
//! automatic rollback.

mod channel;
pub mod data_dir;
pub mod drainable;
pub mod error;
pub mod fds;
pub mod incumbent;
pub mod proto;
pub mod role;
mod serve;
mod session;
#[doc(hidden)]
pub mod sys;

pub use data_dir::DataDirLock;
pub use drainable::{DrainReport, Drainable, SealReport, StateSnapshot};
pub use error::{Error, Result};
pub use fds::Inherited;
pub use incumbent::{Incumbent, Limits, Served, Stopper, Superseded};
pub use role::{BegunSuccessor, HandshookSuccessor, Role, Successor, detect_role};
