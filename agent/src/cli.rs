//! What can be typed.

use std::{ffi::OsString, path::PathBuf};

use clap::{ArgAction, Args, Parser, Subcommand, ValueEnum, builder::PossibleValue};
use clap_complete::Shell;

use crate::{
    config::{Color, Config, ConfigError, DAEMON_SOCKET, Interval, Output, Settings, Size},
    record::Kind,
    redact::Policy,
};

/// Shows the plaintext of TLS traffic on this machine: no certificates, no proxy, no code changes
#[derive(Debug, Parser)]
#[command(name = "vortex-agent", version, disable_help_subcommand = true)]
pub struct Cli {
    #[command(subcommand)]
    pub action: Action,
}

#[derive(Debug, Subcommand)]
pub enum Action {
    Run(Box<Run>),
    Daemon(Daemon),
    Health(Health),
    Replay(Replay),
    Map(Map),
    Doctor(Doctor),
    Config(Print),
    /// Print what a shell completes the words of `vortex-agent` by
    Completions {
        shell: Shell,
    },
    /// Print the manual page, in roff
    Man,
    #[command(hide = true)]
    Attach(Attach),
    #[command(hide = true)]
    Metadata(Metadata),
    /// The process with a network. Started by the agent, of no use by itself
    #[cfg(any(feature = "otlp", feature = "prometheus"))]
    #[command(hide = true)]
    Deliver,
    /// Print the points that would be probed in FILE, one JSON object a line
    #[command(hide = true)]
    Locate {
        file: PathBuf,
    },
    /// Load every kernel program into this kernel and say which it takes
    #[command(hide = true)]
    LoadCheck,
    /// Make one TLS call, for `doctor` to look at
    #[command(hide = true)]
    TlsSelfTest,
}

/// Show TLS plaintext: of CMD and its children, or of the whole machine
///
/// Without CMD it watches the machine until it is interrupted. With CMD it starts it as the calling
/// user, watches it and its children only, and ends with its exit status.
///
/// Filters: the same one twice means "or", different ones mean "and". --pid, --comm, --uid, --cgroup and
/// --container with an id act in the kernel: what they turn away is never copied. --exe, --container with a name,
/// --pod, --namespace and --label act on what was copied.
#[derive(Debug, Args)]
#[command(after_help = RUN_AFTER, after_long_help = RUN_AFTER)]
pub struct Run {
    #[command(flatten)]
    pub settings: Settings,

    /// Never stop a process of CMD's tree while a library that it has just mapped is probed: its
    /// first request may be missed
    #[arg(long)]
    pub no_hold: bool,

    /// Read settings from FILE; flags win. `vortex-agent config` prints one
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,

    /// Say more on stderr; twice: everything
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,

    /// Command to run and watch
    #[arg(last = true, value_name = "CMD", conflicts_with = "pid")]
    pub command: Vec<OsString>,
}

const RUN_AFTER: &str = "\
Exit status:
  with CMD     CMD's own; 128+N if signal N killed it; 126 or 127 if it could not be run;
               125 if the agent failed before CMD was started
  without CMD  0 done, 1 failed
  both         2 misuse

Examples:
  vortex-agent run -- curl https://example.com
  vortex-agent run --content full --output json -- python3 app.py
  sudo vortex-agent run --uid alice --uid bob --comm node";

impl Run {
    /// Flags over file over defaults.
    pub fn config(&self) -> Result<Config, ConfigError> {
        let flags = Settings {
            hold: self.no_hold.then_some(false),
            ..self.settings.clone()
        };
        let file = self.config.as_deref().map(Settings::read).transpose()?;
        let config = Config::try_from(flags.or(file.unwrap_or_default()))?;
        if !self.command.is_empty() && !config.filter.pids.is_empty() {
            return Err(ConfigError::PidAndCommand);
        }
        Ok(config)
    }
}

/// Watch the machine as a service, until it is told to end
///
/// What is watched, shown and written is in FILE, as for `run --config`. On SIGHUP, and when FILE changes, it is read
/// again: filters but `pid`, kinds, limits and policies change while it runs, and what needs a restart is named. One
/// daemon watches a machine: a second one does not start.
#[derive(Debug, Args)]
#[command(after_help = DAEMON_AFTER, after_long_help = DAEMON_AFTER)]
pub struct Daemon {
    /// Read settings from FILE. `vortex-agent config` prints one
    #[arg(long, value_name = "FILE")]
    pub config: PathBuf,

