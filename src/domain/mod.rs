//! Pure rules: no I/O, no clock, no async. Whatever can be decided from values alone is decided here.

pub mod advice;
pub mod failure;
pub mod generation;
pub mod ids;
pub mod lfs;
pub mod metadata;
pub mod mp4;
pub mod plan;
pub mod push;
pub mod report;
pub mod request;
pub mod signature;
mod spelled;
pub mod state;
pub mod timeline;
pub mod verdict;
