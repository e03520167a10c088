//! Stories about the whole program, and about the stand-ins that they rest on.

mod agent;
mod main_job;
mod support;
