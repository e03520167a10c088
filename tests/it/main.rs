//! Stories about the whole program, and about the stand-ins that they rest on.

mod agent;
mod deploy_sql;
mod main_job;
mod page;
mod support;
