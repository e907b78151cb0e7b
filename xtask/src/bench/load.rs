//! The load generator, `tests/programs/load.c`: one long-lived process, so probes come and go around the same code.

use std::fmt::{self, Display};
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, ChildStdin, ChildStdout, Stdio};

use anyhow::{Context, Result, ensure};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::ground::{Ground, command};

/// A process that is killed and reaped when we let go of it.
pub(super) struct Owned(pub(super) Child);

impl Drop for Owned {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

pub(super) struct Load {
    child: Owned,
    orders: ChildStdin,
    answers: BufReader<ChildStdout>,
}

/// What `load` is told to do; bounded by `pairs`, by `ms`, or both.
#[derive(Clone, Copy, Default)]
pub(super) struct Order {
    pub(super) size: usize,
    pub(super) pairs: Option<u64>,
    pub(super) ms: Option<u64>,
    /// Pairs a second; `None` is as fast as it goes.
    pub(super) rate: Option<u64>,
    pub(super) one_way: bool,
    pub(super) text: bool,
    pub(super) hash: bool,
}

impl Display for Order {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "run size={}", self.size)?;
        for (name, value) in [("pairs", self.pairs), ("ms", self.ms), ("rate", self.rate)] {
            if let Some(value) = value {
                write!(f, " {name}={value}")?;
            }
        }
        for (name, set) in [
            ("oneway", self.one_way),
            ("text", self.text),
            ("hash", self.hash),
        ] {
            if set {
                write!(f, " {name}=1")?;
            }
        }
        Ok(())
    }
}

#[derive(Clone, Debug, Deserialize)]
pub(super) struct Answer {
    pub(super) pairs: u64,
    /// Plaintext written and read.
    pub(super) bytes: u64,
    pub(super) wall_ns: u64,
    /// Mean of a pair, blocks in which somebody else got the CPU left out, and the slowest and fastest tenth.
    pub(super) mean_ns: f64,
    /// CPU time of the thread for a pair, of all blocks.
    pub(super) cpu_ns: f64,
    pub(super) sha256: Option<String>,
}

impl Answer {
    pub(super) fn pairs_per_second(&self) -> f64 {
        self.pairs as f64 / self.seconds()
    }

    pub(super) fn mib_per_second(&self) -> f64 {
        self.bytes as f64 / self.seconds() / f64::from(1 << 20)
    }

    fn seconds(&self) -> f64 {
        self.wall_ns as f64 / 1e9
    }
}

#[derive(Deserialize)]
pub(super) struct Mapped {
    pub(super) probed: bool,
    pub(super) ns: u64,
}

impl Load {
    /// Client and server in one thread, nothing but memory between them.
    pub(super) fn memory(ground: &Ground, libraries: &Path) -> Result<Load> {
        Load::start(ground, libraries, &["memory"])
    }

    pub(super) fn client(ground: &Ground, libraries: &Path, server: &Server) -> Result<Load> {
        Load::start(ground, libraries, &["client", &server.port])
    }

    fn start(ground: &Ground, libraries: &Path, arguments: &[&str]) -> Result<Load> {
        let mut child = command(&ground.program, ground.load_cpu())
            .args(arguments)
            .env("LD_LIBRARY_PATH", libraries)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the load generator")?;
        let orders = child.stdin.take().context("stdin of the load")?;
        let answers = BufReader::new(child.stdout.take().context("stdout of the load")?);
        let mut load = Load {
            child: Owned(child),
            orders,
            answers,
        };
        let greeting = load.read_line()?;
        ensure!(
            greeting == "ready\n",
            "the load generator said {greeting:?} instead of being ready"
        );
        Ok(load)
    }

    pub(super) fn pid(&self) -> u32 {
        self.child.0.id()
    }

    pub(super) fn run(&mut self, order: Order) -> Result<Answer> {
        self.begin(order)?;
        self.finish()
    }

    pub(super) fn begin(&mut self, order: Order) -> Result<()> {
        writeln!(self.orders, "{order}").context("writing to the load generator")
    }

    pub(super) fn finish(&mut self) -> Result<Answer> {
        self.answer()
    }

    /// Maps `library` and waits until a breakpoint stands at every one of `offsets`.
    pub(super) fn map(&mut self, library: &Path, offsets: &[u64]) -> Result<Mapped> {
        let offsets: Vec<String> = offsets.iter().map(u64::to_string).collect();
        writeln!(
            self.orders,
            "map path={} at={}",
            library.display(),
            offsets.join(",")
        )?;
        self.answer()
    }

    fn answer<T: DeserializeOwned>(&mut self) -> Result<T> {
        let line = self.read_line()?;
        serde_json::from_str(&line).with_context(|| format!("the load generator answered {line:?}"))
    }

    fn read_line(&mut self) -> Result<String> {
        let mut line = String::new();
        self.answers.read_line(&mut line)?;
        ensure!(
            !line.is_empty(),
            "the load generator has ended; its reason is above"
        );
        Ok(line)
    }
}

/// The other end of a loopback connection; its copy of the library is not probed.
pub(super) struct Server {
    _child: Owned,
    pub(super) port: String,
}

impl Server {
    pub(super) fn echo(ground: &Ground, libraries: &Path) -> Result<Server> {
        Server::start(ground, libraries, "echo")
    }

    pub(super) fn sink(ground: &Ground, libraries: &Path) -> Result<Server> {
        Server::start(ground, libraries, "sink")
    }

    fn start(ground: &Ground, libraries: &Path, mode: &str) -> Result<Server> {
        let mut child = command(&ground.program, ground.server_cpu())
            .arg(mode)
            .env("LD_LIBRARY_PATH", libraries)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .context("starting the loopback server")?;
        let stdout = child.stdout.take().context("stdout of the server")?;
        let child = Owned(child);
        let mut port = String::new();
        BufReader::new(stdout).read_line(&mut port)?;
        let port = port.trim().to_owned();
        ensure!(!port.is_empty(), "the loopback server didn't start");
        Ok(Server {
            _child: child,
            port,
        })
    }
}
