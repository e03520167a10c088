//! Pure rules: no I/O, no clock, no async. Whatever can be decided from values alone is decided here.

pub mod advice;
pub mod failure;
pub mod generation;
pub mod ids;
pub mod lfs;
pub mod metadata;
pub mod mp4;
pub mod push;
pub mod signature;
pub mod verdict;
