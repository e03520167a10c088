//! Stories about the whole program, and about the stand-ins that they rest on.

mod agent;
mod bad_input;
mod browser;
mod cli;
mod deploy_sql;
mod doctor;
mod hooks;
mod hostile;
mod intruders;
mod invariants;
mod load;
mod main_job;
mod matrix;
mod metrics;
mod openapi;
mod page;
mod process;
mod races;
mod readme;
mod storage_standin;
mod store;
mod supabase;
mod support;
mod sweep;
mod sweep_model;
mod webhook;
