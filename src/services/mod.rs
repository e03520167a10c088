//! Clients of other services: the only modules that call other hosts.

pub mod client;
pub mod github;
pub mod openhands;
pub mod receiver;
pub mod storage;
