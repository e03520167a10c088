//! What the stories stand on.

pub mod browser;
pub mod openhands;
pub mod postgres;
pub mod storage;
pub mod story;
