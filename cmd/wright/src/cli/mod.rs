//! The command line: flags and positionals as tools written for runc pass them.
//!
//! clap is not used: its dashes, its exit codes and its texts differ from what runc's callers match (`-bundle` and `--bundle` are one
//! flag there, a boolean takes `=false`, `--help` starts with `NAME:`, an unknown command exits with 3), and
//! building its command tree costs more than all of this does.

pub(crate) mod help;

/// What a flag takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Nothing, or `=true` and `=false`.
    Bool,
    /// A value; the last one counts.
    Text,
    /// A value each time.
    List,
}

/// One flag.
#[derive(Debug)]
pub(crate) struct Flag {
    /// The long name, by which it is asked for.
    pub name: &'static str,
    /// The one-letter name.
    pub short: Option<&'static str>,
    /// What it takes.
    pub kind: Kind,
    /// The value in force without it, as the help shows it.
    pub default: Option<&'static str>,
    /// One line of help.
    pub help: &'static str,
}

/// A flag without a value.
pub(crate) const fn switch(name: &'static str, short: Option<&'static str>, help: &'static str) -> Flag {
    Flag { name, short, kind: Kind::Bool, default: None, help }
}

/// A flag with a value.
pub(crate) const fn text(name: &'static str, short: Option<&'static str>, help: &'static str) -> Flag {
    Flag { name, short, kind: Kind::Text, default: None, help }
}

/// A flag that may be given several times.
pub(crate) const fn list(name: &'static str, short: Option<&'static str>, help: &'static str) -> Flag {
    Flag { name, short, kind: Kind::List, default: None, help }
}

impl Flag {
    /// The same flag with a default to show.
    pub(crate) const fn or(mut self, default: &'static str) -> Self {
        self.default = Some(default);
        self
    }
}

/// How many positionals a command takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Count {
    /// Exactly so many.
    Exactly(usize),
    /// So many or more.
    AtLeast(usize),
    /// From the first to the second.
    Between(usize, usize),
}

/// One verb.
pub(crate) struct Command {
    /// The verb.
    pub name: &'static str,
    /// One line: what it does.
    pub usage: &'static str,
    /// The positionals, as the help shows them.
    pub arguments: &'static str,
    /// More of help; may be empty.
    pub description: &'static str,
    /// Its flags.
    pub flags: &'static [Flag],
    /// How many positionals.
    pub count: Count,
    /// Whether flags may follow positionals; otherwise all that follows the first one is the verb's (`exec`, `ps`).
    pub interspersed: bool,
    /// What it does; the result is the exit code.
    pub run: fn(&crate::globals::Globals, &Parsed) -> anyhow::Result<u8>,
}

/// Why a command line makes no sense.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(crate) enum UsageError {
    #[error("flag provided but not defined: -{0}")]
    Unknown(String),
    #[error("flag needs an argument: -{0}")]
    NoValue(String),
    #[error("invalid boolean value {1:?} for -{0}: parse error")]
    NotBool(String, String),
    #[error("wright: {0:?} requires {1} argument(s)")]
    Count(String, String),
}

/// A command line taken apart.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Parsed {
    values: Vec<(&'static str, String)>,
    /// What is no flag, in order.
    pub positionals: Vec<String>,
    /// `--help` or `-h` was there.
    pub help: bool,
}

impl Parsed {
    /// Whether a switch is on.
    pub(crate) fn on(&self, name: &str) -> bool {
        self.text(name) == Some("true")
    }

