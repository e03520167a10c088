//! What the stories stand on.

pub mod openhands;
pub mod storage;
