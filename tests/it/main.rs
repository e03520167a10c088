//! Stories about the whole program, and about the stand-ins that they rest on.

mod agent;
mod cli;
mod deploy_sql;
mod main_job;
mod support;
mod webhook;