    /// A flag's last value; None: it was not given.
    pub(crate) fn text(&self, name: &str) -> Option<&str> {
        self.values.iter().rev().find(|(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// A flag's last value as a number.
    pub(crate) fn number<T: std::str::FromStr>(&self, name: &str) -> anyhow::Result<Option<T>> {
        match self.text(name) {
            None => Ok(None),
            Some(value) => match value.parse() {
                Ok(number) => Ok(Some(number)),
                Err(_) => anyhow::bail!("invalid value {value:?} for flag -{name}: parse error"),
            },
        }
    }

    /// A flag's value as a path.
    pub(crate) fn path(&self, name: &str) -> Option<std::path::PathBuf> {
        self.text(name).filter(|value| !value.is_empty()).map(std::path::PathBuf::from)
    }

    /// All values of a flag, in order.
    pub(crate) fn list<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.values.iter().filter(move |(known, _)| *known == name).map(|(_, value)| value.as_str())
    }

    /// The container's id: every verb but `spec`, `list` and `features` has it first.
    pub(crate) fn id(&self) -> &str {
        self.positionals.first().map_or("", String::as_str)
    }
}

/// Takes flags and positionals apart. Without `interspersed` the first positional ends the flags; `--` always does.
pub(crate) fn parse(
    flags: &'static [Flag],
    interspersed: bool,
    arguments: impl IntoIterator<Item = String>,
) -> Result<Parsed, UsageError> {
    let mut parsed = Parsed::default();
    let mut arguments = arguments.into_iter();
    while let Some(argument) = arguments.next() {
        if argument == "--" {
            parsed.positionals.extend(arguments);
            break;
        }
        let Some(name) = flag_name(&argument) else {
            parsed.positionals.push(argument);
            if interspersed {
                continue;
            }
            parsed.positionals.extend(arguments);
            break;
        };
        let (name, value) = match name.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (name, None),
        };
        let Some(flag) = flags.iter().find(|flag| flag.name == name || flag.short == Some(name)) else {
            if matches!(name, "h" | "help") {
                parsed.help = true;
                continue;
            }
            return Err(UsageError::Unknown(name.to_owned()));
        };
        let value = match (flag.kind, value) {
            (Kind::Bool, None) => "true".to_owned(),
            (Kind::Bool, Some(value)) => {
                boolean(&value).ok_or_else(|| UsageError::NotBool(name.to_owned(), value))?.to_string()
            }
            (Kind::Text | Kind::List, Some(value)) => value,
            (Kind::Text | Kind::List, None) => {
                arguments.next().ok_or_else(|| UsageError::NoValue(name.to_owned()))?
            }
        };
        parsed.values.push((flag.name, value));
    }
    Ok(parsed)
}

/// `-x`, `--x`; a lone dash is a positional (the standard input).
fn flag_name(argument: &str) -> Option<&str> {
    let name = argument.strip_prefix("--").or_else(|| argument.strip_prefix('-'))?;
    (!name.is_empty() && !name.starts_with('-')).then_some(name)
}

/// As Go's strconv.ParseBool.
fn boolean(text: &str) -> Option<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    }
}

impl Count {
    /// Refuses a wrong number of positionals, in runc's words.
    pub(crate) fn check(self, verb: &str, given: usize) -> Result<(), UsageError> {
        let (fits, wanted) = match self {
            Self::Exactly(count) => (given == count, format!("exactly {count}")),
            Self::AtLeast(count) => (given >= count, format!("a minimum of {count}")),
            Self::Between(least, _) if given < least => (false, format!("a minimum of {least}")),
            Self::Between(_, most) => (given <= most, format!("a maximum of {most}")),
        };
        if fits { Ok(()) } else { Err(UsageError::Count(verb.to_owned(), wanted)) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FLAGS: [Flag; 4] = [
        text("bundle", Some("b"), ""),
        switch("detach", Some("d"), ""),
        list("env", Some("e"), ""),
        text("format", Some("f"), ""),
    ];

    fn words(line: &str) -> Vec<String> {
        line.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn every_spelling_of_a_flag_is_one() {
        for line in ["--bundle B id", "-bundle B id", "-b B id", "--bundle=B id", "-b=B id", "id --bundle B"]
        {
            let parsed = parse(&FLAGS, true, words(line)).unwrap();
            assert_eq!((parsed.text("bundle"), parsed.id()), (Some("B"), "id"), "{line}");
        }
    }

    #[test]
    fn the_last_value_counts_and_lists_keep_all() {
        let parsed = parse(&FLAGS, true, words("-b 1 -e A=1 -b 2 -e B=2 -d=false --detach")).unwrap();
        assert_eq!(parsed.text("bundle"), Some("2"));
        assert_eq!(parsed.list("env").collect::<Vec<_>>(), ["A=1", "B=2"]);
        assert!(parsed.on("detach"));
        assert!(!parse(&FLAGS, true, words("-d -d=0")).unwrap().on("detach"));
    }

    #[test]
    fn what_follows_the_id_of_exec_is_the_command() {
        let parsed = parse(&FLAGS, false, words("-d id ls -b --detach=x -- -")).unwrap();
        assert_eq!(parsed.positionals, words("id ls -b --detach=x -- -"));
        let parsed = parse(&FLAGS, true, words("id -- -b x")).unwrap();
        assert_eq!(parsed.positionals, words("id -b x"));
        assert_eq!(parse(&FLAGS, true, words("-")).unwrap().positionals, ["-"]);
    }

    #[test]
    fn nonsense_is_named() {
        assert_eq!(parse(&FLAGS, true, words("-x")), Err(UsageError::Unknown("x".into())));
        assert_eq!(parse(&FLAGS, true, words("-b")), Err(UsageError::NoValue("b".into())));
        let error = parse(&FLAGS, true, words("--detach=maybe")).unwrap_err();
        assert_eq!(error, UsageError::NotBool("detach".into(), "maybe".into()));
        let error = Count::Exactly(1).check("create", 0).unwrap_err().to_string();
        assert_eq!(error, "wright: \"create\" requires exactly 1 argument(s)");
    }
}
