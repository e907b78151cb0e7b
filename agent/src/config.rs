//! What was meant: flags and file become one `Config`, validated once.
//!
//! [`Settings`] is what somebody wrote, each of its fields optional. Flags win over the file, the file
//! over the defaults. After `Config::try_from` nobody asks again whether a value makes sense.

use std::{
    collections::BTreeSet,
    fs,
    net::IpAddr,
    path::{Component, Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, de};

use agent_ebpf::{CHOICES, Direction, Shape};

use crate::{
    detect::{self, Rule, Severity},
    input::Show,
    llm::price::{Price, Prices},
    locate::{Named, Signature, Which},
    metadata::{Names, Sockets},
    policy::{self, Capture},
    record::{Kind, authority},
    redact::Policy,
    shed::Limits,
    sink::{self, Selection, Type},
    user::User,
};

/// What was meant. Every value is valid.
#[derive(Clone, Debug, PartialEq)]
pub struct Config {
    pub filter: Filter,
    /// Where records go. At least one.
    pub sinks: Vec<sink::Settings>,
    pub content: Policy,
    /// Containers of which less is told than that; `None`: of all the same.
    pub policy: Option<policy::Policy>,
    pub prices: Prices,
    pub findings: detect::Settings,
    /// Where is kept what they have learned. Absolute.
    pub baseline: Option<PathBuf>,
    /// So much of each body is written, in bytes.
    pub body_limit: usize,
    /// Where everything that comes in is kept for a replay; with [`Policy::Full`] only.
    pub record: Option<PathBuf>,
    /// A power of two.
    pub ring_size: u32,
    pub stats_interval: Duration,
    /// May a process of CMD's tree be stopped while a library it has just mapped is probed?
    pub hold: bool,
    /// Where what was found in files is kept for later runs.
    pub cache_directory: Option<PathBuf>,
    pub signatures: Vec<Signature>,
    /// The sockets of container runtimes; `None`: those that are found.
    pub runtimes: Option<Sockets>,
    /// What the pipeline's process may use.
    pub limits: Limits,
    /// CPU time in each second that probes may cost those who are traced.
    pub traced_cpu: Option<Duration>,
    pub daemon: Daemon,
    /// Ports of connections that are shown without TLS, too: in order, each once.
    pub plain: Vec<u16>,
}

/// What concerns `vortex-agent daemon` alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Daemon {
    /// Whom the pipeline becomes; `None`: [`DAEMON_USER`] if there is such a user, else nobody.
    pub user: Option<String>,
    /// Where it answers `vortex-agent health`. Absolute.
    pub socket: PathBuf,
}

/// Which processes are watched. An empty list filters nothing; a process passes if it is on each of
/// the others.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Filter {
    pub pids: Vec<u32>,
    /// At most [`COMM_MAX`] bytes each: the kernel keeps no more.
    pub comms: Vec<String>,
    pub exes: Vec<String>,
    pub uids: Vec<u32>,
    /// Absolute, without `..`: as `/proc/PID/cgroup` has them, or directories.
    pub cgroups: Vec<PathBuf>,
    /// Beginnings of ids, at least [`CONTAINER_MIN`] bytes each, if the kernel is to filter by them.
    pub containers: Vec<String>,
    /// What only a container's runtime knows.
    pub names: Names,
}

/// For whom the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// If the output is a terminal
    #[default]
    Auto,
    Always,
    Never,
}

impl Config {
    /// The defaults as a file for `--config`, with what each key means.
    pub const DEFAULTS: &'static str = include_str!("config.toml");
    /// What may stand in such a file, as a JSON schema: for editors, and for who checks files elsewhere.
    pub const SCHEMA: &'static str = include_str!("config.schema.json");

    /// What of it holds for a run that goes on; the rest of `new` needs a new one. Also the names of that rest, as
    /// far as it would be another. `asks`: container runtimes are asked what containers are called.
    pub fn change(&self, new: Config, asks: bool) -> (Config, Vec<&'static str>) {
        let mut kept = Vec::new();
        let mut config = new;
        macro_rules! keep {
            ($name:literal, $($field:ident).+) => {
                if config.$($field).+ != self.$($field).+ {
                    kept.push($name);
                    config.$($field).+.clone_from(&self.$($field).+);
                }
            };
        }
        keep!("pid", filter.pids);
        // Nobody could tell them. With them go ids, which may stand in their place.
        let names = &config.filter.names;
        if *names != self.filter.names && !names.is_empty() && !asks {
            kept.push("container, pod, namespace or label");
            config.filter.containers.clone_from(&self.filter.containers);
            config.filter.names.clone_from(&self.filter.names);
        }
        keep!("metadata", runtimes);
        keep!("price", prices);
        keep!("findings.baseline", baseline);
        keep!("record", record);
        keep!("ring-size", ring_size);
        keep!("hold", hold);
        keep!("plain", plain);
        keep!("cache-directory", cache_directory);
        keep!("daemon", daemon);
        // Less can be shown at once, more can't: of what is under way the beginning was not looked into, and it may
        // name a secret. And what is known of processes already was cleared of secrets, or it was not.
        let is_less = self.content == Policy::Redacted && config.content == Policy::None;
        if config.content != self.content && !is_less {
            kept.push("content");
            config.content = self.content;
        }
        // What a probe costs is measured at the start, where there is a limit.
        if config.traced_cpu.is_some() && self.traced_cpu.is_none() {
            kept.push("limits.traced-cpu");
            config.traced_cpu = None;
        }
        // A recording keeps what a policy withholds. And where all is shown, what is known of processes already was not
        // cleared of secrets, which it is where they differ.
        let differs = config.policy.is_some() != self.policy.is_some();
        if config.record.is_some() || config.content == Policy::Full && differs {
            keep!("policy", policy);
        }
        // An output takes other kinds, and no more than that.
        let places = |config: &Config| -> Vec<_> {
            let sinks = config.sinks.iter();
            sinks
                .map(|sink| (sink.name.clone(), sink.to.clone()))
                .collect()
        };
        if places(&config) != places(self) {
            kept.push("sink");
            config.sinks.clone_from(&self.sinks);
        }
        // What was not decoded from its beginning can't be later.
        if config.show().decodes() && !self.show().decodes() {
            kept.push("emit");
            config.sinks.clone_from(&self.sinks);
        }
        (config, kept)
    }

    /// What of it the line is told.
    pub fn show(&self) -> Show {
        Show {
            emit: self.emit(),
            undecoded: self.is_undecoded_told(),
            live: self.is_live(),
            body_limit: self.body_limit as u64,
            content: self.content,
        }
    }

    /// What any output wants.
    pub fn emit(&self) -> BTreeSet<Kind> {
        let kinds = self.sinks.iter().flat_map(|sink| &sink.selection.kinds);
        kinds.copied().collect()
    }

    /// Does any output want the `data` of connections that nothing decodes?
    pub fn is_undecoded_told(&self) -> bool {
        self.sinks.iter().any(|sink| sink.selection.undecoded)
    }

    /// Is any output told of exchanges or calls while they go on?
    pub fn is_live(&self) -> bool {
        let mut reads = self.sinks.iter().map(sink::Settings::reads);
        reads.any(|reads| reads.exchanges || reads.calls)
    }
}

/// The kernel's TASK_COMM_LEN without the final NUL.
pub const COMM_MAX: usize = 15;
/// A shorter beginning would be shared by too many.
pub const CONTAINER_MIN: usize = 4;

/// Made by the packages.
pub const DAEMON_USER: &str = "vortex-agent";
pub const DAEMON_SOCKET: &str = "/run/vortex-agent/agent.sock";

/// Some of the largest records must fit.
const RING_MIN: u64 = 256 << 10;
const RING_MAX: u64 = 1 << 30;
const BODY_LIMIT: usize = 1 << 20;
const STATS_INTERVAL: Duration = Duration::from_secs(10);
/// Besides the ring, which is mapped twice: what the pipeline needs when nothing comes, and as much again to work with.
const MEMORY_MIN: u64 = 64 << 20;
/// In CPUs.
const CPU_MIN: f64 = 0.01;
const CPU_MAX: f64 = 1024.0;
/// More are hardly those of local models.
const PLAIN_MAX: usize = agent_ebpf::PLAIN_PORTS_MAX;
/// Half of what the half takes for one file.
const FUNCTIONS_MAX: usize = 32;

impl TryFrom<Settings> for Config {
    type Error = ConfigError;

    fn try_from(settings: Settings) -> Result<Self, ConfigError> {
        if settings.record.is_some() && settings.content != Some(Policy::Full) {
            return Err(ConfigError::Record);
        }
        if settings.record.is_some() && settings.policy.is_some() {
            return Err(ConfigError::RecordAndPolicy);
        }
        let sinks = settings.sinks()?;
        let (ids, named) = containers(settings.container)?;
        let names = pods(settings.pod, settings.namespace, settings.label)?;
        // A name beside them is another way to pass, of which the kernel knows nothing.
        let (containers, names) = match named.is_empty() {
            true => (ids, names),
            false => {
                let containers = named;
                (
                    Vec::new(),
                    Names {
                        containers,
                        ids,
                        ..names
                    },
                )
            }
        };
        let ring_size = settings
            .ring_size
            .map_or(Ok(agent_ebpf::RING_BYTES), |size| ring_size(size.0))?;
        Ok(Self {
            filter: Filter {
                pids: settings.pid.unwrap_or_default(),
                comms: chosen("--comm", each(settings.comm, comm)?)?,
                exes: each(settings.exe, |glob| path("--exe", glob))?,
                uids: chosen("--uid", each(settings.uid, uid)?)?,
                cgroups: each(settings.cgroup, cgroup)?,
                containers,
                names,
            },
            sinks,
            content: settings.content.unwrap_or(Policy::Redacted),
            policy: settings.policy.map(capture_policy).transpose()?,
            prices: Prices(each(settings.price, price)?),
            baseline: settings
                .findings
                .as_ref()
                .and_then(|findings| findings.baseline.clone())
                .map(baseline)
                .transpose()?,
            findings: findings(settings.findings.unwrap_or_default())?,
            body_limit: settings.body_limit.map_or(BODY_LIMIT, Size::in_memory),
            record: settings.record,
            ring_size,
            stats_interval: settings
                .stats_interval
                .map_or(STATS_INTERVAL, |interval| interval.0),
            hold: settings.hold.unwrap_or(true),
            cache_directory: settings.cache_directory,
            signatures: each(settings.signature, signature)?,
            runtimes: settings.metadata.map(sockets).transpose()?,
            limits: limits(settings.limits.unwrap_or_default(), ring_size)?,
            traced_cpu: settings.limits.and_then(|it| it.traced_cpu).map(|it| it.0),
            daemon: daemon(settings.daemon.unwrap_or_default())?,
            plain: plain(settings.plain.unwrap_or_default())?,
        })
    }
}

