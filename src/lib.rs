//! Replaces the binary of a running **stateful** daemon: no dropped connections, no lost writes, no split brain,
//! automatic rollback.

pub mod acceptor;
mod channel;
pub mod control;
pub mod data_dir;
pub mod drainable;
mod drive;
pub mod error;
pub mod fds;
pub mod incumbent;
pub mod journal;
pub mod proto;
mod recover;
pub mod role;
mod serve;
mod session;
pub mod supervisor;
#[doc(hidden)]
pub mod sys;

pub use acceptor::{Acceptor, listen};
pub use data_dir::DataDirLock;
pub use drainable::{DrainReport, Drainable, SealReport, StateSnapshot};
pub use error::{Error, Result};
pub use fds::Inherited;
pub use incumbent::{Incumbent, Limits, Served, Stopper, Superseded};
pub use role::{BegunSuccessor, HandshookSuccessor, Role, Successor, detect_role};
