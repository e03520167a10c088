//! Types and decisions without side effects: no I/O, no clock, no async.

pub mod advice;
pub mod explanation;
pub mod failure;
mod file_lists;
pub mod generation;
pub mod head;
pub mod ids;
pub mod lfs;
pub mod links;
pub mod metadata;
pub mod mp4;
pub mod plan;
pub mod push;
pub mod redact;
pub mod report;
pub mod request;
pub mod signature;
pub mod state;
pub mod strength;
mod string_enum;
pub mod timeline;
pub mod verdict;