fn each<T, U>(
    list: Option<Vec<T>>,
    check: impl FnMut(T) -> Result<U, ConfigError>,
) -> Result<Vec<U>, ConfigError> {
    list.unwrap_or_default().into_iter().map(check).collect()
}

/// As many as the kernel side has places for.
fn chosen<T>(option: &'static str, list: Vec<T>) -> Result<Vec<T>, ConfigError> {
    match list.len() {
        count if count > CHOICES as usize => Err(ConfigError::Choices(option, count)),
        _ => Ok(list),
    }
}

fn pods(
    pod: Option<Vec<String>>,
    namespace: Option<Vec<String>>,
    labels: Option<Vec<String>>,
) -> Result<Names, ConfigError> {
    Ok(Names {
        pods: each(pod, |name| pattern("--pod", name))?,
        namespaces: each(namespace, |name| pattern("--namespace", name))?,
        labels: each(labels, label)?,
        ..Names::default()
    })
}

fn capture_policy(written: WrittenPolicy) -> Result<policy::Policy, ConfigError> {
    let rules = written.rule.into_iter().enumerate();
    let rules = rules.map(|(at, rule)| {
        let (ids, containers) = containers(rule.container)?;
        let names = Names {
            ids,
            containers,
            ..pods(rule.pod, rule.namespace, rule.label)?
        };
        if names.is_empty() {
            return Err(ConfigError::Rule(at + 1));
        }
        let capture = rule.capture;
        Ok(policy::Rule { names, capture })
    });
    let programs = written.program.into_iter().enumerate();
    let programs = programs.map(|(at, program)| {
        let exes = each(program.exe, |glob| path("--exe", glob))?;
        let comms = each(program.comm, comm)?;
        if exes.is_empty() && comms.is_empty() {
            return Err(ConfigError::Program(at + 1));
        }
        let capture = program.capture;
        Ok(policy::Program {
            exes,
            comms,
            capture,
        })
    });
    Ok(policy::Policy {
        rules: rules.collect::<Result<_, _>>()?,
        programs: programs.collect::<Result<_, _>>()?,
        default: written.default,
        host: written.host,
        trusts_annotation: written.trust_annotation,
    })
}

fn comm(name: String) -> Result<String, ConfigError> {
    if name.is_empty() {
        return Err(ConfigError::Empty("--comm"));
    }
    if name.len() > COMM_MAX {
        let kept = &name[..name.floor_char_boundary(COMM_MAX)];
        return Err(ConfigError::LongComm {
            kept: kept.to_owned(),
            name,
        });
    }
    Ok(name)
}

fn pattern(flag: &'static str, pattern: String) -> Result<String, ConfigError> {
    if pattern.is_empty() {
        return Err(ConfigError::Empty(flag));
    }
    Ok(pattern)
}

/// Of paths: they begin at the root.
fn path(flag: &'static str, glob: String) -> Result<String, ConfigError> {
    let glob = pattern(flag, glob)?;
    match fits_paths(&glob) {
        true => Ok(glob),
        false => Err(ConfigError::NoPath(flag, glob)),
    }
}

fn fits_paths(glob: &str) -> bool {
    glob.starts_with(['/', '*', '?'])
}

fn label(text: String) -> Result<(String, String), ConfigError> {
    match text.split_once('=') {
        Some((key, value)) if !key.is_empty() => Ok((key.to_owned(), value.to_owned())),
        _ => Err(ConfigError::Label(text)),
    }
}

fn sockets(written: WrittenMetadata) -> Result<Sockets, ConfigError> {
    let WrittenMetadata { cri, docker } = written;
    match cri.iter().chain(&docker).find(|path| !path.is_absolute()) {
        Some(path) => Err(ConfigError::Socket(path.clone())),
        None => Ok(Sockets { cri, docker }),
    }
}

fn uid(owner: Owner) -> Result<u32, ConfigError> {
    let name = match owner {
        Owner::Uid(uid) => return Ok(uid),
        Owner::Name(name) => name,
    };
    match User::named(&name) {
        Ok(Some(user)) => Ok(user.uid),
        Ok(None) => Err(ConfigError::NoUser(name)),
        Err(error) => Err(ConfigError::User { name, error }),
    }
}

fn cgroup(path: PathBuf) -> Result<PathBuf, ConfigError> {
    let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) {
        return Err(ConfigError::Cgroup(path));
    }
    Ok(path)
}

/// Ids as runtimes print them, shortened or not, and names.
fn containers(written: Option<Vec<String>>) -> Result<(Vec<String>, Vec<String>), ConfigError> {
    // Fargate's ids have a number behind a hyphen.
    let is_part = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    let is_id = |text: &String| text.len() >= CONTAINER_MIN && text.bytes().all(is_part);
    let written = each(written, |name| pattern("--container", name))?;
    Ok(written.into_iter().partition(is_id))
}

fn limits(written: WrittenLimits, ring_size: u32) -> Result<Limits, ConfigError> {
    let least = MEMORY_MIN + 2 * u64::from(ring_size);
    let memory = written.memory.map(|size| size.0);
    match memory {
        Some(memory) if memory < least => Err(ConfigError::Memory {
            least: least.div_ceil(1 << 20),
            ring: ring_size >> 10,
        }),
        memory => Ok(Limits {
            memory,
            cpu: written.cpu.map(|cpu| cpu.0),
        }),
    }
}

fn daemon(written: WrittenDaemon) -> Result<Daemon, ConfigError> {
    let socket = written.socket.unwrap_or_else(|| DAEMON_SOCKET.into());
    // It is found by other processes, whose directory is another one.
    if !socket.is_absolute() {
        return Err(ConfigError::DaemonSocket(socket));
    }
    Ok(Daemon {
        user: written.user,
        socket,
    })
}

fn baseline(path: PathBuf) -> Result<PathBuf, ConfigError> {
    match path.is_absolute() {
        true => Ok(path),
        false => Err(ConfigError::Baseline(path)),
    }
}

fn findings(written: WrittenFindings) -> Result<detect::Settings, ConfigError> {
    let WrittenFindings {
        baseline: _,
        learning,
        window,
        trusted,
        severity,
    } = written;
    if let Some(host) = trusted.iter().find(|host| !is_host(host)) {
        return Err(ConfigError::Trusted {
            written: host.clone(),
            host: host_in(host),
        });
    }
    let mut settings = detect::Settings {
        trusted,
        ..detect::Settings::default()
    };
    let nanoseconds = |time: Duration| u64::try_from(time.as_nanos()).unwrap_or(u64::MAX);
    if let Some(Learning(learning)) = learning {
        settings.learning = nanoseconds(learning);
    }
    if let Some(Interval(window)) = window {
        settings.window = nanoseconds(window);
    }
    let severities = settings.severities.iter_mut();
    for (rule, of) in Rule::value_variants().iter().zip(severities) {
        *of = severity.of(*rule).unwrap_or(*of);
    }
    Ok(settings)
}

/// As requests have it, in lower case. A port is none of it: hosts are compared without.
fn is_host(host: &str) -> bool {
    let is_part =
        |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit() || b".-_".contains(&byte);
    let is_name = host.bytes().all(is_part) && !host.starts_with('.') && !host.is_empty();
    // In their own way of writing, which is in lower case.
    let is_address = || {
        let address = host.parse::<IpAddr>();
        address.is_ok_and(|address| address.to_canonical().to_string() == host)
    };
    is_name || is_address()
}

/// What to write in place of what is no host.
fn host_in(text: &str) -> String {
    let address = text.parse::<IpAddr>().ok();
    let host = match (address, authority(text)) {
        (Some(address), _) => address.to_canonical().to_string(),
        (None, Some((host, _))) => host.trim_start_matches(['*', '.']).to_ascii_lowercase(),
        (None, None) => String::new(),
    };
    match is_host(&host) {
        true => host,
        false => "vault.example.com".to_owned(),
    }
}

/// Text that lives as long as the process, as a configuration does.
fn kept(text: String) -> &'static str {
    text.leak()
}

fn price(written: WrittenPrice) -> Result<Price, ConfigError> {
    let WrittenPrice {
        provider,
        model,
        currency,
        input,
        cache_read,
        cache_creation,
        output,
    } = written;
    let wrong = |what| Err(ConfigError::Price(model.clone(), what));
    let all = [Some(input), cache_read, cache_creation, output];
    if all
        .iter()
        .flatten()
        .any(|price| !(0.0..1e9).contains(price))
    {
        return wrong("a price is a number from 0 to a thousand million, for a million tokens");
    }
    let is_letter = |byte: u8| byte.is_ascii_uppercase();
    if currency.len() != 3 || !currency.bytes().all(is_letter) {
        return wrong("`currency` is three capital letters: \"USD\", \"EUR\"");
    }
    Ok(Price {
        provider,
        currency: kept(currency),
        input,
        cache_read: cache_read.unwrap_or(input),
        cache_creation: cache_creation.unwrap_or(input),
        output: output.unwrap_or(0.0),
        model,
    })
}

