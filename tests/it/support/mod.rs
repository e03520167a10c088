//! What the stories stand on.

pub mod browser;
pub mod child;
pub mod openhands;
pub mod postgres;
pub mod spoiler;
pub mod storage;
pub mod story;
