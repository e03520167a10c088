//! Everything outbound: the only module that calls other hosts.

pub mod github;
pub mod openhands;
pub mod storage;