fn signature(written: WrittenSignature) -> Result<Signature, ConfigError> {
    let WrittenSignature {
        library,
        path,
        build_id,
        read,
        write,
    } = written;
    let wrong = |why| ConfigError::Signature(library.clone(), why);
    if !is_name(&library) {
        return Err(wrong(
            "`library` is letters, digits and some signs, 64 at most",
        ));
    }
    let file = match (path, build_id) {
        (Some(path), None) if fits_paths(&path) => Which::Path(path),
        (Some(path), None) if !path.is_empty() => {
            return Err(wrong("`path` begins with `/`, or with `*`"));
        }
        (None, Some(id)) => Which::BuildId(hex(&id).ok_or_else(|| {
            wrong("`build-id` is what `readelf -n` shows: 4 bytes or more in hexadecimal")
        })?),
        _ => return Err(wrong("it needs either `path` or `build-id`")),
    };
    if read.is_empty() || write.is_empty() {
        return Err(wrong(
            "it needs a function of each direction: `read` and `write`",
        ));
    }
    if read.len() + write.len() > FUNCTIONS_MAX {
        return Err(wrong("32 functions are the most"));
    }
    let of = |functions: Vec<WrittenFunction>, direction| {
        let functions = functions.into_iter();
        functions.map(move |function| (function, direction))
    };
    let functions = of(read, Direction::Received).chain(of(write, Direction::Sent));
    let functions: Result<_, _> = functions
        .map(|(function, direction)| {
            if !is_name(&function.name) {
                return Err(wrong(
                    "`name` is letters, digits and some signs, 64 at most",
                ));
            }
            Ok(Named {
                name: kept(function.name),
                offset: function.offset,
                direction,
                shape: match function.count {
                    Count::Returned => Shape::Returned,
                    Count::Fourth => Shape::OutFourth,
                    Count::Fifth => Shape::OutFifth,
                },
            })
        })
        .collect();
    let functions = functions?;
    Ok(Signature {
        library: kept(library),
        file,
        functions,
    })
}

/// They are shown with every record.
fn is_name(text: &str) -> bool {
    let is_part = |byte: u8| byte.is_ascii_alphanumeric() || b"_-+.: ".contains(&byte);
    (1..=64).contains(&text.len()) && text.bytes().all(is_part)
}

fn hex(text: &str) -> Option<Vec<u8>> {
    let digit = |byte: u8| char::from(byte).to_digit(16);
    let (pairs, rest) = text.as_bytes().as_chunks::<2>();
    if !rest.is_empty() || pairs.len() < 4 {
        return None;
    }
    let byte = |&[high, low]: &[u8; 2]| Some((digit(high)? << 4 | digit(low)?) as u8);
    pairs.iter().map(byte).collect()
}

fn plain(ports: Vec<u16>) -> Result<Vec<u16>, ConfigError> {
    let ports = BTreeSet::from_iter(ports);
    if ports.contains(&0) {
        return Err(ConfigError::NoPort);
    }
    match ports.len() {
        0..=PLAIN_MAX => Ok(ports.into_iter().collect()),
        count => Err(ConfigError::Plain(count)),
    }
}

fn ring_size(bytes: u64) -> Result<u32, ConfigError> {
    match u32::try_from(bytes) {
        Ok(size) if bytes.is_power_of_two() && (RING_MIN..=RING_MAX).contains(&bytes) => Ok(size),
        _ => Err(ConfigError::RingSize(bytes)),
    }
}

/// What was written, in flags or in a file.
#[derive(Clone, Debug, Default, PartialEq, clap::Args, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Settings {
    /// Watch this process and no other; it ends when the last of them has gone. Filters in the
    /// kernel, from the first byte
    #[arg(long, value_name = "N", help_heading = FILTERS, value_parser = clap::value_parser!(u32).range(1..))]
    pub pid: Option<Vec<u32>>,

    /// Watch processes whose main thread has this name (15 bytes are kept by the kernel). Filters in
    /// the kernel, from the first byte
    #[arg(long, value_name = "NAME", help_heading = FILTERS)]
    pub comm: Option<Vec<String>>,

    /// Watch processes whose executable's path matches: `*` and `?` as in a shell. Filters after the
    /// copy: the kernel does not know the path
    #[arg(long, value_name = "GLOB", help_heading = FILTERS)]
    pub exe: Option<Vec<String>>,

    /// Watch processes of this user. Filters in the kernel, from the first byte
    #[arg(long, value_name = "UID|NAME", help_heading = FILTERS)]
    pub uid: Option<Vec<Owner>>,

    /// Watch processes in this control group or below it: as in /proc/PID/cgroup, or its directory.
    /// Version 2 filters in the kernel, from the first byte; version 1 as --container does
    #[arg(long, value_name = "PATH", help_heading = FILTERS)]
    pub cgroup: Option<Vec<PathBuf>>,

    /// Watch processes of the container whose id begins so (4 characters or more), also one that starts
    /// later. Filters in the kernel, by a set that processes join when they start or call exec. A name (`*` and `?`
    /// as in a shell) filters after the copy: only the runtime knows it
    #[arg(long, value_name = "ID|NAME", help_heading = FILTERS)]
    pub container: Option<Vec<String>>,

    /// Watch processes of the pod of this name, with `*` and `?` as in a shell. Filters after the copy
    #[arg(long, value_name = "NAME", help_heading = FILTERS)]
    pub pod: Option<Vec<String>>,

    /// Watch processes of pods in this namespace, with `*` and `?` as in a shell. Filters after the copy
    #[arg(long, value_name = "NAME", help_heading = FILTERS)]
    pub namespace: Option<Vec<String>>,

    /// Watch processes whose container or pod has this label. Filters after the copy
    #[arg(long, value_name = "KEY=VALUE", help_heading = FILTERS)]
    pub label: Option<Vec<String>>,

    /// Show connections with one of these ports at either end, too, which speak no TLS: 11434 is Ollama's. Up to 16
    #[arg(long, value_name = "PORT", value_delimiter = ',', value_parser = clap::value_parser!(u16).range(1..))]
    pub plain: Option<Vec<u16>>,

    /// Kinds of records to write [default: all; `data` only of connections that nothing decodes]
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    #[serde(default, deserialize_with = "names")]
    pub emit: Option<Vec<Kind>>,

    /// What of the plaintext to write [default: redacted]
    #[arg(long)]
    #[serde(default, deserialize_with = "name")]
    pub content: Option<Policy>,

    /// How much of each body to write: 4096, 64KiB, 10MiB, unlimited; what is longer is cut, and its length said
    /// [default: 1MiB]
    #[arg(long, value_name = "SIZE")]
    pub body_limit: Option<Size>,

    /// Form of the records [default: text]
    #[arg(long)]
    #[serde(default, deserialize_with = "name")]
    pub output: Option<Output>,

    /// Write records to FILE, created for its owner alone [default: stdout; with CMD: stderr]. This,
    /// --output, --emit and --color describe one output, which is then the only one: those of `[[sink]]` in
    /// the file of --config are left aside
    #[arg(short, long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,

    /// Keep everything that comes in in FILE, created for its owner alone: raw plaintext, for `vortex-agent
    /// replay`. Needs --content full
    #[arg(long, value_name = "FILE")]
    pub record: Option<PathBuf>,

    /// Buffer between kernel and agent: a power of two from 256KiB to 1GiB [default: 8MiB]
    #[arg(long, value_name = "SIZE")]
    pub ring_size: Option<Size>,

    /// Time between two `stats` records: 500ms, 10s, 5m [default: 10s]
    #[arg(long, value_name = "DUR")]
    pub stats_interval: Option<Interval>,

    /// Written `--no-hold` as a flag.
    #[arg(skip)]
    pub hold: Option<bool>,

    /// Keep what was found in files in this directory, and look there first: root's, and closed to
    /// others. It is made if its parent exists [default: not kept]
    #[arg(long, value_name = "DIR")]
    pub cache_directory: Option<PathBuf>,

    /// In a file only.
    #[arg(skip)]
    pub signature: Option<Vec<WrittenSignature>>,

    /// In a file only.
    #[arg(skip)]
    pub sink: Option<Vec<sink::Settings>>,

    /// In a file only.
    #[arg(skip)]
    pub metadata: Option<WrittenMetadata>,

    /// In a file only.
    #[arg(skip)]
    pub policy: Option<WrittenPolicy>,

    /// In a file only.
    #[arg(skip)]
    pub price: Option<Vec<WrittenPrice>>,

    /// In a file only.
    #[arg(skip)]
    pub findings: Option<WrittenFindings>,

    /// Colours in text output [default: auto]
    #[arg(long, value_name = "WHEN")]
    #[serde(default, deserialize_with = "name")]
    pub color: Option<Color>,

    /// In a file only.
    #[arg(skip)]
    pub limits: Option<WrittenLimits>,

    /// In a file only.
    #[arg(skip)]
    pub daemon: Option<WrittenDaemon>,
}

const FILTERS: &str = "Filters";

