//! The path of a video: [`intake`] records deliveries, a [`worker`] claims the video and [`ingest`]s it.
//! A [`sweep`] finds videos whose webhooks were lost.

pub mod branch;
pub mod breaker;
pub mod causes;
pub mod checks;
pub mod ingest;
pub mod intake;
pub mod limits;
pub mod spool;
pub mod sweep;
pub mod worker;
