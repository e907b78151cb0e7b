//! The project's chores, each one command, the same on a laptop and in CI.

mod apt;
mod bench;
mod bless;
mod console;
mod cpio;
mod deb;
mod demo;
mod deploy;
mod drill;
mod fetch;
mod fuzz;
mod image;
mod kernel;
mod panics;
mod plan;
mod planted;
mod reach;
mod release;
mod root;
mod roster;
mod sbom;
mod setup;
mod sh;
mod systemd;
mod tally;
mod tar;
mod test;
mod vm;

use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "\
usage: cargo xtask COMMAND

  setup                 install what building and testing need
  fetch [--update]      download private copies of programs and other OpenSSL versions, for the tests
  test [FILTER]         all of it: setup, fetch, format, lints, unit tests, end to end, reach, VMs
  ci                    the same, without a filter
  vm [--kernel V,...] [--jobs N] [--update] [-- FILTER]
                        the end-to-end tests that run on other kernels, in QEMU (tests/kernels.txt);
                        V is 5.10, or 7.2+preempt=full with words for its command line
  vm --drill            does it report a panic, a hang, a failing test? Boots machines with each
  vm --planted          do the tests of preemption fail with wrong builds? Ten minutes
  vm --systemd          the package's life and the service on a Debian whose first process is systemd
  fuzz [--only T,...] [--seconds N]
                        run each fuzz target for N seconds, 20 if not said
  fuzz --planted        does each find the mistake that is made for it, within a minute?
  fuzz --coverage       how many lines of its module does each reach, with its seeds and what it has found?
  reach                 is every TLS library found, in packages of many releases, and nothing elsewhere?
                        Leaves 3.3 GB below target/fixtures/reach
  bless [--kernel V,...]
                        renew tests/golden by what these kernels show; V may be host
  bench redact          how fast secrets are looked for
  bench models          how fast calls to language models are read
  bench decode          how fast protocols are decoded; with --memory: what is kept
  bench soak            does anything of a daemon grow, while 100,000 processes, libraries and connections come and go?
  bench capture …       what the agent costs: `cargo xtask bench --help`
  manifests             is deploy/kubernetes valid and consistent, and the same by kustomize and Helm?
  package               the agent as a Debian package, below target/package: one static program for any distribution;
                        with --check: is it what it has to be, twice the same, and gone without a trace? Asks for root
  image                 the same as a container image (OCI), with nothing else in it; no network, no runtime needed
  demo                  show the agent at work on curl, Python and Node

`cargo xtask COMMAND --help` prints this, too.
";

fn main() -> ExitCode {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    match run(&args) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(args: &[&str]) -> Result<()> {
    match args {
        ["setup"] => setup::everything(),
        ["fetch"] => fetch::fixtures(false).map(drop),
        ["fetch", "--update"] => fetch::fixtures(true).map(drop),
        ["ci"] | ["test"] => test::run(None),
        ["test", filter] if !filter.starts_with('-') => test::run(Some(filter)),
        ["vm", rest @ ..] if !rest.contains(&"--help") => vm::command(rest),
        ["fuzz", rest @ ..] if !rest.contains(&"--help") => fuzz::command(rest),
        ["bless", rest @ ..] if !rest.contains(&"--help") => bless::command(rest),
        ["reach"] => reach::command(),
        ["bench", rest @ ..] => bench::main(rest),
        ["manifests"] => deploy::command(),
        ["package"] => deb::command(),
        ["package", "--check"] => deb::check(&release::build()?),
        ["image"] => image::command(),
        ["demo"] => demo::run(),
        ["help" | "--help" | "-h"] | [_, "--help" | "-h"] => {
            print!("{USAGE}");
            Ok(())
        }
        [] => bail!("no command\n{USAGE}"),
        _ => bail!("not understood: {}\n{USAGE}", args.join(" ")),
    }
}