impl Settings {
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        Self::parse(&Self::text(path)?, path)
    }

    pub fn text(path: &Path) -> Result<String, ConfigError> {
        fs::read_to_string(path).map_err(|error| ConfigError::Read {
            path: path.to_owned(),
            error,
        })
    }

    pub fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            ConfigError::Parse {
                path: path.to_owned(),
                line: 1 + text.bytes().take(start).filter(|b| *b == b'\n').count(),
                why: unknown_key(error.message()).unwrap_or_else(|| error.message().to_owned()),
            }
        })
    }

    /// The outputs: those of `[[sink]]`, or the one that the settings without a table make.
    fn sinks(&self) -> Result<Vec<sink::Settings>, ConfigError> {
        let Some(sinks) = self.sink.as_ref().filter(|sinks| !sinks.is_empty()) else {
            return Ok(vec![self.one_sink()]);
        };
        if let Some(key) = self.key_of_one_sink() {
            return Err(ConfigError::KeyBesideSinks(key));
        }
        let mut names = BTreeSet::new();
        let mut paths = BTreeSet::new();
        for sink in sinks {
            if let Some(name) = &sink.name
                && !names.insert(name)
            {
                return Err(ConfigError::SinkTwice(name.clone()));
            }
            if let Type::File(file) = &sink.to
                && !paths.insert(&file.path)
            {
                return Err(ConfigError::SinkFileTwice(file.path.clone()));
            }
        }
        Ok(sinks.clone())
    }

    fn one_sink(&self) -> sink::Settings {
        let output = self.output.unwrap_or(Output::Text);
        let color = self.color.unwrap_or_default();
        let to = match self.output_file.clone() {
            Some(path) => Type::File(sink::File {
                path,
                output,
                color,
                rotate: None,
            }),
            None => Type::Stdout(sink::Stdout { output, color }),
        };
        sink::Settings {
            name: None,
            selection: Selection::new(self.emit.clone()),
            to,
        }
    }

    /// What only says how the one output is.
    fn key_of_one_sink(&self) -> Option<&'static str> {
        let keys = [
            ("output", self.output.is_some()),
            ("output-file", self.output_file.is_some()),
            ("emit", self.emit.is_some()),
            ("color", self.color.is_some()),
        ];
        let mut set = keys.into_iter().filter(|(_, is_set)| *is_set);
        set.next().map(|(key, _)| key)
    }

    /// Takes from `other` what is not set here. A list is taken or left as a whole; that of outputs is left where
    /// one output is described here.
    pub fn or(self, other: Self) -> Self {
        let sink = match self.key_of_one_sink() {
            Some(_) => self.sink,
            None => self.sink.or(other.sink),
        };
        Self {
            sink,
            pid: self.pid.or(other.pid),
            comm: self.comm.or(other.comm),
            exe: self.exe.or(other.exe),
            uid: self.uid.or(other.uid),
            cgroup: self.cgroup.or(other.cgroup),
            container: self.container.or(other.container),
            pod: self.pod.or(other.pod),
            namespace: self.namespace.or(other.namespace),
            label: self.label.or(other.label),
            plain: self.plain.or(other.plain),
            emit: self.emit.or(other.emit),
            content: self.content.or(other.content),
            body_limit: self.body_limit.or(other.body_limit),
            output: self.output.or(other.output),
            output_file: self.output_file.or(other.output_file),
            record: self.record.or(other.record),
            ring_size: self.ring_size.or(other.ring_size),
            stats_interval: self.stats_interval.or(other.stats_interval),
            hold: self.hold.or(other.hold),
            cache_directory: self.cache_directory.or(other.cache_directory),
            signature: self.signature.or(other.signature),
            metadata: self.metadata.or(other.metadata),
            policy: self.policy.or(other.policy),
            price: self.price.or(other.price),
            findings: self.findings.or(other.findings),
            color: self.color.or(other.color),
            limits: self.limits.or(other.limits),
            daemon: self.daemon.or(other.daemon),
        }
    }
}

/// What serde says of a key that there is not, in the words of this file. It says which there are: no second list of
/// them is kept.
fn unknown_key(message: &str) -> Option<String> {
    let (key, known) = message
        .strip_prefix("unknown field `")?
        .split_once("`, expected ")?;
    let known: Vec<&str> = known.split('`').skip(1).step_by(2).collect();
    let nearest = known
        .iter()
        .map(|name| (strsim::osa_distance(key, name), *name))
        .min()
        // Of a short key a third, lest anything is near.
        .filter(|(distance, _)| *distance <= 1 + key.len() / 4);
    let key = key.escape_debug();
    Some(match nearest {
        Some((_, name)) => format!("unknown key `{key}`, did you mean `{name}`?"),
        None => format!("unknown key `{key}`; there are {}", known.join(", ")),
    })
}

/// The table `[limits]`.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenLimits {
    pub memory: Option<Size>,
    pub cpu: Option<Cpus>,
    pub traced_cpu: Option<Cpus>,
}

/// A number of CPUs, as the time of them in each second.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "f64")]
pub struct Cpus(pub Duration);

impl TryFrom<f64> for Cpus {
    type Error = &'static str;

    fn try_from(cpus: f64) -> Result<Self, Self::Error> {
        // So is what is no number.
        if !(CPU_MIN..=CPU_MAX).contains(&cpus) {
            return Err("write a number of CPUs from 0.01 to 1024, as in `cpu = 0.5`");
        }
        Ok(Self(Duration::from_secs_f64(cpus)))
    }
}

/// The table `[daemon]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenDaemon {
    pub user: Option<String>,
    pub socket: Option<PathBuf>,
}

/// Functions of a library that we don't know.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenSignature {
    pub library: String,
    pub path: Option<String>,
    pub build_id: Option<String>,
    #[serde(default)]
    pub read: Vec<WrittenFunction>,
    #[serde(default)]
    pub write: Vec<WrittenFunction>,
}

#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenFunction {
    pub name: String,
    /// In the file.
    pub offset: u64,
    pub count: Count,
}

/// The sockets of container runtimes; what is not written is none.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenMetadata {
    #[serde(default)]
    pub cri: Vec<PathBuf>,
    #[serde(default)]
    pub docker: Vec<PathBuf>,
}

/// The table `[policy]`.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenPolicy {
    #[serde(default = "metadata_only", deserialize_with = "word")]
    pub default: Capture,
    #[serde(default = "all_of_content", deserialize_with = "word")]
    pub host: Capture,
    #[serde(default)]
    pub trust_annotation: bool,
    #[serde(default)]
    pub rule: Vec<WrittenRule>,
    #[serde(default)]
    pub program: Vec<WrittenProgram>,
}

/// A list is "or", both are "and", as of filters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenProgram {
    pub exe: Option<Vec<String>>,
    pub comm: Option<Vec<String>>,
    #[serde(deserialize_with = "word")]
    pub capture: Capture,
}

/// A list is "or", lists are "and", as of filters.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenRule {
    pub namespace: Option<Vec<String>>,
    pub pod: Option<Vec<String>>,
    pub container: Option<Vec<String>>,
    pub label: Option<Vec<String>>,
    #[serde(deserialize_with = "word")]
    pub capture: Capture,
}

fn metadata_only() -> Capture {
    Capture::Metadata
}

fn all_of_content() -> Capture {
    Capture::Full
}

/// The table `[findings]`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenFindings {
    pub baseline: Option<PathBuf>,
    pub learning: Option<Learning>,
    pub window: Option<Interval>,
    #[serde(default)]
    pub trusted: Vec<String>,
    #[serde(default)]
    pub severity: WrittenSeverities,
}

/// By rule, as in `finding.rule`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WrittenSeverities {
    #[serde(default, deserialize_with = "name")]
    pub secret_leaving: Option<Severity>,
    #[serde(default, deserialize_with = "name")]
    pub new_model_endpoint: Option<Severity>,
    #[serde(default, deserialize_with = "name")]
    pub new_mcp_server: Option<Severity>,
    #[serde(default, deserialize_with = "name")]
    pub new_model_user: Option<Severity>,
    #[serde(default, deserialize_with = "name")]
    pub large_upload: Option<Severity>,
    #[serde(default, deserialize_with = "name")]
    pub encoded_data: Option<Severity>,
}

impl WrittenSeverities {
    fn of(&self, rule: Rule) -> Option<Severity> {
        match rule {
            Rule::SecretLeaving => self.secret_leaving,
            Rule::NewModelEndpoint => self.new_model_endpoint,
            Rule::NewMcpServer => self.new_mcp_server,
            Rule::NewModelUser => self.new_model_user,
            Rule::LargeUpload => self.large_upload,
            Rule::EncodedData => self.encoded_data,
        }
    }
}

/// A time as of [`Interval`], or `none`: everything is usual or not from the first call on.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Learning(pub Duration);

impl TryFrom<String> for Learning {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        match &*text {
            "none" => Ok(Self(Duration::ZERO)),
            text => text.parse().map(|Interval(time)| Self(time)),
        }
    }
}

/// A table `[[price]]`: of a million tokens.
#[derive(Clone, Debug, PartialEq, Deserialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct WrittenPrice {
    pub provider: Option<String>,
    pub model: String,
    #[serde(default = "dollars")]
    pub currency: String,
    pub input: f64,
    pub cache_read: Option<f64>,
    pub cache_creation: Option<f64>,
    pub output: Option<f64>,
}

fn dollars() -> String {
    "USD".to_owned()
}

/// Where a call's number of bytes is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Count {
    Returned,
    Fourth,
    Fifth,
}

/// A user by number or by name.
#[derive(Clone, Debug, PartialEq, Eq, Deserialize)]
#[serde(untagged)]
pub enum Owner {
    Uid(u32),
    Name(String),
}

impl FromStr for Owner {
    type Err = std::convert::Infallible;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        Ok(text
            .parse()
            .map_or_else(|_| Self::Name(text.to_owned()), Self::Uid))
    }
}

/// A time with its unit: `500ms`, `10s`, `5m`, `1h`, `7d`. Not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Interval(pub Duration);

impl FromStr for Interval {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unit_at = text
            .find(|c: char| !c.is_ascii_digit())
            .ok_or("a unit is missing: 500ms, 10s, 5m, 1h or 7d")?;
        let (number, unit) = text.split_at(unit_at);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            "d" => 86_400_000,
            _ => return Err("write a whole number and ms, s, m, h or d"),
        };
        let total = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(milliseconds))
            .ok_or("write a whole number and ms, s, m, h or d")?;
        if total == 0 {
            return Err("zero is no interval");
        }
        Ok(Self(Duration::from_millis(total)))
    }
}

impl TryFrom<String> for Interval {
    type Error = &'static str;

    fn try_from(text: String) -> Result<Self, Self::Error> {
        text.parse()
    }
}

