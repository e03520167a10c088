//! Stories about the whole program, and about the stand-ins that they rest on.

mod agent;
mod storage_standin;
mod store;
mod support;
