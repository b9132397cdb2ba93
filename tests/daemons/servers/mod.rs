//! The servers, and how a release of each looks.

pub mod gunicorn;
pub mod haproxy;
pub mod nginx;
pub mod node;
pub mod python;
pub mod sd_listen;
pub mod uvicorn;