/// A number of bytes: `4096`, `64KiB`, `10MiB`, `1GiB`; `unlimited` is the largest there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "Written")]
pub struct Size(pub u64);

/// A file may have it as a number, too.
#[derive(Deserialize)]
#[serde(untagged)]
enum Written {
    Number(u64),
    Text(String),
}

impl Size {
    pub fn in_memory(self) -> usize {
        usize::try_from(self.0).unwrap_or(usize::MAX)
    }
}

impl FromStr for Size {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        const HOW: &str = "write a whole number of bytes, or one with KiB, MiB or GiB";
        if text == "unlimited" {
            return Ok(Self(u64::MAX));
        }
        let unit_at = text.find(|c: char| !c.is_ascii_digit());
        let (number, unit) = text.split_at(unit_at.unwrap_or(text.len()));
        let bytes: u64 = match unit {
            "" => 1,
            "KiB" => 1 << 10,
            "MiB" => 1 << 20,
            "GiB" => 1 << 30,
            _ => return Err(HOW),
        };
        let number: u64 = number.parse().map_err(|_| HOW)?;
        number.checked_mul(bytes).map(Self).ok_or(HOW)
    }
}

impl TryFrom<Written> for Size {
    type Error = &'static str;

    fn try_from(written: Written) -> Result<Self, Self::Error> {
        match written {
            Written::Number(bytes) => Ok(Self(bytes)),
            Written::Text(text) => text.parse(),
        }
    }
}

/// The file spells values as the flags do.
fn name<'de, D: Deserializer<'de>, T: ValueEnum>(from: D) -> Result<Option<T>, D::Error> {
    word(from).map(Some)
}

pub(crate) fn names<'de, D: Deserializer<'de>, T: ValueEnum>(
    from: D,
) -> Result<Option<Vec<T>>, D::Error> {
    let list = Vec::<String>::deserialize(from)?;
    let values = list
        .iter()
        .map(|text| value(text))
        .collect::<Result<_, _>>();
    values.map(Some).map_err(de::Error::custom)
}

/// The same of a list that was read already.
pub(crate) fn names_of<T: ValueEnum>(list: toml::Value) -> Result<Vec<T>, String> {
    let list = list.try_into::<Vec<String>>();
    let list = list.map_err(|error| error.message().to_owned())?;
    list.iter().map(|text| value(text)).collect()
}

/// A name that can't be left out.
pub(crate) fn word<'de, D: Deserializer<'de>, T: ValueEnum>(from: D) -> Result<T, D::Error> {
    let text = String::deserialize(from)?;
    value(&text).map_err(de::Error::custom)
}

fn value<T: ValueEnum>(text: &str) -> Result<T, String> {
    T::from_str(text, false).map_err(|_| {
        let valid: Vec<_> = T::value_variants()
            .iter()
            .filter_map(|v| Some(v.to_possible_value()?.get_name().to_owned()))
            .collect();
        format!(
            "`{}` is not one of {}",
            text.escape_debug(),
            valid.join(", ")
        )
    })
}

