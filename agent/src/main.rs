//! `vortex-agent`: parses what was typed and calls what was meant.

use std::{
    io::{self, Write as _},
    process::ExitCode,
};

use clap::Parser as _;
use vortex_agent::{
    attach,
    cli::{Action, Cli},
    complain::complain,
    config::Config,
    doctor, probe, run, self_test,
};

fn main() -> ExitCode {
    match Cli::parse().action {
        Action::Run(arguments) => run::run(&arguments),
        Action::Attach(options) => attach::attach(&options),
        Action::Config => print(Config::DEFAULTS),
        Action::LoadCheck => load_check(),
        Action::Doctor(arguments) => doctor::doctor(&arguments),
        Action::TlsSelfTest => self_test(),
    }
}

/// Nobody may be reading any more: that is no failure.
fn print(text: &str) -> ExitCode {
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

fn self_test() -> ExitCode {
    match self_test::call() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// Loads each program by itself. For tests on many kernels.
fn load_check() -> ExitCode {
    let results = match probe::check_all() {
        Ok(results) => results,
        Err(error) => {
            complain(&error);
            return ExitCode::FAILURE;
        }
    };
    let mut code = ExitCode::SUCCESS;
    for (name, result) in results {
        match result {
            Ok(text) => println!("{name}: ok, {text}"),
            Err(error) => {
                println!("{name}: FAILED: {error:#}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