    /// Say more on stderr; twice: everything
    #[arg(short, long, action = ArgAction::Count)]
    pub verbose: u8,
}

const DAEMON_AFTER: &str = "\
Exit status:
  0   told to end
  1   failed, or there is another daemon
  2   misuse
  69  the kernel can't do what is needed, or would do harm
  77  a capability is missing
  78  the configuration is refused";

/// Ask the daemon of this machine how it is
///
/// Prints its answer, one JSON object in a line.
#[derive(Debug, Args)]
#[command(after_help = HEALTH_AFTER, after_long_help = HEALTH_AFTER)]
pub struct Health {
    /// Only whether it moves, also if it is not ready yet
    #[arg(long)]
    pub live: bool,

    /// Where it answers
    #[arg(long, value_name = "PATH", default_value = DAEMON_SOCKET)]
    pub socket: PathBuf,
}

const HEALTH_AFTER: &str = "\
Exit status: 0 ready, or with --live alive; 1 not; 2 misuse";

/// Print the default settings as a commented file for --config
#[derive(Debug, Args)]
pub struct Print {
    /// Print a JSON schema of such files instead
    #[arg(long, conflicts_with = "check")]
    pub schema: bool,

    /// Read FILE instead, and say what is wrong with it
    #[arg(long, value_name = "FILE")]
    pub check: Option<PathBuf>,
}

/// Show once more what a run recorded with --record, on any machine and without root
///
/// The same settings give the same records. Without --content secrets are redacted, whatever the run showed.
#[derive(Debug, Args)]
#[command(after_help = REPLAY_AFTER, after_long_help = REPLAY_AFTER)]
pub struct Replay {
    /// What `vortex-agent run --record FILE` wrote
    pub file: PathBuf,

    /// Show processes whose executable's path matches: `*` and `?` as in a shell [default: as in the run]
    #[arg(long, value_name = "GLOB")]
    pub exe: Option<Vec<String>>,

    /// Kinds of records to write [default: all; `data` only of connections that nothing decodes]
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    pub emit: Option<Vec<Kind>>,

    /// What of the plaintext to write [default: redacted]
    #[arg(long)]
    pub content: Option<Policy>,

    /// How much of each body to write: 4096, 64KiB, 10MiB, unlimited; what is longer is cut, and its length said
    /// [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    pub body_limit: Option<Size>,

    /// What was usual before the run: a copy of the file that [findings] names, from then [default: nothing]
    #[arg(long, value_name = "FILE")]
    pub baseline: Option<PathBuf>,

    /// Form of the records [default: text]
    #[arg(long)]
    pub output: Option<Output>,

    /// Write records to FILE, created for its owner alone [default: stdout]
    #[arg(short, long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,

    /// Colours in text output [default: auto]
    #[arg(long, value_name = "WHEN")]
    pub color: Option<Color>,
}

const REPLAY_AFTER: &str = "\
Exit status: 0 done, also if the recording was cut; 1 failed; 2 misuse";

impl Replay {
    pub fn config(&self) -> Result<Config, ConfigError> {
        Config::try_from(Settings {
            exe: self.exe.clone(),
            emit: self.emit.clone(),
            content: self.content,
            body_limit: self.body_limit,
            output: self.output,
            output_file: self.output_file.clone(),
            color: self.color,
            ..Settings::default()
        })
    }
}

/// Draw which program talks to which peers, models and tools, how often, how much and since when
///
/// From records that were written as JSON; what is longer than the names of 10000 programs, or of 10000 peers, models or
/// tools of one, is counted and left out.
#[derive(Debug, Args)]
#[command(after_help = MAP_AFTER, after_long_help = MAP_AFTER)]
pub struct Map {
    /// Files of records, also rotated and compressed ones (`.gz`, `.zst`); `-` is stdin. Without any the daemon of
    /// this machine is asked
    #[arg(value_name = "FILE")]
    pub files: Vec<PathBuf>,

    /// Where the daemon answers
    #[arg(long, value_name = "PATH", default_value = DAEMON_SOCKET, conflicts_with = "files")]
    pub socket: PathBuf,

