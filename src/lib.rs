//! From a signed GitHub push to a playable video.

#![forbid(unsafe_code)]

pub mod agent;
pub mod app;
pub mod cli;
pub mod clock;
pub mod config;
pub mod db;
pub mod demo;
pub mod domain;
pub mod failpoint;
pub mod github;
pub mod http;
pub mod ingest;
pub mod metrics;
pub mod spool;
pub mod standin;
pub mod store;
pub mod sweep;
pub mod telemetry;
pub mod worker;
