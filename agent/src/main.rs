//! `vortex-agent`: parses what was typed and calls what was meant.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsFd as _,
    panic,
    path::Path,
    process::ExitCode,
};

use clap::Parser as _;
use vortex_agent::{
    attach,
    cli::{Action, Cli},
    complain::{self, complain},
    config::Config,
    doctor, locate,
    probe::{self, Loaded, Walked},
    run, self_test,
};

fn main() -> ExitCode {
    panic::set_hook(Box::new(complain::panicked));
    match Cli::parse().action {
        Action::Run(arguments) => {
            log(arguments.verbose);
            run::run(&arguments)
        }
        Action::Attach(options) => attach::attach(&options),
        Action::Config => print(Config::DEFAULTS),
        Action::Locate { file } => locate(&file),
        Action::LoadCheck => load_check(),
        Action::Doctor(arguments) => doctor::doctor(&arguments),
        Action::TlsSelfTest => self_test(),
    }
}

/// What the agent does, on stderr: warnings, with -v what it attaches, with -vv everything.
fn log(verbose: u8) {
    let level = match verbose {
        0 => tracing::Level::WARN,
        1 => tracing::Level::DEBUG,
        _ => tracing::Level::TRACE,
    };
    tracing_subscriber::fmt()
        .with_max_level(level)
        .with_writer(|| complain::Line)
        .with_ansi(false)
        .with_target(false)
        .without_time()
        .init();
}

/// Nobody may be reading any more: that is no failure.
fn print(text: &str) -> ExitCode {
    let _ = io::stdout().write_all(text.as_bytes());
    ExitCode::SUCCESS
}

/// For tests and benchmarks.
fn locate(path: &Path) -> ExitCode {
    let found = File::open(path)
        .map_err(anyhow::Error::from)
        .and_then(|file| Ok(locate::locate(&locate::Pread(file.as_fd()))?));
    match found {
        Ok(found) => {
            for point in found.points {
                let line = serde_json::json!({
                    "library": point.library,
                    "function": point.function,
                    "offset": point.offset,
                    "function_offset": point.function_offset,
                    "direction": format!("{:?}", point.direction),
                    "shape": format!("{:?}", point.shape),
                    "instruction": format!("{:?}", point.instruction),
                });
                print(&format!("{line}\n"));
            }
            ExitCode::SUCCESS
        }
        Err(error) => {
            complain(format!("{}: {error}", path.display()));
            ExitCode::FAILURE
        }
    }
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
            Loaded::Yes(Walked {
                instructions,
                stack,
            }) => {
                println!("{name}: ok, {instructions} instructions, {stack} bytes of stack");
            }
            Loaded::NotHere(why) => println!("{name}: not for this kernel: {why}"),
            Loaded::No(error) => {
                println!("{name}: FAILED: {error}");
                code = ExitCode::FAILURE;
            }
        }
    }
    code
}