    /// Only what was in this time up to now: 90s, 15m, 24h, 7d. Of a daemon: whom it has heard of in this time, with
    /// all that it has counted of them
    #[arg(long, value_name = "DUR")]
    pub since: Option<Interval>,

    /// Form of the map: `dot` is for Graphviz
    #[arg(long, value_enum, default_value_t = Drawing::Text)]
    pub output: Drawing,
}

const MAP_AFTER: &str = "\
Exit status: 0 done; 1 a file could not be read, or no daemon answers; 2 misuse";

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Drawing {
    Text,
    Json,
    Dot,
}

/// Check kernel, privileges and libraries, and say for each failing line what to do
#[derive(Debug, Args)]
pub struct Doctor {
    /// Say of this process what is seen and why
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<u32>,

    /// One JSON object instead of text
    #[arg(long)]
    pub json: bool,
}

/// The privileged half. Started by the agent, of no use by itself
#[derive(Clone, Debug, PartialEq, Eq, Args)]
pub struct Attach {
    /// Abstract address of the agent, where stdin is not its socket
    #[arg(long, value_name = "NAME")]
    pub connect: Option<String>,

    #[arg(long, value_name = "BYTES", default_value_t = agent_ebpf::RING_BYTES)]
    pub ring_size: u32,

    /// Links by perf events also where the kernel has better ones, for tests
    #[arg(long)]
    pub no_multi: bool,

    /// Measure what a probe costs here
    #[arg(long)]
    pub gauge: bool,

    /// Ports whose connections are plaintext
    #[arg(long, value_name = "PORT", value_delimiter = ',')]
    pub plain: Vec<u16>,
}

impl Default for Attach {
    fn default() -> Self {
        Self {
            connect: None,
            ring_size: agent_ebpf::RING_BYTES,
            no_multi: false,
            gauge: false,
            plain: Vec::new(),
        }
    }
}

impl Attach {
    /// The arguments that parse to this.
    pub fn to_args(&self) -> Vec<OsString> {
        let mut args = vec![
            "attach".into(),
            format!("--ring-size={}", self.ring_size).into(),
        ];
        if let Some(name) = &self.connect {
            args.push(format!("--connect={name}").into());
        }
        if self.no_multi {
            args.push("--no-multi".into());
        }
        if self.gauge {
            args.push("--gauge".into());
        }
        if !self.plain.is_empty() {
            let ports: Vec<String> = self.plain.iter().map(u16::to_string).collect();
            args.push(format!("--plain={}", ports.join(",")).into());
        }
        args
    }
}

/// Who asks container runtimes. Started by the agent, of no use by itself
#[derive(Clone, Debug, Default, PartialEq, Eq, Args)]
pub struct Metadata {
    /// Socket of a runtime that speaks the Container Runtime Interface
    #[arg(long, value_name = "PATH")]
    pub cri: Vec<PathBuf>,

    /// Socket of a runtime that speaks Docker's API
    #[arg(long, value_name = "PATH")]
    pub docker: Vec<PathBuf>,
}

impl Metadata {
    /// The arguments that parse to this.
    pub fn to_args(&self) -> Vec<OsString> {
        let flag = |name: &str, path: &PathBuf| {
            let mut flag = OsString::from(format!("--{name}="));
            flag.push(path);
            flag
        };
        let cri = self.cri.iter().map(|path| flag("cri", path));
        let docker = self.docker.iter().map(|path| flag("docker", path));
        std::iter::once("metadata".into())
            .chain(cri)
            .chain(docker)
            .collect()
    }
}

/// `--emit` takes every kind of the contract, also those that nothing produces yet: a script that
/// asks for one must not break on an older agent.
impl ValueEnum for Kind {
    fn value_variants<'a>() -> &'a [Self] {
        &[
            Self::Data,
            Self::Http,
            Self::Websocket,
            Self::Sse,
            Self::Grpc,
            Self::Llm,
            Self::Mcp,
            Self::Finding,
            Self::Coverage,
            Self::Gap,
            Self::Stats,
        ]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        Some(PossibleValue::new(match self {
            Self::Data => "data",
            Self::Http => "http",
            Self::Websocket => "websocket",
            Self::Sse => "sse",
            Self::Grpc => "grpc",
            Self::Llm => "llm",
            Self::Mcp => "mcp",
            Self::Finding => "finding",
            Self::Coverage => "coverage",
            Self::Gap => "gap",
            Self::Stats => "stats",
        }))
    }
}

