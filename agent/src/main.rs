//! `vortex-agent`: parses what was typed and calls what was meant.

use std::{
    fs::File,
    io::{self, Write as _},
    os::fd::AsFd as _,
    panic,
    path::Path,
    process::ExitCode,
};

use clap::{CommandFactory as _, Parser as _};
use clap_mangen::Man;
use vortex_agent::{
    attach,
    cli::{Action, Cli, Print},
    complain::{self, complain},
    config::{Config, Settings},
    daemon, doctor, locate, map, metadata,
    probe::{self, Loaded, Walked},
    replay, run, self_test,
};

fn main() -> ExitCode {
    panic::set_hook(Box::new(complain::panicked));
    match Cli::parse().action {
        Action::Run(arguments) => {
            log(arguments.verbose);
            run::run(&arguments)
        }
        Action::Daemon(arguments) => {
            log(arguments.verbose);
            daemon::daemon(&arguments)
        }
        Action::Health(arguments) => daemon::health(&arguments),
        Action::Map(arguments) => map::map(&arguments),
        Action::Replay(arguments) => replay::replay(&arguments),
        Action::Attach(options) => attach::attach(&options),
        #[cfg(any(feature = "otlp", feature = "prometheus"))]
        Action::Deliver => vortex_agent::deliver::deliver(),
        Action::Metadata(options) => metadata::process::metadata(&options),
        Action::Config(Print {
            check: Some(file), ..
        }) => check(&file),
        Action::Config(Print { schema: true, .. }) => print(Config::SCHEMA),
        Action::Config(_) => print(Config::DEFAULTS),
        Action::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "vortex-agent", &mut script);
            print(&String::from_utf8_lossy(&script))
        }
        Action::Man => man(),
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
        .with_writer(complain::Lines)
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

/// Is it a file that a daemon would take?
fn check(file: &Path) -> ExitCode {
    match Settings::read(file).and_then(Config::try_from) {
        Ok(_) => ExitCode::SUCCESS,
        Err(error) => {
            complain(&error);
            ExitCode::from(run::MISUSE)
        }
    }
}

fn man() -> ExitCode {
    match page() {
        Ok(page) => print(&String::from_utf8_lossy(&page)),
        Err(error) => {
            complain(&error);
            ExitCode::FAILURE
        }
    }
}

/// One page with every command: nobody looks for a second one.
fn page() -> io::Result<Vec<u8>> {
    let mut command = Cli::command();
    command.build();
    let mut page = Vec::new();
    let whole = Man::new(command.clone());
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    let commands = command.get_subcommands().filter(|one| !one.is_hide_set());
    for one in commands {
        let name = one.get_name().to_uppercase();
        writeln!(page, ".SH VORTEX-AGENT {name}")?;
        let one = Man::new(one.clone());
        one.render_synopsis_section(&mut page)?;
        one.render_description_section(&mut page)?;
        one.render_options_section(&mut page)?;
        one.render_extra_section(&mut page)?;
    }
    Ok(page)
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
