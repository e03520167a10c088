//! What happens to a video, in the order of the data: a delivery is recorded ([`intake`]), a worker claims
//! the video ([`worker`]), ingests it ([`ingest`]), and a [`sweep`] finds what a lost webhook left.

pub mod breaker;
pub mod checks;
pub mod ingest;
pub mod intake;
pub mod spool;
pub mod sweep;
pub mod worker;