impl ValueEnum for Policy {
    fn value_variants<'a>() -> &'a [Self] {
        &[Self::None, Self::Redacted, Self::Full]
    }

    fn to_possible_value(&self) -> Option<PossibleValue> {
        let help = match self {
            Self::None => "Lengths and metadata only",
            Self::Redacted => {
                "Text, with credentials and other secrets replaced; what is no plain text is withheld"
            }
            Self::Full => "Everything as it was sent, passwords and keys included",
        };
        Some(PossibleValue::new(self.name()).help(help))
    }
}

#[cfg(test)]
mod tests {
    use clap::{CommandFactory as _, error::ErrorKind};

    use super::*;
    use crate::sink::{File, Type};

    fn parse(line: &str) -> Result<Action, clap::Error> {
        let words = std::iter::once("vortex-agent").chain(line.split_whitespace());
        Cli::try_parse_from(words).map(|cli| cli.action)
    }

    fn run(line: &str) -> Run {
        match parse(&format!("run {line}")).unwrap() {
            Action::Run(run) => *run,
            other => panic!("{other:?}"),
        }
    }

    /// What the one output of `config` writes to.
    fn written(config: &Config) -> Type {
        let [sink] = &config.sinks[..] else {
            panic!("{:?}", config.sinks)
        };
        sink.to.clone()
    }

    fn file(path: &str) -> Type {
        Type::File(File {
            path: path.into(),
            output: Output::Json,
            color: Color::Never,
            rotate: None,
        })
    }

    #[test]
    fn consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_flag_arrives() {
        let run = run(
            "--pid 1 --pid 2 --comm a --exe /usr/* --uid 0 --uid root --cgroup /x --container abcd \
             --container web --pod web-* --namespace shop --label a=b=c \
             --plain 8000,11434 --plain 8000 --emit data,gap --emit stats --content full --output json -o f --ring-size 262144 \
             --record r --stats-interval 500ms --no-hold --color never -vv",
        );
        let config = run.config().unwrap();
        assert_eq!(config.filter.pids, [1, 2]);
        assert_eq!(config.filter.uids, [0, 0]);
        assert_eq!(config.filter.comms, ["a"]);
        assert_eq!(config.filter.exes, ["/usr/*"]);
        // A name stands beside it: none of both is for the kernel.
        assert_eq!(config.filter.containers, [""; 0]);
        let names = &config.filter.names;
        assert_eq!(
            (&names.ids[..], &names.containers[..]),
            (&["abcd".into()][..], &["web".into()][..])
        );
        assert_eq!((&*names.pods[0], &*names.namespaces[0]), ("web-*", "shop"));
        assert_eq!(names.labels, [("a".into(), "b=c".into())]);
        assert_eq!(config.filter.cgroups, [PathBuf::from("/x")]);
        assert_eq!(config.plain, [8000, 11434]);
        assert_eq!(
            config.emit().into_iter().collect::<Vec<_>>(),
            [Kind::Data, Kind::Gap, Kind::Stats]
        );
        assert_eq!(config.content, Policy::Full);
        assert_eq!(written(&config), file("f"));
        assert_eq!(config.record, Some(PathBuf::from("r")));
        assert_eq!(config.ring_size, 262144);
        assert_eq!(config.stats_interval.as_millis(), 500);
        assert!(!config.hold);
        assert_eq!(run.verbose, 2);
    }

    #[test]
    fn a_replay_is_told_what_to_show() {
        let replay = |line: &str| match parse(&format!("replay {line}")).unwrap() {
            Action::Replay(replay) => replay,
            other => panic!("{other:?}"),
        };
        let default = replay("f").config().unwrap();
        assert_eq!(default, Config::try_from(Settings::default()).unwrap());
        let all = "f --exe /usr/* --emit data --emit gap,stats --content full --body-limit 5 \
                   --output json -o g --color never";
        let config = replay(all).config().unwrap();
        assert_eq!(config.filter.exes, ["/usr/*"]);
        assert_eq!(config.emit().len(), 3);
        assert_eq!((config.content, config.body_limit), (Policy::Full, 5));
        assert_eq!(written(&config), file("g"));
    }

