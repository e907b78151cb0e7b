//! What was meant: flags and file become one `Config`, validated once.
//!
//! [`Settings`] is what somebody wrote, each of its fields optional. Flags win over the file, the file
//! over the defaults. After `Config::try_from` nobody asks again whether a value makes sense.

use std::{
    collections::BTreeSet,
    fs,
    path::{Component, Path, PathBuf},
    str::FromStr,
    time::Duration,
};

use clap::ValueEnum;
use serde::{Deserialize, Deserializer, de};

use agent_ebpf::{Direction, Shape};

use crate::{
    locate::{Named, Signature, Which},
    record::Kind,
    redact::Policy,
    user::User,
};

/// What was meant. Every value is valid.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub filter: Filter,
    pub emit: BTreeSet<Kind>,
    /// `data` of connections that nothing decodes is written, too: nobody chose kinds.
    pub undecoded: bool,
    pub content: Policy,
    /// So much of each body is written, in bytes.
    pub body_limit: usize,
    pub output: Output,
    /// `None`: stdout, or stderr if there is a CMD.
    pub output_file: Option<PathBuf>,
    /// A power of two.
    pub ring_size: u32,
    pub stats_interval: Duration,
    /// May a process of CMD's tree be stopped while a library it has just mapped is probed?
    pub hold: bool,
    /// Where what was found in files is kept for later runs.
    pub cache_directory: Option<PathBuf>,
    pub signatures: Vec<Signature>,
    pub color: Color,
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
    /// Beginnings of ids, at least [`CONTAINER_MIN`] bytes each.
    pub containers: Vec<String>,
}

/// For whom the output is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Output {
    /// For people
    Text,
    /// One JSON object a line
    Json,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Color {
    /// If the output is a terminal
    Auto,
    Always,
    Never,
}

impl Config {
    /// The defaults as a file for `--config`, with what each key means.
    pub const DEFAULTS: &'static str = include_str!("config.toml");
}

/// The kernel's TASK_COMM_LEN without the final NUL.
pub const COMM_MAX: usize = 15;
/// A shorter beginning would be shared by too many.
pub const CONTAINER_MIN: usize = 4;

/// Some of the largest records must fit.
const RING_MIN: u64 = 256 << 10;
const RING_MAX: u64 = 1 << 30;
const BODY_LIMIT: usize = 1 << 20;
const STATS_INTERVAL: Duration = Duration::from_secs(10);
/// Half of what the half takes for one file.
const FUNCTIONS_MAX: usize = 32;

impl TryFrom<Settings> for Config {
    type Error = ConfigError;

    fn try_from(settings: Settings) -> Result<Self, ConfigError> {
        let undecoded = settings.emit.is_none();
        let emit = settings.emit.map_or_else(
            // `data` would say once more what the others say.
            || {
                let all = Kind::value_variants().iter().copied();
                all.filter(|kind| *kind != Kind::Data).collect()
            },
            BTreeSet::from_iter,
        );
        Ok(Self {
            filter: Filter {
                pids: settings.pid.unwrap_or_default(),
                comms: each(settings.comm, comm)?,
                exes: each(settings.exe, glob)?,
                uids: each(settings.uid, uid)?,
                cgroups: each(settings.cgroup, cgroup)?,
                containers: each(settings.container, container)?,
            },
            emit,
            undecoded,
            content: settings.content.unwrap_or(Policy::Redacted),
            body_limit: settings.body_limit.unwrap_or(BODY_LIMIT),
            output: settings.output.unwrap_or(Output::Text),
            output_file: settings.output_file,
            ring_size: settings
                .ring_size
                .map_or(Ok(agent_ebpf::RING_BYTES), ring_size)?,
            stats_interval: settings
                .stats_interval
                .map_or(STATS_INTERVAL, |interval| interval.0),
            hold: settings.hold.unwrap_or(true),
            cache_directory: settings.cache_directory,
            signatures: each(settings.signature, signature)?,
            color: settings.color.unwrap_or(Color::Auto),
        })
    }
}

