//! Vortex: the plaintext of TLS traffic, from the kernel to a record.

pub mod ahead;
pub mod attach;
pub mod cli;
pub mod command;
pub mod complain;
pub mod config;
pub mod confine;
pub mod connection;
pub mod coverage;
pub mod doctor;
pub mod escape;
pub mod event;
pub mod half;
pub mod launch;
pub mod ledger;
pub mod locate;
pub mod pipeline;
pub mod probe;
pub mod record;
pub mod redact;
pub mod ring;
pub mod run;
pub mod self_test;
pub mod sink;
pub mod stream;
pub mod user;