    #[test]
    fn the_command_is_taken_as_it_is() {
        let run = run("--content none -- curl --output json -v -- x");
        assert_eq!(run.command, ["curl", "--output", "json", "-v", "--", "x"]);
        assert_eq!(run.verbose, 0);
    }

    #[test]
    fn misuse_is_2() {
        for line in [
            "",
            "run curl",
            "run --emit date",
            "run --emit data,",
            "run --content some",
            "run --pid 0",
            "run --pid 1 -- true",
            "run --stats-interval 10",
            "run --ring-size 8M",
            "run --plain 0",
            "run --plain 65536",
            "run --plain 80,",
            "run --nonsense",
            "doctor --pid x",
            "daemon",
            "daemon --config f -- true",
            "health f",
            "config --schema --check f",
            "completions csh",
            "replay",
            "replay f --pid 1",
            "replay f --record g",
            "nonsense",
        ] {
            let error = parse(line).expect_err(line);
            assert_eq!(error.exit_code(), 2, "{line:?}: {error}");
        }
    }

    #[test]
    fn an_unknown_kind_is_told_the_known_ones() {
        let error = parse("run --emit date").unwrap_err().to_string();
        for kind in Kind::value_variants() {
            let name = kind.to_possible_value().unwrap();
            assert!(error.contains(name.get_name()), "{error}");
        }
        for kind in Kind::value_variants() {
            let name = kind.to_possible_value().unwrap();
            run(&format!("--emit {}", name.get_name()));
        }
    }

    #[test]
    fn help_and_version_are_0() {
        for (line, kind) in [
            ("--version", ErrorKind::DisplayVersion),
            ("--help", ErrorKind::DisplayHelp),
            ("run --help", ErrorKind::DisplayHelp),
            ("daemon --help", ErrorKind::DisplayHelp),
            ("health --help", ErrorKind::DisplayHelp),
        ] {
            let answer = parse(line).unwrap_err();
            assert_eq!((answer.kind(), answer.exit_code()), (kind, 0));
        }
        let help = parse("--help").unwrap_err().to_string();
        for hidden in [
            "attach",
            "deliver",
            "metadata",
            "load-check",
            "tls-self-test",
        ] {
            assert!(!help.contains(hidden), "{help}");
        }
    }

    #[test]
    fn hidden_actions() {
        assert!(matches!(parse("load-check"), Ok(Action::LoadCheck)));
        assert!(matches!(parse("tls-self-test"), Ok(Action::TlsSelfTest)));
        assert!(matches!(parse("config"), Ok(Action::Config(_))));
        let Ok(Action::Doctor(doctor)) = parse("doctor --pid 7 --json") else {
            panic!("doctor")
        };
        assert_eq!((doctor.pid, doctor.json), (Some(7), true));
    }

    #[test]
    fn what_asks_runtimes_is_told_their_sockets() {
        let sent = Metadata {
            cri: vec!["/run/a.sock".into()],
            docker: vec!["/run/b.sock".into(), "/run/c.sock".into()],
        };
        for metadata in [sent, Metadata::default()] {
            let words = std::iter::once("vortex-agent".into()).chain(metadata.to_args());
            match Cli::try_parse_from(words).unwrap().action {
                Action::Metadata(read) => assert_eq!(read, metadata),
                other => panic!("{other:?}"),
            }
        }
    }

    #[test]
    fn a_daemon_and_who_asks_it_meet() {
        let Ok(Action::Daemon(daemon)) = parse("daemon --config f -v") else {
            panic!("daemon")
        };
        assert_eq!((daemon.config, daemon.verbose), ("f".into(), 1));
        let Ok(Action::Health(health)) = parse("health --live") else {
            panic!("health")
        };
        assert!(health.live);
        let config = Config::try_from(Settings::default()).unwrap();
        assert_eq!(health.socket, config.daemon.socket);
    }

    #[test]
    fn what_is_sent_to_the_half_is_what_it_reads() {
        let sent = Attach {
            connect: Some("vortex-0".into()),
            ring_size: 262144,
            no_multi: true,
            gauge: true,
            plain: vec![1, 65535],
        };
        for attach in [sent, Attach::default()] {
            let words = std::iter::once("vortex-agent".into()).chain(attach.to_args());
            match Cli::try_parse_from(words).unwrap().action {
                Action::Attach(read) => assert_eq!(read, attach),
                other => panic!("{other:?}"),
            }
        }
    }
}