fn each<T, U>(
    list: Option<Vec<T>>,
    check: impl FnMut(T) -> Result<U, ConfigError>,
) -> Result<Vec<U>, ConfigError> {
    list.unwrap_or_default().into_iter().map(check).collect()
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

fn glob(pattern: String) -> Result<String, ConfigError> {
    if pattern.is_empty() {
        return Err(ConfigError::Empty("--exe"));
    }
    Ok(pattern)
}

fn uid(owner: Owner) -> Result<u32, ConfigError> {
    let name = match owner {
        Owner::Uid(uid) => return Ok(uid),
        Owner::Name(name) => name,
    };
    match User::named(&name) {
        Ok(Some(user)) => Ok(user.uid),
        Ok(None) => Err(ConfigError::NoUser(name)),
        Err(source) => Err(ConfigError::User { name, source }),
    }
}

fn cgroup(path: PathBuf) -> Result<PathBuf, ConfigError> {
    let plain = |c: Component<'_>| matches!(c, Component::RootDir | Component::Normal(_));
    if !path.is_absolute() || !path.components().all(plain) {
        return Err(ConfigError::Cgroup(path));
    }
    Ok(path)
}

/// An id as runtimes print it, shortened or not. A name would wait forever for a container.
fn container(id: String) -> Result<String, ConfigError> {
    // Fargate's have a number behind a hyphen.
    let is_part = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f' | b'-');
    if id.len() < CONTAINER_MIN || !id.bytes().all(is_part) {
        return Err(ConfigError::Container(id));
    }
    Ok(id)
}

/// Text that lives as long as the process, as a configuration does.
fn kept(text: String) -> &'static str {
    text.leak()
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
        (Some(path), None) if !path.is_empty() => Which::Path(path),
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

fn ring_size(bytes: u64) -> Result<u32, ConfigError> {
    match u32::try_from(bytes) {
        Ok(size) if bytes.is_power_of_two() && (RING_MIN..=RING_MAX).contains(&bytes) => Ok(size),
        _ => Err(ConfigError::RingSize(bytes)),
    }
}

/// What was written, in flags or in a file.
#[derive(Clone, Debug, Default, PartialEq, Eq, clap::Args, Deserialize)]
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
    /// later. Filters in the kernel, by a set that processes join when they start or call exec
    #[arg(long, value_name = "ID", help_heading = FILTERS)]
    pub container: Option<Vec<String>>,

    /// Kinds of records to write [default: all; `data` only of connections that nothing decodes]
    #[arg(long, value_name = "KIND", value_delimiter = ',')]
    #[serde(default, deserialize_with = "names")]
    pub emit: Option<Vec<Kind>>,

    /// What of the plaintext to write [default: redacted]
    #[arg(long)]
    #[serde(default, deserialize_with = "name")]
    pub content: Option<Policy>,

    /// How much of each body to write; what is longer is cut, and its length said [default: 1048576]
    #[arg(long, value_name = "BYTES")]
    pub body_limit: Option<usize>,

    /// Form of the records [default: text]
    #[arg(long)]
    #[serde(default, deserialize_with = "name")]
    pub output: Option<Output>,

    /// Write records to FILE, created for its owner alone [default: stdout; with CMD: stderr]
    #[arg(short, long, value_name = "FILE")]
    pub output_file: Option<PathBuf>,

    /// Buffer between kernel and agent: a power of two from 262144 to 1073741824 [default: 8388608]
    #[arg(long, value_name = "BYTES")]
    pub ring_size: Option<u64>,

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

    /// Colours in text output [default: auto]
    #[arg(long, value_name = "WHEN")]
    #[serde(default, deserialize_with = "name")]
    pub color: Option<Color>,
}

const FILTERS: &str = "Filters";

impl Settings {
    pub fn read(path: &Path) -> Result<Self, ConfigError> {
        let text = fs::read_to_string(path).map_err(|source| ConfigError::Read {
            path: path.to_owned(),
            source,
        })?;
        Self::parse(&text, path)
    }

    fn parse(text: &str, path: &Path) -> Result<Self, ConfigError> {
        toml::from_str(text).map_err(|error| {
            let start = error.span().map_or(0, |span| span.start);
            ConfigError::Parse {
                path: path.to_owned(),
                line: 1 + text.bytes().take(start).filter(|b| *b == b'\n').count(),
                why: error.message().to_owned(),
            }
        })
    }

