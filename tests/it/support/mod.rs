//! Stand-ins of the services around the program.

pub mod openhands;