/// Misuse: the caller has to write something else.
#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    #[error("read the configuration {}: {error}", path.display())]
    Read {
        path: PathBuf,
        error: std::io::Error,
    },
    #[error("{}, line {line}: {why}", path.display())]
    Parse {
        path: PathBuf,
        line: usize,
        why: String,
    },
    #[error("--record keeps every secret that was sent: it needs --content full, too")]
    Record,
    #[error("--record keeps what [policy] withholds: leave one of them out")]
    RecordAndPolicy,
    #[error(
        "[[policy.rule]] number {0} says of no container: write a namespace, pod, container or label; `default` of \
         [policy] is for the others"
    )]
    Rule(usize),
    #[error(
        "[[policy.program]] number {0} says of no program: write `exe` or `comm`; `host` and `default` of [policy] are \
         for the others"
    )]
    Program(usize),
    #[error("--pid and CMD exclude each other: with CMD, it and its children are watched")]
    PidAndCommand,
    #[error("{0} needs a value that is not empty")]
    Empty(&'static str),
    #[error("{0} {1}: no path is like that, as paths begin with a slash: write */{1}")]
    NoPath(&'static str, String),
    #[error("--comm {name}: the kernel keeps {COMM_MAX} bytes of a name: use --comm {kept}")]
    LongComm { name: String, kept: String },
    #[error("{0}: {1} values, and the kernel side looks for {CHOICES} at most")]
    Choices(&'static str, usize),
    #[error("--uid {0}: there is no such user")]
    NoUser(String),
    #[error("--uid {name}: look up the user: {error}")]
    User { name: String, error: std::io::Error },
    #[error("--cgroup {}: write the path as in /proc/PID/cgroup, such as /system.slice", .0.display())]
    Cgroup(PathBuf),
    #[error("--label {0}: write it as KEY=VALUE")]
    Label(String),
    #[error("[metadata] {}: write the socket's path from the root", .0.display())]
    Socket(PathBuf),
    #[error("findings.baseline {}: the path has to be absolute", .0.display())]
    Baseline(PathBuf),
    #[error(
        "findings.trusted {written:?}: write a host in lower case, without scheme, port and path: \"{host}\""
    )]
    Trusted { written: String, host: String },
    #[error("price of {0:?}: {1}")]
    Price(String, &'static str),
    #[error("signature {0:?}: {1}")]
    Signature(String, &'static str),
    #[error(
        "`{0}` beside `[[sink]]`: it describes the one output that there is without `[[sink]]`; write it in the \
         tables of those that it is for"
    )]
    KeyBesideSinks(&'static str),
    #[error("sink `{0}`: there are two of this name; `name` another one")]
    SinkTwice(String),
    #[error("sink {}: two write to this file; `path` another one", .0.display())]
    SinkFileTwice(PathBuf),
    #[error("[daemon] socket = {0:?}: write an absolute path")]
    DaemonSocket(PathBuf),
    #[error("[daemon] user = {0:?}: there is no such user")]
    NoDaemonUser(String),
    #[error(
        "[limits] memory: it needs {least} MiB or more, or it is reached before anything comes: 64 MiB, and twice the \
         ring of {ring} KiB"
    )]
    Memory { least: u64, ring: u32 },
    #[error("--ring-size {0}: must be a power of two from {RING_MIN} to {RING_MAX}")]
    RingSize(u64),
    #[error("plain: ports are from 1 to 65535")]
    NoPort,
    #[error("--plain: {PLAIN_MAX} ports are the most, and these are {0}")]
    Plain(usize),
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<Settings, ConfigError> {
        Settings::parse(text, Path::new("vortex.toml"))
    }

    fn config(text: &str) -> Result<Config, ConfigError> {
        parse(text).and_then(Config::try_from)
    }

    #[test]
    fn printed_defaults_are_the_defaults() {
        let defaults = Config::try_from(Settings::default()).unwrap();
        assert_eq!(config(Config::DEFAULTS).unwrap(), defaults);
        assert_eq!(defaults.ring_size, 8 << 20);
        assert_eq!(defaults.content, Policy::Redacted);
        let [sink] = &defaults.sinks[..] else {
            panic!("{:?}", defaults.sinks)
        };
        assert_eq!(sink.selection.kinds.len(), 10);
        assert!(sink.selection.undecoded && !defaults.emit().contains(&Kind::Data));
        assert!(defaults.hold);
    }

    #[test]
    fn plain_ports() {
        let of = |text: &str| Config::try_from(parse(text).unwrap()).map(|config| config.plain);
        assert_eq!(of("").unwrap(), [0; 0]);
        assert_eq!(of("plain = [65535, 1, 1]").unwrap(), [1, 65535]);
        let ports = |count: u16| {
            let ports: Vec<String> = (1..=count).map(|port| port.to_string()).collect();
            of(&format!("plain = [{}]", ports.join(", ")))
        };
        assert_eq!(ports(16).unwrap().len(), 16);
        let refused = |refused: Result<Vec<u16>, ConfigError>| refused.unwrap_err().to_string();
        assert!(refused(ports(17)).contains("16 ports are the most"));
        assert!(refused(of("plain = [0]")).contains("from 1 to 65535"));
        assert!(parse("plain = [65536]").is_err());
        let config = |text: &str| Config::try_from(parse(text).unwrap()).unwrap();
        let (now, kept) = config("plain = [80]").change(config("plain = [80, 81]"), false);
        assert_eq!((&now.plain[..], &kept[..]), (&[80][..], &["plain"][..]));
    }

    /// A key that is commented out must be right, too.
    #[test]
    fn printed_examples_are_valid() {
        let examples: String = Config::DEFAULTS
            .lines()
            .filter_map(|line| {
                line.strip_prefix("#")
                    .or(line.starts_with('[').then_some(line))
            })
            .filter(|line| line.starts_with("[d") || line.contains(" = ") && !line.starts_with(' '))
            .map(|line| format!("{line}\n"))
            .collect();
        let settings = parse(&examples).unwrap();
        assert!(settings.output_file.is_some() && settings.record.is_some());
        assert!(settings.daemon.is_some_and(|daemon| daemon.user.is_some()));
    }

    /// The keys of a table, as serde lists them for a wrong one.
    fn keys(table: &str) -> BTreeSet<String> {
        let error = toml::from_str::<Settings>(&format!("{table}\nno-such-key = 1")).unwrap_err();
        let (_, known) = error.message().split_once("expected ").unwrap();
        let known = known.split('`').skip(1).step_by(2);
        known.map(str::to_owned).collect()
    }

    #[track_caller]
    fn check_schema(schema: &serde_json::Value, table: &str) {
        let properties = schema["properties"].as_object().expect("a table");
        let listed: BTreeSet<String> = properties.keys().cloned().collect();
        assert_eq!(listed, keys(table), "{table:?}");
        assert_eq!(schema["additionalProperties"], false, "{table:?}");
        for (key, what) in properties {
            assert!(what["description"].is_string(), "{key} says nothing");
        }
    }

    #[test]
    fn the_schema_has_the_keys_of_the_file() {
        let schema: serde_json::Value = serde_json::from_str(Config::SCHEMA).unwrap();
        check_schema(&schema, "");
        check_schema(&schema["properties"]["daemon"], "[daemon]");
        check_schema(&schema["properties"]["limits"], "[limits]");
        check_schema(&schema["properties"]["metadata"], "[metadata]");
        let policy = &schema["properties"]["policy"];
        check_schema(policy, "[policy]");
        let rule = &policy["properties"]["rule"]["items"];
        check_schema(rule, "[[policy.rule]]\ncapture = \"none\"");
        let program = &policy["properties"]["program"]["items"];
        check_schema(program, "[[policy.program]]\ncapture = \"none\"");
        let findings = &schema["properties"]["findings"];
        check_schema(findings, "[findings]");
        let severity = &findings["properties"]["severity"];
        check_schema(severity, "[findings.severity]");
        let price = &schema["properties"]["price"]["items"];
        check_schema(price, "[[price]]\nmodel = \"a\"\ninput = 1.0");
        let signature = &schema["properties"]["signature"]["items"];
        check_schema(signature, "[[signature]]");
        let function = &schema["$defs"]["function"];
        check_schema(
            function,
            "[[signature]]\nlibrary = \"a\"\n[[signature.read]]",
        );
        let file = "[[sink]]\ntype = \"file\"\npath = \"/a\"\n";
        check_schema(&schema["$defs"]["rotate"], &format!("{file}[sink.rotate]"));
        for (name, table) in [
            ("stdout", "[[sink]]\ntype = \"stdout\""),
            ("file", file),
            #[cfg(feature = "otlp")]
            (
                "otlp",
                "[[sink]]\ntype = \"otlp\"\nendpoint = \"http://a:1\"",
            ),
            #[cfg(feature = "prometheus")]
            ("prometheus", "[[sink]]\ntype = \"prometheus\""),
        ] {
            let mut schema = schema["$defs"][name].clone();
            let properties = schema["properties"].as_object_mut().unwrap();
            // Of every sink.
            assert!(properties.remove("type").unwrap()["const"] == name);
            assert!(properties.remove("name").is_some());
            assert_eq!(properties.remove("emit").is_some(), name != "prometheus");
            check_schema(&schema, table);
        }
    }

    #[test]
    fn what_is_shipped_is_valid() {
        for text in [
            include_str!("../../deploy/debian/config.toml"),
            include_str!("../../deploy/kubernetes/base/config.toml"),
            #[cfg(feature = "otlp")]
            include_str!("../../deploy/kubernetes/overlays/otlp/config.toml"),
            #[cfg(feature = "prometheus")]
            include_str!("../../deploy/kubernetes/overlays/prometheus/config.toml"),
        ] {
            config(text).expect(text);
        }
    }

    #[test]
    fn the_schema_has_the_words_of_the_file() {
        let schema: serde_json::Value = serde_json::from_str(Config::SCHEMA).unwrap();
        let of = |words: &serde_json::Value| -> Vec<String> {
            let words = words["enum"].as_array().expect("words").iter();
            words
                .map(|word| word.as_str().unwrap().to_owned())
                .collect()
        };
        fn known<T: ValueEnum>() -> Vec<String> {
            let values = T::value_variants().iter();
            let names = values.filter_map(|value| value.to_possible_value());
            names.map(|name| name.get_name().to_owned()).collect()
        }
        let properties = &schema["properties"];
        assert_eq!(of(&schema["$defs"]["kinds"]["items"]), known::<Kind>());
        assert_eq!(of(&properties["content"]), known::<Policy>());
        assert_eq!(of(&schema["$defs"]["capture"]), known::<Capture>());
        assert_eq!(of(&schema["$defs"]["severity"]), known::<Severity>());
        assert_eq!(of(&properties["output"]), known::<Output>());
        assert_eq!(of(&properties["color"]), known::<Color>());
        for count in of(&schema["$defs"]["function"]["properties"]["count"]) {
            let text = format!(
                "[[signature]]\nlibrary = \"a\"\nread = [{{ name = \"r\", offset = 1, count = \"{count}\" }}]"
            );
            parse(&text).unwrap();
        }
    }

    #[test]
    fn a_cause_is_said_once() {
        let missing = Settings::read(Path::new("/no/such/file")).unwrap_err();
        let error = std::io::Error::from_raw_os_error(5);
        let name = "a".to_owned();
        for error in [missing, ConfigError::User { name, error }] {
            let said = format!("{:#}", anyhow::Error::from(error));
            assert_eq!(said.matches("(os error").count(), 1, "{said}");
        }
    }

    /// Each key is one that changes or one that is named: none changes in silence to what it was.
    #[test]
    fn what_can_not_change_is_named() {
        let old = config("emit = [\"http\"]").unwrap();
        for (text, name) in [
            ("pid = [1]", Some("pid")),
            ("comm = [\"a\"]", None),
            ("exe = [\"/a\"]", None),
            ("uid = [1]", None),
            ("cgroup = [\"/a\"]", None),
            ("container = [\"abcd\"]", None),
            ("emit = [\"gap\"]", None),
            ("content = \"none\"", None),
            ("content = \"full\"", Some("content")),
            ("body-limit = 1", None),
            ("output = \"json\"", Some("sink")),
            ("output-file = \"a\"", Some("sink")),
            ("ring-size = \"1MiB\"", Some("ring-size")),
            ("stats-interval = \"1s\"", None),
            ("hold = false", Some("hold")),
            ("cache-directory = \"/a\"", Some("cache-directory")),
            ("color = \"never\"", Some("sink")),
            ("[limits]\ncpu = 0.5\nmemory = \"1GiB\"", None),
            ("[limits]\ntraced-cpu = 0.5", Some("limits.traced-cpu")),
            ("[daemon]\nuser = \"a\"", Some("daemon")),
            ("[metadata]", Some("metadata")),
            ("[policy]", None),
            ("[findings]\nlearning = \"2d\"", None),
            ("[findings]\nbaseline = \"/a\"", Some("findings.baseline")),
            ("pod = [\"a\"]", None),
        ] {
            let new = match text.starts_with("emit") {
                true => config(text).unwrap(),
                false => config(&format!("emit = [\"http\"]\n{text}")).unwrap(),
            };
            let (changed, kept) = old.change(new.clone(), true);
            assert_eq!(kept, Vec::from_iter(name), "{text:?}");
            assert_eq!(changed == old, name.is_some(), "{text:?}");
            assert_eq!(changed == new, name.is_none(), "{text:?}");
        }
        let (_, kept) = config("content = \"none\"")
            .unwrap()
            .change(config("").unwrap(), true);
        assert_eq!(kept, ["content"]);
        // Where nobody can be asked for names: no part of them.
        for (text, is_kept) in [
            ("container = [\"abcd\"]", false),
            ("container = [\"abcd\", \"web\"]", true),
            ("container = [\"abcd\"]\nlabel = [\"a=b\"]", true),
            ("exe = [\"/a\"]", false),
        ] {
            let new = config(text).unwrap();
            let (changed, kept) = config("").unwrap().change(new.clone(), false);
            let name = "container, pod, namespace or label";
            assert_eq!(kept, Vec::from_iter(is_kept.then_some(name)), "{text:?}");
            assert_eq!(changed == new, !is_kept, "{text:?}");
            assert_eq!(changed == config("").unwrap(), is_kept, "{text:?}");
        }
        let named = config("namespace = [\"a\"]").unwrap();
        let (changed, kept) = named.change(config("").unwrap(), false);
        assert!(kept.is_empty() && changed.filter.names.is_empty());
        let (changed, kept) = config("emit = [\"gap\"]").unwrap().change(old, true);
        assert_eq!((kept, changed.emit().len()), (vec!["emit"], 1));
        // Of a policy only what it says, where all is shown; and none where all is recorded.
        for (old, new, name) in [
            (
                "content = \"full\"",
                "content = \"full\"\n[policy]",
                Some("policy"),
            ),
            (
                "content = \"full\"\n[policy]",
                "content = \"full\"",
                Some("policy"),
            ),
            (
                "content = \"full\"\n[policy]",
                "content = \"full\"\n[policy]\ndefault = \"none\"",
                None,
            ),
            ("[policy]\ndefault = \"none\"", "", None),
        ] {
            let (_, kept) = config(old).unwrap().change(config(new).unwrap(), true);
            assert_eq!(kept, Vec::from_iter(name), "{old:?} {new:?}");
        }
        let recording = config("content = \"full\"\nrecord = \"f\"").unwrap();
        let (changed, kept) = recording.change(config("[policy]").unwrap(), true);
        assert!(
            kept.contains(&"record") && kept.contains(&"policy"),
            "{kept:?}"
        );
        assert_eq!(changed.policy, None);
    }

    #[test]
    fn a_daemon_has_a_socket_of_its_own() {
        let daemon = config("").unwrap().daemon;
        assert_eq!(
            (daemon.user, daemon.socket.as_path()),
            (None, Path::new(DAEMON_SOCKET))
        );
        let daemon = config("[daemon]\nuser = \"nobody\"\nsocket = \"/run/a\"")
            .unwrap()
            .daemon;
        assert_eq!(daemon.user.as_deref(), Some("nobody"));
        assert_eq!(daemon.socket, Path::new("/run/a"));
    }

    #[test]
    fn limits_are_what_was_written() {
        let limits = |text: &str| config(text).unwrap().limits;
        assert_eq!(limits(""), Limits::default());
        assert_eq!(
            limits("[limits]\nmemory = \"80MiB\"\ncpu = 0.25"),
            Limits {
                memory: Some(80 << 20),
                cpu: Some(Duration::from_millis(250)),
            }
        );
        assert_eq!(
            limits("[limits]\ncpu = 2").cpu,
            Some(Duration::from_secs(2))
        );
        assert_eq!(limits("[limits]\ncpu = 0.01").memory, None);
        let traced = |text: &str| config(text).unwrap().traced_cpu;
        assert_eq!((traced(""), traced("[limits]\ncpu = 1")), (None, None));
        assert_eq!(
            traced("[limits]\ntraced-cpu = 0.05"),
            Some(Duration::from_millis(50))
        );
    }

    #[test]
    fn prices_of_models() {
        let text = "[[price]]\nmodel = \"gpt*\"\ninput = 2\n[[price]]\nprovider = \"a\"\nmodel = \"b\"\n\
            currency = \"EUR\"\ninput = 3.0\ncache-read = 0.3\ncache-creation = 3.75\noutput = 15.0";
        let plain = Price {
            provider: None,
            model: "gpt*".to_owned(),
            currency: "USD",
            input: 2.0,
            cache_read: 2.0,
            cache_creation: 2.0,
            output: 0.0,
        };
        let whole = Price {
            provider: Some("a".to_owned()),
            model: "b".to_owned(),
            currency: "EUR",
            input: 3.0,
            cache_read: 0.3,
            cache_creation: 3.75,
            output: 15.0,
        };
        assert_eq!(config(text).unwrap().prices, Prices(vec![plain, whole]));
    }

    #[test]
    fn signatures() {
        let text = "[[signature]]\nlibrary = \"private\"\nbuild-id = \"0aFF0102\"\n\
            read = [{ name = \"r\", offset = 0x10, count = \"returned\" }]\n\
            write = [{ name = \"w\", offset = 32, count = \"fifth\" }]\n";
        let [signature] = &config(text).unwrap().signatures[..] else {
            panic!()
        };
        assert_eq!(signature.library, "private");
        assert_eq!(signature.file, Which::BuildId(vec![0x0a, 0xff, 1, 2]));
        let functions = signature.functions.iter();
        let functions: Vec<_> = functions
            .map(|named| (named.name, named.offset, named.direction, named.shape))
            .collect();
        assert_eq!(
            functions,
            [
                ("r", 16, Direction::Received, Shape::Returned),
                ("w", 32, Direction::Sent, Shape::OutFifth)
            ]
        );
    }

    /// What only a runtime knows is not for the kernel, nor is an id beside it.
    #[test]
    fn containers_by_id_and_by_name() {
        let filter = |text: &str| config(text).unwrap().filter;
        let ids = filter("container = [\"c0ffee\", \"cafe-1\"]");
        assert_eq!(ids.containers, ["c0ffee", "cafe-1"]);
        assert!(ids.names.is_empty());
        let both = filter("container = [\"c0ffee\", \"db\", \"web-*\"]");
        assert!(both.containers.is_empty());
        assert_eq!(both.names.ids, ["c0ffee"]);
        assert_eq!(both.names.containers, ["db", "web-*"]);
        // An id still filters in the kernel where a namespace is asked for as well.
        let more = filter("container = [\"c0ffee\"]\nnamespace = [\"shop\"]");
        assert_eq!(more.containers, ["c0ffee"]);
        assert_eq!(more.names.namespaces, ["shop"]);
    }

    #[test]
    fn sockets_of_runtimes() {
        let sockets = |text: &str| config(text).unwrap().runtimes;
        assert_eq!(sockets(""), None);
        assert!(sockets("[metadata]").is_some_and(|sockets| sockets.is_empty()));
        let named = sockets("[metadata]\ncri = [\"/run/a.sock\"]\n").unwrap();
        assert_eq!(named.cri, [Path::new("/run/a.sock")]);
    }

    #[test]
    fn policies() {
        let policy = |text: &str| config(text).unwrap().policy;
        assert_eq!(policy(""), None);
        let bare = policy("[policy]").unwrap();
        assert_eq!(
            (bare.default, bare.host),
            (Capture::Metadata, Capture::Full)
        );
        assert!(bare.rules.is_empty() && bare.programs.is_empty() && !bare.trusts_annotation);
        let some = policy(
            "[policy]\ndefault = \"redacted\"\nhost = \"none\"\ntrust-annotation = true\n\
             [[policy.rule]]\nnamespace = [\"kube-*\"]\nlabel = [\"a=b\"]\ncapture = \"none\"\n\
             [[policy.rule]]\ncontainer = [\"c0ffee\", \"web\"]\npod = [\"p\"]\ncapture = \"full\"\n",
        )
        .unwrap();
        assert_eq!(
            (some.default, some.host),
            (Capture::Redacted, Capture::None)
        );
        assert!(some.trusts_annotation);
        let [first, second] = &some.rules[..] else {
            panic!("{some:?}")
        };
        assert_eq!(
            (&*first.names.namespaces, first.capture),
            (&["kube-*".to_owned()][..], Capture::None)
        );
        assert_eq!(first.names.labels, [("a".to_owned(), "b".to_owned())]);
        assert_eq!(
            (&second.names.ids[0], &second.names.containers[0]),
            (&"c0ffee".into(), &"web".into())
        );
        assert_eq!(
            (&*second.names.pods[0], second.capture),
            ("p", Capture::Full)
        );
    }

    #[test]
    fn policies_of_programs() {
        let text =
            "[[policy.program]]\nexe = [\"/opt/*\"]\ncomm = [\"a\", \"b\"]\ncapture = \"none\"\n";
        let policy = config(text).unwrap().policy.unwrap();
        let [program] = &policy.programs[..] else {
            panic!("{policy:?}")
        };
        assert_eq!(program.exes, ["/opt/*"]);
        assert_eq!(program.comms, ["a", "b"]);
        assert_eq!(program.capture, Capture::None);
    }

    #[test]
    fn sinks() {
        let config = config(SINKS).unwrap();
        let [audit, screen] = &config.sinks[..] else {
            panic!("{:?}", config.sinks)
        };
        assert_eq!(audit.name.as_deref(), Some("audit"));
        assert_eq!(audit.selection.kinds, [Kind::Data, Kind::Gap].into());
        assert!(!audit.selection.undecoded && audit.reads() == Default::default());
        let Type::File(file) = &audit.to else {
            panic!("{audit:?}")
        };
        assert_eq!((&*file.path, file.output), (Path::new("/a"), Output::Json));
        assert!(screen.name.is_none() && screen.selection.undecoded && screen.reads().exchanges);
        let never = sink::Stdout {
            output: Output::Text,
            color: Color::Never,
        };
        assert_eq!(screen.to, Type::Stdout(never));
        assert_eq!(config.emit().len(), 11);
        assert!(config.is_undecoded_told() && config.is_live());
    }

    const SINKS: &str = "[[sink]]\nname = \"audit\"\ntype = \"file\"\npath = \"/a\"\n\
        emit = [\"data\", \"gap\"]\n[[sink]]\ntype = \"stdout\"\ncolor = \"never\"\n";

    #[test]
    fn a_flag_about_the_output_leaves_the_sinks_of_the_file_aside() {
        let file = parse(SINKS).unwrap();
        let with = |flags: Settings| Config::try_from(flags.or(file.clone())).unwrap().sinks;
        let flag = Settings::default;
        assert_eq!(with(flag()).len(), 2);
        let hold = Some(false);
        assert_eq!(with(Settings { hold, ..flag() }).len(), 2);
        for flags in [
            Settings {
                output: Some(Output::Json),
                ..flag()
            },
            Settings {
                output_file: Some("/b".into()),
                ..flag()
            },
            Settings {
                emit: Some(vec![Kind::Gap]),
                ..flag()
            },
            Settings {
                color: Some(Color::Never),
                ..flag()
            },
        ] {
            let alone = Config::try_from(flags.clone()).unwrap().sinks;
            assert_eq!(with(flags), alone);
        }
    }

    #[test]
    fn flags_win_over_the_file() {
        let file = parse("ring-size = 262144\nuid = [0, \"root\"]\ncontent = \"full\"\n").unwrap();
        let flags = Settings {
            content: Some(Policy::None),
            ..Settings::default()
        };
        let config = Config::try_from(flags.or(file)).unwrap();
        assert_eq!(config.content, Policy::None);
        assert_eq!(config.ring_size, 262144);
        assert_eq!(config.filter.uids, [0, 0]);
    }

    #[test]
    fn errors_name_key_line_and_way_out() {
        for (text, parts) in [
            (
                "\n\ncolour = \"never\"\n",
                &["line 3", "unknown key `colour`, did you mean `color`?"][..],
            ),
            ("\nemti = [\"gap\"]", &["line 2", "did you mean `emit`?"]),
            ("x = 1", &["unknown key `x`; there are pid, comm"]),
            (
                "[daemon]\n\nsoket = \"/a\"",
                &["line 3", "`soket`, did you mean `socket`?"],
            ),
            ("[daemon]\nsocket = \"a\"", &["absolute"]),
            ("[limits]\ncpu = 0", &["line 2", "0.01 to 1024"]),
            ("[limits]\ntraced-cpu = 0", &["line 2", "0.01 to 1024"]),
            ("[limits]\ncpu = -1.5", &["line 2", "0.01 to 1024"]),
            ("[limits]\ncpu = nan", &["line 2", "0.01 to 1024"]),
            ("[limits]\ncpu = inf", &["line 2", "0.01 to 1024"]),
            ("[limits]\ncpu = \"half\"", &["line 2", "half"]),
            ("[limits]\nmemory = -1", &["line 2"]),
            ("[limits]\nmemory = 0", &["memory", "80 MiB"]),
            ("[limits]\nmemory = \"79MiB\"", &["80 MiB", "8192 KiB"]),
            (
                "ring-size = \"1GiB\"\n[limits]\nmemory = \"2GiB\"",
                &["2112 MiB"],
            ),
            ("pid = [\"x\"]", &["line 1"]),
            ("\nemit = [\"date\"]", &["line 2", "date", "data, http"]),
            ("content = \"some\"", &["line 1", "some", "redacted"]),
            ("record = \"f\"", &["--record", "--content full"]),
            (
                "record = \"f\"\ncontent = \"redacted\"",
                &["--content full"],
            ),
            ("stats-interval = \"10\"", &["line 1", "unit"]),
            ("ring-size = 65537", &["65537", "power of two"]),
            ("ring-size = 32768", &["power of two"]),
            ("ring-size = 2147483648", &["power of two"]),
            ("comm = [\"systemd-resolved\"]", &["--comm systemd-resolve"]),
            ("comm = [\"\"]", &["--comm"]),
            ("uid = [\"no-such-user-here\"]", &["no-such-user-here"]),
            ("cgroup = [\"/a/../b\"]", &["/proc/PID/cgroup"]),
            ("cgroup = [\"a\"]", &["/proc/PID/cgroup"]),
            ("container = [\"\"]", &["--container"]),
            ("label = [\"a\"]", &["--label a", "KEY=VALUE"]),
            ("label = [\"=a\"]", &["KEY=VALUE"]),
            ("pod = [\"\"]", &["--pod"]),
            ("exe = [\"\"]", &["--exe"]),
            ("exe = [\"curl\"]", &["--exe curl", "write */curl"]),
            (
                "[[policy.program]]\nexe = [\"bin/*\"]\ncapture = \"none\"",
                &["--exe bin/*", "write */bin/*"],
            ),
            (
                "[[policy.program]]\nexe = [\"\"]\ncapture = \"none\"",
                &["--exe", "not empty"],
            ),
            (
                "[[signature]]\nlibrary = \"a\"\npath = \"lib/a\"",
                &["signature \"a\"", "begins with `/`"],
            ),
            (
                "[[signature]]\nlibrary = \"a\"\npath = \"\"",
                &["signature \"a\"", "`path` or `build-id`"],
            ),
            (
                "[metadata]\ncri = [\"a.sock\"]",
                &["a.sock", "from the root"],
            ),
            ("[[sink]]\npath = \"/a\"", &["line 1", "sink", "type"]),
            (
                "hold = true\n[[sink]]\ntype = \"fil\"",
                &["line 2", "sink", "fil", "`file`"],
            ),
            (
                "[[sink]]\nname = \"a\"\ntype = \"file\"\npth = \"/a\"",
                &["sink `a`", "pth", "`path`"],
            ),
            (
                "[[sink]]\nname = \"a\"\ntype = \"file\"\npath = \"/a\"\nrotate = { keep = 3 }",
                &["sink `a`", "`rotate`", "`age`"],
            ),
            (
                "[[sink]]\nname = \"a\"\ntype = \"stdout\"\nemit = [\"date\"]",
                &["sink `a`", "`emit`", "date", "data, http"],
            ),
            (
                "[[sink]]\nname = \"a\"\ntype = \"stdout\"\ncolor = \"red\"",
                &["sink `a`", "red", "always"],
            ),
            (
                "[[sink]]\nname = \"\"\ntype = \"stdout\"",
                &["sink", "`name`"],
            ),
            (
                "output = \"json\"\n[[sink]]\ntype = \"stdout\"",
                &["`output`", "[[sink]]"],
            ),
            (
                "[[sink]]\nname = \"a\"\ntype = \"stdout\"\n\
                 [[sink]]\nname = \"a\"\ntype = \"file\"\npath = \"/a\"",
                &["sink `a`", "two of this name"],
            ),
            (
                "[[sink]]\ntype = \"file\"\npath = \"/a\"\n[[sink]]\ntype = \"file\"\npath = \"/a\"",
                &["sink /a", "`path`"],
            ),
            ("[metadata]\nsocket = []", &["line 2", "socket"]),
            (
                "[policy]\ndefault = \"some\"",
                &["line 2", "some", "metadata"],
            ),
            ("[policy]\ntrust = true", &["line 2", "`trust`"]),
            ("[[policy.rule]]\npod = [\"a\"]", &["line 1", "capture"]),
            (
                "[[policy.rule]]\ncapture = \"none\"",
                &["number 1", "namespace, pod"],
            ),
            (
                "[[policy.rule]]\nlabel = [\"a\"]\ncapture = \"none\"",
                &["--label a", "KEY=VALUE"],
            ),
            (
                "[[policy.program]]\ncapture = \"none\"",
                &["[[policy.program]]", "number 1", "exe"],
            ),
            (
                "record = \"f\"\ncontent = \"full\"\n[policy]",
                &["--record", "[policy]"],
            ),
            ("[[price]]\ninput = 1.0", &["line 1", "`model`"]),
            (
                "[[price]]\nmodel = \"gpt\"\ninput = -1.0",
                &["price of \"gpt\"", "million tokens"],
            ),
            (
                "[[price]]\nmodel = \"gpt\"\ninput = nan",
                &["price of \"gpt\"", "million tokens"],
            ),
            (
                "[[price]]\nmodel = \"gpt\"\ninput = 1.0\ncurrency = \"USDT\"",
                &["price of \"gpt\"", "\"USD\""],
            ),
            (
                "[[price]]\nmodel = \"gpt\"\ninput = 1.0\ncurrency = \"$\"",
                &["price of \"gpt\"", "\"USD\""],
            ),
            (
                "[[signature]]\nlibrary = \"a\\u001b\"",
                &["signature", "`library`"],
            ),
            (
                "[[signature]]\nlibrary = \"a\"",
                &["\"a\"", "`path` or `build-id`"],
            ),
            (
                "[[signature]]\nlibrary = \"a\"\nbuild-id = \"12345\"",
                &["readelf -n"],
            ),
            (
                "[[signature]]\nlibrary = \"a\"\npath = \"/a\"\n\
                 read = [{ name = \"r\", offset = 1, count = \"returned\" }]",
                &["each direction"],
            ),
            (
                "[[signature]]\nlibrary = \"a\"\npath = \"/a\"\n\
                 read = [{ name = \"r\", offset = -1, count = \"returned\" }]",
                &["line 4"],
            ),
            (
                "[[signature]]\nlibrary = \"a\"\npath = \"/a\"\n\
                 read = [{ name = \"r\", offset = 1, count = \"sixth\" }]",
                &["line 4", "fifth"],
            ),
        ] {
            let error = config(text).expect_err(text).to_string();
            for part in parts {
                assert!(error.contains(part), "{text:?} gave {error:?}");
            }
            assert!(!error.contains('\n'), "{error:?} is one line");
        }
    }

    /// The kernel side has so many places for each.
    #[test]
    fn more_than_the_kernel_looks_for() {
        let listed = |count: u32| {
            let all: Vec<u32> = (0..count).collect();
            let config = parse(&format!("uid = {all:?}\ncomm = [\"a\"]\n")).unwrap();
            Config::try_from(config)
        };
        assert_eq!(listed(CHOICES).unwrap().filter.uids.len(), 1024);
        let error = listed(CHOICES + 1).unwrap_err().to_string();
        assert_eq!(
            error,
            "--uid: 1025 values, and the kernel side looks for 1024 at most"
        );
    }

    /// What hosts are compared with has no port, and what to write is said.
    #[test]
    fn trusted_hosts_are_hosts_alone() {
        for host in [
            "vault.example.com",
            "localhost",
            "my_host-1",
            "10.0.0.5",
            "::1",
            "2001:db8::1",
        ] {
            let config = config(&format!("[findings]\ntrusted = [{host:?}]")).unwrap();
            assert_eq!(config.findings.trusted, [host]);
        }
        for (written, host) in [
            ("api.example.com:443", "api.example.com"),
            ("https://api.example.com", "api.example.com"),
            ("https://me@API.example.com:8443/v1?x=1", "api.example.com"),
            ("api.example.com/v1", "api.example.com"),
            ("API.example.com", "api.example.com"),
            ("*.example.com", "example.com"),
            (".example.com", "example.com"),
            ("10.0.0.5:80", "10.0.0.5"),
            ("[2001:db8::1]:443", "2001:db8::1"),
            ("[::1]", "::1"),
            ("2001:DB8::1", "2001:db8::1"),
            ("2001:db8:0::1", "2001:db8::1"),
            ("", "vault.example.com"),
            ("/", "vault.example.com"),
            ("a b", "vault.example.com"),
        ] {
            let error = config(&format!("[findings]\ntrusted = [{written:?}]")).unwrap_err();
            let expected = format!(
                "findings.trusted {written:?}: write a host in lower case, without scheme, port and path: {host:?}"
            );
            assert_eq!(error.to_string(), expected);
        }
    }

    #[test]
    fn intervals() {
        for (text, milliseconds) in [
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
            ("7d", Some(604_800_000)),
            ("0s", None),
            ("10", None),
            ("s", None),
            ("", None),
            ("-1s", None),
            ("1.5s", None),
            ("10 s", None),
            ("99999999999999999999s", None),
            ("9999999999999999999h", None),
        ] {
            let got = text.parse::<Interval>().ok().map(|i| i.0);
            assert_eq!(got, milliseconds.map(Duration::from_millis), "{text:?}");
        }
    }

    #[test]
    fn sizes_may_have_a_unit() {
        for (text, bytes) in [
            ("0", Some(0)),
            ("4096", Some(4096)),
            ("64KiB", Some(64 << 10)),
            ("10MiB", Some(10 << 20)),
            ("1GiB", Some(1 << 30)),
            ("unlimited", Some(u64::MAX)),
            ("", None),
            ("MiB", None),
            ("10MB", None),
            ("10 MiB", None),
            ("-1", None),
            ("1.5MiB", None),
            ("99999999999999GiB", None),
        ] {
            let got = text.parse::<Size>().ok().map(|size| size.0);
            assert_eq!(got, bytes, "{text:?}");
        }
        let limit = |line: &str| parse(line).map(|settings| settings.body_limit);
        assert_eq!(limit("body-limit = 5").unwrap(), Some(Size(5)));
        assert_eq!(limit("body-limit = \"5KiB\"").unwrap(), Some(Size(5120)));
        limit("body-limit = \"much\"").unwrap_err();
    }
}
