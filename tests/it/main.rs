//! Stories about the whole program, and about the stand-ins that they rest on.

mod agent;
mod bad_input;
mod cli;
mod deploy_sql;
mod hostile;
mod intruders;
mod load;
mod main_job;
mod matrix;
mod process;
mod races;
mod readme;
mod storage_standin;
mod store;
mod supabase;
mod support;
mod webhook;