    /// Takes from `other` what is not set here. A list is taken or left as a whole.
    pub fn or(self, other: Self) -> Self {
        Self {
            pid: self.pid.or(other.pid),
            comm: self.comm.or(other.comm),
            exe: self.exe.or(other.exe),
            uid: self.uid.or(other.uid),
            cgroup: self.cgroup.or(other.cgroup),
            container: self.container.or(other.container),
            emit: self.emit.or(other.emit),
            content: self.content.or(other.content),
            body_limit: self.body_limit.or(other.body_limit),
            output: self.output.or(other.output),
            output_file: self.output_file.or(other.output_file),
            ring_size: self.ring_size.or(other.ring_size),
            stats_interval: self.stats_interval.or(other.stats_interval),
            hold: self.hold.or(other.hold),
            cache_directory: self.cache_directory.or(other.cache_directory),
            signature: self.signature.or(other.signature),
            color: self.color.or(other.color),
        }
    }
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

/// A time with its unit: `500ms`, `10s`, `5m`, `1h`. Not zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize)]
#[serde(try_from = "String")]
pub struct Interval(pub Duration);

impl FromStr for Interval {
    type Err = &'static str;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let unit_at = text
            .find(|c: char| !c.is_ascii_digit())
            .ok_or("a unit is missing: 500ms, 10s, 5m or 1h")?;
        let (number, unit) = text.split_at(unit_at);
        let milliseconds = match unit {
            "ms" => 1,
            "s" => 1_000,
            "m" => 60_000,
            "h" => 3_600_000,
            _ => return Err("write a whole number and ms, s, m or h"),
        };
        let total = number
            .parse::<u64>()
            .ok()
            .and_then(|n| n.checked_mul(milliseconds))
            .ok_or("write a whole number and ms, s, m or h")?;
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

/// The file spells values as the flags do.
fn name<'de, D: Deserializer<'de>, T: ValueEnum>(from: D) -> Result<Option<T>, D::Error> {
    let text = String::deserialize(from)?;
    value(&text).map(Some).map_err(de::Error::custom)
}

fn names<'de, D: Deserializer<'de>, T: ValueEnum>(from: D) -> Result<Option<Vec<T>>, D::Error> {
    let list = Vec::<String>::deserialize(from)?;
    let values = list
        .iter()
        .map(|text| value(text))
        .collect::<Result<_, _>>();
    values.map(Some).map_err(de::Error::custom)
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
    #[error("read the configuration {}: {source}", path.display())]
    Read {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("{}, line {line}: {why}", path.display())]
    Parse {
        path: PathBuf,
        line: usize,
        why: String,
    },
    #[error("--pid and CMD exclude each other: with CMD, it and its children are watched")]
    PidAndCommand,
    #[error("{0} needs a value that is not empty")]
    Empty(&'static str),
    #[error("--comm {name}: the kernel keeps {COMM_MAX} bytes of a name: use --comm {kept}")]
    LongComm { name: String, kept: String },
    #[error("--uid {0}: there is no such user")]
    NoUser(String),
    #[error("--uid {name}: look up the user: {source}")]
    User {
        name: String,
        source: std::io::Error,
    },
    #[error("--cgroup {}: write the path as in /proc/PID/cgroup, such as /system.slice", .0.display())]
    Cgroup(PathBuf),
    #[error(
        "--container {0}: write the container's id, or at least {CONTAINER_MIN} characters of its \
         beginning, as `docker ps` or `crictl ps` shows it"
    )]
    Container(String),
    #[error("signature {0:?}: {1}")]
    Signature(String, &'static str),
    #[error("--ring-size {0}: must be a power of two from {RING_MIN} to {RING_MAX}")]
    RingSize(u64),
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
        assert_eq!(defaults.emit.len(), 10);
        assert!(defaults.undecoded && !defaults.emit.contains(&Kind::Data));
        assert!(defaults.hold);
    }

    /// A key that is commented out must be right, too.
    #[test]
    fn printed_examples_are_valid() {
        let examples: String = Config::DEFAULTS
            .lines()
            .filter_map(|line| line.strip_prefix("#"))
            .filter(|line| line.contains(" = ") && !line.starts_with(' '))
            .map(|line| format!("{line}\n"))
            .collect();
        let settings = parse(&examples).unwrap();
        assert!(settings.output_file.is_some());
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
            ("\n\ncolour = \"never\"\n", &["line 3", "colour"][..]),
            ("pid = [\"x\"]", &["line 1"]),
            ("\nemit = [\"date\"]", &["line 2", "date", "data, http"]),
            ("content = \"some\"", &["line 1", "some", "redacted"]),
            ("stats-interval = \"10\"", &["line 1", "unit"]),
            ("ring-size = 65537", &["65537", "power of two"]),
            ("ring-size = 32768", &["power of two"]),
            ("ring-size = 2147483648", &["power of two"]),
            ("comm = [\"systemd-resolved\"]", &["--comm systemd-resolve"]),
            ("comm = [\"\"]", &["--comm"]),
            ("uid = [\"no-such-user-here\"]", &["no-such-user-here"]),
            ("cgroup = [\"/a/../b\"]", &["/proc/PID/cgroup"]),
            ("cgroup = [\"a\"]", &["/proc/PID/cgroup"]),
            (
                "container = [\"\"]",
                &["--container", "4 characters", "docker ps"],
            ),
            (
                "container = [\"c0f\"]",
                &["--container c0f", "4 characters"],
            ),
            ("container = [\"my-web\"]", &["--container my-web", "id"]),
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

    #[test]
    fn intervals() {
        for (text, milliseconds) in [
            ("500ms", Some(500)),
            ("10s", Some(10_000)),
            ("5m", Some(300_000)),
            ("1h", Some(3_600_000)),
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
}
