//! What the tests share: the scenario, fakes of the services, a fault proxy, Postgres and a browser.

pub mod browser;
pub mod child;
pub mod fake_github;
pub mod fake_openhands;
pub mod fake_storage;
pub mod fault_proxy;
pub mod postgres;
pub mod scenario;
pub mod states;
