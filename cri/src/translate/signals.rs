//! The stop signal: the protocol's names, an image's text, the kernel's number. See `signal(7)`.

use crate::error::Error;
use crate::v1::Signal;

/// The lowest real-time signal a program can use, and the highest. glibc keeps 32 and 33 for itself.
const RTMIN: u32 = 34;
/// See [`RTMIN`].
const RTMAX: u32 = 64;

/// Names of the standard signals on x86 and ARM with their numbers; of two names, the usual one first.
const STANDARD: &[(&str, u32)] = &[
    ("ABRT", 6),
    ("IOT", 6),
    ("ALRM", 14),
    ("BUS", 7),
    ("CHLD", 17),
    ("CLD", 17),
    ("CONT", 18),
    ("FPE", 8),
    ("HUP", 1),
    ("ILL", 4),
    ("INT", 2),
    ("IO", 29),
    ("POLL", 29),
    ("KILL", 9),
    ("PIPE", 13),
    ("PROF", 27),
    ("PWR", 30),
    ("QUIT", 3),
    ("SEGV", 11),
    ("STKFLT", 16),
    ("STOP", 19),
    ("SYS", 31),
    ("TERM", 15),
    ("TRAP", 5),
    ("TSTP", 20),
    ("TTIN", 21),
    ("TTOU", 22),
    ("URG", 23),
    ("USR1", 10),
    ("USR2", 12),
    ("VTALRM", 26),
    ("WINCH", 28),
    ("XCPU", 24),
    ("XFSZ", 25),
];

/// A signal that asks a container to stop.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StopSignal {
    number: u32,
}

impl Default for StopSignal {
    /// SIGTERM.
    fn default() -> Self {
        Self { number: 15 }
    }
}

impl StopSignal {
    /// The kernel's number.
    pub fn number(self) -> i32 {
        i32::try_from(self.number).unwrap_or_default()
    }

    /// As `ContainerStatus.stop_signal` reports it.
    pub fn to_v1(self) -> Signal {
        let name = STANDARD.iter().find(|(_, number)| *number == self.number).map_or_else(
            || match self.number {
                RTMIN => "RTMIN".to_owned(),
                RTMAX => "RTMAX".to_owned(),
                n if n <= RTMIN + 15 => format!("RTMINPLUS{}", n - RTMIN),
                n => format!("RTMAXMINUS{}", RTMAX.saturating_sub(n)),
            },
            |(name, _)| (*name).to_owned(),
        );
        Signal::from_str_name(&format!("SIGNAL_SIG{name}")).unwrap_or_default()
    }

    /// The request's choice; None: it leaves it to the image.
    pub(super) fn from_request(field: &str, raw: i32) -> Result<Option<Self>, Error> {
        let unknown = || Error::invalid(field, format!("{raw} is not a signal"));
        let signal = Signal::try_from(raw).map_err(|_| unknown())?;
        if signal == Signal::RuntimeDefault {
            return Ok(None);
        }
        let name = signal.as_str_name().strip_prefix("SIGNAL_").ok_or_else(unknown)?;
        by_name(name).map(Some).ok_or_else(unknown)
    }

    /// An image's `StopSignal`: `SIGTERM`, `TERM`, `15`, `SIGRTMIN+3`. None: empty, or not a signal, which has
    /// to be no reason to refuse the container.
    pub fn from_image(text: &str) -> Option<Self> {
        if let Ok(number) = text.parse::<u32>() {
            return (1..=RTMAX).contains(&number).then_some(Self { number });
        }
        by_name(text)
    }
}

impl std::fmt::Display for StopSignal {
    /// Such as `SIGTERM`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(self.to_v1().as_str_name().trim_start_matches("SIGNAL_"))
    }
}

/// A name with or without `SIG`; real-time ones as `RTMIN+3` or, as the protocol writes them, `RTMINPLUS3`.
fn by_name(text: &str) -> Option<StopSignal> {
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    if let Some((_, number)) = STANDARD.iter().find(|(known, _)| *known == name) {
        return Some(StopSignal { number: *number });
    }
    let offset = |rest: &str, sign: &str, word: &str| -> Option<u32> {
        match rest {
            "" => Some(0),
            rest => {
                let digits = rest.strip_prefix(sign).or_else(|| rest.strip_prefix(word))?;
                digits.bytes().all(|b| b.is_ascii_digit()).then(|| digits.parse().ok())?
            }
        }
    };
    let number = if let Some(rest) = name.strip_prefix("RTMIN") {
        RTMIN.checked_add(offset(rest, "+", "PLUS")?)?
    } else {
        RTMAX.checked_sub(offset(name.strip_prefix("RTMAX")?, "-", "MINUS")?)?
    };
    (RTMIN..=RTMAX).contains(&number).then_some(StopSignal { number })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_signal_of_the_protocol_has_a_number_and_comes_back() {
        for raw in 1..=65 {
            let signal = StopSignal::from_request("f", raw).unwrap().unwrap();
            assert!((1..=64).contains(&signal.number()), "{raw}: {}", signal.number());
            let again = StopSignal::from_request("f", signal.to_v1() as i32).unwrap().unwrap();
            assert_eq!(again, signal, "{raw}");
        }
        assert_eq!(StopSignal::from_request("f", 0).unwrap(), None);
        assert!(StopSignal::from_request("f", 66).is_err());
        assert!(StopSignal::from_request("f", -1).is_err());
    }

    #[test]
    fn an_image_may_write_its_signal_in_many_ways() {
        let number = |text: &str| StopSignal::from_image(text).map(StopSignal::number);
        for (text, expected) in [
            ("SIGTERM", Some(15)),
            ("term", Some(15)),
            ("15", Some(15)),
            ("SIGQUIT", Some(3)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMIN", Some(34)),
            ("SIGRTMAX-1", Some(63)),
            ("SIGRTMIN+31", None),
            ("SIGRTMIN+-3", None),
            ("SIGRTMIN+99999999999", None),
            ("0", None),
            ("65", None),
            ("", None),
            ("SIGNOTHING", None),
        ] {
            assert_eq!(number(text), expected, "{text}");
        }
        let signal = |text: &str| StopSignal::from_image(text).unwrap();
        assert_eq!(signal("USR1").to_string(), "SIGUSR1");
        assert_eq!(signal("37").to_v1(), Signal::Sigrtminplus3);
        assert_eq!(signal("63").to_v1(), Signal::Sigrtmaxminus1);
    }
}
