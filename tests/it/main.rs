//! Stories about the program as a whole, told to stand-ins of the services around it.

mod agent;
mod support;
