//! Run the demonstration daemon: a key-value store that redis-cli can talk to
mod commit;
mod compact;
mod log;
mod resp;
mod store;
