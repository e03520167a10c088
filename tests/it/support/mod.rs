//! What the stories stand on.

pub mod browser;
pub mod child;
pub mod fake_openhands;
pub mod fake_storage;
pub mod fault_proxy;
pub mod postgres;
pub mod scenario;
